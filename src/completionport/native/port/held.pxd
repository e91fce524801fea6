"""The operations that a port owns, from the call until the packet is taken, as the collector sees them."""

from libc.stdint cimport uintptr_t

from ..channels.engine cimport HeldOperations, Operation
from ..primitives.atomics cimport CP_SHARES, cp_lock_without_gil, cp_unlock_without_gil


cdef inline void hold(HeldOperations* shares, Operation* operation) noexcept:
    """The port owns the operation's reference to its Overlapped from now on. Attached."""
    cdef HeldOperations* held = &shares[(<uintptr_t> operation >> 6) % CP_SHARES]
    operation.held_in = held
    cp_lock_without_gil(&held.lock)
    operation.next_held = held.first
    operation.held_from = &held.first
    if held.first != NULL:
        held.first.held_from = &operation.next_held
    held.first = operation
    cp_unlock_without_gil(&held.lock)


cdef inline void let_go(Operation* operation) noexcept:
    """The reference is the caller's. Attached."""
    cdef HeldOperations* held = operation.held_in
    cp_lock_without_gil(&held.lock)
    operation.held_from[0] = operation.next_held
    if operation.next_held != NULL:
        operation.next_held.held_from = operation.held_from
    cp_unlock_without_gil(&held.lock)
    operation.held_in = NULL
