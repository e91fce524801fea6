"""The engine ``selectors``: readiness and calls that do not wait.

A request is tried at once when nothing is queued in front of it, and again each time the
selector says that its file is ready.

A signal handler may come, use the very channel, and raise, behind each call of a function (see
``scheduling.scheduler``). So a request is in its queue before anything is done for it, what is done
twice does no harm, and who is interrupted under a channel's lock goes on once more before it lets
the exception go. What a handler starts or cancels in the midst of its own channel is done when that
lets go of the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import socket
import stat
import threading
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING

from ...interface.errors import CANCELLED, HandleClosed, system_error
from ...interface.operation import Operation
from ...shared import association
from ..channels.chores import Chores
from ..channels.requests import READING, Request, after, behind_connect
from ..channels.sources import SourceKind
from ..pool.file_channel import SideBySide
from ..pool.offload import Offload
from ..pool.source_work import SourceClose, SourceRead, SourceWorks
from ..scheduling.packets import look
from .attempts import attempt, end_connecting, open_anew

if TYPE_CHECKING:
    from ...interface.handle import Overlapped

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


def is_read_for(request: Request) -> bool:
    """Whether the pool has the file that it sends."""
    return request.source is not None and request.source.read is not None


class SelectorsChannel:
    """The duplicate of one file's descriptor, and the requests that wait for it."""

    __slots__ = (
        "__weakref__",
        "_tokens",
        "armed",
        "chores",
        "closed",
        "descriptor",
        "doubtful",
        "engine",
        "files",
        "gone",
        "is_regular",
        "is_socket",
        "lock",
        "own_open",
        "owner",
        "readable",
        "reads",
        "skips_on_success",
        "sock",
        "status",
        "stopped_short",
        "writable",
        "writes",
    )

    def __init__(
        self, engine: SelectorsEngine, number: int, token: Hashable, skips_on_success: bool = False
    ) -> None:
        self.engine = engine
        self.skips_on_success = skips_on_success  # what succeeds at once gives no packet
        self._tokens = [token]  # while the file is noted as this port's; no lock, a pop is one step
        self.gone = False  # set, once, before the duplicate is closed; no lock
        self.status = os.fstat(number)
        kind = stat.S_IFMT(self.status.st_mode)
        mode = fcntl.fcntl(number, fcntl.F_GETFL)
        self.is_socket = kind == stat.S_IFSOCK
        self.is_regular = kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFBLK)
        self.readable = mode & os.O_ACCMODE != os.O_WRONLY
        self.writable = mode & os.O_ACCMODE != os.O_RDONLY
        self.lock = threading.Lock()  # guards everything below; held over calls that do not wait
        self.chores = Chores(self.lock)
        self.reads: deque[Request] = deque()
        self.writes: deque[Request] = deque()
        self.owner: int | None = None  # the thread that holds the lock
        self.armed = 0  # what the selector looks for
        self.stopped_short = False  # see `attempts.must_look_first`
        self.doubtful = False  # a change of that was interrupted: it may look for anything
        self.closed = False
        self.sock: socket.socket | None = None
        # An open file that nobody else has, which never waits; else a duplicate.
        opened = open_anew(number, mode, self.status)
        self.own_open = opened is not None
        step = map(fcntl.fcntl, (number,), (fcntl.F_DUPFD_CLOEXEC,), (0,))
        self.descriptor: int
        self.files: SideBySide | None = None  # of a regular file: it has the requests; constant
        try:
            if opened is not None:
                self.descriptor = opened
            else:
                [self.descriptor] = step
            if self.is_regular:
                self.files = SideBySide(
                    self.descriptor,
                    engine.offload,
                    engine.deliver,
                    appends=bool(mode & os.O_APPEND),
                    direct=bool(mode & getattr(os, "O_DIRECT", 0)),
                )
            if self.is_socket:
                self.sock = socket.socket(fileno=self.descriptor)
                if self.sock.gettimeout() is not None:
                    # socket.setdefaulttimeout() made it change the mode.
                    self.sock.settimeout(None)
                    fcntl.fcntl(number, fcntl.F_SETFL, mode)
        except BaseException:
            if self.sock is not None:
                self.sock.close()
            elif hasattr(self, "descriptor"):
                os.close(self.descriptor)
            raise

    def family(self) -> tuple[int, int]:
        assert self.sock is not None
        return self.sock.family, self.sock.type

    def close_number(self, number: int) -> None:
        together = None if self.own_open else association.opened_together(number, self.descriptor)
        # Another file may have the duplicate's number as soon as that is closed.
        association.close_number(number, self.status, None if self.gone else together)

    def pending(self) -> int:
        if self.files is not None:
            return self.files.pending()
        waiting = [*look(self.reads), *look(self.writes)]
        return len([one for one in waiting if not one.delivered])

    def start(self, request: Request) -> bool:
        if self.files is not None:
            self.files.start(request)
            return True
        queue = self.reads if request.operation in READING else self.writes
        me = threading.get_ident()
        if self.owner == me:
            if self.closed:
                raise HandleClosed
            request.begun = True
            self.chores.add(partial(self._start_later, queue, request))
            return True
        try:
            with self.lock:
                try:
                    self.owner = me
                    return self._start(queue, request)
                finally:
                    self.owner = None
        except BaseException:
            if request.begun:
                self.advance(READ | WRITE, told=False)
            else:
                self._let_source_go(request)
            raise
        finally:
            self.chores.run()

    def _start(self, queue: deque[Request], request: Request) -> bool:
        """False: it is done, and no packet comes. Lock held."""
        if self.closed:
            raise HandleClosed
        first = not queue and not (queue is self.reads and self._is_connecting())
        queue += (request,)
        request.begun = True
        if not first or not attempt(self, request):
            try:
                self._arm()
            except BaseException:
                self._refuse_if_it_fails(queue, request)
                raise
        elif request.error is not None and not request.transferred:
            queue.remove(request)
            request.begun = False
            raise request.error
        elif self.skips_on_success and request.error is None:
            self._let_source_go(request)
            request.finish()
            queue.remove(request)
            return False
        else:
            self._complete(request)
            queue.remove(request)
        return True

    def _refuse_if_it_fails(self, queue: deque[Request], request: Request) -> None:
        """It can't be waited for; but a handler's exception is none of ours. Lock held."""
        try:
            self._arm()
        except BaseException:
            queue.remove(request)
            request.begun = False
            raise

    def _start_later(self, queue: deque[Request], request: Request) -> None:
        """Lock held. It may be done twice."""
        if self.closed:
            if not request.delivered:
                request.abort(CANCELLED)
                self._complete(request)
        elif request not in queue and not request.delivered:
            queue += (request,)
            self._go_on()

    def cancel(self, overlapped: Overlapped | None) -> int:
        if self.files is not None:
            return self.files.cancel(overlapped)
        me = threading.get_ident()
        if self.owner == me:
            # In a signal handler, whose thread has the lock.
            matching = [one for one in (*self.reads, *self.writes) if _is_of(one, overlapped)]
            self.chores.add(partial(self._cancel, overlapped))
            return len(matching)
        count = 0
        try:
            with self.lock:
                try:
                    self.owner = me
                    count = self._cancel(overlapped)
                finally:
                    self.owner = None
        finally:
            self.chores.run()
            if count:
                # What stood behind them may be possible now.
                self.advance(READ | WRITE, told=False)
        return count

    def _cancel(self, overlapped: Overlapped | None) -> int:
        """Lock held. It may be done twice."""
        count = 0
        for queue in (self.reads, self.writes):
            for request in list(queue):
                if _is_of(request, overlapped):
                    following = [] if overlapped is None else after(request, queue)
                    # A receive that was to be filled keeps its part: no byte is lost.
                    if not request.complete and not (
                        request.operation is Operation.RECV and request.transferred
                    ):
                        request.abort(CANCELLED)
                    self._end_connecting(request)
                    self._complete(request)
                    self._fail_unconnected(request, following)
                    queue.remove(request)
                    count += 1
        return count

    def detach(self, reason: str) -> None:
        if self.files is not None:
            self.files.close(reason, partial(self.engine.let_go, self, []), self.release_token)
        else:
            self.chores.add(partial(self._detach, reason))

    def advance(self, events: int, told: bool = True) -> None:
        """The selector says that the file is ready for these; not ``told``: it may be."""
        if self.owner == threading.get_ident():
            return  # a handler's: whom it has interrupted goes on
        try:
            self._advance_both(events, told)
        except BaseException:
            self._advance_both(events, told)
            raise
        finally:
            self.chores.run()

    def _advance_both(self, events: int, told: bool) -> None:
        me = threading.get_ident()
        with self.lock:
            try:
                self.owner = me
                if not self.closed:
                    if told and events & READ:
                        self.stopped_short = False
                    unused = 0
                    if events & READ and not self._advance(self.reads):
                        unused |= READ
                    if events & WRITE:
                        self._advance(self.writes)
                        if not self.writes:
                            unused |= WRITE
                    # Reading stays armed for the next receive until it proves to be of no use;
                    # writing does not, since a socket can nearly always be written to.
                    self._arm(unused)
            finally:
                self.owner = None

    def _advance(self, queue: deque[Request]) -> bool:
        """Carry out what is possible; False when nothing waited. Lock held."""
        if not queue:
            return False
        while queue and not (queue is self.reads and self._is_connecting()):
            request = queue[0]
            if not request.delivered:
                try:
                    if is_read_for(request) or not attempt(self, request):
                        break
                except Exception as error:
                    if threading.get_ident() == threading.main_thread().ident:
                        raise  # it may be a handler's
                    request.fail(error)
                self._complete(request)
            connects = request.operation is Operation.CONNECT
            if connects:
                self._fail_unconnected(request, after(request, queue))
            if queue and queue[0] is request:
                del queue[0]
            if connects:
                self._advance(self.reads)
        return True

    def _is_connecting(self) -> bool:
        """Receives wait for that as sends do: what the kernel says of it is told by the connect."""
        return bool(self.writes) and self.writes[0].connecting

    def _end_connecting(self, request: Request) -> None:
        """Of a request that does not go on. Lock held."""
        if request.connecting and self.sock is not None:
            end_connecting(self.sock)

    def _fail_unconnected(self, connect: Request, following: list[Request]) -> None:
        """What is for the connection of a connect that has failed must not reach another.

        What stood behind it fails, up to another connect, which has a try of its own; and so do the
        receives, where there is no connection any more. Lock held. It may be done twice.
        """
        if connect.operation is not Operation.CONNECT or connect.error is None:
            return
        failed = behind_connect(following, self.family()[1])
        for request in failed + list(self.reads if connect.connecting else ()):
            queue = self.reads if request.operation in READING else self.writes
            if not request.delivered:
                request.fail(system_error(errno.ENOTCONN))
                self._complete(request)
            if request in queue:
                queue.remove(request)

    def _complete(self, request: Request) -> None:
        """Make a packet of it, once. Lock held, so that packets keep the order of requests."""
        self._let_source_go(request)
        request.complete = True
        if not request.delivered:
            self.engine.deliver(request)

    def _arm(self, unused: int = 0) -> None:
        """Tell the selector what to look for. Lock held."""
        wanted = (READ if self.reads else 0) | (WRITE if self.writes else 0)
        wanted |= self.armed & ~unused
        if self.writes:
            self._read_for(self.writes[0])
            if is_read_for(self.writes[0]):
                wanted &= ~WRITE
        if wanted != self.armed or self.doubtful:
            self.engine.watch(self, wanted)

    def _read_for(self, request: Request) -> None:
        """Have the pool read the file that is sent, where that is wanted. Lock held."""
        source = request.source
        if source is None or not source.wants_read:
            return
        source.wants_read = False
        works = self.engine.source_works
        source.read = SourceRead(works, source, partial(self._source_came, request))
        if not works.start(source.read):  # then it is read by whoever sends it
            source.read = None
            source.kind = SourceKind.UNTOLD

    def _source_came(self, request: Request, data: bytes, error: OSError | None) -> None:
        """In a thread of the pool."""
        source = request.source
        assert source is not None
        with self.lock:
            source.read = None
            if not request.complete:
                if error is None:
                    source.came(data)
                else:
                    self._fail_first(error)
                self._go_on()
        self.chores.run()

    def _go_on(self) -> None:
        """With what is to be written; an error has nobody to go to. Lock held."""
        while True:
            self._advance(self.writes)
            try:
                self._arm()
                return
            except (OSError, ValueError) as failed:
                # It can't be waited for, as where there are too many that are.
                if not self.writes:
                    return
                self._fail_first(failed)

    def _fail_first(self, error: BaseException) -> None:
        """Of what is to be written. Lock held."""
        request = self.writes.popleft()
        request.fail(error)
        self._complete(request)

    def _let_source_go(self, request: Request) -> None:
        """Who closes the file of a file server may wait for that: the pool. Lock held."""
        source = request.source
        if source is not None and source.read is not None:
            source.read.closes = True
            source.descriptor = -1
        elif source is not None and source.kind is SourceKind.DISTANT and source.descriptor >= 0:
            works = self.engine.source_works
            if works.start(SourceClose(works, source.descriptor)):
                source.descriptor = -1
        request.let_sources_go()

    def _detach(self, reason: str) -> None:
        """Lock held. It may be done twice."""
        self.closed = True
        waiting = [one for one in (*self.reads, *self.writes) if not one.delivered]
        for request in waiting:
            if not request.complete:
                self._let_source_go(request)
                self._end_connecting(request)
                request.abort(reason)
        self.engine.let_go(self, waiting)
        self.reads.clear()
        self.writes.clear()

    def release_token(self) -> None:
        """The program's file may be associated anew, also while threads are at the duplicate."""
        with contextlib.suppress(IndexError):
            association.release(self._tokens.pop())

    def wait_for_pool(self) -> None:
        if self.files is not None:
            self.files.wait()

    def close_descriptor(self) -> None:
        """The last step: nothing refers to the duplicate any more. It may be done twice."""
        self.gone = True
        if self.sock is not None:
            self.sock.close()
            return
        number, self.descriptor = self.descriptor, -1
        if number >= 0:
            step = map(os.close, (number,))
            # It is closed whatever is said, as that a write of before has failed: who closes the
            # file itself is told of that.
            try:
                [_] = step
            except OSError:
                return


