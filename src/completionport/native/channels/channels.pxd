"""The life of an operation between its call and its packet, the same on each engine.

Unless it says otherwise a function here wants the channel's lock held.
"""

from .engine cimport Channel, ChannelKind, Engine, Operation, OperationQueue

cdef enum:
    NO_PACKET = -1   # of `submit_operation`: it succeeded at once, and its channel skips the port

# Constant. Not only the head of a queue is started, but all that have nothing to wait for.
cdef inline bint side_by_side(Channel* channel) noexcept nogil:
    return channel.beside != NULL


# Without the lock.
cdef Channel* channel_new(Engine* engine, int descriptor, ChannelKind kind) noexcept nogil
cdef void channel_init(Channel* channel, Engine* engine, int descriptor, ChannelKind kind) noexcept nogil
# Before anybody else knows it. 0 or ENOMEM.
cdef int channel_runs_side_by_side(Channel* channel) noexcept nogil
cdef Channel* channel_retain(Channel* channel) noexcept nogil
cdef void channel_release(Channel* channel) noexcept nogil
cdef int submit_operation(Channel* channel, Operation* operation) noexcept nogil
cdef int cancel_operations(Channel* channel, Operation* only) noexcept nogil
cdef void channel_close(Channel* channel, bint waits) noexcept nogil

# With the lock.
cdef OperationQueue* queue_of(Operation* operation) noexcept nogil
cdef Operation* pop_operation(OperationQueue* queue) noexcept nogil
cdef void remove_operation(OperationQueue* queue, Operation* operation) noexcept nogil
cdef void append_operation(OperationQueue* queue, Operation* operation) noexcept nogil
cdef void drop_result(Operation* operation) noexcept nogil
cdef void settle(Operation* operation, bint wake) noexcept nogil
cdef void finish_operation(Operation* operation, bint wake) noexcept nogil
cdef void carry_on(Operation* operation, bint wake) noexcept nogil
cdef void finish_notification(Operation* operation) noexcept nogil
cdef void run_queue(Channel* channel, OperationQueue* queue, bint wake) noexcept nogil
cdef void let_go_if_idle(Channel* channel) noexcept nogil
cdef int channel_take_descriptor(Channel* channel) noexcept nogil
cdef void abort_operation(Operation* operation) noexcept nogil
