# cython: language_level=3, freethreading_compatible=True
"""Finds out where threads wait for the GIL."""

from libc.stdint cimport uint64_t, uintptr_t

cdef extern from "gil.h":
    uintptr_t cp_find_gil()

gil_word = cp_find_gil() if CP_HAS_GIL else 0


def told():
    """Whether it could be found out."""
    return gil_word != 0


def forget():
    """For tests: from now on it is as if it had not been found out."""
    global gil_word
    gil_word = 0


def seen(number):
    """For tests: whether that thread of this process ``"waits"`` for the GIL, ``"sleeps"`` for something
    else, or does neither. ``number``: its ``native_id``."""
    cdef uint64_t place
    cdef Sleep sleep = sleep_of(number, gil_word, &place)
    return "waits" if sleep == WAITS_FOR_GIL else "sleeps" if sleep == SLEEPS else "neither"
