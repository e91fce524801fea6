"""A file system whose answers the test gives: a file is read and written when the test says so.

It is mounted by the kernel's FUSE (fuse(4), linux/fuse.h), which takes root. So what is under way
in the kernel can be counted, and ended in any order. Who asks for something there waits in the
kernel and can't be killed: hence another process answers, which ends by itself, and all waits with
it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support import wait_until

LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE = 1, 2, 3, 14, 15, 16
STATFS, RELEASE, FSYNC, FLUSH, INIT, INTERRUPT, BATCH_FORGET = 17, 18, 20, 25, 26, 36, 42
WITHOUT_ANSWER = (FORGET, BATCH_FORGET)
HELD = (READ, WRITE, FSYNC)
"""Requests that wait for the test."""
WAITS_TO_TELL, WAITS_TO_OPEN, WAITS_TO_CLOSE = 6, 7, 8
HELD_OF_SOME = ((STATFS, WAITS_TO_TELL), (OPEN, WAITS_TO_OPEN), (FLUSH, WAITS_TO_CLOSE))
"""And those that do so for one file only."""

PAGE = 4096
SIZE = 16 * PAGE
"""Of each file. Page n is full of the byte n."""
FAILS_TO_CLOSE = 9
"""The file of which each close says EIO."""
MINOR = 31  # of the protocol, whose major number is 7
LARGEST = 1 << 20
FOREVER = 1 << 40  # seconds that the kernel may believe an answer
ROOT = 1
NOTHING = -1  # in place of an errno: a read finds the end of the file
LONGEST = 30  # seconds that the server lives
MNT_FORCE, MNT_DETACH = 1, 2


class Request(NamedTuple):
    """One that waits for its answer."""

    unique: int
    opcode: int
    node: int
    offset: int


class SlowFiles:
    """The test's side: files with the names "2" to "9"."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._held: dict[int, Request] = {}  # by `unique`; _lock

    def held(self) -> list[Request]:
        """What the kernel waits for, in the order of the requests."""
        with self._lock:
            return list(self._held.values())

    def listen(self) -> None:
        """Until the server ends."""
        assert self._server.stdout is not None
        for line in self._server.stdout:
            request = Request(*map(int, line.split()))
            with self._lock:
                self._held[request.unique] = request

    def wait_for(self, count: int) -> list[Request]:
        """Wait until so many are in the kernel at the same time; all that are."""
        wait_until(lambda: len(self.held()) >= count, f"{count} requests at a time")
        return self.held()

    def answer(self, request: Request, error: int = 0) -> None:
        """Have it carried out, or fail, or find ``NOTHING``."""
        with self._lock:
            del self._held[request.unique]
        assert self._server.stdin is not None
        print(*request, error, file=self._server.stdin, flush=True)


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[SlowFiles]:
    """The file system, in this folder."""
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        assert server.stdout.readline() == "mounted\n"
        files = SlowFiles(server)
        listener = threading.Thread(target=files.listen, daemon=True)
        listener.start()
        try:
            yield files
        finally:
            server.stdin.close()
            server.wait()
            listener.join()


def content(size: int = SIZE) -> bytes:
    """The first bytes of each file."""
    return b"".join(bytes([page]) * PAGE for page in range(-(-size // PAGE)))[:size]


def why_not() -> str:
    """Why there is no such file system here, "" where there is."""
    if not os.path.exists("/dev/fuse"):
        return "this system has no /dev/fuse"
    return "" if os.geteuid() == 0 else "mounting a file system takes root"


class Server:
    def __init__(self, device: int) -> None:
        self._device = device
        self._sizes: dict[int, int] = {}  # of the reads and writes that wait

    def serve(self) -> None:
        """Until the test closes our standard input, or it is unmounted."""
        commands = sys.stdin.fileno()
        rest = b""
        while True:
            ready, _, _ = select.select([self._device, commands], [], [])
            if self._device in ready and not self._take():
                return
            if commands in ready:
                part = os.read(commands, 1 << 16)
                if not part:
                    return
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    *request, error = map(int, line.split())
                    self._carry_out(Request(*request), error)

    def _take(self) -> bool:
        try:
            message = os.read(self._device, LARGEST + PAGE)
        except OSError as error:
            return error.errno != errno.ENODEV  # ENOENT: the request was taken back
        _, opcode, unique, node = struct.unpack_from("IIQQ", message)
        body = message[40:]
        if opcode in WITHOUT_ANSWER:
            return True
        if opcode in HELD or (opcode, node) in HELD_OF_SOME:
            offset = struct.unpack_from("Q", body, 8)[0] if opcode in (READ, WRITE) else 0
            if opcode in (READ, WRITE):
                self._sizes[unique] = struct.unpack_from("I", body, 16)[0]
            print(unique, opcode, node, offset, flush=True)
        elif opcode == INIT:
            head = struct.pack("IIIIHHIIHH", 7, MINOR, 0, 0, 64, 48, LARGEST, 1, 0, 0)
            self._send(unique, 0, head.ljust(64, b"\0"))
        elif opcode == LOOKUP:
            number = int(body.rstrip(b"\0"))
            entry = struct.pack("QQQQII", number, 0, FOREVER, FOREVER, 0, 0)
            self._send(unique, 0, entry + _attributes(number))
        elif opcode == GETATTR:
            self._send(unique, 0, struct.pack("QII", FOREVER, 0, 0) + _attributes(node))
        elif opcode == OPEN:
            self._send(unique, 0, struct.pack("QII", node, 0, 0))
        elif opcode == STATFS:
            self._send(unique, 0, bytes(80))
        elif opcode in (RELEASE, FLUSH):
            self._send(unique, errno.EIO if node == FAILS_TO_CLOSE else 0)
        else:
            self._send(unique, errno.ENOSYS)
        return True

    def _carry_out(self, request: Request, error: int) -> None:
        payload = b""
        size = self._sizes.pop(request.unique, 0)
        if error == NOTHING:
            error = 0
        elif error:
            pass
        elif request.opcode == READ:
            end = min(request.offset + size, SIZE)
            payload = content(end)[request.offset :]
        elif request.opcode == WRITE:
            payload = struct.pack("II", size, 0)
        elif request.opcode == OPEN:
            payload = struct.pack("QII", request.node, 0, 0)
        elif request.opcode == STATFS:
            payload = bytes(80)
        self._send(request.unique, error, payload)

    def _send(self, unique: int, error: int, payload: bytes = b"") -> None:
        with contextlib.suppress(FileNotFoundError):  # the kernel has given the request up
            os.write(self._device, struct.pack("IiQ", 16 + len(payload), -error, unique) + payload)


def _attributes(number: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if number == ROOT else stat.S_IFREG | 0o644
    return struct.pack("6Q10I", number, SIZE, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, PAGE, 0)


def main() -> None:
    folder = os.fsencode(sys.argv[1])
    library = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    if library.mount(b"test", folder, b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount(2) of a file system of FUSE")
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("nobody has ended this file system"))
    signal.alarm(LONGEST)
    try:
        print("mounted", flush=True)
        Server(device).serve()
    finally:
        library.umount2(folder, MNT_FORCE)
        library.umount2(folder, MNT_DETACH)


if __name__ == "__main__":
    main()
