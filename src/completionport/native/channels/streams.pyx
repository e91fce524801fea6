# cython: language_level=3, freethreading_compatible=True
"""What a connection or a listening socket does between the kernel and a worker.

Sending: what the kernel does not take at once waits in blocks. Small data is copied, so that a
finished send needs no Python; large bytes objects are referenced, and given to `garbage` when sent.
"""

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from ..primitives.atomics cimport cp_count_size, cp_now_ns, cp_peek_64, cp_set_64
from ..primitives.times cimport add_to_stats
from ..scheduling.scheduler cimport PACKET_SERVED, push, somebody_leads
from .channels cimport append_operation, channel_init
from .engine cimport CP_SEND, NEW_DOUBT, SOCKET, Channel, ChannelOwner, Operation

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EAGAIN, ECONNRESET, EINTR, ENOMEM, EPIPE

cdef extern from "sys/socket.h" nogil:
    ssize_t recv(int descriptor, void* data, size_t size, int flags)
    ssize_t send(int descriptor, const void* data, size_t size, int flags)
    int accept4(int descriptor, void* address, void* size, int flags)
    int shutdown(int descriptor, int how)
    int getsockopt(int descriptor, int level, int option, void* value, unsigned int* size)
    enum:
        MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, SOCK_CLOEXEC, SOL_SOCKET, SO_ERROR

cdef extern from "atomics.h" nogil:
    void cp_push_pointer(Block** list, Block* item) nogil

cdef enum:
    SMALLEST_BLOCK = 512
    LINGER_BYTES = 1048576      # that a closed connection still reads, and throws away
    DISCARDED_AT_ONCE = 16384


cdef ChannelOwner stream_owner
stream_owner.settled = output_settled
stream_owner.closing = stream_closing


cdef Stream* stream_new(Engine* engine, int descriptor, const Consumer* consumer) noexcept nogil:
    cdef Stream* stream = <Stream*> calloc(1, sizeof(Stream))
    if stream != NULL:
        channel_init(&stream.channel, engine, descriptor, SOCKET)
        stream.channel.owner = &stream_owner
        stream.packet.kind = PACKET_SERVED
        stream.packet.consumer = consumer
        stream.output.code = CP_SEND
        stream.output.channel = &stream.channel
    return stream


cdef void stream_schedule(Stream* stream, bint wake) noexcept nogil:
    """Have a worker look at the stream, now or when the one that is at it is done."""
    if not stream.scheduled:
        stream.scheduled = True
        push(stream.channel.engine.scheduler, &stream.packet, wake)


# -- receiving, for engines that tell when a stream is ready ---------------------------------------


cdef void stream_ready(Stream* stream, bint at_end, bint failed) noexcept nogil:
    """There is something to receive; ``at_end``: and then the end or an error, ``failed``: an error."""
    stream.readable = True
    stream.hung_up = stream.hung_up or at_end
    if failed:
        stream_failed(stream)
    if stream.wants_input:
        stream_schedule(stream, False)


cdef int64_t stream_input_if_ready(Stream* stream, char* scratch, size_t size) noexcept nogil:
    """What `EngineType.next_input` returns; received data lies in `scratch`."""
    return accept_one(stream) if stream.listens else receive_some(stream, scratch, size)


cdef int64_t accept_one(Stream* stream) noexcept nogil:
    cdef int result
    if stream.error != 0:
        return -stream.error
    while stream.readable and stream.wants_input:
        result = accept4(stream.channel.descriptor, NULL, NULL, SOCK_CLOEXEC)
        if result >= 0:
            return result
        if errno == EAGAIN:
            stream.readable = False
        elif errno != EINTR:
            stream.error = errno
            stream.wants_input = False
            return -stream.error
    return -EAGAIN


