"""The packet queue, the threads that wait for it, and the places of those that run.

Nothing here touches a Python object: every function runs with or without the GIL.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from .atomics cimport cp_mutex
from .guard cimport Guard, guard_enter, guard_leave, guard_wait_until_alone

ctypedef enum PacketKind:
    PACKET_POSTED     # a PostedPacket
    PACKET_OPERATION  # the first member of an Operation
    PACKET_STREAM     # in a Stream: a connection or a listening socket has something to tell

cdef struct Packet:
    Packet* next       # scheduler lock, while it is queued
    PacketKind kind    # constant

cdef struct PostedPacket:
    # The three references belong to the packet until it is taken.
    Packet packet
    void* transferred
    void* key
    void* overlapped

cdef struct Waiter:
    # One thread. All fields but `signal` and `held`: the lock of the scheduler it waits in.
    Waiter* newer
    Waiter* older
    bint on_stack
    bint signalled
    uint64_t arrival
    uint32_t signal         # futex word, atomic: 1 means wake up
    Scheduler* held         # own thread only: the port last used, one reference
    bint holds_place        # own thread only: a place of `held` is taken

cdef struct Scheduler:
    cp_mutex lock
    # Threads inside a call: the kernel's objects outlive them. `closed` is written under the lock.
    Guard guard
    int references          # atomic
    # The engine, constant after creation.
    void* engine
    int (*kernel_wait)(void* engine, int64_t deadline_ns) noexcept nogil
    void (*kernel_wake)(void* engine) noexcept nogil
    void (*kernel_submit)(void* engine) noexcept nogil
    # All below: lock.
    Packet* head
    Packet* tail
    PostedPacket* spare     # used PostedPackets, to be used again
    int spare_count
    Waiter* newest          # stack of waiting threads, the leader included
    Waiter* leader
    int concurrency
    int running             # threads that hold a place
    int woken               # signalled, not yet back under the lock
    int waiting
    uint64_t arrivals
    int64_t queued
    int64_t posted
    int64_t completed
    int64_t taken
    int64_t wakeups
    int since_kernel        # packets taken since the kernel was last looked at

ctypedef enum TakeStatus:
    TAKE_PACKET
    TAKE_TIMEOUT
    TAKE_CLOSED
    TAKE_INTERRUPTED

cdef struct Taken:
    # A packet as it leaves the queue; a PostedPacket's values are moved here.
    Packet* packet
    void* transferred
    void* key
    void* overlapped

cdef int64_t FOREVER
cdef int64_t POLL

cdef Scheduler* scheduler_new(int concurrency) noexcept nogil
cdef void scheduler_release(Scheduler* s) noexcept nogil
cdef void push(Scheduler* s, Packet* packet, bint wake) noexcept nogil
cdef bint post(Scheduler* s, void* transferred, void* key, void* overlapped) noexcept nogil
cdef void wake_threads(Scheduler* s) noexcept nogil
cdef bint take_ready(Scheduler* s, Taken* taken, bint more) noexcept nogil
cdef TakeStatus take(Scheduler* s, int64_t deadline_ns, Taken* taken) noexcept nogil
cdef void announce_close(Scheduler* s) noexcept nogil
cdef Packet* close_queue(Scheduler* s) noexcept nogil


cdef inline bint enter(Scheduler* s) noexcept nogil:
    """Begin a call that uses the engine; False when the port is closed."""
    return guard_enter(&s.guard)


cdef inline void leave(Scheduler* s) noexcept nogil:
    guard_leave(&s.guard)


cdef inline void wait_until_alone(Scheduler* s) noexcept nogil:
    guard_wait_until_alone(&s.guard)
