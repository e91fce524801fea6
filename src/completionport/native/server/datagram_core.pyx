# cython: language_level=3, freethreading_compatible=True
"""A datagram server's core: from the datagram to the callback without a Python frame between them.

The socket's stream is in the packet queue while there is something to receive. The worker that takes
it makes Python objects of one datagram, puts the stream back for the next worker, and only then calls
the handler: while a callback blocks, the others go on.
"""

import fcntl
import threading
from logging import ERROR

cimport cython
from cpython.buffer cimport PyBuffer_Release, PyObject_CheckBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t

from ..channels.channels cimport channel_close, channel_release, channel_retain
from ..channels.datagrams cimport (
    datagrams_free,
    datagrams_new,
    datagrams_queue,
    datagrams_try_send,
)
from ..channels.engine cimport DatagramHead, Engine, Stream
from ..channels.streams cimport stream_of
from ..port.operations cimport get_buffer
from ..primitives.atomics cimport (
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_now_ns,
    cp_peek,
    cp_peek_64,
    cp_peek_size,
    cp_set,
)
from ..primitives.times cimport add_to_shared_stats, add_to_stats
from ..scheduling.scheduler cimport NO_TIMER, Consumer, Packet, Waiter, enter, leave, push
from .address_cache cimport LONGEST_ADDRESS, AddressCache
from .common cimport CommonCore, comes_free, let_go, overridden, report

from ...interface.errors import ConnectionClosed, system_error
from ...interface.unique import refuse_copy
from ...servers.datagram_server import DatagramHandler
from ...servers.datagram_server import Endpoint as PublicEndpoint
from ...shared.buffers import joined_bytes

cdef extern from "errno.h" nogil:
    enum:
        EAGAIN, EBADF, ENOBUFS, ENOMEM

cdef extern from "sys/socket.h" nogil:
    enum:
        MSG_TRUNC

cdef enum:
    RETRY_NS = 100000000


cdef Consumer endpoint_consumer
endpoint_consumer.serve = serve_endpoint
endpoint_consumer.drop = drop_endpoint


cdef void serve_endpoint(Packet* packet, Waiter* me) noexcept:
    cdef Stream* stream = stream_of(packet)
    cdef Endpoint endpoint = <Endpoint> stream.owner
    endpoint.core.serve(endpoint, stream)


cdef void drop_endpoint(Packet* packet) noexcept:
    cdef Endpoint endpoint = <Endpoint> stream_of(packet).owner
    endpoint.core.finish(endpoint)


