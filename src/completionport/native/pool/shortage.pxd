"""What becomes of operations for which no thread can be had."""

# For the thread that takes packets, once `Scheduler.rescue_ns` has come. It is inside, without a lock.
cdef void rescue(void* engine) noexcept nogil
