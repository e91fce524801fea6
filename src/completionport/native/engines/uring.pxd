"""What an engine on io_uring consists of, and the steps that its parts share."""

from libc.stdint cimport int64_t, uint16_t, uint64_t, uintptr_t

from ..channels.channels cimport channel_retain, let_go_if_idle
from ..channels.engine cimport Channel, Engine, Stream
from ..channels.streams cimport stream_schedule
from ..primitives.atomics cimport cp_mutex, cp_mutex_lock, cp_mutex_unlock
from .buffers cimport BufferPool
from .readiness cimport Readiness
from .ring cimport Ring, commit_entry, cp_sqe, next_entry

cdef extern from "uring_abi.h" nogil:
    enum:
        CP_OP_ASYNC_CANCEL

cdef enum:
    # The low bits of a request's user_data say what its address points to; 0 is of no interest.
    TAG_OPERATION = 1
    TAG_INPUT = 2
    TAG_CANCEL = 3                # a channel
    TAG_WATCH = 4                 # a stream
    TAG_MASK = 7

cdef struct Uring:
    Engine engine               # first
    Ring ring
    unsigned wait_flags
    uint64_t known              # opcodes that the kernel has, a bit each; constant
    bint woken                  # a completion of `wake` was seen: completion lock
    uint16_t reaper             # who takes completions, as `Stream.armed_by`: completion lock
    cp_mutex opening_lock       # of `readiness` and `pool`, which are opened when first needed
    bint tells_readiness        # `readiness` is open: written under that lock, as an atomic
    Readiness readiness         # of what `ring_receives` leaves to it, and of the ring
    BufferPool pool             # where the ring receives for them
    int64_t short_until_ns      # atomic: the port's pool does what the kernel had no thread for, 0: it has


cdef inline void ask_to_cancel(Uring* uring, Channel* channel, uint64_t user_data) noexcept nogil:
    """Have the kernel stop a request of this channel. Channel lock."""
    cdef cp_sqe* sqe
    cp_mutex_lock(&uring.ring.sq_lock)
    sqe = next_entry(&uring.ring)
    sqe.opcode = CP_OP_ASYNC_CANCEL
    sqe.addr = user_data
    sqe.user_data = <uintptr_t> channel | TAG_CANCEL
    commit_entry(&uring.ring)
    cp_mutex_unlock(&uring.ring.sq_lock)
    channel.in_kernel += 1
    channel_retain(channel)


cdef inline void request_over(Channel* channel) noexcept nogil:
    """One request less. Channel lock, which the caller's reference keeps alive."""
    channel.in_kernel -= 1
    if channel.closing and channel.in_kernel == 0:
        let_go_if_idle(channel)
        if channel.owner != NULL:
            stream_schedule(<Stream*> channel, False)
