# cython: language_level=3, freethreading_compatible=True
"""What a server's datagram socket does between the kernel and a worker.

A worker that has the stream's turn takes one datagram, makes Python objects of it, and gives the
turn on before it calls the handler. So one datagram at a time is taken, and many may be looked at.

Sending needs no order: any thread sends at once, side by side with others, and counts in `in_kernel`
meanwhile, so that the descriptor stays. What finds the socket full waits in blocks.
"""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ..primitives.atomics cimport cp_mutex_lock, cp_mutex_unlock
from ..primitives.times cimport add_to_stats
from ..scheduling.scheduler cimport Consumer
from .channels cimport let_go_if_idle
from .engine cimport (
    CP_SENDTO,
    Block,
    Channel,
    ChannelOwner,
    Chunk,
    DatagramHead,
    Datagrams,
    iovec,
    msghdr,
    sockaddr,
)
from .messages cimport send_message
from .streams cimport (
    append_chunk,
    stream_append_block,
    stream_block_done,
    stream_closing,
    stream_new,
    stream_schedule,
    stream_start_output,
)

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EAGAIN, EINTR, ENOBUFS, ENOMEM

cdef extern from "sys/socket.h" nogil:
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int recvmmsg(int descriptor, mmsghdr* messages, unsigned count, int flags, void* timeout)
    int getsockname(int descriptor, sockaddr* address, unsigned int* size)
    enum:
        AF_INET, AF_INET6, MSG_DONTWAIT, MSG_NOSIGNAL

cdef enum:
    AT_ONCE = 16               # datagrams of one system call


cdef ChannelOwner datagrams_owner
datagrams_owner.settled = settled
datagrams_owner.closing = stream_closing


cdef size_t room_for_address(int descriptor) noexcept nogil:
    cdef char address[128]
    cdef unsigned int size = sizeof(address)
    getsockname(descriptor, <sockaddr*> address, &size)
    if (<sockaddr*> address).sa_family == AF_INET:
        return 16
    return 32 if (<sockaddr*> address).sa_family == AF_INET6 else 112


cdef Stream* datagrams_new(
    Engine* engine, int descriptor, const Consumer* consumer, size_t size
) noexcept nogil:
    cdef Stream* stream = stream_new(engine, descriptor, consumer)
    cdef Datagrams* datagrams = <Datagrams*> calloc(1, sizeof(Datagrams))
    if stream == NULL or datagrams == NULL:
        free(stream)
        free(datagrams)
        return NULL
    datagrams.size = size
    datagrams.name_room = room_for_address(descriptor)
    stream.datagrams = datagrams
    stream.channel.keeps_messages = True
    stream.channel.owner = &datagrams_owner
    stream.output.code = CP_SENDTO
    return stream


cdef void datagrams_free(Stream* stream) noexcept nogil:
    if stream.datagrams != NULL:
        free(stream.datagrams.memory)
        free(stream.datagrams.chunks)
        free(stream.datagrams)
        stream.datagrams = NULL


# -- receiving ------------------------------------------------------------------------------------

# By recvmmsg(2), on io_uring too: there a multishot receive handles one datagram each time that a thread
# leaves the kernel, and an echo took 5.0 us of CPU in place of 3.9 (benchmarks/run.py udp64).


cdef int make_room(Datagrams* datagrams) noexcept nogil:
    # An odd number of cache lines: else the beginnings of all places would share a few places of the
    # processor's caches.
    cdef size_t size = (
        (sizeof(DatagramHead) + datagrams.name_room + datagrams.size + 63) // 64 | 1
    ) * 64
    cdef int i
    datagrams.memory = <char*> malloc(AT_ONCE * size)
    datagrams.chunks = <Chunk*> calloc(AT_ONCE, sizeof(Chunk))
    if datagrams.memory == NULL or datagrams.chunks == NULL:
        free(datagrams.memory)
        free(datagrams.chunks)
        datagrams.memory = NULL
        datagrams.chunks = NULL
        return ENOMEM
    for i in range(AT_ONCE):
        datagrams.chunks[i].data = datagrams.memory + i * size
        datagrams.chunks[i].next = datagrams.unused
        datagrams.unused = &datagrams.chunks[i]
    return 0


