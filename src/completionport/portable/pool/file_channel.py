"""Operations that would wait for a disk, or for a function: the pool carries them out.

`SideBySide` is what the channel of a regular file and the port's own operations have in common.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ...interface.errors import CANCELLED, HandleClosed, PortClosed, no_thread, system_error
from ...interface.operation import Operation
from ..channels.chores import Chores
from ..channels.precedence import (
    CHANGES,
    Spans,
    hides,
    is_in_turn,
    may_cover_all,
    waits_for_nothing,
)
from ..channels.requests import Request
from ..scheduling.places import this_place
from .file_calls import CALLS
from .offload import Offload
from .source_work import held_lock

if TYPE_CHECKING:
    from ...interface.handle import Overlapped


WAIT_FOR_ANYTHING = frozenset({Operation.CALL, Operation.RESOLVE, Operation.OPEN, Operation.COPY})
"""What else waits for a disk or a file server only."""


def unaligned(error: BaseException) -> BaseException:
    """What O_DIRECT refuses says why."""
    if not isinstance(error, OSError) or error.errno != errno.EINVAL:
        return error
    return system_error(
        errno.EINVAL,
        f"{error.strerror}: the file is open with O_DIRECT, so the offset and each buffer's "
        "address and size must be multiples of the disk's block size (512 or 4096 bytes)",
    )


def executes_for(line: SideBySide) -> bool:
    """Whether the calling thread is at work on a request of this line."""
    return this_place().executes_for is line


class Turn:
    """A request's turn on the pool."""

    __slots__ = ("_line", "_request", "begun", "function", "left", "taken_back")

    def __init__(self, line: SideBySide, request: Request) -> None:
        self._line = line
        self._request = request
        # The line's lock guards these three.
        self.begun = False  # a thread has it
        self.taken_back = False  # no thread is to have it
        self.left = False  # the thread that has it was left behind
        self.function = request.operation is Operation.CALL

    def __call__(self) -> bool:
        return self._line.begins(self) and self._line.carry_out(self._request)

    def refuse(self) -> None:
        self._line.refuse(self._request, self)


