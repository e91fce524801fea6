/* Latencies in nanoseconds, counted in 32 steps for each power of two: a percentile is within 3 %
 * of the true one, and counting costs next to nothing. */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <stdint.h>

#define STEP_BITS 5
#define STEPS (1 << STEP_BITS)
#define BUCKETS (64 * STEPS)

struct histogram {
    uint64_t count;
    uint64_t most;
    uint64_t buckets[BUCKETS];
};

static inline unsigned bucket_of(uint64_t value)
{
    if (value < STEPS)
        return (unsigned)value;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - STEP_BITS;
    return (shift + 1) * STEPS + (unsigned)((value >> shift) & (STEPS - 1));
}

/* The middle of a bucket. */
static inline double value_of(unsigned bucket)
{
    if (bucket < STEPS)
        return bucket;
    unsigned shift = bucket / STEPS - 1;
    return ((double)(STEPS + bucket % STEPS) + 0.5) * (double)(1ull << shift);
}

static inline void longest(struct histogram *h, uint64_t nanoseconds)
{
    if (nanoseconds > h->most)
        h->most = nanoseconds;
}

static inline void count_latency(struct histogram *h, uint64_t nanoseconds)
{
    h->buckets[bucket_of(nanoseconds)]++;
    h->count++;
    longest(h, nanoseconds);
}

/* In microseconds. */
static inline double percentile(const struct histogram *h, double part)
{
    uint64_t wanted = (uint64_t)((double)h->count * part), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++)
        if ((seen += h->buckets[i]) > wanted)
            return value_of(i) / 1000.0;
    return 0;
}

#endif
