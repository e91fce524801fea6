"""What an engine works on (channels, operations, streams) and what it has to offer."""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t

from ..primitives.atomics cimport cp_mutex
from ..scheduling.scheduler cimport Packet, Scheduler, Strand
from .lookups cimport Lookup

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "sys/socket.h" nogil:
    cdef struct sockaddr:
        unsigned short sa_family
    cdef struct msghdr:
        void* msg_name
        unsigned int msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags

# completionport.interface.operation.Operation
cdef enum:
    CP_ACCEPT = 1
    CP_CONNECT = 2
    CP_RECV = 3
    CP_SEND = 4
    CP_READ = 5
    CP_WRITE = 6
    CP_DISCONNECT = 7
    CP_SHUTDOWN = 8
    CP_SENDFILE = 9
    CP_RECVFROM = 10
    CP_SENDTO = 11
    CP_RECVMSG = 12
    CP_SENDMSG = 13
    CP_FSYNC = 14
    CP_ALLOCATE = 15
    CP_OPEN = 16
    CP_STAT = 17
    CP_CLOSE = 18
    CP_COPY = 19
    CP_RESOLVE = 23
    CP_CALL = 24
    CP_LET_GO = 64    # no program's: the pool closes a channel's descriptor, or a sent file's

cdef extern from "stdbool.h" nogil:
    # A truth in one byte.
    ctypedef bint flag "bool"

cdef struct Channel
cdef struct Datagrams
cdef struct Operation
cdef struct Engine

ctypedef enum OperationState:
    IDLE      # the program's
    CLAIMED   # in the call that starts it, or in its channel's queue
    DONE      # in the packet queue

ctypedef enum ChannelKind:
    SOCKET       # receives and sends with MSG_DONTWAIT
    POLLABLE     # pipes, terminals and the like
    REGULAR      # always ready: what does not depend on each other runs side by side
    ERRANDS      # no descriptor: operations of the port itself, side by side

ctypedef enum SourceKind:
    UNTOLD       # nobody says what the page cache has of the file
    TOLD         # it is asked for, and what is not there is read first
    DISTANT      # a file server's: all of it is read first

cdef struct Operation:
    Packet packet           # first: the packet queue links through it
    uint32_t state          # OperationState, atomic
    int code                # completionport.interface.operation.Operation
    void* overlapped        # one reference from the claim until the packet is taken
    Channel* channel        # as `overlapped`, one reference
    # All below: the channel's lock until DONE, then whoever takes the packet.
    Operation* next         # in the channel's queue
    Operation* previous
    flag in_kernel          # a request that names this operation is under way, or the pool has it
    flag offloaded          # it is the pool's: in line there, or being executed
    flag waits_only         # that request waits for readiness, it moves no data
    # cancel() or close() asked for its end: written as an atomic, for a thread of the pool that only asks.
    bint cancelled
    flag probe_only         # a receive of 0 bytes: wait, and take nothing
    flag fill               # MSG_WAITALL
    flag connecting
    flag gives_way          # it could go on: the engine is to come back to it after others
    flag given_back         # the kernel gave it up once, unasked
    flag is_span            # it is in its queue's `spans`
    flag wants_source       # the engine is to have its file read on before more can be sent
    flag owns_control       # of sendmsg: descriptors in `control` are duplicates of our own
    flag in_line            # for the pool; its lock
    flag zero_copy          # a send from the program's own pages, where the kernel can
    # Of such a send: the notifications that are to come. A request that was given pages gives one when
    # the kernel has let go of them.
    int notifications
    int flags               # of recv and send, without MSG_WAITALL; `how` of shutdown
    int error               # errno of the result
    int64_t transferred     # bytes so far; the new descriptor for an accept
    int64_t offset          # in the file, -1 for the file's own position
    int64_t extent          # bytes from `offset` that a write or an allocation covers; the most of a copy
    int source              # of sendfile: a duplicate of the file's descriptor, else -1
    SourceKind source_kind
    int64_t source_left     # bytes of it that are left; -1: the tail has its turn
    int64_t source_ready    # up to there it can be sent without waiting for a disk
    iovec* vector           # what is left to do; the engine may move it on
    int vector_count
    iovec one               # `vector` of an operation with a single buffer
    msghdr message          # as the kernel was given it last, and what it wrote there
    # Memory in the Overlapped, or NULL: a sockaddr to connect or send to, or room for the sender's; a path.
    void* address
    unsigned int address_size
    Lookup* lookup          # of a resolve; NULL once its thread was left behind with it
    Opening* opening        # of an open that a thread of the pool is at, else NULL: the pool's lock
    # Ancillary data to be sent, or room for it or for a status; a copy's target; room for what is read
    # for a sendfile, and the bytes of a distant file until they are sent, which end at `source_ready`.
    void* control
    size_t control_size
    # Operations in line for the pool: its lock.
    Operation* next_in_line
    Operation* previous_in_line