class SideBySide:
    """Requests of one descriptor, or of the port: what does not depend on each other is started."""

    def __init__(
        self,
        descriptor: int,
        offload: Offload,
        deliver: Callable[[Request], None],
        appends: bool = False,
        direct: bool = False,
    ) -> None:
        self.descriptor = descriptor  # -1: requests that have none
        self.appends = appends
        self.direct = direct  # O_DIRECT
        self._offload = offload
        self._deliver = deliver
        self._lock = threading.Lock()  # guards everything below
        self._owner: int | None = None  # the thread that holds it in `start` or `cancel`
        self._chores = Chores(self._lock)
        # Not complete, in the order in which they came; and of them, those not started.
        self._queue: dict[Request, None] = {}
        self._waiting: dict[Request, None] = {}
        self._spans = Spans()
        self._everywhere = 0  # changes in the queue that may cover every byte
        self._work: dict[Request, Turn] = {}  # of them, those the pool has
        # Closed: called when the pool has none. Set once; `cancel` reads it without the lock.
        self._gone: Callable[[], None] | None = None
        self._reason = ""
        self._is_finished = False
        self._unfinished = held_lock()

    def pending(self) -> int:
        """How many requests are under way."""
        return len([one for one in list(self._queue) if not one.delivered])

    def start(self, request: Request) -> None:
        """Carry the request out, now or later."""
        request.direct = self.direct
        me = threading.get_ident()
        if self._owner == me:
            # A signal handler in the midst of this very line: what goes wrong is in the packet.
            request.begun = True
            self._chores.add(partial(self._start_later, request))
            return
        try:
            with self._lock:
                try:
                    self._owner = me
                    self._accept(request)
                finally:
                    self._owner = None
        finally:
            self._chores.run()

    def _accept(self, request: Request) -> None:
        """Lock held."""
        if self._gone is not None:
            raise (PortClosed() if self.descriptor < 0 else HandleClosed())
        everywhere = may_cover_all(request, self.appends)
        self._queue[request] = None
        self._everywhere += everywhere
        request.begun = True
        try:
            if self._is_in_turn(request):
                self._start(request)
            else:
                self._waiting[request] = None
        except BaseException:
            # No thread is to be had, or a signal handler has raised. A thread may have it already.
            if self._take_back(request, False):
                self._forget(request)
                request.begun = False
            raise

    def _start_later(self, request: Request) -> None:
        """Lock held. It may be done twice."""
        if request.delivered or request in self._queue:
            return
        try:
            self._accept(request)
        except Exception as error:
            request.fail(error)
            self._complete(request)

    def cancel(self, overlapped: Overlapped | None) -> int:
        """Cancel one request, or all: those that no thread has begun. Returned: how many."""
        if self._gone is not None:
            # All are cancelled, and the lock may be held for as long as close(2) takes.
            return 0
        me = threading.get_ident()
        if self._owner == me:
            self._chores.add(partial(self._cancel, overlapped))
            return len(self._asked_for(overlapped))
        count = 0
        try:
            with self._lock:
                try:
                    self._owner = me
                    count = self._cancel(overlapped)
                finally:
                    self._owner = None
        except BaseException:
            self._chores.add(partial(self._cancel, overlapped))
            raise
        finally:
            self._chores.run()
        return count

    def _asked_for(self, overlapped: Overlapped | None) -> list[Request]:
        return [
            one
            for one in list(self._queue)
            if not one.delivered and (overlapped is None or one.overlapped is overlapped)
        ]

    def _cancel(self, overlapped: Overlapped | None) -> int:
        """Lock held. It may be done twice."""
        count = 0
        for request in self._asked_for(overlapped):
            count += not request.cancelled
            request.cancelled = True
            if self._take_back(request):
                request.abort(CANCELLED)
                self._complete(request)
        self._start_waiting(None)
        return count

    def close(
        self, reason: str, gone: Callable[[], None], closing: Callable[[], None] | None = None
    ) -> None:
        """Abort everything; ``gone`` is called once no thread is at it. Never blocks.

        ``closing`` is called by the first close alone, before anything else.
        """
        self._chores.add(partial(self._close, reason, gone, closing))

    def wait(self) -> None:
        """After `close`: wait until no thread is at any request."""
        with self._unfinished:
            pass

    def _close(
        self, reason: str, gone: Callable[[], None], closing: Callable[[], None] | None
    ) -> None:
        """Lock held. It may be done twice."""
        if self._gone is not None and self._gone is not gone:
            return
        if closing is not None:
            closing()
        self._gone = gone
        self._reason = reason
        for request in self._queue:
            request.cancelled = True
        # From the end: no thread is to start for the next one in the place of one left behind.
        taken = [request for request in reversed(self._queue) if self._take_back(request)]
        for request in reversed(taken):
            if not request.complete:
                request.abort(reason)
            self._complete(request)
        self._finish_closing()

    def _finish_closing(self) -> None:
        """Lock held."""
        if self._gone is not None and not self._queue and not self._is_finished:
            self._gone()
            self._is_finished = True
            self._unfinished.release()

    def _is_in_turn(self, request: Request) -> bool:
        if self.descriptor < 0 or waits_for_nothing(request):
            return True
        if request.operation not in CHANGES or may_cover_all(request, self.appends):
            return is_in_turn(request, self._queue, self.appends)
        # What was started and covers some of the same bytes came before: it would have waited else.
        return not self._spans.meets(request) and is_in_turn(
            request, self._queue if self._everywhere else self._waiting, self.appends
        )

    def _start(self, request: Request) -> None:
        """Lock held."""
        if request.operation in CHANGES and not may_cover_all(request, self.appends):
            self._spans.add(request)
        work = Turn(self, request)
        self._work[request] = work
        self._offload.start(work)

    def _take_back(self, request: Request, leaves_behind: bool = True) -> bool:
        """False when a thread is at it. Lock held. It may be done twice."""
        work = self._work.get(request)
        if work is not None:
            if not work.begun:
                work.taken_back = True
                self._offload.cancel(work)
            elif not leaves_behind or request.operation not in (Operation.RESOLVE, Operation.OPEN):
                return False
            elif not work.left:
                # Nobody can interrupt it: its thread is left behind with it.
                work.left = True
                self._offload.leave_behind()
            self._work.pop(request, None)
        return True

    def _start_waiting(self, gone: Request | None) -> None:
        """Start what has nothing to wait for any more; ``gone``: what is over, if it is one only.

        Lock held.
        """
        if self._gone is not None or not self._waiting:
            return
        ready = []
        for request in self._waiting:
            # Several may be ready, and none of them depends on another.
            if self._is_in_turn(request):
                ready.append(request)
            if gone is not None and hides(request, gone, self.appends):
                break
        for request in ready:
            if self._waiting.pop(request, request) is request:
                continue  # one that failed has let it go before
            try:
                self._start(request)
            except OSError as error:
                if self._take_back(request, False):
                    request.fail(error)
                    self._complete(request)
                    self._start_waiting(None)

    def _complete(self, request: Request) -> None:
        """Lock held, so that packets keep the order in which requests were carried out.

        It may be done twice.
        """
        request.complete = True
        if not request.delivered:
            self._deliver(request)
        self._forget(request)

    def _forget(self, request: Request) -> None:
        """Lock held. It may be done twice."""
        everywhere = may_cover_all(request, self.appends)
        if request.operation in CHANGES and not everywhere:
            self._spans.remove(request)
        self._waiting.pop(request, None)
        if request in self._queue:
            self._everywhere -= everywhere
            del self._queue[request]

    def begins(self, work: Turn) -> bool:
        """A thread has the work, unless it was taken back."""
        with self._lock:
            begun = work.begun = not work.taken_back
        self._chores.run()
        return begun

    def refuse(self, request: Request, work: Turn) -> None:
        """No thread can be had: the calling one carries it out, or it fails."""
        if request.operation not in WAIT_FOR_ANYTHING:
            if self._offload.cancel(work):
                work()
            return
        with self._lock:
            if self._work.get(request) is work and self._offload.cancel(work):
                request.fail(no_thread())
                self._carried_out(request)
        self._chores.run()

    def carry_out(self, request: Request) -> bool:
        """On a thread of the pool, which has the request to itself. True: it was left behind."""
        if request.operation is Operation.RESOLVE:
            return self._look_up(request)
        if request.operation is Operation.OPEN:
            return self._open(request)
        place = this_place()
        place.executes_for = self
        process = os.getpid()
        try:
            CALLS[request.operation](self.descriptor, request)
        except BaseException as error:
            if request.operation is Operation.CALL:
                request.error = error
            elif not (request.operation is Operation.READ and request.transferred):
                # Else the part that came is the result.
                request.fail(unaligned(error) if self.direct else error)
        finally:
            place.executes_for = None
        if os.getpid() != process:
            # A function has forked, and this is the child, where the program left it to return: all
            # else here is the parent's.
            os._exit(0)
        with self._lock:
            self._carried_out(request)
        self._chores.run()
        return False

    def _look_up(self, request: Request) -> bool:
        """As `_carry_out`, but it touches the request only while that is this thread's still."""
        call, value, failure = request.call, None, None
        assert call is not None
        try:
            value = call()
        except OSError as error:
            failure = error
        except Exception as error:
            failure = OSError(errno.EINVAL, str(error))
        with self._lock:
            left_behind = request not in self._work
            if not left_behind:
                request.call = None
                request.value = value
                request.error = failure
                self._carried_out(request)
        self._chores.run()
        return left_behind

    def _open(self, request: Request) -> bool:
        """As `_look_up`: a named pipe waits for its other side, as long as that takes."""
        value, failure = -1, None
        try:
            value = os.open(request.path, request.flags, request.extent)
        except BaseException as error:
            failure = error
        with self._lock:
            left_behind = request not in self._work
            if not left_behind:
                if failure is None:
                    request.value = value
                else:
                    request.fail(failure)
                self._carried_out(request)
        if left_behind and failure is None:
            with contextlib.suppress(OSError):
                os.close(value)
        self._chores.run()
        return left_behind

    def _carried_out(self, request: Request) -> None:
        """Lock held."""
        self._work.pop(request, None)
        if self._gone is not None and request.error is None:
            request.discard()
            request.abort(self._reason)
            if request.operation is Operation.READ:
                request.transferred = 0  # nobody gets what was read
        self._complete(request)
        self._start_waiting(request)
        self._finish_closing()
