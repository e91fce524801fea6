# cython: language_level=3, freethreading_compatible=True
"""A connection as the handler sees it: sending, closing, holding the peer back."""

cimport cython
from cpython.buffer cimport PyBuffer_Release, PyObject_CheckBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t

from ..channels.channels cimport channel_close, channel_release
from ..channels.engine cimport Channel, Engine, Stream
from ..channels.streams cimport (
    stream_append,
    stream_linger,
    stream_schedule,
    stream_start_output,
    stream_try_send,
    told_by_readiness,
)
from ..port.operations cimport get_buffer
from ..primitives.atomics cimport (
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_now_ns,
    cp_peek,
    cp_peek_size,
    cp_set,
    cp_set_64,
)
from ..scheduling.scheduler cimport enter, leave, packets_are_short

from ...interface.errors import ConnectionClosed
from ...interface.unique import refuse_copy
from ...servers.stream_server import Connection as PublicConnection
from ...shared.addresses import unpack
from ...shared.buffers import joined_bytes

cdef extern from "sys/socket.h" nogil:
    cdef struct sockaddr:
        pass
    int getsockname(int descriptor, sockaddr* address, unsigned int* size)

cdef extern from * nogil:
    """
    #include <linux/sockios.h>
    #include <netinet/in.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #ifndef TCP_INFO
    #define TCP_INFO 11
    #endif
    /* Changes whenever the peer takes something. Of TCP the bytes that it has acknowledged, which lie
       behind what older headers know (tcpi_bytes_acked of linux/tcp.h); else what waits for it. */
    static inline long long cp_taken_by_peer(int descriptor)
    {
        unsigned long long info[16];
        socklen_t size = sizeof info;
        int left = 0;
        if (getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, info, &size) == 0 && size == sizeof info)
            return (long long)info[15];
        ioctl(descriptor, SIOCOUTQ, &left);
        return left;
    }
    """
    int64_t cp_taken_by_peer(int descriptor)

cdef enum:
    COPIED_AT_MOST = 256       # more is sent from the bytes object itself
    BATCHED_AT_MOST = 16384    # more is tried at once, whoever waits


cdef class ServerBase:
    """What its connections need of a server's core."""


cdef ServerBase no_server = ServerBase.__new__(ServerBase)
cdef Stream no_stream
no_stream.channel.descriptor = -1
no_stream.channel.closing = True


