# cython: language_level=3, freethreading_compatible=True
"""The core of a port: its scheduler, its engine, its channels, and their end.

Handles hold the core, the `CompletionPort` holds the core, nothing in the core holds the
`CompletionPort`: so dropping the port is noticed at once, with operations under way too.
"""

import os
import sys

from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t
from libc.stdlib cimport free

from ..channels.channels cimport channel_close, channel_new, channel_release
from ..channels.engine cimport ERRANDS, Operation
from ..channels.streams cimport take_garbage
from ..engines.epoll cimport epoll_new
from ..engines.io_uring cimport io_uring_new
from ..pool.offload cimport offload_close, offload_disown, offload_lets_go, offload_new
from ..pool.shortage cimport rescue
from ..primitives.atomics cimport (
    cp_count,
    cp_mutex_lock,
    cp_mutex_lock_until,
    cp_mutex_unlock,
    cp_now_ns,
    cp_peek,
    cp_peek_64,
)
from ..scheduling import monitor  # the scheduler calls it
from ..scheduling.scheduler cimport (
    FOREVER,
    Packet,
    announce_close,
    close_queue,
    enter,
    leave,
    scheduler_new,
    scheduler_release,
    somebody_leads,
    wait_until_alone,
)
from ..scheduling.timer_heap cimport close_timers, open_timers
from .completions cimport drop_packet

from ...interface.errors import NOT_INITIALISED, PortClosed, PortForked, system_error
from ...shared import association
from ...shared.workers import default_concurrency

# A module's names may be gone when the interpreter ends, its C variables are not.
cdef dict taken_files = association.taken
cdef object is_finalizing = sys.is_finalizing

cdef extern from "pthread.h" nogil:
    int pthread_atfork(void (*prepare)(), void (*parent)(), void (*child)() noexcept)

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef enum:
    # How often, a millisecond each, close() waits for the kernel to let go of a handle.
    CLOSE_PATIENCE = 50
    LAST_PATIENCE_NS = 1000000000

# How many forks lie between the first process and this one; written only by a child with one thread.
cdef int fork_count = 0


cdef void in_child() noexcept nogil:
    global fork_count
    fork_count += 1


if pthread_atfork(NULL, NULL, in_child) != 0:
    raise MemoryError("pthread_atfork failed")


cdef long length(Operation* operation) noexcept nogil:
    cdef long count = 0
    while operation != NULL:
        count += 1
        operation = operation.next
    return count