cdef int fill(Stream* stream) noexcept nogil:
    """Receive what is there into all places that are free; 0 or an errno."""
    cdef Datagrams* datagrams = stream.datagrams
    cdef mmsghdr messages[AT_ONCE]
    cdef iovec vectors[AT_ONCE]
    cdef Chunk* chunk
    cdef DatagramHead* head
    cdef int count = 0
    cdef int got
    cdef int i
    if datagrams.memory == NULL and make_room(datagrams) != 0:
        return ENOMEM
    memset(messages, 0, sizeof(messages))
    chunk = datagrams.unused
    while chunk != NULL:
        messages[count].msg_hdr.msg_name = chunk.data + sizeof(DatagramHead)
        messages[count].msg_hdr.msg_namelen = <unsigned int> datagrams.name_room
        vectors[count].iov_base = chunk.data + sizeof(DatagramHead) + datagrams.name_room
        vectors[count].iov_len = datagrams.size
        messages[count].msg_hdr.msg_iov = &vectors[count]
        messages[count].msg_hdr.msg_iovlen = 1
        count += 1
        chunk = chunk.next
    got = recvmmsg(stream.channel.descriptor, messages, count, MSG_DONTWAIT, NULL)
    if got < 0:
        if errno == EAGAIN:
            stream.readable = False
        return 0 if errno == EAGAIN or errno == EINTR else errno
    if got < count and not stream.hung_up:
        stream.readable = False
    for i in range(got):
        chunk = datagrams.unused
        datagrams.unused = chunk.next
        head = <DatagramHead*> chunk.data
        head.name_size = messages[i].msg_hdr.msg_namelen
        head.flags = messages[i].msg_hdr.msg_flags
        chunk.size = <int> (sizeof(DatagramHead) + datagrams.name_room + messages[i].msg_len)
        append_chunk(stream, chunk)
    return 0


cdef int64_t datagrams_receive(Stream* stream, char** data) noexcept nogil:
    cdef Chunk* chunk
    while stream.first_chunk == NULL and stream.readable and stream.wants_input and stream.error == 0:
        stream.error = fill(stream)
        if stream.error != 0:
            stream.wants_input = False
    chunk = stream.first_chunk
    if chunk == NULL:
        return -stream.error if stream.error != 0 else -EAGAIN
    stream.first_chunk = chunk.next
    stream.current = chunk
    data[0] = chunk.data
    return chunk.size


cdef void datagrams_release(Stream* stream) noexcept nogil:
    cdef Chunk* chunk = stream.current
    if chunk != NULL:
        # Only the one worker that has the stream's turn touches the free places.
        chunk.next = stream.datagrams.unused
        stream.datagrams.unused = chunk
        stream.current = NULL


# -- sending --------------------------------------------------------------------------------------


cdef int datagrams_try_send(
    Stream* stream, const char* data, size_t size, const char* address, unsigned int address_size
) noexcept nogil:
    cdef Channel* channel = &stream.channel
    cdef msghdr message
    cdef iovec vector
    cdef int64_t sent = -EINTR
    if stream.first_block != NULL:
        return EAGAIN
    memset(&message, 0, sizeof(message))
    message.msg_name = <void*> address
    message.msg_namelen = address_size
    vector.iov_base = <void*> data
    vector.iov_len = size
    message.msg_iov = &vector
    message.msg_iovlen = 1
    channel.in_kernel += 1
    cp_mutex_unlock(&channel.lock)
    while sent == -EINTR:
        sent = send_message(channel.descriptor, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
    cp_mutex_lock(&channel.lock)
    channel.in_kernel -= 1
    if channel.closing and channel.in_kernel == 0:
        let_go_if_idle(channel)
        stream_schedule(stream, True)
    if sent < 0:
        return <int> -sent
    add_to_stats(&stream.sent_bytes, size)
    add_to_stats(&stream.datagrams.sent, 1)
    return 0


cdef int datagrams_queue(
    Stream* stream, const char* data, size_t size, const char* address, unsigned int address_size
) noexcept nogil:
    cdef Block* block = <Block*> malloc(sizeof(Block) + address_size + size)
    if block == NULL:
        return ENOMEM
    block.object = NULL
    block.data = <char*> (block + 1) + address_size
    memcpy(block.data - address_size, address, address_size)
    memcpy(block.data, data, size)
    block.size = size
    block.room = address_size
    stream_append_block(stream, block)
    stream_start_output(stream)
    return 0


cdef void settled(Channel* channel, bint wake) noexcept nogil:
    """A datagram that was queued is sent, or was refused."""
    cdef Stream* stream = <Stream*> channel
    cdef int error = stream.output.error
    stream_block_done(stream)
    if channel.closing:
        stream_schedule(stream, wake)
        return
    if error == ENOBUFS:
        add_to_stats(&stream.datagrams.dropped, 1)
    elif error != 0:
        stream.error = error
        stream_schedule(stream, wake)
    else:
        add_to_stats(&stream.datagrams.sent, 1)
    if stream.first_block != NULL:
        stream_start_output(stream)
    elif stream.close_when_sent:
        stream_schedule(stream, wake)
