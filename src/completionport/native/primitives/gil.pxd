"""Who waits for the GIL, seen from outside."""

from libc.stdint cimport uint64_t, uintptr_t

cdef extern from "gil.h":
    enum:
        CP_HAS_GIL      # 0 in a free-threaded interpreter
        CP_GIL_SIZE

cdef extern from "thread_clock.h" nogil:
    uint64_t cp_sleeping_place(int number, uintptr_t* futex, int* timed)

# Constant after the import: the word on which threads sleep that wait for the GIL; 0 when it can't be told.
cdef uintptr_t gil_word

ctypedef enum Sleep:
    UNTOLD
    AWAKE
    WAITS_FOR_GIL
    SLEEPS          # for something else


cdef inline Sleep sleep_of(int number, uintptr_t word, uint64_t* place) noexcept nogil:
    """What a thread of this process is at, told exactly; and where in its code, 0 when it is awake.

    ``word``: `gil_word`.
    """
    cdef uintptr_t futex
    cdef int timed
    place[0] = cp_sleeping_place(number, &futex, &timed)
    if word == 0 or timed < 0:
        return UNTOLD
    if place[0] == 0:
        return AWAKE
    return WAITS_FOR_GIL if futex - word + CP_GIL_SIZE < 2 * CP_GIL_SIZE else SLEEPS
