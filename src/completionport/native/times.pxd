"""How long things took, counted while they happen; `completionport.Histogram` shows it."""

from libc.stdint cimport int64_t, uint32_t

cdef extern from *:
    """
    #define cp_leading_zeros(value) __builtin_clzll((unsigned long long)(value))
    """
    int cp_leading_zeros(int64_t value) nogil

cdef enum:
    HISTOGRAM_STEPS = 16    # as completionport.histogram has it
    HISTOGRAM_BUCKETS = 608 # up to 2**40 ns

cdef struct Times:
    # Measured times: the scheduler's lock.
    int64_t total_ns
    uint32_t counts[HISTOGRAM_BUCKETS]


cdef inline void count_time(Times* times, int64_t took) noexcept nogil:
    cdef int shift
    cdef int64_t index = max(took, 0)
    if index >= HISTOGRAM_STEPS:
        shift = 63 - cp_leading_zeros(index) - 4
        index = shift * HISTOGRAM_STEPS + (index >> shift)
    times.counts[min(index, HISTOGRAM_BUCKETS - 1)] += 1
    times.total_ns += took