cdef class Connection:
    """See `completionport.Connection`, which documents it."""

    def __cinit__(self):
        # For one that no server has made.
        self.core = no_server
        self.stream = &no_stream

    def __dealloc__(self):
        if self.stream != &no_stream:
            channel_release(&self.stream.channel)

    def __reduce__(self):
        refuse_copy(self)

    def __repr__(self):
        return f"<Connection {self.peername!r}{', closing' if self.closing else ''}>"

    @property
    def server(self):
        return self.core.server

    @property
    def peername(self):
        return unpack(self.peer[:self.peer_size])

    @property
    def sockname(self):
        cdef char address[128]
        cdef unsigned int size = sizeof(address)
        cp_mutex_lock(&self.stream.channel.lock)
        if self.stream.channel.descriptor < 0 or getsockname(
            self.stream.channel.descriptor, <sockaddr*> address, &size
        ) != 0:
            size = 0
        cp_mutex_unlock(&self.stream.channel.lock)
        return unpack(address[:size]) if size else self.core.address

    @property
    def closing(self):
        return cp_peek(&self.stream.channel.closing) or cp_peek(&self.stream.close_when_sent)

    @property
    def send_queue_size(self):
        return cp_peek_size(&self.stream.queued_bytes)

    # Without a GIL one thread may read it while another replaces it, and a bare attribute would let
    # the old object go in the middle of that.
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

    @state.deleter
    def state(self):
        self.state = None

    def send(self, data):
        cdef Py_buffer view
        if PyBytes_CheckExact(data):
            self.send_bytes(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), <PyObject*> data)
        elif PyObject_CheckBuffer(data):
            get_buffer(data, &view, False, "send")
            try:
                self.send_bytes(<const char*> view.buf, view.len, NULL)
            finally:
                PyBuffer_Release(&view)
        else:
            joined = joined_bytes(data)
            self.send_bytes(PyBytes_AS_STRING(joined), len(joined), <PyObject*> joined)

    cdef int send_bytes(self, const char* data, size_t size, PyObject* whole) except -1:
        """Send or queue; ``whole`` is the bytes object that may be kept, or NULL."""
        cdef Stream* stream = self.stream
        cdef Engine* engine = stream.channel.engine
        cdef int64_t sent = 0
        cdef int error = 0
        cdef bint open_ = False
        cdef bint started = False
        if self.core.goes_in():
            cp_mutex_lock(&stream.channel.lock)
            open_ = not (stream.channel.closing or stream.close_when_sent)
            if open_ and size and stream.error == 0:
                if stream.first_block == NULL and not (
                    # While other packets wait, sends go to the kernel together; not where those
                    # packets take so long that this one would wait for them, nor for a socket that only
                    # tells when there is room again.
                    engine.batches_sends and size <= BATCHED_AT_MOST
                    and not told_by_readiness(&stream.channel)
                    and packets_are_short(engine.scheduler) and self.core.on_drained is None
                ):
                    sent = stream_try_send(stream, data, size)
                    if 0 <= sent < <int64_t> size:
                        stream.was_full = True
                if sent < 0:
                    stream.error = <int> -sent
                    stream_schedule(stream, True)
                elif sent < <int64_t> size:
                    error = self.append(data + sent, size - sent, whole)
                    started = not stream.sending
                    stream_start_output(stream)
                    if stream.queued_bytes > self.core.send_limit and not self.throttled:
                        cp_set(&self.throttled, True)
                        stream.was_full = True
                        engine.type.stop_input(engine, stream)
                if self.core.keeps_time:
                    cp_set_64(&stream.active_ns, cp_now_ns())
            cp_mutex_unlock(&stream.channel.lock)
            if started and stream.was_full:
                engine.type.submit(engine)
            leave(self.core.core.scheduler)
        if error:
            raise MemoryError
        if not open_:
            raise ConnectionClosed("this connection is closed: nothing can be sent any more")
        return 0

    cdef int append(self, const char* data, size_t size, PyObject* whole) noexcept:
        cdef int error
        if whole == NULL or size <= COPIED_AT_MOST:
            return stream_append(self.stream, data, size, NULL)
        Py_INCREF(<object> whole)
        error = stream_append(self.stream, data, size, whole)
        if error:
            Py_DECREF(<object> whole)
        return error

    def close(self):
        cdef Stream* stream = self.stream
        cdef bint over = False
        if not self.core.goes_in():
            return
        cp_mutex_lock(&stream.channel.lock)
        if not stream.channel.closing and not stream.close_when_sent:
            cp_set(&stream.close_when_sent, True)
            if stream.first_block != NULL:
                stream.channel.engine.type.stop_input(stream.channel.engine, stream)
            else:
                over = stream_linger(stream, False)
                if not over:
                    # A worker sees to it that it does not last.
                    stream_schedule(stream, True)
        cp_mutex_unlock(&stream.channel.lock)
        if over:
            channel_close(&stream.channel, False)
        else:
            stream.channel.engine.type.submit(stream.channel.engine)
        leave(self.core.core.scheduler)

    cdef int retire(self) except -1:
        """The server stops: ask the handler, or close it, once the callback at work has answered."""
        cdef Channel* channel = &self.stream.channel
        cdef bint at_work = True
        if not enter(self.core.core.scheduler):
            return 0
        cp_mutex_lock(&channel.lock)
        if self.core.on_stopping is not None:
            if not channel.closing and not self.stream.close_when_sent:
                self.stopping_due = True
                stream_schedule(self.stream, True)
        elif not channel.closing and not self.stream.close_when_sent:
            self.retiring = True
            channel.engine.type.stop_input(channel.engine, self.stream)
            # Or its packet is in the queue, and who takes that closes it.
            at_work = self.stream.scheduled
        cp_mutex_unlock(&channel.lock)
        channel.engine.type.submit(channel.engine)
        leave(self.core.core.scheduler)
        if not at_work:
            self.close()
        return 0

    def abort(self):
        if self.core.goes_in():
            channel_close(&self.stream.channel, False)
            leave(self.core.core.scheduler)

    def pause(self):
        if self.core.goes_in():
            cp_mutex_lock(&self.stream.channel.lock)
            if not (self.paused or self.stream.close_when_sent or self.stream.channel.closing):
                cp_set(&self.paused, True)
                self.stream.channel.engine.type.stop_input(self.stream.channel.engine, self.stream)
                if not self.stream.scheduled:
                    self.stream.channel.engine.type.watch(self.stream.channel.engine, self.stream)
            cp_mutex_unlock(&self.stream.channel.lock)
            self.stream.channel.engine.type.submit(self.stream.channel.engine)
            leave(self.core.core.scheduler)

    def resume(self):
        if self.core.goes_in():
            cp_mutex_lock(&self.stream.channel.lock)
            if self.paused:
                cp_set(&self.paused, False)
                self.want_input()
                # For what is held back.
                stream_schedule(self.stream, True)
            cp_mutex_unlock(&self.stream.channel.lock)
            self.stream.channel.engine.type.submit(self.stream.channel.engine)
            leave(self.core.core.scheduler)

    cdef void want_input(self) noexcept:
        """Receive again, unless something still speaks against it. Channel lock."""
        cdef Stream* stream = self.stream
        if not (
            self.paused or self.throttled or self.retiring or stream.ended or stream.error
            or stream.close_when_sent or stream.channel.closing
        ):
            stream.channel.engine.type.start_input(stream.channel.engine, stream)

    cdef bint made_progress(self) noexcept:
        """Whether the peer has taken something of what is queued, since this was asked last."""
        cdef Stream* stream = self.stream
        cdef int64_t taken = 0
        cdef bint progress = False
        if cp_peek_size(&stream.queued_bytes) == 0 or not enter(self.core.core.scheduler):
            return False
        cp_mutex_lock(&stream.channel.lock)
        if not stream.channel.closing:
            # A request of io_uring sends all of a block, and does not tell how far it has come.
            taken = cp_taken_by_peer(stream.channel.descriptor)
            progress = taken != self.taken_before
            self.taken_before = taken
        cp_mutex_unlock(&stream.channel.lock)
        leave(self.core.core.scheduler)
        return progress

    cdef int expire(self, double seconds) except -1:
        """Nothing went through for so long."""
        self.fail(
            None if self.closing
            else TimeoutError(f"nothing was received or sent for {seconds:g} s")
        )
        return 0

    cdef void fail(self, error) noexcept:
        """End the connection now, for this reason."""
        if self.core.core.forked():
            # Its locks may be another thread's of the parent.
            return
        with cython.critical_section(self):
            # The worker's, and that of the one that looks at the clock, may come at once.
            if self.failure is None:
                self.failure = error
        if enter(self.core.core.scheduler):
            channel_close(&self.stream.channel, False)
            leave(self.core.core.scheduler)


PublicConnection.register(Connection)
