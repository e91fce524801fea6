# cython: language_level=3, freethreading_compatible=True
"""The ring's receives and accepts: what comes for the sockets of servers. `io_uring` says how the kernel behaves."""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free

from ..channels.channels cimport channel_release, channel_retain
from ..channels.datagrams cimport datagrams_receive, datagrams_release
from ..channels.engine cimport Channel, Chunk, Engine, Stream
from ..channels.streams cimport (
    append_chunk,
    stream_failed,
    stream_input_if_ready,
    stream_schedule,
    told_by_readiness,
)
from ..primitives.atomics cimport cp_mutex_lock, cp_mutex_unlock
from ..scheduling.scheduler cimport own_number
from .buffers cimport BUFFER_GROUP, pool_filled, pool_grow, pool_release
from .ring cimport commit_entry, cp_sqe, next_entry
from .uring cimport TAG_INPUT, TAG_WATCH, Uring, ask_to_cancel, request_over

cdef extern from "uring_abi.h" nogil:
    enum:
        CP_OP_POLL_ADD, CP_OP_ACCEPT, CP_OP_RECV
        CP_CQE_F_BUFFER, CP_CQE_F_MORE, CP_SQE_BUFFER_SELECT
        CP_RECV_MULTISHOT, CP_RECVSEND_POLL_FIRST, CP_ACCEPT_MULTISHOT, CP_POLL_ADD_MULTI

cdef extern from "errno.h" nogil:
    enum:
        EAGAIN, ECANCELED, EINTR, ENOBUFS, ENOMEM

cdef extern from "poll.h" nogil:
    enum:
        POLLERR

cdef extern from "unistd.h" nogil:
    int close(int descriptor)

cdef extern from "sys/socket.h" nogil:
    enum:
        SOCK_CLOEXEC

cdef enum:
    # What came for a stream and no worker has looked at: `most_held` says when receiving stops. It goes on
    # at the half of that.
    BUFFERS_HELD = 4              # of the pool's size
    CHUNK_COST = 64               # what a chunk takes besides, bytes
    ACCEPTS_HELD = 256
    # So many completions in a row of a multishot request are taken by other threads than the one that has
    # armed it, and was woken for each: then one of those arms it. A move takes a cancel and two completions.
    MOVE_AFTER = 4


cdef void start_input(Engine* engine, Stream* stream) noexcept nogil:
    cdef bint receives = not told_by_readiness(&stream.channel)
    stream.wants_input = True
    if stream.listens and receives:
        arm_input(<Uring*> engine, stream)
        return
    if receives and not stream.armed:
        # A worker looks, and then arms it: the kernel would wake the thread that does for all that comes.
        stream.readable = True
    if stream.readable:
        stream_schedule(stream, True)


cdef inline size_t most_held(Uring* uring, Stream* stream) noexcept nogil:
    return CHUNK_COST * ACCEPTS_HELD if stream.listens else BUFFERS_HELD * uring.pool.size


cdef inline void count_held(Stream* stream, Chunk* chunk, int sign) noexcept nogil:
    stream.held += sign * (CHUNK_COST + (0 if stream.listens else chunk.size))


cdef void arm_input(Uring* uring, Stream* stream) noexcept nogil:
    """Have the kernel accept or receive, but for what a worker is to receive, or while much waits for one.

    Then `next_input` comes back to it.
    """
    cdef cp_sqe* sqe
    if (
        stream.armed or stream.readable or stream.channel.closing
        or stream.held > most_held(uring, stream) // 2
    ):
        return
    cp_mutex_lock(&uring.ring.sq_lock)
    sqe = next_entry(&uring.ring)
    sqe.fd = stream.channel.descriptor
    sqe.user_data = <uintptr_t> stream | TAG_INPUT
    if stream.listens:
        sqe.opcode = CP_OP_ACCEPT
        sqe.op_flags = SOCK_CLOEXEC
        sqe.ioprio = 0 if stream.single else CP_ACCEPT_MULTISHOT
    else:
        sqe.opcode = CP_OP_RECV
        sqe.ioprio = CP_RECV_MULTISHOT | CP_RECVSEND_POLL_FIRST
        sqe.flags = CP_SQE_BUFFER_SELECT
        sqe.buf_group = BUFFER_GROUP
    commit_entry(&uring.ring)
    cp_mutex_unlock(&uring.ring.sq_lock)
    stream.armed = True
    stream.stopping = False
    stream.armed_by = <uint16_t> own_number()
    stream.reaped_elsewhere = 0
    stream.channel.in_kernel += 1
    channel_retain(&stream.channel)


cdef void stop_input(Engine* engine, Stream* stream) noexcept nogil:
    stream.wants_input = False
    disarm_input(<Uring*> engine, stream)
    if stream.watched and stream.channel.closing:
        ask_to_cancel(<Uring*> engine, &stream.channel, <uintptr_t> stream | TAG_WATCH)


cdef void disarm_input(Uring* uring, Stream* stream) noexcept nogil:
    if stream.armed and not stream.stopping:
        stream.stopping = True
        ask_to_cancel(uring, &stream.channel, <uintptr_t> stream | TAG_INPUT)