cdef class DatagramCore(CommonCore):
    """Packets to callbacks for one `completionport.DatagramServer`."""

    cdef object handler
    cdef object on_received, on_failed
    cdef Endpoint endpoint            # from `listen` to the end of this object
    cdef AddressCache addresses
    cdef size_t buffer_size
    cdef size_t send_limit
    cdef object serving               # a lock, held from `listen` to the endpoint's end and its last callback's
    # Lock of the endpoint's channel:
    cdef int at_work                  # callbacks, and datagrams on their way to one
    cdef bint retiring                # the socket is closed once they are over
    cdef bint gone                    # the endpoint's end was told
    cdef int64_t received_packets, received_bytes, truncated   # atomic

    def __init__(self, port, handler, server, *, buffer_size, send_limit):
        self.port = port
        self.core = port._core
        self.server = server
        self.handler = handler
        self.on_received = handler.received
        self.on_failed = overridden(handler, DatagramHandler, "failed")
        self.buffer_size = buffer_size
        self.send_limit = send_limit
        self.serving = threading.Lock()

    # -- what the DatagramServer calls

    def listen(self, sock):
        cdef Endpoint endpoint = Endpoint.__new__(Endpoint)
        cdef Stream* stream
        cdef int descriptor
        self.core.begin()
        try:
            endpoint.name = sock.getsockname()
            self.addresses = AddressCache(sock.family, sock.type)
            descriptor = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 0)
            # From here on no Python code runs, in which the handler of a signal might raise.
            stream = datagrams_new(
                self.core.engine, descriptor, &endpoint_consumer, self.buffer_size
            )
            if stream == NULL:
                let_go(NULL, descriptor)
                raise MemoryError
            channel_retain(&stream.channel)
            endpoint.core = self
            endpoint.stream = stream
            stream.owner = <void*> endpoint
            try:
                self.serving.acquire(False)
                self.core.adopt(&stream.channel)
            except BaseException:
                self.serving.release()
                let_go(stream, descriptor)
                raise
            Py_INCREF(endpoint)
            self.endpoint = endpoint
            self.start_receiving()
        finally:
            self.core.end()

    cdef int start_receiving(self) except -1:
        cdef Stream* stream = self.endpoint.stream
        cp_mutex_lock(&stream.channel.lock)
        if not stream.channel.closing and not self.retiring:
            self.core.engine.type.start_input(self.core.engine, stream)
        cp_mutex_unlock(&stream.channel.lock)
        self.core.engine.type.submit(self.core.engine)
        return 0

    def stop_listening(self):
        if self.endpoint is not None and enter(self.core.scheduler):
            cp_mutex_lock(&self.endpoint.stream.channel.lock)
            self.core.engine.type.stop_input(self.core.engine, self.endpoint.stream)
            cp_mutex_unlock(&self.endpoint.stream.channel.lock)
            self.core.engine.type.submit(self.core.engine)
            leave(self.core.scheduler)

    def close_connections(self):
        cdef Stream* stream
        cdef bint now
        if self.endpoint is not None and enter(self.core.scheduler):
            stream = self.endpoint.stream
            cp_mutex_lock(&stream.channel.lock)
            self.retiring = True
            now = self.close_when_idle(stream)
            cp_mutex_unlock(&stream.channel.lock)
            if now:
                channel_close(&stream.channel, False)
            leave(self.core.scheduler)

    cdef bint close_when_idle(self, Stream* stream) noexcept:
        """Once no callback is at work and what is queued has gone out; True: now. Channel lock."""
        if not self.retiring or self.at_work != 0 or stream.channel.closing:
            return False
        cp_set(&stream.close_when_sent, True)
        return stream.first_block == NULL

    def abort_connections(self):
        if self.endpoint is not None and enter(self.core.scheduler):
            channel_close(&self.endpoint.stream.channel, False)
            leave(self.core.scheduler)

    def wait_closed(self, timeout=None):
        return comes_free(self.serving, timeout)

    def end(self):
        self.stop_clock()

    def stats(self):
        cdef Endpoint endpoint = self.endpoint
        numbers = {
            "received_packets": cp_peek_64(&self.received_packets),
            "received_bytes": cp_peek_64(&self.received_bytes),
            "truncated": cp_peek_64(&self.truncated),
            "sent_packets": 0, "sent_bytes": 0, "dropped": 0, "queued_bytes": 0,
        }
        if endpoint is not None:
            numbers["sent_packets"] = cp_peek_64(&endpoint.stream.datagrams.sent)
            numbers["sent_bytes"] = cp_peek_64(&endpoint.stream.sent_bytes)
            numbers["dropped"] = cp_peek_64(&endpoint.stream.datagrams.dropped)
            numbers["queued_bytes"] = cp_peek_size(&endpoint.stream.queued_bytes)
        return numbers

    cdef int64_t clock_came(self, int64_t now) except? -2:
        """Another try to receive, after memory had run out."""
        if enter(self.core.scheduler):
            self.start_receiving()
            leave(self.core.scheduler)
        return NO_TIMER

    # -- a thread's turn

    cdef void serve(self, Endpoint endpoint, Stream* stream) noexcept:
        cdef Engine* engine = stream.channel.engine
        cdef char* data
        cdef DatagramHead* head
        cdef size_t before = sizeof(DatagramHead) + stream.datagrams.name_room
        cdef int64_t size
        cdef bint told
        cdef bint gone = False
        cdef bint sent = False
        cdef bytes payload = None
        cdef object address = None
        if not enter(self.core.scheduler):
            self.forsake(stream)
            return
        cp_mutex_lock(&stream.channel.lock)
        if stream.channel.closing:
            size = -EBADF
        elif self.retiring:
            size = -stream.error if stream.error != 0 else -EAGAIN
            sent = stream.close_when_sent and stream.first_block == NULL
        else:
            size = engine.type.next_input(engine, stream, NULL, 0, &data)
        told = size != -EAGAIN and not stream.channel.closing
        if told:
            self.at_work += 1
            if size < 0:
                # Receiving has stopped; or a queued datagram was refused, and it goes on.
                stream.error = 0
        cp_mutex_unlock(&stream.channel.lock)
        if size >= 0:
            head = <DatagramHead*> data
            if head.flags & MSG_TRUNC:
                add_to_shared_stats(&self.truncated, 1)
            else:
                try:
                    payload = PyBytes_FromStringAndSize(data + before, size - before)
                    address = self.addresses.find(data + sizeof(DatagramHead), head.name_size)
                except BaseException:
                    # The datagram is lost.
                    payload = None
                    size = -ENOMEM
            engine.type.release_input(engine, stream)
        elif sent:
            channel_close(&stream.channel, False)
        cp_mutex_lock(&stream.channel.lock)
        if stream.channel.closing:
            # When the kernel holds nothing more the stream is not to be queued again.
            gone = stream.channel.in_kernel == 0
            stream.scheduled = gone
        elif stream.error != 0 or (
            not self.retiring
            and (stream.first_chunk != NULL or (stream.readable and stream.wants_input))
        ) or (stream.close_when_sent and stream.first_block == NULL):
            push(engine.scheduler, &stream.packet, True)
        else:
            stream.scheduled = False
        cp_mutex_unlock(&stream.channel.lock)
        leave(self.core.scheduler)
        if payload is not None:
            add_to_shared_stats(&self.received_packets, 1)
            add_to_shared_stats(&self.received_bytes, len(payload))
            try:
                self.on_received(endpoint, payload, address)
            except BaseException:
                report(ERROR, "%r: exception in received(), the datagram is lost", endpoint, True)
        elif told and size < 0:
            self.receiving_failed(endpoint, <int> -size)
        if self.core.forked():
            # The callback has forked, and here another thread of the parent's may have any lock.
            return
        if told:
            self.callback_is_over(stream)
        if gone:
            self.finish(endpoint)

    cdef void callback_is_over(self, Stream* stream) noexcept:
        cdef bint inside = enter(self.core.scheduler)
        cdef bint now
        cdef bint over
        cp_mutex_lock(&stream.channel.lock)
        self.at_work -= 1
        now = inside and self.close_when_idle(stream)
        over = self.gone and self.at_work == 0
        cp_mutex_unlock(&stream.channel.lock)
        if now:
            channel_close(&stream.channel, False)
        if inside:
            leave(self.core.scheduler)
        if over:
            self.serving.release()

    cdef void receiving_failed(self, Endpoint endpoint, int error) noexcept:
        if error == ENOMEM or error == ENOBUFS:
            self.call_at(cp_now_ns() + RETRY_NS)
            self.tell_shortage("receiving pauses: %s; it goes on when there is room again", error)
        elif enter(self.core.scheduler):
            self.start_receiving()
            leave(self.core.scheduler)
        if self.on_failed is not None:
            try:
                self.on_failed(endpoint, system_error(error))
            except BaseException:
                report(ERROR, "%r: exception in failed()", endpoint, True)

    cdef void finish(self, Endpoint endpoint) noexcept:
        """The kernel holds nothing any more: everything of the endpoint goes. A callback may be at work."""
        cdef bint over
        cdef Stream* stream = endpoint.stream
        cdef Engine* engine = stream.channel.engine
        cdef char* data
        if enter(self.core.scheduler):
            # Chunks that came in before the end hold buffers.
            cp_mutex_lock(&stream.channel.lock)
            while stream.first_chunk != NULL:
                engine.type.next_input(engine, stream, NULL, 0, &data)
                engine.type.release_input(engine, stream)
            cp_mutex_unlock(&stream.channel.lock)
            leave(self.core.scheduler)
        # Without an engine: they lie in the socket's memory.
        stream.first_chunk = NULL
        self.core.forget(&stream.channel)
        cp_mutex_lock(&stream.channel.lock)
        stream.owner = NULL
        self.gone = True
        over = self.at_work == 0
        cp_mutex_unlock(&stream.channel.lock)
        # Not the last reference: the core has one.
        Py_DECREF(endpoint)
        if over:
            self.serving.release()