cdef struct Opening:
    # An open(2) that may be left behind: it owns all its memory. The state is the pool's lock's, the
    # rest its thread's.
    int state               # LookupState
    char* path
    int flags
    unsigned mode
    int result              # a descriptor, or minus an errno

cdef struct ChannelOwner:
    # Who is told instead of the packet queue; a Handle's channel has none. Channel lock held.
    void (*settled)(Channel* channel, bint wake) noexcept nogil
    void (*closing)(Channel* channel) noexcept nogil

cdef struct OperationQueue:
    Operation* head
    Operation* tail

cdef struct SideBySide:
    # What is known of the output queue of a channel whose operations run side by side. Those in its
    # input queue wait for nothing.
    int waiting             # those not started,
    int waiting_syncs       # of them the fsyncs,
    Operation* first_waiting   # and the first of them, or NULL
    int everywhere          # changes that may cover every byte of the file
    # The other changes that were started, by offset: no two of them cover the same byte.
    Operation** spans
    int span_count
    int span_room
    bint spans_lost         # there was no memory: not all are there, until the queue is empty

cdef struct Channel:
    cp_mutex lock
    int references          # atomic
    Engine* engine
    # Constant after creation.
    int descriptor          # a duplicate that nobody else knows; -1 once let go (lock)
    ChannelKind kind
    const ChannelOwner* owner
    Strand* strand          # that its packets are bound to, one reference, or NULL
    flag keeps_messages     # a socket of datagrams or records: one call, one message
    flag readable           # opened for it
    flag writable
    flag is_device          # a character device: a terminal
    flag is_pipe            # a pipe or a FIFO
    flag own_open           # `descriptor` is an open file that nobody else has, which never waits
    flag skips_on_success   # what succeeds at once gives no packet
    int direct              # O_DIRECT: what addresses, offsets and sizes are multiples of, else 0
    flag appends            # O_APPEND: each write goes to the end
    flag on_fuse            # a file on a file system of FUSE
    # Of what runs side by side, else NULL: a server's connections do without its memory.
    SideBySide* beside      # the pointer is constant, what it points to the lock's
    # lock; `closing` and `descriptor` are written as atomics, for those who only ask:
    OperationQueue input
    OperationQueue output
    bint closing
    flag was_reset          # a close has reset its connection: what then fails is aborted
    # A stream socket's last receive did not bring all that was asked for: it is empty, or the next byte is
    # urgent. Until it is known to be ready again a receive would take that byte away.
    flag stopped_short
    int in_kernel           # requests under way, and what the pool has
    # Out of the output queue, but their packets wait: for notifications, or behind one that does.
    OperationQueue unacknowledged
    uint32_t slot           # where it waits for readiness: its place in that table
    uint32_t generation     # and what its events must carry; 0: it does not wait there
    # The port's list of channels; the port's list lock.
    Channel* previous
    Channel* following

cdef struct Chunk:
    # What one completion of a multishot receive or accept brought (io_uring), or a datagram.
    Chunk* next
    void* buffer            # of the pool, in which the bytes lie
    char* data
    int32_t size            # bytes; of a listener: the new descriptor

