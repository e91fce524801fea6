"""The packet queue, the threads that wait for it, and the places of those that run.

Nothing here touches a Python object: every function runs with or without the GIL.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from ..primitives.atomics cimport cp_load_acquire, cp_now_ns, cp_peek_64
from ..primitives.guard cimport Guard, guard_enter, guard_leave, guard_wait_until_alone
from ..primitives.light_mutex cimport cp_light_mutex
from ..primitives.times cimport Times

ctypedef enum PacketKind:
    PACKET_POSTED     # a PostedPacket
    PACKET_OPERATION  # the first member of an Operation
    PACKET_TIMER      # the first member of a TimedPacket
    PACKET_SERVED     # a consumer's, which alone knows what it is a part of

cdef struct Packet
cdef struct Scheduler
cdef struct Strand
cdef struct Waiter

cdef struct Consumer:
    # Who a packet is for, where that is not the program. Constant. Both are called with an attached thread
    # state, and not inside.
    # By the thread that has taken the packet, whichever that is: the packet has its turn. A consumer that
    # has a thread of its own hands it over here.
    # ``me``: that thread.
    void (*serve)(Packet* packet, Waiter* me) noexcept
    # The port is closed, nothing of it is with the kernel any more, and nobody will serve the packet.
    void (*drop)(Packet* packet) noexcept

cdef struct Packet:
    Packet* next              # scheduler lock, while it is queued
    const Consumer* consumer  # constant while it is queued; NULL: it is the program's
    PacketKind kind           # constant
    uint32_t number           # scheduler lock: of the heads of both lines the lower one has come first; it may wrap
    Strand* strand            # constant while it is queued; its owner sees to the strand's life
    int64_t queued_ns         # scheduler lock: when it came, where that is measured, else 0

cdef enum:
    # What a thread takes, as bits.
    TAKES_PROGRAMS = 1
    TAKES_SERVED = 2
    TAKES_ALL = 3

cdef struct Line:
    # Packets that the same threads take, first in first out: the scheduler's lock.
    Packet* head            # written by `set_head`: a stream's send peeks at it without the lock
    Packet* tail
    int64_t queued
    int64_t taken           # so far
    int takes               # constant: its bit of what threads take
    int takers              # waiting threads that take of it
    int woken               # threads that were signalled for it, and are not yet back under the lock
    # Packets at the head that a thread passed over, as others that were signalled before it are still on
    # their way: for these only. At most `woken`.
    int passed_over
    Waiter* last_signalled  # of those that are not yet back

cdef struct Crew:
    # Threads of a kind that can be dismissed.
    int takes               # constant
    # Lock of their scheduler: how many are to leave, where they take the program's packets once so many of
    # those were taken.
    int leaving
    int64_t until
    int serving             # atomic, counted where they take the program's packets: at consumers' packets

cdef struct Strand:
    int references          # atomic
    Scheduler* scheduler    # one reference
    # All below: the scheduler's lock.
    bint busy               # a packet of it is in the queue or with a thread
    Packet* head            # those that stay back
    Packet* tail
    int64_t queued          # written by `cp_count_locked`: read without the lock for `Strand.queued`
    Waiter* holder          # the thread that is at work on a packet of it; one reference
    Strand* next_held       # of the same thread
    Strand* previous        # all of the port
    Strand* following

cdef struct PostedPacket:
    # The three references belong to the packet until it is taken.
    Packet packet
    void* transferred
    void* key
    void* overlapped

cdef struct Waiter:
    # One thread. All fields without another word: the lock of the scheduler it waits in.
    Waiter* newer
    Waiter* older
    bint on_stack
    bint signalled
    int takes
    Crew* crew                # that it waits as one of, or NULL
    Line* line                # for which it was signalled
    Waiter* signalled_before  # of those that are signalled for that line and not yet back
    Waiter* signalled_after
    uint64_t arrival
    uint32_t signal         # futex word, atomic: 1 means wake up
    # Own thread only:
    Scheduler* held         # the port last used, one reference
    int serving             # so many packets of consumers it is at, one inside the other
    char* scratch           # memory for what it receives, `scratch_size` bytes
    size_t scratch_size
    # The place of `held` that it has, from a packet to the next call of get.
    bint holds_place
    Waiter* next_holder
    Waiter* previous_holder
    bint blocked            # so its place does not count
    int declared            # it said so itself, so many times
    Strand* strands         # held with the packets it is at work on
    uint64_t turn           # counts its packets
    int64_t started_ns      # when it took the packet, where that is measured, else 0
    uint32_t returning      # atomic: has left `take`, and may still wait for the GIL
    # Constant: how others see what it does.
    int clock               # its CPU clock
    int number              # gettid(2)
    # The monitor's alone: what it saw at its last look.
    uint64_t seen_turn
    int64_t seen_turn_at_ns # and when it first saw that turn
    int64_t seen_cpu_ns
    int64_t seen_at_ns
    uint64_t blocked_at     # the place in its code where it was found blocked, 0: not known
    int64_t slept_times     # when it was seen awake since then, -1: was asleep at the last look

cdef enum:
    # What it may cost to wake a thread, ns: shorter work is done sooner by who is awake. 5 us on a
    # bare machine, but a send that wakes its reader takes 10 on a virtual one, and is no long work.
    WAKE_COST = 12000
    # Work that may wait for more of its kind, ns.
    SHORT_WORK = 5000
    NO_TIMER = 0x7fffffffffffffff

ctypedef enum Attention:
    UNWATCHED
    DROWSY      # it looks now and then
    WATCHED     # it looks every few milliseconds

cdef struct Scheduler:
    # Each lock that is handed to another processor brings its neighbours along, and every call reads
    # the guard: so what changes with each packet lies together, 64 bytes to a line of the cache, and
    # apart from what is only read.
    Guard guard             # threads inside a call; `closed` is written under the lock
    int references          # atomic
    # Constant after creation:
    int concurrency
    bint submits_late       # what threads start may wait for their next call
    void* engine
    int (*kernel_wait)(void* engine, int64_t deadline_ns) noexcept nogil
    void (*kernel_wake)(void* engine) noexcept nogil
    void (*kernel_submit)(void* engine) noexcept nogil
    void (*rescue)(void* engine) noexcept nogil
    # When the next timer is due, else NO_TIMER: written under the lock of the timers, as an atomic.
    int64_t next_timer_ns
    # When a thread that takes packets has to see to what no thread can be had for, else NO_TIMER: atomic.
    int64_t rescue_ns
    # All below: lock. Who lets go of it has a reference, or is inside: it may not go before.
    cp_light_mutex lock
    int running             # threads that hold a place that counts
    int woken               # signalled, not yet back under the lock
    int since_kernel        # packets taken since the kernel was last looked at
    int to_measure          # so many turns are measured in any case
    uint32_t number         # of the last packet that was queued: a new one where `last_line` changes
    Waiter* newest          # stack of waiting threads, the leader included
    Waiter* leader          # written by `set_leader`: engines peek at it without the lock
    int64_t queued          # in both lines
    # Second line.
    Line* last_line         # into which a packet was queued last
    Line served             # consumers' packets
    Line programs           # the program's
    int64_t posted
    int64_t completed
    # Running average of the time from get to get; written by `set_time`, read without the lock too.
    int64_t work_ns
    Waiter* holders         # threads that hold a place, whether it counts or not
    PostedPacket* spare     # used PostedPackets, to be used again
    int spare_count
    Attention attention     # the monitor's to this port
    bint drained            # `close_queue` was here: nobody takes or drops what is queued now
    int dismissed           # threads of all crews that are to leave
    int choosy              # crews that take one line only
    bint hot                # callbacks are known to block (standby.pxd); peeked at without the lock
    # The rest.
    int waiting
    int64_t hot_until_ns
    int64_t next_trial_ns   # a long turn before is not looked at
    int64_t trial_gap_ns    # from the last trial to the next
    Waiter* standby         # waits for the GIL, without a packet, or is on its way to; only to be compared
    bint in_vain            # the last one found nobody that blocks, and nobody has taken a packet since
    uint64_t arrivals
    int blocked             # threads that hold a place that does not count
    Strand* strands
    int64_t held_back       # packets in strands
    int64_t wakeups
    int64_t replaced        # wake-ups because a thread blocked
    int keepers             # threads that wait until the port is stuck
    uint32_t stuck          # futex word for them: counts
    int64_t leader_until_ns # how long the leader waits at most, where there is one
    void* timers            # constant: `timer_heap` makes it, and knows what is in it
    Times queue_times
    Times work_times

# Of `timer_heap`: makes packets of timers that are due. The caller is inside and has no lock.
ctypedef void (*Fire)(Scheduler* s, bint wake) noexcept nogil

# With the scheduler's lock not held; `known`: it is in the monitor's list already.
ctypedef void (*Watch)(Scheduler* s, bint known) noexcept nogil

ctypedef enum TakeStatus:
    TAKE_PACKET
    TAKE_TIMEOUT
    TAKE_CLOSED
    TAKE_INTERRUPTED
    TAKE_NO_MEMORY   # for what is kept of the thread: it has taken nothing
    TAKE_DISMISSED   # the thread is to leave its crew
    TAKE_STANDBY    # no packet: the caller takes the GIL, and calls `stand_in`

cdef struct Taken:
    # A packet as it leaves the queue; a PostedPacket's values are moved here.
    Packet* packet
    Waiter* thread          # that took it
    void* transferred
    void* key
    void* overlapped

cdef int64_t FOREVER
cdef int64_t POLL

cdef Scheduler* scheduler_new(int concurrency) noexcept nogil
cdef void scheduler_release(Scheduler* s) noexcept nogil
cdef void push(Scheduler* s, Packet* packet, bint wake) noexcept nogil
cdef bint post(
    Scheduler* s, void* transferred, void* key, void* overlapped, Strand* strand
) noexcept nogil
cdef void push_timed(Scheduler* s, Packet* packets, bint wake) noexcept nogil
cdef void wake_threads(Scheduler* s) noexcept nogil
# What the calling thread has taken just now, and could make nothing of, is the queue's first again.
cdef void put_back(Scheduler* s, Packet* packet) noexcept nogil
# ``takes``: TAKES_PROGRAMS, TAKES_SERVED or both. A thread that serves takes the program's in any case.
cdef bint take_ready(Scheduler* s, int takes, Crew* crew, Taken* taken, bint more) noexcept nogil
cdef int own_number() noexcept nogil
cdef TakeStatus take(
    Scheduler* s, int takes, Crew* crew, int64_t deadline_ns, Taken* taken, uint64_t* arrival
) noexcept nogil
cdef bint serves() noexcept nogil
cdef void drop_served(Scheduler* s, Packet* packet) noexcept
cdef void drop_queued(Packet* packet) noexcept
cdef void announce_close(Scheduler* s) noexcept nogil
cdef Packet* close_queue(Scheduler* s) noexcept nogil
cdef void thread_is_back(Scheduler* s) noexcept nogil
cdef bint stand_in(Scheduler* s, int takes, Crew* crew, Taken* taken) noexcept nogil
cdef bint start_blocking(Scheduler* s) noexcept nogil
cdef void end_blocking(Scheduler* s) noexcept nogil
cdef void strand_retain(Strand* strand) noexcept nogil
cdef void strand_release(Strand* strand) noexcept nogil
cdef bint strand_let_go(Strand* strand) noexcept nogil
# For the keepers and the monitor.
cdef void unlock_and_wake(Scheduler* s) noexcept nogil
cdef void unlock_and_wake_from_outside(Scheduler* s) noexcept nogil
cdef void unlock_and_help(Scheduler* s) noexcept nogil
cdef void on_watch(Watch function) noexcept nogil
cdef void on_timers(Fire function) noexcept nogil


cdef inline char* scratch_of(Waiter* me, size_t size) noexcept nogil:
    """So much memory of the calling thread's; NULL where there is none. Until the next call."""
    return me.scratch if me.scratch_size >= size else more_scratch(me, size)


