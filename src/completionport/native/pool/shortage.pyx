# cython: language_level=3, freethreading_compatible=True
"""What becomes of operations for which no thread can be had: at the system's limit of threads or of memory.

The thread that takes packets comes here, without a lock. It carries out what waits for nothing but a disk or a
file server, as a thread of the pool would. The rest may wait for anything, and fails.
"""

from libc.stdint cimport int64_t

from ..channels.channels cimport (
    carry_on,
    channel_release,
    channel_retain,
    let_go_if_idle,
    side_by_side,
)
from ..channels.engine cimport (
    CP_CALL,
    CP_COPY,
    CP_LET_GO,
    CP_OPEN,
    CP_RESOLVE,
    CP_SENDFILE,
    Channel,
    Engine,
    Offload,
    Operation,
)
from ..channels.sources cimport give_source_up
from ..primitives.atomics cimport cp_mutex_lock, cp_mutex_unlock, cp_now_ns, cp_set_64
from ..scheduling.scheduler cimport NO_TIMER
from .offload cimport (
    back_from_pool,
    close_descriptor,
    execute_here,
    obey,
    summon,
    unlink,
)

cdef extern from "errno.h" nogil:
    enum:
        EAGAIN


cdef void rescue(void* engine) noexcept nogil:
    """Try once more to have a thread started; else see to all that is in line. The caller is inside."""
    cdef Offload* pool = (<Engine*> engine).offload
    cdef Operation* operation
    cdef Channel* channel
    cp_mutex_lock(&pool.lock)
    cp_set_64(&pool.scheduler.rescue_ns, NO_TIMER)
    summons = summon(pool)
    cp_mutex_unlock(&pool.lock)
    if obey(pool, summons) == 0 or pool.scheduler.rescue_ns > cp_now_ns():
        return
    cp_set_64(&pool.scheduler.rescue_ns, NO_TIMER)
    while True:
        cp_mutex_lock(&pool.lock)
        operation = pool.first
        if operation == NULL:
            cp_mutex_unlock(&pool.lock)
            return
        if operation.code == CP_LET_GO:
            unlink(pool, operation)
            cp_mutex_unlock(&pool.lock)
            close_descriptor(pool, operation)
            continue
        channel = channel_retain(operation.channel)
        cp_mutex_unlock(&pool.lock)
        see_to(pool, channel, operation)
        channel_release(channel)


cdef void see_to(Offload* pool, Channel* channel, Operation* operation) noexcept nogil:
    cdef bint ours
    cp_mutex_lock(&channel.lock)
    # Between the two locks it may have been taken by a thread, or cancelled, and used again.
    cp_mutex_lock(&pool.lock)
    ours = pool.first == operation and operation.channel == channel
    if ours:
        # Not counted in `taken`: the pool's own threads stand still as before.
        unlink(pool, operation)
    cp_mutex_unlock(&pool.lock)
    if ours and waits_for_storage_only(operation):
        cp_mutex_unlock(&channel.lock)
        execute_here(pool, operation)
        return
    if ours:
        back_from_pool(operation)
        if operation.code == CP_SENDFILE:
            # Then whoever sends it reads it too.
            give_source_up(operation)
            operation.gives_way = True
            channel.engine.type.start(channel.engine, operation)
        else:
            operation.error = EAGAIN
            carry_on(operation, True)
        let_go_if_idle(channel)
    cp_mutex_unlock(&channel.lock)


cdef bint waits_for_storage_only(Operation* operation) noexcept nogil:
    return side_by_side(operation.channel) and not (
        operation.code == CP_CALL or operation.code == CP_RESOLVE or operation.code == CP_OPEN
        or operation.code == CP_COPY
    )