cdef int64_t receive_some(Stream* stream, char* scratch, size_t size) noexcept nogil:
    cdef ssize_t got
    if stream.error != 0:
        return -stream.error
    if stream.ended:
        return 0
    while stream.readable and stream.wants_input:
        got = recv(stream.channel.descriptor, scratch, size, MSG_DONTWAIT)
        if got > 0:
            if got < <ssize_t> size and stream.short_empties and not stream.hung_up:
                stream.readable = False
                stream.doubt = NEW_DOUBT
                if cp_peek_64(&stream.channel.engine.doubt_ns) == 0:
                    begin_to_doubt(stream.channel.engine)
            return got
        if got == 0:
            stream.ended = True
            stream.wants_input = False
            return 0
        if errno == EAGAIN:
            stream.readable = False
        elif errno != EINTR:
            stream.error = errno
            stream.wants_input = False
            return -stream.error
    return -EAGAIN


# -- failure and end ------------------------------------------------------------------------------


cdef void stream_failed(Stream* stream) noexcept nogil:
    """The connection is reset, or given up by the system: a worker comes, also where nothing is received."""
    if not stream.listens and stream.datagrams == NULL:
        stream.failing = True
        stream_schedule(stream, False)


cdef void stream_ask_for_failure(Stream* stream) noexcept nogil:
    """Of one that is `failing` and does not receive, which would bring the error."""
    cdef int error = 0
    cdef unsigned int size = sizeof(error)
    stream.failing = False
    if stream.error == 0 and getsockopt(
        stream.channel.descriptor, SOL_SOCKET, SO_ERROR, &error, &size
    ) == 0:
        # Linux calls it EPIPE where the peer had ended its side before.
        stream.error = ECONNRESET if error == EPIPE else error


cdef bint stream_linger(Stream* stream, bint at_it) noexcept nogil:
    """All that was queued has gone out: end our side, and throw away what the peer still sends.

    A socket that is closed with input that nobody has read, or that gets some later, resets its connection,
    and the peer loses what it has not taken yet (RFC 9112, 9.6). True: there is nothing to wait for any
    more, and the caller closes the channel. ``at_it``: the caller is the worker that has the stream.
    """
    if not stream.lingering:
        if stream.ended or stream.error != 0:
            return True
        stream.lingering = True
        stream.linger_left = LINGER_BYTES
        stream.wants_input = True
        if stream.hung_up and discard(stream, at_it):
            return True
        if shutdown(stream.channel.descriptor, SHUT_WR) != 0:
            return True
        stream.channel.engine.type.start_input(stream.channel.engine, stream)
    return discard(stream, at_it)


cdef bint discard(Stream* stream, bint at_it) noexcept nogil:
    """Throw away what has come; True: that was all there can be, or as much as we take."""
    cdef Engine* engine = stream.channel.engine
    cdef char scratch[DISCARDED_AT_ONCE]
    cdef char* data
    cdef int64_t size
    if stream.scheduled and not at_it and (stream.current != NULL or stream.first_chunk != NULL):
        # A worker may be reading that, without the lock: it goes on here when it has done.
        return False
    while stream.linger_left > 0:
        size = engine.type.next_input(engine, stream, scratch, sizeof(scratch), &data)
        if size == -EAGAIN:
            return False
        if size <= 0:
            return True
        stream.linger_left -= <int32_t> size
        engine.type.release_input(engine, stream)
    return True


cdef void begin_to_doubt(Engine* engine) noexcept nogil:
    cp_set_64(&engine.doubt_ns, cp_now_ns() + DOUBT_NS)
    if somebody_leads(engine.scheduler):
        # It may wait for longer.
        engine.type.wake(engine)


cdef void stream_closing(Channel* channel) noexcept nogil:
    cdef Stream* stream = <Stream*> channel
    stream.wants_input = False
    if (stream.armed and not stream.stopping) or stream.watched:
        channel.engine.type.stop_input(channel.engine, stream)
    drop_blocks(stream)
    stream_schedule(stream, True)


# -- sending --------------------------------------------------------------------------------------