cdef inline void serve(Taken* taken) noexcept:
    """Of a packet that is a consumer's, which the calling thread has just taken."""
    cdef Waiter* me = taken.thread
    cdef int before = me.serving
    me.serving = before + 1
    taken.packet.consumer.serve(taken.packet, me)
    # In the child of a fork in there it was set to 0.
    me.serving = before


cdef extern from "atomics.h" nogil:
    Waiter* cp_peek_waiter "cp_load_relaxed"(Waiter** field)
    int64_t cp_peek_time "cp_load_relaxed"(int64_t* field)
    void set_time "cp_store_relaxed"(int64_t* field, int64_t value)
    Packet* cp_peek_packet "cp_load_relaxed"(Packet** field)
    void set_leader_ "cp_store_relaxed"(Waiter** field, Waiter* value)
    void set_head_ "cp_store_relaxed"(Packet** field, Packet* value)


cdef inline void set_leader(Scheduler* s, Waiter* leader) noexcept nogil:
    set_leader_(&s.leader, leader)


cdef inline void set_head(Line* line, Packet* head) noexcept nogil:
    set_head_(&line.head, head)


cdef inline Line* line_of(Scheduler* s, Packet* packet) noexcept nogil:
    return &s.programs if packet.consumer == NULL else &s.served