cdef DatagramCore no_server = DatagramCore.__new__(DatagramCore)
cdef Stream no_stream
no_stream.channel.descriptor = -1
no_stream.channel.closing = True


cdef class Endpoint:
    """See `completionport.Endpoint`, which documents it."""

    def __cinit__(self):
        # For one that no server has made.
        self.core = no_server
        self.stream = &no_stream

    cdef DatagramCore core
    cdef Stream* stream
    cdef object name
    cdef object state_               # critical section
    cdef object __weakref__

    def __dealloc__(self):
        if self.stream != &no_stream:
            datagrams_free(self.stream)
            channel_release(&self.stream.channel)

    def __reduce__(self):
        refuse_copy(self)

    def __repr__(self):
        return f"<Endpoint {self.name!r}{', closed' if self.closing else ''}>"

    @property
    def server(self):
        return self.core.server

    @property
    def sockname(self):
        return self.name

    @property
    def closing(self):
        return cp_peek(&self.stream.channel.closing) or cp_peek(&self.stream.close_when_sent)

    @property
    def send_queue_size(self):
        return cp_peek_size(&self.stream.queued_bytes)

    @property
    def state(self):
        with cython.critical_section(self):
            return self.state_

    @state.setter
    def state(self, value):
        cdef object before
        with cython.critical_section(self):
            before = self.state_
            self.state_ = value

    def send(self, data, address):
        cdef Py_buffer view
        cdef char raw[LONGEST_ADDRESS]
        if self.stream == &no_stream:
            raise ConnectionClosed("no server has made this endpoint")
        cdef unsigned int raw_size = self.core.addresses.raw_of(address, raw)
        if PyBytes_CheckExact(data):
            return self.send_bytes(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), raw, raw_size)
        if not PyObject_CheckBuffer(data):
            data = joined_bytes(data)
        get_buffer(data, &view, False, "send")
        try:
            return self.send_bytes(<const char*> view.buf, view.len, raw, raw_size)
        finally:
            PyBuffer_Release(&view)

    cdef bint send_bytes(
        self, const char* data, size_t size, const char* raw, unsigned int raw_size
    ) except *:
        cdef Stream* stream = self.stream
        cdef int error = EBADF
        cdef bint queued = False
        if self.core.goes_in():
            cp_mutex_lock(&stream.channel.lock)
            if not (stream.channel.closing or stream.close_when_sent):
                error = datagrams_try_send(stream, data, size, raw, raw_size)
                if error == EAGAIN and not stream.channel.closing:
                    if stream.queued_bytes + size <= self.core.send_limit:
                        error = datagrams_queue(stream, data, size, raw, raw_size)
                        queued = True
                    else:
                        error = ENOBUFS
                if error == ENOBUFS:
                    add_to_stats(&stream.datagrams.dropped, 1)
            cp_mutex_unlock(&stream.channel.lock)
            if queued:
                stream.channel.engine.type.submit(stream.channel.engine)
            leave(self.core.core.scheduler)
        if error == 0:
            return True
        if error == ENOBUFS:
            return False
        if error == EBADF or error == EAGAIN:
            raise ConnectionClosed("this endpoint is closed: nothing can be sent any more")
        raise system_error(error)


PublicEndpoint.register(Endpoint)