def _is_of(request: Request, overlapped: Overlapped | None) -> bool:
    """Whether it is this one's, or any without a packet."""
    if request.delivered:
        return False
    return overlapped is None or request.overlapped is overlapped


class SelectorsEngine:
    """One selector for all channels; a `scheduler.Reaper`."""

    def __init__(
        self,
        deliver: Callable[[Request], None],
        gone: Callable[[SelectorsChannel, list[Request]], None],
        offload: Offload,
        selector: selectors.BaseSelector | None = None,
    ) -> None:
        self.deliver = deliver
        """Called with each complete request."""
        self.offload = offload
        """The pool, for regular files."""
        self.source_works = SourceWorks(offload)
        self._gone = gone
        self._selector = selectors.DefaultSelector() if selector is None else selector
        # With epoll and kqueue the kernel keeps the list, and each channel's lock guards its
        # entry. Any other list must not change while a thread looks at it: it has a lock.
        names = ("EpollSelector", "KqueueSelector")
        self._kernel_keeps = isinstance(
            self._selector,
            tuple(getattr(selectors, name) for name in names if hasattr(selectors, name)),
        )
        self._list_lock = threading.Lock()  # held over the wait itself
        self._changes = Chores(self._list_lock)
        # Guards `_disposed`, which never goes back, and that `_waker` is open until then.
        # Reentrant for finalizers, and never held for long.
        self._waker_lock = threading.RLock()
        self._disposed = False
        self._waker, self._wakes = socket.socketpair()
        self._waker.setblocking(False)
        self._wakes.setblocking(False)
        self._selector.register(self._wakes.fileno(), READ, None)

    def wait(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._kernel_keeps:
            return self._selector.select(timeout)
        with self._list_lock:
            events = self._selector.select(timeout)
        self._changes.run()
        return events

    def reap(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, mask in events:
            if key.data is not None:
                key.data.advance(mask)
            else:
                with contextlib.suppress(OSError):
                    self._wakes.recv(4096)

    def wake(self) -> None:
        with self._waker_lock:
            if not self._disposed:
                with contextlib.suppress(OSError):  # full is as good
                    self._waker.send(b"\0")

    def dispose(self) -> None:
        with self._waker_lock:
            self._disposed = True
            self._waker.close()
        self._selector.close()
        self._wakes.close()

    def watch(self, channel: SelectorsChannel, events: int) -> None:
        """Look for these events from now on. The channel's lock held."""
        before = channel.armed
        try:
            channel.armed = events
            self._change(partial(self._watch, channel, before, events))
        except BaseException:
            channel.armed = before
            raise

    def let_go(self, channel: SelectorsChannel, aborted: list[Request]) -> None:
        """Stop looking, let the descriptor go, and only then report. The channel's lock held.

        It may be done twice.
        """
        self._change(partial(self._let_go, channel, channel.armed))
        channel.armed = 0
        self._gone(channel, aborted)

    def _watch(self, channel: SelectorsChannel, before: int, events: int) -> None:
        doubtful = channel.doubtful
        if before == events and not doubtful:
            return
        try:
            channel.doubtful = True
            if before and events and not doubtful:
                self._selector.modify(channel.descriptor, events, channel)
            else:
                if before or doubtful:
                    self._stop_looking(channel.descriptor)
                if events:
                    self._look_for(channel, events)
            channel.doubtful = False
        except (KeyError, ValueError, RuntimeError, TypeError, OSError):
            # A selector that is closed has forgotten everything.
            if not self._disposed:
                raise

    def _stop_looking(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def _look_for(self, channel: SelectorsChannel, events: int) -> None:
        try:
            self._selector.register(channel.descriptor, events, channel)
        except FileExistsError:
            # An `unregister` was interrupted half-way: the kernel looks for it still.
            self._selector._selector.unregister(channel.descriptor)  # type: ignore[attr-defined]
            self._selector.register(channel.descriptor, events, channel)

    def _let_go(self, channel: SelectorsChannel, before: int) -> None:
        if channel.descriptor >= 0 and not channel.gone:
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._watch(channel, before, 0)
        channel.close_descriptor()
        channel.release_token()

    def _change(self, work: Callable[[], None]) -> None:
        if self._kernel_keeps:
            work()
            return
        self._changes.add(work)
        if self._changes:
            # A thread looks at the list: it does the work once it is woken.
            self.wake()