cdef struct Block:
    # Bytes to be sent by a stream, copied behind the structure or lying in a Python object.
    Block* next
    void* object            # one reference to that object, or NULL
    char* data
    size_t size
    # How much fits behind the structure; of a datagram: the size of its address, which lies before
    # `data`.
    size_t room

ctypedef enum Doubt:
    NO_DOUBT
    NEW_DOUBT       # a receive was short since the last look
    OLD_DOUBT       # and none since

cdef struct Stream:
    # One connection or one listening socket of the server. Fields: the channel's lock; statistics,
    # `close_when_sent`, `queued_bytes` and `active_ns` are written as atomics, for those who only ask.
    Channel channel         # first
    Packet packet
    bint scheduled          # in the packet queue, or a thread is at it
    bint listens            # a listening socket
    bint single             # accept one at a time: a limit must hold exactly
    Datagrams* datagrams    # of a datagram socket, else NULL
    bint wants_input        # receiving or accepting is asked for
    bint armed              # io_uring: the multishot request is under way
    bint stopping           # io_uring: and its end was asked for
    uint16_t armed_by       # io_uring: the last bits of the number of the thread that armed it
    uint16_t reaped_elsewhere  # io_uring: so many of its completions in a row were taken by others
    bint watched            # io_uring: a poll tells of a failure while nothing is received
    # There may be more to receive or accept: where that is told, and where a receive found no buffer.
    bint readable
    bint hung_up            # likewise: the end or an error is there, behind what can be received
    # A receive that brings less than was asked for leaves nothing: TCP, as long as no byte was urgent.
    bint short_empties
    Doubt doubt             # and whether that was so in fact
    bint failing            # the connection has failed; who receives finds out by that, else SO_ERROR says it
    bint ended              # the peer will send no more
    bint close_when_sent    # closing, lingering, or closed
    bint lingering          # our side has ended: what the peer still sends is thrown away
    int32_t linger_left     # so many bytes of it at most
    bint was_full           # the kernel did not take all at once: `drained` is owed
    int error               # errno that ends the stream
    Chunk* first_chunk      # received, or accepted, and not looked at yet: io_uring, datagrams
    Chunk* last_chunk
    size_t held             # io_uring: what they take, bytes, of which `arm_input` has the most
    Chunk* current          # with the worker, until `release_input`
    Block* first_block      # to be sent; the first one is in `output` while that is under way
    Block* last_block
    size_t queued_bytes     # what is left to be sent
    bint sending            # `output` is in the channel's output queue
    Operation output
    # What the packet's consumer knows it by: a Connection, a core, an Endpoint. One reference, from its birth
    # to its end.
    void* owner
    int64_t active_ns       # when bytes last moved, CLOCK_MONOTONIC
    int64_t sent_bytes
    int64_t received_bytes
    int64_t received_packets

cdef struct DatagramHead:
    # What lies before a datagram: this, `Datagrams.name_room` bytes for the address, the bytes.
    uint32_t name_size
    uint32_t flags          # MSG_TRUNC: the datagram was longer

cdef struct Datagrams:
    # What a Stream has besides when it is a datagram socket. Channel lock.
    size_t name_room        # constant: of an address
    size_t size             # constant: the most bytes of a datagram
    char* memory            # what `datagrams_receive` fills, made when first needed
    Chunk* chunks           # one for each place in it
    Chunk* unused           # of these
    # Written as atomics, for those who only ask: datagrams sent, and those that found no room.
    int64_t sent
    int64_t dropped

