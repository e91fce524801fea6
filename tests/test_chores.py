"""Who finds a lock taken leaves its work to the holder, who looks for it behind the lock."""

from __future__ import annotations

import ast
import threading
from collections import deque
from pathlib import Path

import pytest

import completionport
from completionport import CompletionPort
from completionport.interface.operation import Operation
from completionport.portable.channels.requests import Request
from completionport.portable.pool.file_channel import SideBySide
from completionport.portable.pool.offload import Offload
from support import LONG, WINDOWS, Background, take_one, tcp_pair

PACKAGE = Path(completionport.__file__).parent
GUARDED = {
    "portable/pool/file_channel.py": "self._lock",
    "portable/engines/selectors_engine.py": "self.lock",
    "windows/channel.py": "self.lock",
    "windows/waits.py": "self._lock",
    "windows/pool_calls.py": "self._channel.lock",
}
SEEN_TO_BY_ITS_CALLER = {"_advance_both"}


def runs_chores(node: ast.AST) -> bool:
    return any(
        isinstance(one, ast.Call) and ast.unparse(one.func).endswith("chores.run")
        for one in ast.walk(node)
    )


def faults_of(function: ast.FunctionDef, lock: str) -> list[str]:
    """Ways out of the lock on which nobody looks for what was left to its holder."""
    found = []
    parents = {
        child: parent for parent in ast.walk(function) for child in ast.iter_child_nodes(parent)
    }
    for node in ast.walk(function):
        if not isinstance(node, ast.With) or lock not in map(ast.unparse, node.items):
            continue
        above: ast.AST = node
        while above is not function and not (
            isinstance(above, ast.Try) and any(map(runs_chores, above.finalbody))
        ):
            above = parents[above]
        if above is not function:
            continue  # whatever happens
        if any(isinstance(one, ast.Return) for one in ast.walk(node)):
            found.append(f"line {node.lineno}: it returns with the lock")
        siblings = getattr(parents[node], "body", [])
        if not any(map(runs_chores, siblings[siblings.index(node) + 1 :])):
            found.append(f"line {node.lineno}: nothing follows")
    return found


@pytest.mark.parametrize("file", GUARDED)
def test_each_holder_of_a_lock_does_what_was_left_to_it(file):
    functions = [
        one
        for one in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8")))
        if isinstance(one, ast.FunctionDef) and one.name not in SEEN_TO_BY_ITS_CALLER
    ]
    assert any(GUARDED[file] in ast.unparse(one) for one in functions)
    faults = {one.name: faults_of(one, GUARDED[file]) for one in functions}
    assert not {name: found for name, found in faults.items() if found}


def test_no_other_file_has_such_a_lock():
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "chores import Chores" in path.read_text(encoding="utf-8")
    }
    assert users - {"windows/channel_state.py"} <= GUARDED.keys()


class HeldByThePool:
    """A lock that a thread of the pool comes to, and lets go, only when it is told to."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.acquire, self.release = self.lock.acquire, self.lock.release
        self.comes, self.may_come = threading.Event(), threading.Event()
        self.holds, self.may_go = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        if threading.current_thread().name == "cp-offload":
            self.comes.set()
            self.may_come.wait(LONG)
        self.lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        if threading.current_thread().name == "cp-offload":
            self.holds.set()
            self.may_go.wait(LONG)
        self.lock.release()

    def let_all_go(self) -> None:
        self.may_come.set()
        self.may_go.set()


class Owner:
    _strand = None
    _consumer = None


def test_a_close_while_a_thread_of_the_pool_asks_whether_it_begins_is_carried_out():
    packets: list[Request] = []
    gone = threading.Event()
    pool = Offload(1)
    line = SideBySide(-1, pool, packets.append)
    lock = HeldByThePool()
    line._lock = line._chores._lock = lock  # type: ignore[assignment]
    request = Request(Operation.CALL, Owner())  # type: ignore[arg-type]
    request.call = int
    try:
        line.start(request)
        assert lock.comes.wait(LONG)
        assert line.cancel(None) == 1
        lock.may_come.set()
        assert lock.holds.wait(LONG)
        line.close("over", gone.set)  # it never waits
        lock.may_go.set()
        Background(line.wait).outcome()
        assert gone.is_set()
        assert packets == [request]
    finally:
        lock.let_all_go()
        pool.close()


class Watched(deque):
    """A queue that nobody iterates through without its lock, since another thread may change it."""

    def __init__(self, lock):
        super().__init__()
        self.lock = lock

    def __iter__(self):
        assert self.lock.locked(), "without the lock"
        return super().__iter__()


@pytest.mark.skipif(WINDOWS, reason="sockets are the kernel's there")
def test_the_queues_of_a_socket_are_looked_at_with_their_lock():
    near, far = tcp_pair()
    with far, CompletionPort(engine="selectors") as port, port.associate(near, "it") as handle:
        channel = handle._channel
        channel.reads, channel.writes = Watched(channel.lock), Watched(channel.lock)
        first, second, _ = (handle.recv(4) for _ in range(3))
        far.sendall(b"data")
        assert take_one(port).overlapped is first
        assert second.cancel()
        assert handle.cancel() == 1
        for _ in range(2):
            take_one(port)
        handle.recv(4)
        handle.close()
        take_one(port)
