"""The completion port, what it gives and what is made with it: documented once, for every engine.

`CompletionPort` and `Strand` carry the documentation. Their work is done by classes that are
derived from them, in ``completionport.native`` (compiled: io_uring, epoll),
``completionport.windows`` (iocp) and ``completionport.portable`` (the standard library only);
``completionport.engines`` chooses one.
"""

from __future__ import annotations

import os
import types
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    TypeVarTuple,
    overload,
)

from .handle import Handle, HasFileno, Overlapped, Path
from .timer import Timer
from .unique import Unique

if TYPE_CHECKING:
    import subprocess

    # Known to type checkers without being installed. `typing.TypeVar` takes a default from Python
    # 3.13 on only.
    from typing_extensions import TypeVar

    K = TypeVar("K", default=Any)
else:
    from typing import TypeVar

    K = TypeVar("K")
Arguments = TypeVarTuple("Arguments")


class Completion(NamedTuple, Generic[K]):
    """One packet taken from a port; unpacks as transferred, key, overlapped, error.

    ``Completion[str]`` says to a type checker of what type the key is.
    """

    transferred: Any
    """Bytes moved, or what was posted."""
    key: K
    """The key given to `CompletionPort.associate`, or what was posted."""
    overlapped: Any
    """The Overlapped of the operation, or what was posted."""
    error: BaseException | None = None
    """What went wrong, None when the operation succeeded or the packet was posted."""


