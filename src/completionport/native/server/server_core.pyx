# cython: language_level=3, freethreading_compatible=True
"""The server's core: from the packet to the callback without a Python frame between them.

A connection is a strand: its stream is in the packet queue at most once, and the thread that took it
is the only one that calls the handler for it, until `scheduled` is taken back under the channel's lock.
"""

import fcntl
import os
import threading
import time
from logging import DEBUG, ERROR

cimport cython
from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t
from libc.stdlib cimport free

from ..channels.channels cimport channel_close, channel_release, channel_retain
from ..channels.engine cimport Chunk, Engine, Stream
from ..channels.streams cimport (
    stream_ask_for_failure,
    stream_linger,
    stream_new,
    stream_of,
    stream_schedule,
)
from ..primitives.atomics cimport (
    cp_mutex_lock,
    cp_mutex_unlock,
    cp_now_ns,
    cp_peek,
    cp_peek_64,
    cp_set,
    cp_set_64,
    cp_set_int,
)
from ..primitives.times cimport add_to_shared_stats, add_to_stats
from ..scheduling.scheduler cimport NO_TIMER, Consumer, Packet, Waiter, enter, leave, push, scratch_of
from .common cimport POOR_SIZE, acquire, comes_free, let_go, overridden, report
from .connection cimport ADDRESS_SIZE, Connection, ServerBase

from ...interface.errors import system_error
from ...servers.stream_server import Handler

cdef extern from "errno.h" nogil:
    enum:
        EAGAIN, EBADF, EMFILE, ENFILE, ENOBUFS, ENOMEM

cdef extern from "sys/socket.h" nogil:
    cdef struct sockaddr:
        unsigned short sa_family
    enum:
        AF_INET, AF_INET6
    int getpeername(int descriptor, sockaddr* address, unsigned int* size)
    int setsockopt(int descriptor, int level, int option, const void* value, unsigned int size)

cdef extern from "netinet/tcp.h" nogil:
    enum:
        IPPROTO_TCP, TCP_NODELAY

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef enum:
    CHUNKS_AT_ONCE = 16        # then other connections have their turn
    ACCEPTS_AT_ONCE = 64
    RETRY_ACCEPT_NS = 100000000
    LINGER_NS = 2000000000     # so long a closed connection waits for its peer's end

cdef extern from "Python.h":
    # NULL, with an exception set, when there is no memory.
    PyObject* new_bytes "PyBytes_FromStringAndSize"(const char* data, Py_ssize_t size)


cdef Consumer connection_consumer
connection_consumer.serve = serve_connection
connection_consumer.drop = drop_connection

cdef Consumer listener_consumer
listener_consumer.serve = serve_listener
listener_consumer.drop = drop_listener


cdef void serve_connection(Packet* packet, Waiter* me) noexcept:
    cdef Stream* stream = stream_of(packet)
    cdef Connection connection = <Connection> stream.owner
    (<ServerCore> connection.core).serve(connection, stream, me)


cdef void drop_connection(Packet* packet) noexcept:
    cdef Connection connection = <Connection> stream_of(packet).owner
    (<ServerCore> connection.core).finish(connection)


cdef void serve_listener(Packet* packet, Waiter* me) noexcept:
    cdef Stream* stream = stream_of(packet)
    (<ServerCore> stream.owner).accept(stream)


cdef void drop_listener(Packet* packet) noexcept:
    cdef Stream* stream = stream_of(packet)
    (<ServerCore> stream.owner).listener_is_over(stream)


cdef void free_chunks(Stream* stream) noexcept:
    """Of a stream whose engine is gone, with all buffers."""
    cdef Chunk* chunk
    while stream.first_chunk != NULL:
        chunk = stream.first_chunk
        stream.first_chunk = chunk.next
        if stream.listens:
            close(chunk.size)
        free(chunk)