cdef class Core:
    def __cinit__(self, str engine, int concurrency, int pool_threads, object port_reference):
        cdef int error
        self.fork_generation = fork_count
        self.tokens = set()
        self.port_reference = port_reference
        self.scheduler = scheduler_new(concurrency)
        if self.scheduler == NULL or not open_timers(self.scheduler):
            raise MemoryError
        if engine is None:
            self.unborn = True
            self.scheduler.guard.closed = 1
            return
        if engine == "io_uring":
            error = io_uring_new(self.scheduler, &self.engine)
        else:
            error = epoll_new(self.scheduler, &self.engine)
        if error != 0:
            raise system_error(error, f"engine {engine}: {os.strerror(error)}")
        self.engine.offload = offload_new(self.scheduler, pool_threads, default_concurrency())
        self.errands = channel_new(self.engine, -1, ERRANDS)
        if self.engine.offload == NULL or self.errands == NULL:
            raise MemoryError
        self.channels = self.errands
        self.scheduler.engine = self.engine
        self.scheduler.kernel_wait = <int (*)(void*, int64_t) noexcept nogil> self.engine.type.wait
        self.scheduler.kernel_wake = <void (*)(void*) noexcept nogil> self.engine.type.wake
        self.scheduler.rescue = rescue
        self.scheduler.submits_late = self.engine.batches_sends
        self.scheduler.kernel_submit = (
            <void (*)(void*) noexcept nogil> self.engine.type.submit
        )

    def __dealloc__(self):
        # The port was closed before, or never came to life; in a child it is the parent's.
        if self.engine != NULL and not self.destroyed:
            destroy_engine(self)
        if self.errands != NULL:
            channel_release(self.errands)
        if self.scheduler != NULL:
            scheduler_release(self.scheduler)

    cdef bint forked(self) noexcept:
        return self.fork_generation != fork_count

    cdef object refusal(self):
        """Why the port can't be used."""
        if self.unborn:
            return RuntimeError(NOT_INITIALISED)
        return PortForked() if self.forked() else PortClosed()

    cdef int begin(self) except -1:
        """Enter a call that uses scheduler or engine; they stay until `end`."""
        if self.fork_generation != fork_count or not enter(self.scheduler):
            raise self.refusal()
        return 0

    cdef int end(self) except -1:
        leave(self.scheduler)
        return 0

    cdef int adopt(self, Channel* channel) except -1:
        """Take a new channel into the list. The caller is between `begin` and `end`."""
        cdef int error = 0
        # Others may know a connection already, and abort it: then it needs no engine any more.
        cp_mutex_lock(&channel.lock)
        if not channel.closing:
            error = self.engine.type.open_channel(self.engine, channel)
        cp_mutex_unlock(&channel.lock)
        if error != 0:
            raise system_error(error)
        cp_mutex_lock(&self.channels_lock)
        channel.following = self.channels
        if self.channels != NULL:
            self.channels.previous = channel
        self.channels = channel
        cp_mutex_unlock(&self.channels_lock)
        return 0

    cdef void forget(self, Channel* channel) noexcept:
        """Close a channel, unless that was done, and take it out of the list."""
        cdef bint listed
        if self.forked():
            # Only the number is ours here; epoll and ring are shared with the parent.
            if channel.descriptor >= 0:
                close(channel.descriptor)
                channel.descriptor = -1
            return
        if enter(self.scheduler):
            if not cp_peek(&channel.closing):
                with nogil:
                    channel_close(channel, True)
            leave(self.scheduler)
        cp_mutex_lock(&self.channels_lock)
        listed = channel.previous != NULL or self.channels == channel
        if listed and not cp_peek(&channel.closing):
            # Who closes the port has not come to it yet, so the engine is still there; and would not find it.
            channel_close(channel, False)
        if channel.previous != NULL:
            channel.previous.following = channel.following
        elif self.channels == channel:
            self.channels = channel.following
        if channel.following != NULL:
            channel.following.previous = channel.previous
        channel.previous = channel.following = NULL
        cp_mutex_unlock(&self.channels_lock)
        channel_release(channel)

    cdef void settle_closing(self, Channel* channel) noexcept nogil:
        """Give the kernel a moment to let go of a closed channel, so that its peer hears of it.

        A thread that leads does the same in its own time. Between `begin` and `end`.
        """
        cdef int patience = CLOSE_PATIENCE
        cdef int in_kernel = 1
        cdef bint pause = False
        while in_kernel != 0 and patience > 0 and not somebody_leads(self.scheduler):
            cp_mutex_lock(&channel.lock)
            in_kernel = channel.in_kernel
            cp_mutex_unlock(&channel.lock)
            if in_kernel != 0:
                self.engine.type.reap(self.engine, pause)
                pause = True
                patience -= 1

    cdef tuple census(self):
        """How many handles are open, and how many operations are under way."""
        cdef long handles = 0
        cdef long operations = 0
        cdef Channel* channel
        cp_mutex_lock(&self.channels_lock)
        channel = self.channels
        while channel != NULL:
            cp_mutex_lock(&channel.lock)
            handles += not channel.closing and channel.kind != ERRANDS
            operations += length(channel.input.head) + length(channel.output.head)
            operations += length(channel.unacknowledged.head)
            cp_mutex_unlock(&channel.lock)
            channel = channel.following
        cp_mutex_unlock(&self.channels_lock)
        return handles, operations

    cdef tuple zero_copy_counts(self):
        """Sends from the program's own pages, and those of them that the kernel copied after all."""
        cdef int64_t sends = cp_peek_64(&self.zero_copy_sends)
        cdef int64_t copied = cp_peek_64(&self.zero_copy_copied)
        if not self.forked() and enter(self.scheduler):
            sends += cp_peek_64(&self.engine.zero_copy_sends)
            copied += cp_peek_64(&self.engine.zero_copy_copied)
            leave(self.scheduler)
        # A request that took no page is taken off before its notification counts it as copied.
        return sends, max(copied, 0)

    cdef int close(self) except -1:
        """Wake the waiting threads, cancel all operations, and wait for the kernel."""
        cdef Packet* packets = NULL
        cdef Packet* timers = NULL
        cdef int64_t deadline = FOREVER
        cdef bint alone = True
        cdef bint locked
        if self.forked():
            self.close_in_child()
            return 0
        if is_finalizing():
            # The interpreter may have stopped a thread inside for good.
            deadline = cp_now_ns() + LAST_PATIENCE_NS
        with nogil:
            # A function that the pool runs may close its own port, and can't wait for itself.
            offload_disown(self.errands)
            locked = cp_mutex_lock_until(&self.close_lock, deadline)
            if locked and not self.destroyed:
                announce_close(self.scheduler)
                alone = (
                    wait_until_alone(self.scheduler, deadline) and close_channels(self, deadline)
                )
            if locked and alone:
                packets = close_queue(self.scheduler)
                timers = close_timers(self.scheduler)
        if not locked:
            # So was one that closes the port, and what it closes goes with the process.
            return 0
        if not alone:
            # What such a thread may still hold goes with the process.
            self.destroyed = True
        elif not self.destroyed:
            self.destroyed = True
            destroy_engine(self)
        cp_mutex_unlock(&self.close_lock)
        drop_all(self, packets)
        drop_all(self, timers)
        while self.tokens:
            try:
                token = self.tokens.pop()
            except KeyError:
                # Another thread closes too, the port or the last handle, and was faster.
                break
            taken_files.pop(token, None)
        return 0

    cdef int close_in_child(self) except -1:
        """Let the child's copies of the descriptors go, without a word to the kernel's objects."""
        cdef Channel* channel = self.channels
        if self.destroyed:
            return 0
        self.destroyed = True
        self.scheduler.guard.closed = 1
        while channel != NULL:
            if channel.descriptor >= 0:
                close(channel.descriptor)
                channel.descriptor = -1
            channel = channel.following
        self.engine.type.destroy(self.engine)
        return 0