cdef inline bint somebody_leads(Scheduler* s) noexcept nogil:
    """Without the lock, so only what was so a moment ago.

    Who asks because it took the leader's wake-up from the kernel sees that leader, or a later one:
    it was written before the wake-up was sent. Who asks whether it has to look after the kernel
    itself may be wrong, and then looks once too often or leaves it to a later wait.
    """
    return cp_peek_waiter(&s.leader) != NULL


cdef inline bint packets_are_short(Scheduler* s) noexcept nogil:
    """Consumers' packets wait, and are usually done with soon. Without the lock: a hint."""
    return cp_peek_packet(&s.served.head) != NULL and cp_peek_time(&s.work_ns) < SHORT_WORK


cdef inline bint timers_are_due(Scheduler* s) noexcept nogil:
    """With no timer set it costs one comparison."""
    cdef int64_t next_ns = cp_peek_64(&s.next_timer_ns)
    return next_ns != NO_TIMER and next_ns <= cp_now_ns()


cdef inline bint rescue_is_due(Scheduler* s) noexcept nogil:
    cdef int64_t when_ns = cp_peek_64(&s.rescue_ns)
    return when_ns != NO_TIMER and when_ns <= cp_now_ns()


cdef inline int64_t with_rescue(Scheduler* s, int64_t deadline_ns) noexcept nogil:
    """As `with_timers`, for a thread that takes packets."""
    cdef int64_t when_ns = cp_peek_64(&s.rescue_ns)
    if when_ns == NO_TIMER or (deadline_ns != FOREVER and deadline_ns <= when_ns):
        return deadline_ns
    return when_ns


cdef inline int64_t with_timers(Scheduler* s, int64_t deadline_ns) noexcept nogil:
    """Until when a thread may sleep that wants to wait until `deadline_ns` (not POLL)."""
    cdef int64_t next_ns = cp_peek_64(&s.next_timer_ns)
    if next_ns == NO_TIMER or (deadline_ns != FOREVER and deadline_ns <= next_ns):
        return deadline_ns
    return next_ns


cdef inline bint is_closed(Scheduler* s) noexcept nogil:
    return cp_load_acquire(&s.guard.closed) != 0


cdef inline bint enter(Scheduler* s) noexcept nogil:
    """Begin a call that uses the engine; False when the port is closed."""
    return guard_enter(&s.guard)


cdef inline void leave(Scheduler* s) noexcept nogil:
    guard_leave(&s.guard)


cdef inline bint wait_until_alone(Scheduler* s, int64_t deadline_ns) noexcept nogil:
    return guard_wait_until_alone(&s.guard, deadline_ns)


cdef inline char* more_scratch(Waiter* me, size_t size) noexcept nogil:
    free(me.scratch)
    me.scratch = <char*> malloc(size)
    me.scratch_size = size if me.scratch != NULL else 0
    return me.scratch