cdef int stream_append(Stream* stream, const char* data, size_t size, void* object) noexcept nogil:
    """Queue bytes to be sent; with ``object`` they lie in it and its reference is taken over."""
    cdef Block* block = stream.last_block
    cdef size_t room
    if (
        object == NULL and block != NULL and block.object == NULL
        and block.room - block.size >= size
        and not (stream.sending and block == stream.first_block)
    ):
        memcpy(block.data + block.size, data, size)
        block.size += size
        cp_count_size(&stream.queued_bytes, size)
        return 0
    room = 0 if object != NULL else max(size, <size_t> SMALLEST_BLOCK)
    block = <Block*> malloc(sizeof(Block) + room)
    if block == NULL:
        return ENOMEM
    block.object = object
    block.size = size
    block.room = room
    if object != NULL:
        block.data = <char*> data
    else:
        block.data = <char*> (block + 1)
        memcpy(block.data, data, size)
    stream_append_block(stream, block)
    return 0


cdef void stream_append_block(Stream* stream, Block* block) noexcept nogil:
    block.next = NULL
    if stream.first_block == NULL:
        stream.first_block = block
    else:
        stream.last_block.next = block
    stream.last_block = block
    cp_count_size(&stream.queued_bytes, block.size)


cdef int64_t stream_try_send(Stream* stream, const char* data, size_t size) noexcept nogil:
    """Send what the kernel takes at once: the number of bytes, or a negative errno.

    Fewer than ``size``: it was full, and will tell when it has room.
    """
    cdef ssize_t sent
    cdef size_t done = 0
    while done < size:
        sent = send(stream.channel.descriptor, data + done, size - done, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent >= 0:
            done += sent
        elif errno == EAGAIN:
            break
        elif errno != EINTR:
            return -errno
    add_to_stats(&stream.sent_bytes, done)
    return done


cdef void stream_start_output(Stream* stream) noexcept nogil:
    """Have the engine send the first block, and the others after it."""
    cdef Operation* output = &stream.output
    if stream.sending or stream.first_block == NULL or stream.channel.closing:
        return
    stream.sending = True
    output.one.iov_base = stream.first_block.data
    output.one.iov_len = stream.first_block.size
    output.vector = &output.one
    output.vector_count = 1
    output.transferred = 0
    output.error = 0
    output.cancelled = False
    if stream.datagrams != NULL:
        output.address = stream.first_block.data - stream.first_block.room
        output.address_size = <unsigned int> stream.first_block.room
    append_operation(&stream.channel.output, output)
    if not output.in_kernel and stream.channel.output.head == output:
        stream.channel.engine.type.start(stream.channel.engine, output)


cdef void free_block(Stream* stream, Block* block) noexcept nogil:
    if block.object == NULL:
        free(block)
    else:
        cp_push_pointer(&stream.channel.engine.garbage, block)


cdef void drop_blocks(Stream* stream) noexcept nogil:
    cdef Block* block = stream.first_block
    cdef Block* following
    if stream.sending:
        # The kernel may still read it: `output_settled` comes.
        block = block.next
        stream.first_block.next = NULL
        stream.last_block = stream.first_block
    else:
        stream.first_block = stream.last_block = NULL
    while block != NULL:
        following = block.next
        cp_count_size(&stream.queued_bytes, -block.size)
        free_block(stream, block)
        block = following


cdef void stream_block_done(Stream* stream) noexcept nogil:
    """The block that was being sent is not needed any more."""
    cdef Block* block = stream.first_block
    stream.sending = False
    add_to_stats(&stream.sent_bytes, stream.output.transferred)
    cp_count_size(&stream.queued_bytes, -block.size)
    stream.first_block = block.next
    if block.next == NULL:
        stream.last_block = NULL
    free_block(stream, block)


cdef void output_settled(Channel* channel, bint wake) noexcept nogil:
    """A block was sent, or failed."""
    cdef Stream* stream = <Stream*> channel
    stream_block_done(stream)
    if channel.closing:
        stream_schedule(stream, wake)
        return
    if stream.output.error != 0:
        stream.error = stream.output.error
        drop_blocks(stream)
        stream_schedule(stream, wake)
    elif stream.first_block != NULL:
        stream_start_output(stream)
    elif stream.was_full or stream.close_when_sent:
        stream_schedule(stream, wake)