cdef void watch(Engine* engine, Stream* stream) noexcept nogil:
    """A poll for nothing, which tells of errors; once begun it lasts as long as the connection.

    It is a multishot one, which is edge-triggered: a peer that has ended its side is told once.
    """
    cdef Uring* uring = <Uring*> engine
    cdef cp_sqe* sqe
    if told_by_readiness(&stream.channel) or stream.watched or stream.channel.closing:
        return
    cp_mutex_lock(&uring.ring.sq_lock)
    sqe = next_entry(&uring.ring)
    sqe.opcode = CP_OP_POLL_ADD
    sqe.fd = stream.channel.descriptor
    sqe.len = CP_POLL_ADD_MULTI
    sqe.user_data = <uintptr_t> stream | TAG_WATCH
    commit_entry(&uring.ring)
    cp_mutex_unlock(&uring.ring.sq_lock)
    stream.watched = True
    stream.channel.in_kernel += 1
    channel_retain(&stream.channel)


cdef void watch_completed(Uring* uring, Stream* stream, int32_t result, uint32_t flags) noexcept nogil:
    cdef Channel* channel = &stream.channel
    cdef bint ended = not flags & CP_CQE_F_MORE
    cp_mutex_lock(&channel.lock)
    if ended:
        stream.watched = False
    if not channel.closing:
        if result > 0 and result & POLLERR:
            stream_failed(stream)
        elif ended and not stream.wants_input:
            # The thread that has begun it has ended, or there was no memory or no room for a completion.
            watch(&uring.engine, stream)
    if ended:
        request_over(channel)
    cp_mutex_unlock(&channel.lock)
    if ended:
        channel_release(channel)


cdef void release_chunk(Uring* uring, Stream* stream, Chunk* chunk) noexcept nogil:
    if stream.listens:
        free(chunk)
    else:
        pool_release(&uring.pool, chunk)


cdef int64_t next_input(
    Engine* engine, Stream* stream, char* scratch, size_t scratch_size, char** data
) noexcept nogil:
    cdef Chunk* chunk = stream.first_chunk
    cdef int64_t got
    if told_by_readiness(&stream.channel):
        if stream.datagrams != NULL:
            return datagrams_receive(stream, data)
        data[0] = scratch
        return stream_input_if_ready(stream, scratch, scratch_size)
    if chunk != NULL:
        data[0] = chunk.data
        if not stream.listens and <size_t> chunk.size > scratch_size:
            chunk.data += scratch_size
            chunk.size -= <int32_t> scratch_size
            stream.held -= scratch_size
            return scratch_size
        stream.first_chunk = chunk.next
        stream.current = chunk
        count_held(stream, chunk, -1)
        # With a limit the listener looks first whether one more may come.
        if stream.wants_input and not stream.armed and not stream.single:
            arm_input(<Uring*> engine, stream)
        return chunk.size
    if stream.error != 0:
        return -stream.error
    if stream.ended:
        return 0
    if stream.wants_input and not stream.armed:
        if stream.readable and not stream.listens:
            # It may have come already, or there was no buffer for it: into the worker's own memory.
            data[0] = scratch
            got = stream_input_if_ready(stream, scratch, scratch_size)
            if 0 < got < <int64_t> scratch_size:
                # Most likely all: whatever is left, the receive that is armed next sees it.
                stream.readable = False
            if got != -EAGAIN:
                return got
        arm_input(<Uring*> engine, stream)
    return -EAGAIN


cdef void release_input(Engine* engine, Stream* stream) noexcept nogil:
    if stream.datagrams != NULL:
        datagrams_release(stream)
    elif stream.current != NULL:
        release_chunk(<Uring*> engine, stream, stream.current)
        stream.current = NULL


cdef void input_completed(Uring* uring, Stream* stream, int32_t result, uint32_t flags) noexcept nogil:
    cdef Channel* channel = &stream.channel
    cdef Chunk* chunk = NULL
    cdef bint ended = not flags & CP_CQE_F_MORE
    cp_mutex_lock(&channel.lock)
    if ended:
        stream.armed = False
        stream.stopping = False
    if stream.listens and result >= 0:
        chunk = <Chunk*> calloc(1, sizeof(Chunk))
        if chunk == NULL or channel.closing:
            free(chunk)
            close(result)
            chunk = NULL
        else:
            chunk.size = result
    elif flags & CP_CQE_F_BUFFER:
        chunk = pool_filled(&uring.pool, flags, max(result, 0))
        if chunk == NULL:
            stream.error = ENOMEM
            stream.wants_input = False
            stream_schedule(stream, False)
        elif channel.closing or result <= 0:
            pool_release(&uring.pool, chunk)
            chunk = NULL
    if chunk != NULL:
        append_chunk(stream, chunk)
        count_held(stream, chunk, 1)
        stream_schedule(stream, False)
        stream.reaped_elsewhere = 0 if stream.armed_by == uring.reaper else stream.reaped_elsewhere + 1
        if stream.held > most_held(uring, stream) or stream.reaped_elsewhere == MOVE_AFTER:
            # Its last completion has it armed again.
            disarm_input(uring, stream)
    if result == 0 and not stream.listens:
        stream.ended = True
        stream.wants_input = False
        stream_schedule(stream, False)
    elif result == -ENOBUFS and not stream.listens and not (
        stream.wants_input and pool_grow(&uring.pool)
    ):
        # All buffers wait for workers. The one that comes to this stream receives by itself.
        stream.readable = True
        stream_schedule(stream, False)
    elif result < 0 and result != -ECANCELED and result != -EINTR and result != -EAGAIN and (
        result != -ENOBUFS or stream.listens
    ):
        stream.error = -result
        stream.wants_input = False
        stream_schedule(stream, False)
    elif ended and stream.wants_input and not (stream.listens and stream.single and result >= 0):
        arm_input(uring, stream)
    if ended:
        request_over(channel)
    cp_mutex_unlock(&channel.lock)
    if ended:
        channel_release(channel)