cdef class ServerCore(ServerBase):
    """Packets to callbacks for one `completionport.Server`."""

    cdef object handler
    cdef object on_connected, on_received, on_end, on_closed
    cdef Stream* listener             # one reference of our own, until the end of this object
    cdef object listening             # a lock, held from `listen` to the listener's end
    cdef object serving               # a lock, held while there are connections
    cdef set connections              # every connection from its birth to its `closed`
    cdef size_t buffer_size
    cdef Py_ssize_t max_connections   # -1: no limit
    cdef int64_t idle_ns              # 0: no limit
    cdef bint sets_nodelay            # constant: what is accepted has not inherited it
    # `connections`, `serving` and what follows, up to `lingering`. `Connection.close` does not take it,
    # since a finalizer may call that where its thread has it.
    cdef object census_lock
    cdef bint retiring                # connections that come now are asked, or end, behind `connected`
    cdef bint aborting                # and those are refused
    cdef dict lingering               # those that linger, in order of the time when that ends, ns
    cdef int64_t idle_ns_due          # when idle connections are looked for next: by the clock, once we listen
    # Atomic, and written in this order:
    cdef int64_t retry_ns             # when accepting is tried again
    cdef bint starved                 # it waits for descriptors
    cdef int64_t accepted             # atomic
    # Of the connections that are over: atomic. Each stream counts its own.
    cdef int64_t received_packets, received_bytes, sent_bytes

    def __init__(
        self, port, handler, server, *, buffer_size, max_connections, idle_timeout, send_limit,
        inherits_nodelay
    ):
        cdef int error
        self.port = port
        self.core = port._core
        self.server = server
        self.handler = handler
        self.on_connected = overridden(handler, Handler, "connected")
        self.on_received = handler.received
        self.on_end = handler.end_of_stream
        self.on_drained = overridden(handler, Handler, "drained")
        self.on_stopping = overridden(handler, Handler, "stopping")
        self.on_closed = overridden(handler, Handler, "closed")
        self.listening = threading.Lock()
        self.serving = threading.Lock()
        self.connections = set()
        self.lingering = {}
        self.sets_nodelay = not inherits_nodelay
        self.census_lock = threading.Lock()
        self.buffer_size = buffer_size
        self.send_limit = send_limit
        self.max_connections = -1 if max_connections is None else max_connections
        self.idle_ns = 0 if idle_timeout is None else <int64_t> (idle_timeout * 1e9)
        self.keeps_time = self.idle_ns != 0
        self.core.begin()
        try:
            error = self.core.engine.type.provide_buffers(self.core.engine, self.buffer_size)
        finally:
            self.core.end()
        if error:
            raise system_error(error)

    def __dealloc__(self):
        if self.listener != NULL:
            channel_release(&self.listener.channel)

    cdef int64_t tick_length(self) noexcept:
        return min(max(self.idle_ns // 4, <int64_t> 10000000), <int64_t> 1000000000)

    # -- what the Server calls

    def listen(self, sock):
        cdef int descriptor
        cdef Stream* listener
        self.core.begin()
        try:
            self.address = sock.getsockname()
            descriptor = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 0)
            if self.keeps_time:
                self.idle_ns_due = cp_now_ns() + self.tick_length()
            # From here on no Python code runs, in which the handler of a signal might raise.
            listener = stream_new(self.core.engine, descriptor, &listener_consumer)
            if listener == NULL:
                let_go(NULL, descriptor)
                raise MemoryError
            listener.listens = True
            listener.single = self.max_connections >= 0
            listener.owner = <void*> self
            try:
                self.listening.acquire(False)
                self.core.adopt(&listener.channel)
            except BaseException:
                self.listening.release()
                let_go(listener, descriptor)
                raise
            Py_INCREF(self)
            channel_retain(&listener.channel)
            self.listener = listener
            # A worker is to begin: the kernel wakes the thread that does for each connection.
            cp_mutex_lock(&listener.channel.lock)
            listener.wants_input = True
            stream_schedule(listener, True)
            cp_mutex_unlock(&listener.channel.lock)
        finally:
            self.core.end()
        if self.keeps_time:
            self.call_at(cp_now_ns() + self.tick_length())

    def end(self):
        self.stop_clock()

    cdef int start_accepting(self) except -1:
        cp_mutex_lock(&self.listener.channel.lock)
        if not self.listener.channel.closing:
            self.core.engine.type.start_input(self.core.engine, self.listener)
        cp_mutex_unlock(&self.listener.channel.lock)
        self.core.engine.type.submit(self.core.engine)
        return 0

    def stop_listening(self):
        if self.listener != NULL and enter(self.core.scheduler):
            channel_close(&self.listener.channel, False)
            leave(self.core.scheduler)

    def close_connections(self):
        with self.census_lock:
            self.retiring = True
            connections = list(self.connections)
        for connection in connections:
            (<Connection> connection).retire()

    def abort_connections(self):
        with self.census_lock:
            self.aborting = True
            connections = list(self.connections)
        for connection in connections:
            (<Connection> connection).abort()

    def wait_closed(self, timeout=None):
        began = time.monotonic()
        return comes_free(self.listening, timeout) and comes_free(
            self.serving, None if timeout is None else max(began + timeout - time.monotonic(), 0)
        )

    def stats(self):
        cdef int64_t packets = cp_peek_64(&self.received_packets)
        cdef int64_t received = cp_peek_64(&self.received_bytes)
        cdef int64_t sent = cp_peek_64(&self.sent_bytes)
        cdef Connection connection
        connections = list(self.connections)
        for connection in connections:
            packets += cp_peek_64(&connection.stream.received_packets)
            received += cp_peek_64(&connection.stream.received_bytes)
            sent += cp_peek_64(&connection.stream.sent_bytes)
        return {
            "connections": len(connections),
            "accepted": cp_peek_64(&self.accepted),
            "received_packets": packets,
            "received_bytes": received,
            "sent_bytes": sent,
        }

    cdef int64_t clock_came(self, int64_t now) except? -2:
        """Idle connections, those that have lingered long enough, and another try to accept."""
        cdef int64_t following = NO_TIMER
        if cp_peek(&self.starved):
            following = cp_peek_64(&self.retry_ns)
            if following <= now and enter(self.core.scheduler):
                following = NO_TIMER
                cp_set(&self.starved, False)
                self.start_accepting()
                leave(self.core.scheduler)
        following = min(following, self.end_lingering(now))
        if self.keeps_time and (self.listening.locked() or self.serving.locked()):
            if self.idle_ns_due <= now:
                self.idle_ns_due = now + self.tick_length()
                self.end_idle(now)
            following = min(following, self.idle_ns_due)
        return following

    cdef int end_idle(self, int64_t now) except -1:
        cdef Connection connection
        cdef int64_t quiet
        for connection in list(self.connections):
            quiet = now - cp_peek_64(&connection.stream.active_ns)
            if quiet >= self.tick_length() and connection.made_progress():
                cp_set_64(&connection.stream.active_ns, now)
            elif quiet >= self.idle_ns:
                connection.expire(self.idle_ns / 1e9)
        return 0

    # -- the listening socket

    cdef void accept(self, Stream* listener) noexcept:
        """One thread's turn with it."""
        cdef Engine* engine = listener.channel.engine
        cdef int64_t result = 0
        cdef char* data
        cdef int count = 0
        cdef bint gone = False
        while count < ACCEPTS_AT_ONCE and enter(self.core.scheduler):
            cp_mutex_lock(&listener.channel.lock)
            if self.max_connections >= 0 and len(self.connections) >= self.max_connections:
                engine.type.stop_input(engine, listener)
            if listener.channel.closing and listener.first_chunk == NULL:
                result = -EBADF
            else:
                result = engine.type.next_input(engine, listener, NULL, 0, &data)
                if result >= 0:
                    engine.type.release_input(engine, listener)
                elif result != -EAGAIN:
                    listener.error = 0
            cp_mutex_unlock(&listener.channel.lock)
            leave(self.core.scheduler)
            if result < 0:
                break
            count += 1
            if cp_peek(&listener.channel.closing):
                close(<int> result)
            elif not self.welcome(<int> result):
                result = -ENOMEM
                self.stop_accepting(listener)
                break
        if result < 0 and result != -EAGAIN and result != -EBADF:
            self.accept_failed(<int> -result)
        if enter(self.core.scheduler):
            cp_mutex_lock(&listener.channel.lock)
            if listener.channel.closing and listener.first_chunk == NULL:
                # `scheduled` stays set: the stream is not to be queued again.
                gone = listener.channel.in_kernel == 0
                listener.scheduled = gone
            elif listener.first_chunk != NULL or (listener.readable and listener.wants_input):
                push(engine.scheduler, &listener.packet, True)
            else:
                listener.scheduled = False
            cp_mutex_unlock(&listener.channel.lock)
            engine.type.submit(engine)
            self.leave()
        else:
            self.forsake(listener)
        if gone:
            self.listener_is_over(listener)

    cdef void listener_is_over(self, Stream* listener) noexcept:
        free_chunks(listener)
        self.core.forget(&listener.channel)
        self.listening.release()
        listener.owner = NULL
        Py_DECREF(self)

    cdef void stop_accepting(self, Stream* listener) noexcept:
        """Until `accept_failed` has it tried again."""
        cdef Engine* engine = listener.channel.engine
        if enter(self.core.scheduler):
            cp_mutex_lock(&listener.channel.lock)
            if not listener.channel.closing:
                engine.type.stop_input(engine, listener)
            cp_mutex_unlock(&listener.channel.lock)
            leave(self.core.scheduler)

    cdef void accept_failed(self, int error) noexcept:
        if error == EMFILE or error == ENFILE or error == ENOBUFS or error == ENOMEM:
            cp_set_64(&self.retry_ns, cp_now_ns() + RETRY_ACCEPT_NS)
            cp_set(&self.starved, True)
            self.call_at(cp_peek_64(&self.retry_ns))
            self.tell_shortage("accepting pauses: %s; it goes on when there is room again", error)
        else:
            # A connection that went before it was taken: the next one is not concerned.
            if enter(self.core.scheduler):
                self.start_accepting()
                leave(self.core.scheduler)
            report(DEBUG, "accept: %s", os.strerror(error), False)

    cdef Connection new_connection(self, int descriptor):
        """Nobody knows of it yet, but for the census; whatever is raised, the descriptor is closed.

        None, and that too, where no connection is wanted any more.
        """
        cdef Connection connection = None
        cdef Stream* stream = NULL
        cdef unsigned int size = ADDRESS_SIZE
        cdef bint aborting = False
        cdef int on = 1
        try:
            connection = Connection.__new__(Connection)
            stream = stream_new(self.core.engine, descriptor, &connection_consumer)
            if stream == NULL:
                raise MemoryError
            connection.core = self
            connection.stream = stream
            # Nobody else may take it up before `connected` has run.
            stream.scheduled = True
            # The Connection's own reference: its methods can be called at any time.
            channel_retain(&stream.channel)
            if getpeername(descriptor, <sockaddr*> connection.peer, &size) == 0:
                connection.peer_size = <unsigned char> min(size, <unsigned int> ADDRESS_SIZE)
            stream.short_empties = (<sockaddr*> connection.peer).sa_family in (AF_INET, AF_INET6)
            if self.sets_nodelay:
                # One that has gone already fails: the first receive says so.
                setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
            if self.keeps_time:
                cp_set_64(&stream.active_ns, cp_now_ns())
            acquire(self.census_lock)
            try:
                aborting = self.aborting
                if not aborting:
                    self.connections.add(connection)
                    self.serving.acquire(False)
                    connection.retiring = self.retiring and self.on_stopping is None
                    connection.stopping_due = self.retiring and self.on_stopping is not None
            finally:
                self.census_lock.release()
        except BaseException:
            self.connections.discard(connection)
            let_go(stream, descriptor)
            raise
        if aborting:
            let_go(stream, descriptor)
            return None
        stream.owner = <void*> connection
        return connection

    cdef bint welcome(self, int descriptor) noexcept:
        """A new connection: tell the handler, and start to receive. False when there is no memory."""
        cdef Connection connection
        cdef Stream* stream
        if not enter(self.core.scheduler):
            close(descriptor)
            return True
        try:
            connection = self.new_connection(descriptor)
        except BaseException:
            leave(self.core.scheduler)
            return False
        if connection is None:
            leave(self.core.scheduler)
            return True
        stream = connection.stream
        Py_INCREF(connection)
        add_to_shared_stats(&self.accepted, 1)
        try:
            self.core.adopt(&stream.channel)
        except BaseException as error:
            leave(self.core.scheduler)
            connection.failure = error
            cp_mutex_lock(&stream.channel.lock)
            # Unless who closes all connections has closed this one already.
            if stream.channel.descriptor >= 0:
                close(descriptor)
                cp_set_int(&stream.channel.descriptor, -1)
            cp_mutex_unlock(&stream.channel.lock)
            self.finish(connection)
            return True
        leave(self.core.scheduler)
        if self.on_connected is not None:
            self.call(connection, self.on_connected, None)
        if enter(self.core.scheduler):
            cp_mutex_lock(&stream.channel.lock)
            connection.want_input()
            # As if it had been taken from the queue just now.
            push(stream.channel.engine.scheduler, &stream.packet, True)
            cp_mutex_unlock(&stream.channel.lock)
            leave(self.core.scheduler)
        else:
            self.forsake(stream)
        return True

    # -- connections

    cdef void call(self, Connection connection, callback, argument) noexcept:
        try:
            if argument is None:
                callback(connection)
            else:
                callback(connection, argument)
        except BaseException as error:
            report(ERROR, "%r: exception in a callback, the connection is closed", connection, True)
            connection.fail(error)

    cdef void fail_with(self, Connection connection, int error) noexcept:
        cdef object reason
        try:
            reason = MemoryError() if error == ENOMEM else system_error(error)
        except BaseException as shortage:
            reason = shortage
        connection.fail(reason)

    cdef void serve(self, Connection connection, Stream* stream, Waiter* me) noexcept:
        """One thread's turn with one connection."""
        cdef char poor[POOR_SIZE]
        cdef char* scratch = scratch_of(me, self.buffer_size)
        cdef size_t room = self.buffer_size
        cdef Engine* engine = stream.channel.engine
        cdef int64_t size = -EAGAIN
        cdef char* data
        cdef int count = 0
        cdef bint again = True
        cdef PyObject* made
        cdef bint asked
        cdef bytes chunk = None
        if scratch == NULL:
            scratch = poor
            room = min(room, <size_t> POOR_SIZE)
        if not enter(self.core.scheduler):
            self.forsake(stream)
            return
        while again and count < CHUNKS_AT_ONCE:
            asked = False
            cp_mutex_lock(&stream.channel.lock)
            if stream.failing and not stream.wants_input and not stream.channel.closing:
                stream_ask_for_failure(stream)
            if stream.channel.closing:
                size = -EBADF
            elif connection.retiring or stream.close_when_sent:
                size = -EBADF
                # A peer that does not read may keep the connection for long, and they have buffers.
                if not stream.lingering:
                    self.drop_chunks(stream)
            elif connection.stopping_due:
                connection.stopping_due = False
                asked = True
                size = -EAGAIN
            elif connection.held is not None and not (connection.paused or connection.throttled):
                size = -EAGAIN
            else:
                size = engine.type.next_input(engine, stream, scratch, room, &data)
                if size > 0:
                    add_to_stats(&stream.received_bytes, size)
                    add_to_stats(&stream.received_packets, 1)
                    if self.keeps_time:
                        cp_set_64(&stream.active_ns, cp_now_ns())
                elif size == -EAGAIN and stream.wants_input and (
                    connection.held is None and not stream.was_full
                ):
                    # All is done, as it nearly always is by now.
                    stream.scheduled = False
                    cp_mutex_unlock(&stream.channel.lock)
                    self.leave()
                    return
            cp_mutex_unlock(&stream.channel.lock)
            if size > 0:
                made = new_bytes(data, size)
                engine.type.release_input(engine, stream)
                if made != NULL:
                    chunk = <bytes> made
                    Py_DECREF(chunk)
                else:
                    PyErr_Clear()
                    size = -ENOMEM
            leave(self.core.scheduler)
            if asked:
                self.call(connection, self.on_stopping, None)
            elif size > 0 and connection.held is None and not (
                cp_peek(&connection.paused) or cp_peek(&connection.throttled)
            ):
                self.call(connection, self.on_received, chunk)
            else:
                try:
                    again = self.deliver(connection, size, chunk)
                except BaseException as error:
                    # What was received is lost, so nothing may come behind it.
                    connection.fail(error)
                    again = False
            count += 1
            if not enter(self.core.scheduler):
                self.forsake(stream)
                return
        self.end_turn(connection, stream, again)

    cdef bint deliver(self, Connection connection, int64_t size, bytes chunk) except -1:
        """Hold back what was received, or give the handler what was, or the news that nothing more comes.

        True: there may be more to deliver.
        """
        cdef bint quiet = cp_peek(&connection.paused) or cp_peek(&connection.throttled)
        if size > 0:
            # It may be resumed by now: then behind what is held back already.
            if connection.held is None:
                connection.held = []
            connection.held.append(chunk)
            return True
        if size == -EAGAIN:
            if connection.held is None or quiet:
                return False
            chunk = connection.held.pop(0)
            if not connection.held:
                connection.held = None
            self.call(connection, self.on_received, chunk)
            return True
        if size == 0:
            if not connection.end_told and not quiet:
                connection.end_told = True
                self.call(connection, self.on_end, None)
        elif size != -EBADF:
            self.fail_with(connection, <int> -size)
        return False

    cdef void end_turn(self, Connection connection, Stream* stream, bint again) noexcept:
        """What follows from sends and from the end, and whether the stream is queued once more.

        Called inside `enter`, and leaves.
        """
        cdef Engine* engine = stream.channel.engine
        cdef bint drained = False
        cdef bint over = False
        cdef bint gone = False
        cdef bint quiet
        cp_mutex_lock(&stream.channel.lock)
        if connection.retiring:
            cp_set(&stream.close_when_sent, True)
        if stream.first_block == NULL and not stream.channel.closing:
            if stream.was_full:
                stream.was_full = False
                drained = self.on_drained is not None and not stream.close_when_sent
                if connection.throttled:
                    cp_set(&connection.throttled, False)
                    connection.want_input()
            over = stream.close_when_sent and stream_linger(stream, True)
        cp_mutex_unlock(&stream.channel.lock)
        if over:
            channel_close(&stream.channel, False)
        elif drained or (stream.lingering and not connection.linger_noted):
            leave(self.core.scheduler)
            if drained:
                self.call(connection, self.on_drained, None)
            else:
                self.note_lingering(connection)
            if not enter(self.core.scheduler):
                self.forsake(stream)
                return
        cp_mutex_lock(&stream.channel.lock)
        quiet = connection.paused or connection.throttled
        if connection.retiring:
            # Perhaps only now, and then it is left to this turn.
            cp_set(&stream.close_when_sent, True)
        if stream.channel.closing:
            # When the kernel holds nothing more the stream is not to be queued again.
            gone = stream.channel.in_kernel == 0
            stream.scheduled = gone
        elif stream.first_block == NULL and (
            stream.was_full or (stream.close_when_sent and not stream.lingering)
        ):
            push(engine.scheduler, &stream.packet, True)
        elif stream.lingering and (
            not connection.linger_noted or stream.first_chunk != NULL or (stream.readable and stream.wants_input)
            or stream.ended or stream.error != 0
        ):
            push(engine.scheduler, &stream.packet, True)
        elif not stream.close_when_sent and (
            again or stream.first_chunk != NULL or connection.stopping_due or stream.error != 0
            or (stream.readable and stream.wants_input)
            or (stream.failing and not stream.wants_input)
            or (stream.ended and not connection.end_told and not quiet)
            or (connection.held is not None and not quiet)
        ):
            push(engine.scheduler, &stream.packet, True)
        else:
            stream.scheduled = False
            if not stream.wants_input and not stream.close_when_sent:
                engine.type.watch(engine, stream)
        cp_mutex_unlock(&stream.channel.lock)
        self.leave()
        if gone:
            self.finish(connection)

    cdef void note_lingering(self, Connection connection) noexcept:
        """Have its lingering end in time; without memory to say so, now."""
        cdef int64_t end = cp_now_ns() + LINGER_NS
        connection.linger_noted = True
        try:
            acquire(self.census_lock)
            try:
                self.lingering[connection] = end
            finally:
                self.census_lock.release()
        except BaseException:
            connection.fail(None)
        self.call_at(end)

    cdef int64_t end_lingering(self, int64_t now) except? -2:
        """End those whose time is over; when that of the next is, or NO_TIMER."""
        cdef int64_t following = NO_TIMER
        cdef list over = []
        if not self.lingering:
            # Who adds one calls for the clock behind it.
            return following
        self.census_lock.acquire()
        try:
            for connection, deadline in self.lingering.items():
                if deadline > now:
                    following = deadline
                    break
                over.append(connection)
            for connection in over:
                del self.lingering[connection]
        finally:
            self.census_lock.release()
        for connection in over:
            (<Connection> connection).abort()
        return following

    cdef void finish(self, Connection connection) noexcept:
        """The connection is over: the last callback, and everything of it goes."""
        cdef Stream* stream = connection.stream
        cdef object error
        with cython.critical_section(connection):
            error = connection.failure
        if error is None and stream.error != 0 and not stream.lingering:
            self.fail_with(connection, stream.error)
            error = connection.failure
        if self.on_closed is not None:
            try:
                self.on_closed(connection, error)
            except BaseException:
                report(ERROR, "%r: exception in closed()", connection, True)
            if self.core.forked():
                # The callback has forked, and here another thread of the parent's may have any lock.
                return
        add_to_shared_stats(&self.sent_bytes, stream.sent_bytes)
        add_to_shared_stats(&self.received_bytes, stream.received_bytes)
        add_to_shared_stats(&self.received_packets, stream.received_packets)
        if enter(self.core.scheduler):
            # Chunks that came in before the end hold buffers.
            cp_mutex_lock(&stream.channel.lock)
            self.drop_chunks(stream)
            cp_mutex_unlock(&stream.channel.lock)
            leave(self.core.scheduler)
        else:
            free_chunks(stream)
        self.core.forget(&stream.channel)
        acquire(self.census_lock)
        # Together, or a connection that comes just now would count as closed.
        self.connections.discard(connection)
        self.lingering.pop(connection, None)
        if not self.connections:
            self.serving.release()
        self.census_lock.release()
        stream.owner = NULL
        Py_DECREF(connection)
        if self.listener != NULL and (self.listener.single or cp_peek(&self.starved)):
            if enter(self.core.scheduler):
                cp_set(&self.starved, False)
                self.start_accepting()
                leave(self.core.scheduler)

    cdef void drop_chunks(self, Stream* stream) noexcept:
        cdef Engine* engine = stream.channel.engine
        cdef char* data
        while stream.first_chunk != NULL:
            engine.type.next_input(engine, stream, NULL, <size_t> -1, &data)
            engine.type.release_input(engine, stream)