class CompletionPort(Unique):
    """A queue of completion packets, and the threads that wait for them.

    ``concurrency``: how many threads that have taken a packet may run at a time;
    0 means as many as can run Python at once: the usable processors on a
    free-threaded interpreter, 1 under the GIL. A thread that has taken a packet holds
    its place until it calls `get` again (here or at another port) or ends. While it blocks (a
    lock, a sleep, a database call, anything in the kernel) it does not count, and within a few
    milliseconds another one is let go; when it runs again it counts again, and the port may be
    over its concurrency for that while. The engine ``selectors`` can't see who blocks: there
    only `blocking` tells. On ``iocp`` all of this is the kernel's own. More than one under the GIL
    helps for nothing but threads that compute outside of it.

    ``engine``: ``"iocp"`` (Windows), ``"io_uring"``, ``"epoll"``, ``"selectors"``, or None for
    the best one that runs here. The environment variable ``COMPLETIONPORT_ENGINE`` decides in
    place of None.

    ``pool_threads``: the most threads, 1 to 1024, of the port's pool, which runs `submit` and
    `getaddrinfo`, and what of files the engine can't do by itself. Up to four are started as they
    are needed; more where those at work block while others wait in line. They end after some
    seconds without work, and count for nobody's concurrency.

    Raised: `EngineUnavailable` when the engine asked for can't run, `ValueError` for an
    unknown engine, a negative concurrency or a number of threads out of range.

    Use it as a context manager, or call `close`. A port that is dropped without that gives
    a `ResourceWarning` and is closed. After ``fork()`` the child's calls raise `PortForked`.
    It can't be copied or pickled.

    A subclass runs on every engine: the class of the object is derived from it and from what
    implements the engine. Its ``__init__`` may take what it likes, and calls ``super().__init__``
    before it uses the port. The engine is chosen by the ``engine`` given to the class, before
    ``__init__``, which can't change it.

    Win32: ``CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, concurrency)``.
    """

    _choose: ClassVar[Callable[[str | None], type[CompletionPort]]]
    """What implements an engine, or the best one here; `completionport.engines` gives it."""
    _completion: ClassVar[type[Completion]]
    """What makes a packet, the same on all engines of a process; so does that."""

    _ENGINE: ClassVar[str] = ""
    """Of an implementation: the name of its engine."""
    _derived: ClassVar[dict[tuple[type, type], type[CompletionPort]]] = {}
    """What was derived from a class and an implementation. Each step on it is atomic."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Each class keeps its own, and so none alive.
        cls._derived = {}

    def __new__(cls, *_: Any, engine: str | None = None, **__: Any) -> CompletionPort:
        if cls._ENGINE:
            return super().__new__(cls)
        chosen = cls._choose(engine)
        # Not the new class's own `__new__`, which may be what called this one.
        return chosen.__new__(chosen if cls is CompletionPort else _on(chosen, cls))

    def __init__(
        self, concurrency: int = 0, *, engine: str | None = None, pool_threads: int = 64
    ) -> None:
        raise NotImplementedError

    @property
    def concurrency(self) -> int:
        """How many threads that have taken packets may run at a time."""
        raise NotImplementedError

    @property
    def engine(self) -> str:
        """``"iocp"``, ``"io_uring"``, ``"epoll"`` or ``"selectors"``."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        raise NotImplementedError

    def associate(
        self,
        file: HasFileno | int | subprocess.Popen[Any],
        key: Any,
        *,
        strand: Strand | None = None,
    ) -> Handle:
        """Bind a file to this port (``CreateIoCompletionPort(file, port, key, 0)``).

        ``file``: a socket or any object with ``fileno()``, or a descriptor number. It may be
        blocking, non-blocking or have a timeout: that makes no difference here. Or a
        `subprocess.Popen`: see below.
        A number belongs to the handle until that is closed: whoever closes it otherwise must know
        that it counts as associated until then. What another open has put under the number since
        is left alone, if it is another file, and on Linux (6.10, or where kcmp(2) is allowed) if
        it is the same file too; not where the port was closed before.
        ``key``: any object; it comes with every packet of this file (per-handle data). Where a
        handle takes the place of another one under the same key (a client that has come again),
        packets of the old one may still come, with that key: ``completion.overlapped.handle`` tells
        whose they are.
        ``strand``: a `Strand` of this port that all packets of this file are bound to.

        A process gives one packet when it ends: its ``transferred`` and ``overlapped.result()`` are
        ``returncode``, which is set by then, and nothing is left of the process
        (``RegisterWaitForSingleObject``, ``UnregisterWait``). The handle's ``file`` is the Popen,
        and its ``close()`` only ends the watch: then, or at ``cancel()``, the packet comes with
        `OperationAborted`. The program may wait for the process as well. One that has ended already
        gives its packet at once. Several handles may watch one process. Its pipes are files of
        their own.

        Raised: `TypeError` for an object with no descriptor, `ValueError` for a closed one,
        `AlreadyAssociated` when a port has this file already, `OSError` with ``ENOSYS`` for a
        process where the system can't tell of its end (Linux and Windows can).
        """
        raise NotImplementedError

    @overload
    def get(self, timeout: None = None) -> Completion: ...
    @overload
    def get(self, timeout: float | None) -> Completion | None: ...
    def get(self, timeout: float | None = None) -> Completion | None:
        """Take the packet that has waited longest, waiting for one if need be.

        ``timeout``: seconds, 0 to look without waiting, None to wait without end.
        Returned: the `Completion`, or None when the time is over.

        Any number of threads may wait; the one that came last is served first.
        On a port with servers the thread serves their connections as their workers do, and goes on
        waiting behind that: so it may come back later than ``timeout`` by the length of a callback.
        A callback that calls `get` takes the program's packets only.
        Raised: `PortClosed`, also in threads that wait when the port is closed; `MemoryError`, and
        on the compiled engines the packet stays, to be taken again.
        Signals are handled while the main thread waits (Ctrl-C raises `KeyboardInterrupt`): at
        once, or within a second where the system gives the signal to another thread. Where the
        main thread is in a callback just then, that is interrupted, its connection ends as with
        any exception, and `KeyboardInterrupt` or `SystemExit` comes out of ``get`` behind it.
        Win32: ``GetQueuedCompletionStatus``.
        """
        raise NotImplementedError

    def get_many(self, max_count: int, timeout: float | None = None) -> list[Completion]:
        """Take up to ``max_count`` (at least 1) packets at once.

        It waits as `get` does for the first one and takes what else is there; an empty
        list when the time is over. Where packets are posted to end threads, one for each, a
        thread may get several at once: it posts those again that are not its own.
        Win32: ``GetQueuedCompletionStatusEx``.
        """
        raise NotImplementedError

    def post(
        self,
        transferred: Any = 0,
        key: Any = None,
        overlapped: Any = None,
        *,
        strand: Strand | None = None,
    ) -> None:
        """Put a packet into the queue: the three values come out of `get` unchanged.

        ``strand``: a `Strand` of this port that the packet is bound to.

        Raised: `PortClosed`. Win32: ``PostQueuedCompletionStatus``.
        """
        raise NotImplementedError

    def post_after(
        self,
        seconds: float,
        transferred: Any = 0,
        key: Any = None,
        overlapped: Any = None,
        *,
        strand: Strand | None = None,
    ) -> Timer:
        """Post a packet once a time has passed (``SetThreadpoolTimer``).

        ``seconds``: 0 to 3.2e9 (a hundred years). The other arguments are as for `post`. The
        packet is never early; how much later it comes is up to the engine (about 0.1 ms compiled,
        1 ms on ``selectors``) and to the threads, which have to be free to take it.

        Returned: a `Timer`, to cancel it. No thread is needed for it: those that wait in `get`
        wait no longer than until the next timer, and with no thread there the packet is in the
        queue for the next one that comes. Timers of the same time come in the order in which they
        were set. A port that is closed drops them.

        Raised: `TypeError`, `ValueError` (negative, too large, not a number), `PortClosed`.
        """
        raise NotImplementedError

    def post_at(
        self,
        when: float,
        transferred: Any = 0,
        key: Any = None,
        overlapped: Any = None,
        *,
        strand: Strand | None = None,
    ) -> Timer:
        """Post a packet at a time of `time.monotonic`'s clock; otherwise as `post_after`.

        ``when``: a time that has passed means at once.
        """
        raise NotImplementedError

    def associate_signal(
        self, signum: int, key: Any, *, strand: Strand | None = None
    ) -> SignalWatch:
        """Get a packet for each signal of this number that arrives (``SetConsoleCtrlHandler``).

        ``signum``: as for `signal.signal`. ``key``, ``strand``: as for `post`. The packet's
        ``transferred`` is the number of the signal.

        Returned: a `SignalWatch`, whose ``close()`` ends it. Several, of this port or of others,
        may watch one signal: each gets a packet. The handler that was there before is not called
        meanwhile, so ``SIGINT`` raises no `KeyboardInterrupt`; it is put back with the last watch.
        The child of a fork gets none, and treats the signal as before.

        It stands on `signal.signal`: the packet is posted by the main thread, as soon as that runs
        Python or waits in `get`, a lock, a join. Signals that arrive before it does so count as
        one, as they do for the kernel.

        Windows has two: ``SIGINT`` for Ctrl-C, ``SIGBREAK`` for Ctrl-Break and for a console that
        is closed. There too a wait of the main thread in `get` ends for it at once.

        Raised: `RuntimeError` in another thread than the main one, `ValueError` for a number that
        is no signal, or one that Windows never sends, `OSError` for one that can't be caught
        (``SIGKILL``), `PortClosed`.
        """
        raise NotImplementedError

    def submit(
        self,
        function: Callable[[*Arguments], Any],
        /,
        *args: *Arguments,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        """Run ``function(*args)`` on the port's pool and post its result (``QueueUserWorkItem``).

        ``key``: any object, which comes with the packet. ``overlapped``: as for a `Handle`'s
        operations. ``strand``: a `Strand` of this port that the packet is bound to; the function
        itself is not.

        Returned: the Overlapped. ``overlapped.result()`` is what the function returned, or raises
        what it raised; the packet's ``error`` is that exception.

        The pool is for what blocks: up to ``pool_threads`` of the port run at a time, and what is
        more waits in line, where ``overlapped.cancel()`` takes it out. Four run at once; behind
        functions that block another one starts every 5 ms, but none behind those that compute, or
        wait for the GIL: they would be no quicker. A function that runs can't be cancelled, and
        `close` waits for it; the end of the interpreter does not. One that closes its own port is
        not waited for, and its packet is dropped. One that forks may return in the child too, which
        ends then with status 0.

        Raised: `TypeError` for what can't be called, `PortClosed`.
        """
        raise NotImplementedError

    def getaddrinfo(
        self,
        host: bytes | str | None,
        service: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
        *,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        """Look a host and a service up, on the pool (``GetAddrInfoEx``).

        The arguments and ``overlapped.result()`` are those of `socket.getaddrinfo`; a failure is
        the packet's ``error``, a `socket.gaierror`.
        ``key``, ``overlapped`` and ``strand`` are as for `submit`.

        A lookup can't be interrupted. One that is cancelled, or whose port is closed, gives its
        packet at once all the same: its thread is left behind, and ends by itself when the name
        server has answered or the resolver gives up.
        """
        raise NotImplementedError

    def open(
        self,
        path: Path,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        """Open a file without waiting for the disk (``CreateFile``).

        The arguments are those of `os.open`. ``overlapped.result()`` is the number of a descriptor,
        not inheritable, which is the program's once the packet was taken: `associate` it, and
        close it with the handle. That of a packet that is never taken is closed. A named pipe
        waits for its other side. The `OSError` of one that fails has the path as its ``filename``,
        as text. ``key``, ``overlapped`` and ``strand`` are as for `submit`.

        An open that is cancelled, or whose port is closed, gives its packet at once. Its thread of
        the pool is left behind, and closes what it may still come to open; with ``os.O_CREAT`` the
        file may have been made all the same.
        """
        raise NotImplementedError

    def stat(
        self,
        path: Path,
        *,
        follow_symlinks: bool = True,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        """Ask for the size, times and so on of what has this name (``GetFileAttributesEx``).

        ``overlapped.result()`` is an `os.stat_result`; ``follow_symlinks`` as for `os.stat`. The
        `OSError` of one that fails has the path as its ``filename``, as text. ``key``,
        ``overlapped`` and ``strand`` are as for `submit`.
        """
        raise NotImplementedError

    def copy_file(
        self,
        source: Path,
        target: Path,
        *,
        at_most: int = 2**63 - 1,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        """Copy a file under another name, in one go and without the GIL (``CopyFileEx``).

        ``target`` must not exist: a `FileExistsError` else. It gets the data, the times, and who
        may read, write and execute it; not the owner, and so not set-user-ID and the like.
        ``overlapped.result()`` is the number of bytes. A link is followed; what is no regular file
        is refused (`IsADirectoryError`, or ``EINVAL``). Where the file system lets files share
        their blocks they do, and where the kernel copies by itself the data does not pass through
        the process: ``copy_file_range(2)``. The `OSError` of one that fails has both names as text:
        ``filename`` is the source and ``filename2`` the target.

        What counts is the size that the file has when it is opened; one that says it is empty (in
        ``/proc``) is read to its end. On Linux holes stay holes, as with cp(1); ``result()``
        counts them.

        It is for the many small files of a tree: a packet for each, where `open`, reads and writes
        would be six. ``at_most``: a file of more bytes fails with ``EFBIG``, and nothing is left of
        its copy; it is not begun where the file says so, as all but those of ``/proc`` do. A
        program that shows how far it is copies that one in pieces. ``key``, ``overlapped`` and
        ``strand`` are as for `submit`.

        A thread of the pool (``pool_threads``) carries it out on every engine. One that fails, or
        is cancelled before it is over, leaves no target; a large file is looked at for that every
        few milliseconds.
        """
        raise NotImplementedError

    def close_descriptor(
        self,
        fd: int,
        *,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        """Close a descriptor that belongs to no handle, without waiting for the disk.

        ``fd``: its number. It must not be used any more, whatever the packet says.
        ``key``, ``overlapped`` and ``strand`` are as for `submit`.
        """
        raise NotImplementedError

    def blocking(self) -> AbstractContextManager[None]:
        """For ``with port.blocking():`` around what blocks: another thread may run meanwhile.

        The port finds out by itself that a thread blocks, within a few milliseconds, and at once
        while callbacks block often; this tells it in any case. At the end of the block the thread
        counts again, and the port may be over its concurrency for a while. In a thread that has
        taken no packet it does nothing.
        """
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        """Numbers for a look inside.

        ``engine``, ``concurrency``; ``queued``: packets in the queue now; ``posted``, ``completed``
        and ``taken``: packets so far; ``pending``: operations under way; ``timers``: timers whose
        time has not come; ``handles``: open handles; ``waiting``: threads in `get`; ``woken``: how
        many of them were woken and are on their way; ``running``: threads that hold a place;
        ``blocked``: threads at work on a packet that do not count, because they block;
        ``replaced``: how often a thread was let go in the place of one that blocks; ``wakeups``:
        how often a thread was woken (on Windows, which tells neither, it and ``woken`` are 0);
        ``zero_copy_sends``: how often the kernel took pages for a send with ``zero_copy``,
        ``zero_copy_copied``: and how often of these it copied them after all, as it does on
        loopback. ``queue_time`` and ``work_time`` are `Histogram` objects: how long packets waited,
        and how long threads took from `get` to `get`.
        """
        raise NotImplementedError

    def _check(self) -> None:
        """Raise `PortForked` or `PortClosed` where one of them is due."""
        raise NotImplementedError

    def _new_strand(self) -> Strand:
        """For `Strand`."""
        raise NotImplementedError

    def _associate_skipping(self, file: HasFileno | int, key: Any) -> Handle:
        """For `completionport.win32`: a handle whose operations skip the port on success.

        An operation that succeeds at once gives no packet: its call returns None and not the
        Overlapped, which has the outcome and is free again. All else is as with `associate`.
        """
        raise NotImplementedError

    def _wait_until_stuck(self, timeout: float | None) -> bool:
        """For `WorkerPool`: wait until packets wait and every thread at work blocks.

        False when the time (seconds, None for no limit) is over, or at `_dismiss_keepers`, where it
        may be True as well; `PortClosed`. It holds no place.
        """
        raise NotImplementedError

    def _dismiss_keepers(self) -> None:
        """Make every `_wait_until_stuck` return."""
        raise NotImplementedError

    def _new_crew(self, takes_programs: bool) -> Any:
        """For `crew.Crew`: what stands for threads that wait together.

        ``takes_programs``: they take the program's packets too, and not those of consumers only.
        """
        raise NotImplementedError

    def _take(self, crew: Any, timeout: float | None) -> Completion | Literal[False] | None:
        """`get`, as a thread of that crew; False when the thread is dismissed."""
        raise NotImplementedError

    def _dismiss(self, crew: Any, count: int) -> None:
        """Have so many threads of the crew be dismissed. Those that wait are at once.

        Where they take the program's packets, what is queued now is taken before.
        """
        raise NotImplementedError

    def _serves(self) -> bool:
        """Whether the calling thread is in the midst of a consumer's packet, of whatever port."""
        raise NotImplementedError

    def _executes(self) -> bool:
        """Whether the calling thread is at a function of this port's pool."""
        raise NotImplementedError

    def _serving(self, crew: Any) -> int:
        """How many threads of a crew that takes the program's packets are in the midst of one."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the port (``CloseHandle``).

        Every waiting thread gets `PortClosed`. Operations under way are cancelled, and the
        call returns when the kernel has let go of their buffers, and the pool's threads have
        done what they are at. Packets that were not taken are dropped. The files stay open: they
        belong to the program. Servers on it end: their connections are aborted, and get their
        `Handler.closed` in this thread, or where a callback is at work behind that. Closing again
        does nothing.
        """
        raise NotImplementedError

    def __enter__(self) -> CompletionPort:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Strand(Unique):
    """A line in which packets of a port are handed out one at a time, in order.

    Made with ``Strand(port)``. Packets are bound to it by `CompletionPort.associate` (all packets
    of that handle) and by `CompletionPort.post`. While a thread is at work on a packet of the
    strand the next one stays back, whoever waits in `CompletionPort.get`; the packets of other
    strands, and those of none, go on meanwhile. So what the packets of one strand share needs no
    lock.

    The thread is at work until it calls `get` or `get_many` again (of this port or another one),
    ends, or calls `release`. `get_many` gives at most one packet of a strand.

    Any number of handles can be bound to one strand, and each handle to one strand only. A strand
    lives as long as something refers to it or is bound to it.

    It can't be derived from: which class a strand is of is the port's affair.

    Raised: `TypeError` when ``port`` is no `CompletionPort`, and for a derived class; `PortClosed`.
    """

    __slots__ = ()

    def __new__(cls, port: CompletionPort) -> Strand:
        if cls is not Strand:
            raise TypeError(
                f"{cls.__name__} can't be derived from Strand: each engine has strands of its own; "
                "keep the Strand in an attribute"
            )
        if not isinstance(port, CompletionPort):
            raise TypeError(f"a Strand needs a CompletionPort, not {type(port).__name__}")
        return port._new_strand()

    @property
    def port(self) -> CompletionPort | None:
        """The port, or None once the port object is gone. A strand does not keep its port alive."""
        raise NotImplementedError

    @property
    def queued(self) -> int:
        """How many packets stay back until the one before them is done with."""
        raise NotImplementedError

    def release(self) -> None:
        """Be done with the packet of this strand before the next `get`: the next one may go.

        Raised: `RuntimeError` when the calling thread is not at work on a packet of the strand.
        """
        raise NotImplementedError


class SignalWatch(Unique, ABC):
    """A signal that gives packets. Made by `CompletionPort.associate_signal`.

    It stays in force until `close`, or until the port is closed or gone; the program may drop it.
    """

    __slots__ = ()

    key: Any
    """The completion key of its packets."""
    signum: int
    """The number of the signal."""

    @property
    @abstractmethod
    def port(self) -> CompletionPort | None:
        """The port, or None once it is gone."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """True once `close` was called or the port was closed."""

    @abstractmethod
    def close(self) -> None:
        """Stop giving packets; those in the queue stay there.

        With the last one of its signal the handler that was there before is put back: at once in
        the main thread, else when the signal comes next, which is then left to that handler. Any
        thread may call it. Closing again does nothing.
        """

    def __enter__(self) -> SignalWatch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _on(chosen: type[CompletionPort], cls: type[CompletionPort]) -> type[CompletionPort]:
    """The class of the objects of ``cls``, a program's subclass, on this implementation."""
    kind = cls._derived.get((cls, chosen))
    if kind is None:
        names = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
        }
        try:
            made = types.new_class(
                cls.__name__, (cls, chosen), None, lambda body: body.update(names)
            )
        except TypeError as error:
            raise TypeError(
                f"{cls.__name__} can't be joined with what implements {chosen._ENGINE}: {error}. A "
                "subclass of CompletionPort can have no __slots__, no bases in C, and no "
                "__init_subclass__ that needs arguments; it can always hold a port instead"
            ) from error
        kind = cls._derived.setdefault((cls, chosen), made)
    return kind


def check_engine(engine: str | None, port: CompletionPort) -> None:
    """Raise when a port is initialised for another engine than it was made for."""
    if engine is not None and engine != port._ENGINE:
        raise ValueError(
            f"this port was made for {port._ENGINE} and can't be initialised for {engine}: give "
            f"engine={engine!r} to {type(port).__name__}(...) itself, or to super().__new__"
        )


def check_strand(strand: Any, port: CompletionPort) -> None:
    """Raise what is due when ``strand`` is neither None nor a strand of ``port``."""
    if strand is None:
        return
    if not isinstance(strand, Strand):
        raise TypeError(f"strand must be a Strand or None, not {type(strand).__name__}")
    if strand.port is not port:
        raise ValueError("the strand belongs to another port")