cdef object nobody():
    return None


cdef Core the_unborn = Core(None, 1, 1, nobody)


cdef Core unborn_core():
    return the_unborn


cdef int drop_all(Core core, Packet* packets) except -1:
    """A list of packets that nobody will take: all of them, whatever a signal handler raises.

    A callback may fork, or a finalizer: then the child leaves the rest to its parent.
    """
    cdef Packet* packet
    first = None
    while packets != NULL:
        packet = packets
        packets = packet.next
        try:
            drop_packet(packet)
        except BaseException as raised:
            if first is None:
                first = raised
        if core.forked():
            raise core.refusal()
    if first is not None:
        raise first
    return 0


cdef void destroy_engine(Core core) noexcept:
    if core.engine.offload != NULL:
        offload_close(core.engine.offload)
        core.engine.offload = NULL
    cp_count(&core.zero_copy_sends, core.engine.zero_copy_sends)
    cp_count(&core.zero_copy_copied, core.engine.zero_copy_copied)
    cdef Block* garbage = take_garbage(core.engine)
    core.engine.type.destroy(core.engine)
    free_garbage(garbage)


cdef void free_garbage(Block* block) noexcept:
    """Let go of the objects that were sent. The blocks are the caller's."""
    cdef Block* following
    while block != NULL:
        following = block.next
        Py_DECREF(<object> block.object)
        free(block)
        block = following


cdef bint close_channels(Core core, int64_t deadline_ns) noexcept nogil:
    """No thread is inside any more and none can enter: the lists stand still but for `forget`.

    False when something is still under way at the deadline.
    """
    cdef Channel* channel
    cdef bint busy = True
    cp_mutex_lock(&core.channels_lock)
    channel = core.channels
    while channel != NULL:
        channel_close(channel, False)
        channel = channel.following
    cp_mutex_unlock(&core.channels_lock)
    # A request to cancel may outlast its operation, whose handle can be gone: nobody would look for what the
    # kernel said to it, and its channel, with its descriptor, would never be let go.
    core.engine.type.reap(core.engine, False)
    while True:
        busy = offload_lets_go(core.engine.offload)
        # Not held over the wait: a function that the pool runs may drop a handle.
        cp_mutex_lock(&core.channels_lock)
        channel = core.channels
        while channel != NULL:
            cp_mutex_lock(&channel.lock)
            busy = busy or channel.in_kernel != 0
            cp_mutex_unlock(&channel.lock)
            channel = channel.following
        cp_mutex_unlock(&core.channels_lock)
        # Once more: what ended meanwhile may have left a file to be closed.
        if not busy and not offload_lets_go(core.engine.offload):
            return True
        if deadline_ns != FOREVER and cp_now_ns() >= deadline_ns:
            return False
        core.engine.type.wait(core.engine, cp_now_ns() + 10000000)
