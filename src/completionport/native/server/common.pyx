# cython: language_level=3, freethreading_compatible=True
"""What the cores of servers have in common: their clock, and what is told in the log.

A core is a consumer: whichever thread takes a packet of its sockets or of its clock serves it.
"""

import os
from logging import ERROR, WARNING

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t

from ..channels.channels cimport channel_release
from ..channels.engine cimport Block, Stream
from ..channels.streams cimport take_garbage
from ..port.core cimport free_garbage, unborn_core
from ..primitives.atomics cimport (
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_now_ns,
    cp_peek_64,
    cp_set_64,
    cp_set_int,
)
from ..scheduling.scheduler cimport (
    NO_TIMER,
    PACKET_SERVED,
    Consumer,
    Packet,
    Waiter,
    drop_served,
    enter,
    leave,
)
from ..scheduling.timer_heap cimport timer_cancel, timer_set

from ...interface.errors import PortForked
from ...shared.reports import tell

cdef extern from "unistd.h" nogil:
    int close(int descriptor)
    int usleep(unsigned int microseconds)

cdef enum:
    SHORTAGE_US = 10000        # until what found no memory is tried again
    SHORTAGE_OVER_NS = 10000000000
    CLOCK_FAILED_NS = 100000000


cdef void report(int level, str message, object subject, bint with_traceback) noexcept:
    """A line in the log. Whatever that raises goes to `sys.unraisablehook`."""
    tell(level, message, subject, error=with_traceback)


cdef void acquire(object lock) noexcept:
    """For what has to be done: the handler of a signal, which may come meanwhile, does not keep from it."""
    while True:
        try:
            lock.acquire()
            return
        except BaseException:
            report(ERROR, "%r: exception in the handler of a signal", lock, True)


cdef bint comes_free(object lock, object timeout) except -1:
    """Wait for the end of what a lock is held for; False when the time is over before."""
    if not lock.acquire(True, -1 if timeout is None else timeout):
        return False
    lock.release()
    return True


cdef void let_go(Stream* stream, int descriptor) noexcept:
    """Of a socket that nobody has heard of: close it."""
    if stream != NULL:
        cp_set_int(&stream.channel.descriptor, -1)
        channel_release(&stream.channel)
    close(descriptor)


cdef void pause() noexcept:
    with nogil:
        usleep(SHORTAGE_US)


cdef object overridden(handler, type base, str name):
    """The bound callback, or None when the class does nothing in it."""
    if getattr(type(handler), name, None) is getattr(base, name) and name not in getattr(
        handler, "__dict__", ()
    ):
        return None
    return getattr(handler, name)


cdef Consumer clock_consumer
clock_consumer.serve = serve_clock
clock_consumer.drop = drop_clock


cdef void serve_clock(Packet* packet, Waiter* me) noexcept:
    cdef CommonCore core = <CommonCore> (<TimedPacket*> packet).timer
    cdef int64_t now = cp_now_ns()
    cdef int64_t following = now + CLOCK_FAILED_NS
    drop_clock(packet)
    try:
        following = core.clock_came(now)
    except BaseException:
        report(ERROR, "completionport: error in %s, which goes on", core, True)
    if following != NO_TIMER:
        core.call_at(following)


cdef void drop_clock(Packet* packet) noexcept:
    cdef CommonCore core = <CommonCore> (<TimedPacket*> packet).timer
    cp_mutex_lock(&core.clock_lock)
    core.clock_set = False
    core.clock_ns = NO_TIMER
    cp_mutex_unlock(&core.clock_lock)
    Py_DECREF(core)


cdef class CommonCore:
    """What the cores of servers have in common."""

    def __cinit__(self):
        self.core = unborn_core()
        self.clock_ns = NO_TIMER
        self.clock.packet.kind = PACKET_SERVED
        self.clock.packet.consumer = &clock_consumer
        self.clock.timer = <void*> self

    cdef bint goes_in(self) except -1:
        """`enter`, for the program; False when the port is closed. In a forked child it raises."""
        if enter(self.core.scheduler):
            return True
        if self.core.forked() and not self.core.unborn:
            raise PortForked
        return False

    cdef void leave(self) noexcept:
        """At the end of a turn: `leave`, and let go of what was sent."""
        cdef Block* garbage = take_garbage(self.core.engine)
        leave(self.core.scheduler)
        if garbage != NULL:
            free_garbage(garbage)

    cdef void forsake(self, Stream* stream) noexcept:
        """The thread that has the stream finds the port closed: whoever comes last ends it."""
        if not self.core.forked():
            drop_served(self.core.scheduler, &stream.packet)

    # -- the clock

    cdef int64_t clock_came(self, int64_t now) except? -2:
        """Do what is done by the clock; when to come again, or NO_TIMER."""
        raise NotImplementedError

    cdef void call_at(self, int64_t when_ns) noexcept:
        """Have `clock_came` called then, or before."""
        while not self.set_clock(when_ns):
            pause()

    cdef bint set_clock(self, int64_t when_ns) noexcept:
        """False when there is no memory."""
        cdef bint done = True
        if enter(self.core.scheduler):
            cp_mutex_lock(&self.clock_lock)
            if when_ns < self.clock_ns:
                if self.clock_set and not timer_cancel(self.core.scheduler, &self.clock):
                    # Its packet is there: who takes it asks for what is due next.
                    self.clock_ns = when_ns
                else:
                    done = self.start_clock(when_ns)
            cp_mutex_unlock(&self.clock_lock)
            leave(self.core.scheduler)
        return done

    cdef bint start_clock(self, int64_t when_ns) noexcept:
        """Of one that is in no queue; False when there is no memory. `clock_lock`."""
        if not self.clock_set:
            Py_INCREF(self)
        self.clock.when_ns = when_ns
        self.clock_set = timer_set(self.core.scheduler, &self.clock)
        self.clock_ns = when_ns if self.clock_set else <int64_t> NO_TIMER
        if not self.clock_set:
            # Not the last reference: the caller has one.
            Py_DECREF(self)
        return self.clock_set

    cdef void stop_clock(self) noexcept:
        """The server has ended."""
        cdef bint stopped = False
        if enter(self.core.scheduler):
            cp_mutex_lock(&self.clock_lock)
            stopped = self.clock_set and timer_cancel(self.core.scheduler, &self.clock)
            if stopped:
                self.clock_set = False
                self.clock_ns = NO_TIMER
            cp_mutex_unlock(&self.clock_lock)
            leave(self.core.scheduler)
        if stopped:
            Py_DECREF(self)

    # -- the log

    cdef void tell_shortage(self, str message, int error) noexcept:
        """A line in the log: once for a shortage, not for each that found its place in between."""
        cdef int64_t now = cp_now_ns()
        cdef int64_t before = cp_peek_64(&self.starved_ns)
        cp_set_64(&self.starved_ns, now)
        if before == 0 or now - before > <int64_t> SHORTAGE_OVER_NS:
            report(WARNING, message, os.strerror(error), False)
