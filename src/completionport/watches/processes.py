"""Processes on a port: `CompletionPort.associate` with a `subprocess.Popen`."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..interface.errors import system_error
from ..interface.handle import Handle, HasFileno, Overlapped
from ..interface.operation import Operation
from ..interface.port import CompletionPort, Strand
from .own_descriptor import OwnDescriptor

if TYPE_CHECKING:
    import subprocess


def is_process(file: Any) -> bool:
    """Whether it is a `subprocess.Popen`; the module is not imported for the question."""
    subprocess = sys.modules.get("subprocess")
    return subprocess is not None and isinstance(file, subprocess.Popen)


def watch_process(
    port: CompletionPort,
    process: subprocess.Popen[Any],
    key: Any,
    strand: Strand | None,
    end: HasFileno | None = None,
) -> Handle:
    """A handle that gives one packet when the process has ended.

    ``end``: what the port can wait for in the process's place; None for a pidfd.
    """
    if end is None:
        end = OwnDescriptor(_descriptor_of(process))
    return ProcessHandle(port.associate(end, key, strand=strand), process)


def _descriptor_of(process: subprocess.Popen[Any]) -> int:
    """A descriptor that is readable once the process has ended."""
    if not hasattr(os, "pidfd_open"):
        raise system_error(
            errno.ENOSYS,
            "a process can't be associated here: that takes pidfd_open(2), which this Python or "
            "operating system has not; wait for the process in a thread of its own and post()",
        )
    if process.returncode is None:
        try:
            number = os.pidfd_open(process.pid)
        except ProcessLookupError:
            pass  # somebody else has taken its status
        else:
            try:
                # Another thread may have waited for it meanwhile, and the number be a stranger's.
                os.waitid(os.P_PIDFD, number, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                os.close(number)
            else:
                return number
    # It has ended, and Popen knows its status or will say that it is lost.
    return os.eventfd(1, os.EFD_CLOEXEC)


class ProcessHandle(Handle):
    """The handle of a process. Its one operation is under way from the start."""

    __slots__ = ("__weakref__", "_descriptor", "_process")

    def __init__(self, descriptor: Handle, process: subprocess.Popen[Any]) -> None:
        self._descriptor = descriptor
        self._process = process
        # Of 0 bytes: it only waits.
        descriptor._read_for(_Ended(self), 0)

    @property
    def key(self) -> Any:
        return self._descriptor.key

    @property
    def file(self) -> subprocess.Popen[Any]:
        return self._process

    @property
    def port(self) -> CompletionPort | None:
        port: CompletionPort | None = self._descriptor.port
        return port

    @property
    def closed(self) -> bool:
        return self._descriptor.closed

    def fileno(self) -> int:
        return self._descriptor.fileno()

    def cancel(self, overlapped: Overlapped | None = None) -> int:
        return self._descriptor.cancel(overlapped)

    def close(self) -> None:
        self._descriptor.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"process {self._process.pid}"
        return f"<Handle {state}, key {self.key!r}>"


def _refusal(name: str, method: Callable[..., Any]) -> Any:
    @functools.wraps(method)
    def refuse(self: ProcessHandle, *args: Any, **options: Any) -> Any:
        raise system_error(
            errno.EOPNOTSUPP,
            f"{name}(): a process can only be waited for; associate its stdin, stdout or stderr",
        )

    return refuse


# Every operation that there is, also one that is still to come.
for _name, _method in vars(Handle).items():
    if not _name.startswith("_") and callable(_method) and _name not in vars(ProcessHandle):
        setattr(ProcessHandle, _name, _refusal(_name, _method))


class _Ended:
    """What the end of the wait means."""

    __slots__ = ("handle", "operation")

    def __init__(self, handle: ProcessHandle) -> None:
        self.handle = handle
        self.operation = Operation.PROCESS

    def outcome(self, data: Any) -> tuple[int, Any]:
        # It has ended, so this does not wait; another thread may be in it, and then both get the
        # status. Popen gives 0 for one that something else has taken (SIGCHLD ignored, os.wait).
        status = self.handle.file.wait()
        return status, status