cdef struct EngineType:
    # Wait for completions until the deadline and bring them to the packet queue; 0 or an errno.
    int (*wait)(Engine* engine, int64_t deadline_ns) noexcept nogil
    # Make a thread return from `wait`.
    void (*wake)(Engine* engine) noexcept nogil
    # Channel lock for all of these. A channel comes, and goes (its descriptor is closed next).
    int (*open_channel)(Engine* engine, Channel* channel) noexcept nogil
    void (*close_channel)(Engine* engine, Channel* channel) noexcept nogil
    # True for an operation that the kernel completes by itself, without a first try by system call.
    bint (*is_native)(Operation* operation) noexcept nogil
    # The operation at the head of its queue could not be done at once: carry it out.
    void (*start)(Engine* engine, Operation* operation) noexcept nogil
    # Stop it. True: it is stopped. False: its completion will tell.
    bint (*cancel)(Engine* engine, Operation* operation) noexcept nogil
    # Accept or receive until told otherwise; what comes is told by `stream_schedule`.
    void (*start_input)(Engine* engine, Stream* stream) noexcept nogil
    void (*stop_input)(Engine* engine, Stream* stream) noexcept nogil
    # Nothing is received: tell when the connection fails, by `failing`. It ends with the channel.
    void (*watch)(Engine* engine, Stream* stream) noexcept nogil
    # The next piece received: its size, 0 for the end, or a negative errno (EAGAIN: nothing yet,
    # and `stream_schedule` will tell). It stays valid until `release_input`. `scratch` is for
    # engines that have no buffers of their own; its size is the most that is wanted.
    # For a listener: the descriptor of a connection. For a datagram socket: a datagram with what
    # `DatagramHead` says before it.
    int64_t (*next_input)(Engine* engine, Stream* stream, char* scratch, size_t scratch_size,
                          char** data) noexcept nogil
    # No lock:
    void (*release_input)(Engine* engine, Stream* stream) noexcept nogil
    # What was started so far goes to the kernel now.
    void (*submit)(Engine* engine) noexcept nogil
    # Bring what has completed to the packet queue, waiting for a moment if asked to.
    void (*reap)(Engine* engine, bint pause) noexcept nogil
    # Buffers for start_input, where the engine receives into its own; 0 or an errno.
    int (*provide_buffers)(Engine* engine, size_t size) noexcept nogil
    void (*destroy)(Engine* engine) noexcept nogil

cdef struct Offload:
    # The port's pool of threads: `native/pool/offload.pyx`.
    int references          # atomic: one of the port's, one of each thread's
    # Constant after creation:
    int limit               # the most threads
    int base                # so many are let work at once, without a look at what they do
    int processors          # how many threads can run Python at a time
    Scheduler* scheduler    # one reference: a thread that leaves it still reads there when the port has gone
    # A Python function, which needs a thread state.
    void (*call)(Operation* operation) noexcept nogil
    void (*drop)(Operation* operation) noexcept nogil
    # Close a descriptor on the pool: that of a channel, whose lock is held, or with `source` not -1 the
    # one of a file that was sent there. False: it has no thread for it.
    bint (*let_go)(Channel* channel, int source) noexcept nogil
    # All below: lock, a leaf below the channels' locks.
    cp_mutex lock
    Operation* first
    Operation* last
    int in_line
    uint32_t taken          # operations that a thread took out of the line so far
    int letting_go          # descriptors that are in line to be closed, or being closed
    int threads
    int asleep              # of them, those that wait and were not called
    int called              # of them, those on their way to the line
    int width               # how many may be at work: base to limit
    int quick               # operations since the width changed that blocked nobody
    int watch               # `Watch`: who looks whether the line stands still
    int64_t short_since_ns  # since when no thread can be started, 0: one could
    uint32_t short_taken    # `taken` at that time
    bint closed
    uint32_t signal         # futex word of those asleep: counts. Written under the lock, waited on without

cdef struct Engine:
    const EngineType* type
    Scheduler* scheduler
    Offload* offload            # constant: the port's pool of threads
    # Constant: sends are cheaper together, with the next wait, than by a system call each.
    bint batches_sends
    # Constant: sends may be `zero_copy`.
    bint sends_zero_copy
    # For `stats`, written as atomics: requests whose pages the kernel took, and of these, those that it
    # copied after all.
    int64_t zero_copy_sends
    int64_t zero_copy_copied
    # When streams in doubt are looked at once more, 0: there is none. Atomic.
    int64_t doubt_ns
    # Sent blocks whose object wants the GIL to be let go: atomic, taken as a whole.
    Block* garbage
