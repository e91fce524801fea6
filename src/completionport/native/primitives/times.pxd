"""What is counted for `stats` while it happens; `completionport.Histogram` shows the times."""

from libc.stdint cimport int64_t, uint32_t

from .atomics cimport cp_count, cp_count_locked, cp_now_ns

cdef extern from *:
    """
    #define cp_leading_zeros(value) __builtin_clzll((unsigned long long)(value))
    #ifdef COMPLETIONPORT_WITHOUT_STATS
    #define CP_MEASURED 0
    #else
    #define CP_MEASURED 1
    #endif
    """
    int cp_leading_zeros(int64_t value) nogil
    # 1, and 0 in a build that is there to show what measuring costs (benchmarks/builds.py): it
    # counts nothing for `stats`, reads no clock, and takes every packet for a short one.
    const int MEASURED "CP_MEASURED"

cdef enum:
    HISTOGRAM_STEPS = 16    # as interface.histogram has it
    HISTOGRAM_BUCKETS = 608 # up to 2**40 ns
    # In a busy port one packet of so many is measured (powers of 2), unless work takes long anyway.
    # That is three looks at the clock, some 30 ns each: they must not show beside the work.
    MEASURE_EVERY = 16
    MEASURE_TINY_EVERY = 128
    TINY_WORK = 500         # ns

cdef struct Times:
    # Measured times: the scheduler's lock.
    int64_t total_ns
    uint32_t counts[HISTOGRAM_BUCKETS]


cdef inline int64_t measured_now_ns() noexcept nogil:
    return cp_now_ns() if MEASURED else 0


cdef inline bint is_sample(int64_t number, int64_t work_ns) noexcept nogil:
    """Whether the packet of this number is measured in a port whose packets take so long."""
    return number & ((MEASURE_TINY_EVERY if work_ns < TINY_WORK else MEASURE_EVERY) - 1) == 0


cdef inline void add_to_stats(int64_t* counter, int64_t amount) noexcept nogil:
    """For `stats`; for a counter that only the holder of a lock changes."""
    if MEASURED:
        cp_count_locked(counter, amount)


cdef inline void add_to_shared_stats(int64_t* counter, int64_t amount) noexcept nogil:
    """For `stats`; for a counter that any thread may change."""
    if MEASURED:
        cp_count(counter, amount)


cdef inline void count_time(Times* times, int64_t took) noexcept nogil:
    cdef int shift
    cdef int64_t index = max(took, 0)
    if index >= HISTOGRAM_STEPS:
        shift = 63 - cp_leading_zeros(index) - 4
        index = shift * HISTOGRAM_STEPS + (index >> shift)
    times.counts[min(index, HISTOGRAM_BUCKETS - 1)] += 1
    times.total_ns += took
