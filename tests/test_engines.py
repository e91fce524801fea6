"""Which engine a port takes, and what is said when one can't run."""

from __future__ import annotations

import importlib.util
import inspect
import platform
import statistics
import time

import pytest

import completionport
from completionport import CompletionPort, EngineUnavailable, Handle, Overlapped
from completionport.engines import ENGINES, EngineReport, probe
from support import (
    WINDOWS,
    run_python,
    take_one,
    windows_has_no,
)


def test_there_are_four_engines_the_preferred_one_first():
    assert ENGINES == ("iocp", "io_uring", "epoll", "selectors")


def test_engines_of_another_system_say_where_they_run():
    for name in ("io_uring", "epoll", "selectors") if WINDOWS else ("iocp",):
        report = probe(name)
        assert not report.usable
        assert "Windows" in report.reason + report.remedy
        with pytest.raises(EngineUnavailable, match="Windows"):
            CompletionPort(engine=name)


@pytest.mark.parametrize("name", ENGINES)
def test_a_report_says_whether_an_engine_runs_or_why_not(name):
    report = probe(name)
    assert isinstance(report, EngineReport)
    assert report.name == name
    assert bool(report.reason) == (not report.usable)
    assert bool(report.remedy) == (not report.usable)
    assert all(isinstance(value, bool) for value in report.features.values())


def test_an_unknown_engine_has_no_report():
    with pytest.raises(ValueError, match="unknown engine 'kqueue'"):
        probe("kqueue")


def test_the_engine_asked_for_by_name_is_taken(engine):
    with CompletionPort(engine=engine) as port:
        assert port.engine == engine
        assert port.stats()["engine"] == engine
        assert isinstance(port, CompletionPort)


@pytest.mark.skipif(not WINDOWS, reason="elsewhere the library itself keeps to it")
@pytest.mark.parametrize("concurrency", [1, 3])
def test_on_windows_the_concurrency_is_the_kernels_business(concurrency, monkeypatch):
    from completionport.windows import api

    create, told = api.CreateIoCompletionPort, []

    def record(*arguments):
        told.append(arguments)
        return create(*arguments)

    monkeypatch.setattr(api, "CreateIoCompletionPort", record)
    with CompletionPort(concurrency) as port:
        assert port.concurrency == concurrency
    assert (api.INVALID_HANDLE_VALUE, None, 0, concurrency) in told


@pytest.mark.alone
def test_a_port_is_made_and_closed_within_milliseconds(engine):
    """Waiting until the kernel has forgotten a context of its own takes 30."""
    times = []
    for _ in range(21):
        begun = time.perf_counter()
        CompletionPort(engine=engine).close()
        times.append(time.perf_counter() - begun)
    assert statistics.median(times) < 0.01


def test_handles_and_operations_have_their_public_types(port, tcp):
    near, _far = tcp
    with port.associate(near, "key") as handle:
        assert isinstance(handle, Handle)
        operation = handle.recv(1)
        assert isinstance(operation, Overlapped)


MADE_OF_THE_OTHERS = frozenset({"key", "file", "associate_signal", "read_changes"})
"""What the interface does itself, by means of what the engines offer."""


@pytest.mark.parametrize("cls", [CompletionPort, Handle])
def test_each_engine_offers_everything_that_is_documented(port, tcp, cls):
    near, _far = tcp
    with port.associate(near, "key") as handle:
        implementation = type(port if cls is CompletionPort else handle)
        for name in vars(cls):
            if not name.startswith("_") and name != "port":
                member = getattr(implementation, name)
                assert member is not getattr(cls, name) or name in MADE_OF_THE_OTHERS, (
                    f"{implementation} lacks {name}"
                )


@pytest.mark.parametrize("name", ["post", "get", "get_many"])
def test_what_is_called_for_each_packet_tells_its_arguments(port, name):
    documented = inspect.signature(getattr(CompletionPort, name)).parameters.values()
    offered = inspect.signature(getattr(port, name)).parameters.values()
    assert [(one.name, one.kind, one.default) for one in offered] == [
        (one.name, one.kind, one.default) for one in documented
    ][1:]


def test_none_takes_the_first_one_that_runs():
    expected = next(name for name in ENGINES if probe(name).usable)
    done = run_python(
        """
        from completionport import CompletionPort
        with CompletionPort() as port:
            print(port.engine)
        """
    )
    assert done.stdout == expected + "\n"


def test_the_environment_decides_in_place_of_none(engine, monkeypatch):
    monkeypatch.setenv("COMPLETIONPORT_ENGINE", engine)
    with CompletionPort() as port:
        assert port.engine == engine


def test_a_name_in_the_program_beats_the_environment(engine, monkeypatch):
    monkeypatch.setenv("COMPLETIONPORT_ENGINE", "nonsense")
    with CompletionPort(engine=engine) as port:
        assert port.engine == engine


def test_an_empty_environment_variable_decides_nothing(monkeypatch):
    monkeypatch.setenv("COMPLETIONPORT_ENGINE", "")
    with CompletionPort() as port:
        assert port.engine in ENGINES


def test_nonsense_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("COMPLETIONPORT_ENGINE", "nonsense")
    with pytest.raises(ValueError, match=r"unknown engine 'nonsense' in .*COMPLETIONPORT_ENGINE"):
        CompletionPort()


@windows_has_no("compiled engines that could be missing")
def test_an_engine_that_is_not_compiled_says_so():
    run_python(WITHOUT_COMPILED_MODULES)


WITHOUT_COMPILED_MODULES = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("completionport.native"):
            raise ModuleNotFoundError(f"no {name} in this test", name=name)

sys.meta_path.insert(0, Missing())

from completionport import CompletionPort, EngineUnavailable, Overlapped
from completionport.engines import probe
from support import take_one, local_pair

for name in ("io_uring", "epoll"):
    assert not probe(name).usable
    try:
        CompletionPort(engine=name)
    except EngineUnavailable as error:
        assert error.engine == name and name in str(error)
        assert "compile" in error.reason and "compiler" in error.remedy
    else:
        raise SystemExit(f"{name} ran")

near, far = local_pair()
with CompletionPort() as port, port.associate(near, "key") as handle:
    assert port.engine == "selectors"
    mine = Overlapped()
    handle.recv(10, overlapped=mine)
    far.sendall(b"hello")
    assert take_one(port).overlapped is mine
    assert mine.result() == b"hello"
far.close()
"""


@windows_has_no("compiled engines that could be missing")
@pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("_interpreters", "_xxsubinterpreters")),
    reason="this Python has no module for subinterpreters",
)
def test_a_subinterpreter_is_told_that_it_is_one():
    run_python(SUBINTERPRETER)


SUBINTERPRETER = """
import sys
from completionport.engines import probe
try:
    import _interpreters as interpreters
    execute = interpreters.exec
except ImportError:
    import _xxsubinterpreters as interpreters
    execute = interpreters.run_string

INSIDE = f"import sys; sys.path[:] = {sys.path!r}" + chr(10) + '''
import completionport
from completionport.engines import probe
for name in ("io_uring", "epoll"):
    report = probe(name)
    assert not report.usable
    assert "one interpreter" in report.reason and "missing" not in report.reason, report
    assert "selectors" in report.remedy, report
with completionport.CompletionPort() as port:
    port.post(7)
    assert (port.engine, port.get().transferred) == ("selectors", 7)
'''
assert probe("epoll").usable
raised = execute(interpreters.create(), INSIDE)
assert raised is None, raised
"""

# What a container runtime does: the system call exists and is refused.
SECCOMP = """
import ctypes, errno, os, struct

ANSWER = getattr(errno, os.environ["ANSWER"])
SYSCALLS = [int(number) for number in os.environ["SYSCALLS"].split(",")]
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000

program = [(LOAD, 0, 0, 0)]  # the number of the system call
for index, number in enumerate(SYSCALLS):
    program.append((JUMP_EQUAL, len(SYSCALLS) - index, 0, number))
program.append((RETURN, 0, 0, ALLOW))
program.append((RETURN, 0, 0, ERRNO | ANSWER))
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
filter_ = Program(len(program), ctypes.addressof(code))
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_), 0, 0) != 0:
    print("no seccomp here")
    raise SystemExit(0)
parameters = (ctypes.c_uint32 * 30)()
assert libc.syscall(425, 4, ctypes.byref(parameters)) == -1
assert ctypes.get_errno() == ANSWER
"""

needs_io_uring = pytest.mark.skipif(
    not probe("io_uring").usable, reason=f"io_uring does not run here: {probe('io_uring').reason}"
)
needs_known_numbers = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="io_uring_setup has another number"
)


def blocked(script, answer="EPERM", syscalls="425"):
    done = run_python(SECCOMP + script, ANSWER=answer, SYSCALLS=syscalls)
    if done.stdout.startswith("no seccomp here"):
        pytest.skip("seccomp filters can't be installed here")
    return done.stdout


FALLS_BACK = """
from completionport import CompletionPort
from support import take_one, local_pair

near, far = local_pair()
with CompletionPort() as port, port.associate(near, "key") as handle:
    handle.recv(10)
    far.sendall(b"hello")
    assert take_one(port).overlapped.result() == b"hello"
    print(port.engine)
far.close()
"""


@needs_known_numbers
class TestBlockedByAContainer:
    @pytest.mark.parametrize("answer", ["EPERM", "ENOSYS", "EACCES"])
    def test_another_engine_takes_over(self, answer):
        expected = "epoll" if probe("epoll").usable else "selectors"
        assert blocked(FALLS_BACK, answer) == expected + "\n"

    @needs_io_uring
    def test_all_three_system_calls_may_be_blocked(self):
        assert blocked(FALLS_BACK, syscalls="425,426,427") == "epoll\n"

    @needs_io_uring
    def test_asking_by_name_says_that_seccomp_is_the_reason(self):
        output = blocked(
            """
from completionport import CompletionPort, EngineUnavailable
try:
    CompletionPort(engine="io_uring")
except EngineUnavailable as error:
    assert error.engine == "io_uring"
    assert "seccomp" in error.reason.lower(), error.reason
    assert error.remedy, "no remedy"
    print(error)
"""
        )
        assert "seccomp" in output.lower()
        assert "io_uring" in output

    @needs_io_uring
    def test_a_kernel_without_it_is_told_apart_from_seccomp(self):
        output = blocked(
            """
from completionport.engines import probe
report = probe("io_uring")
assert not report.usable and report.remedy
print(report.reason)
""",
            "ENOSYS",
        )
        assert "kernel" in output.lower()

    @needs_io_uring
    def test_the_environment_that_asks_for_it_gets_the_reason(self):
        output = blocked(
            """
from completionport import CompletionPort, EngineUnavailable
os.environ["COMPLETIONPORT_ENGINE"] = "io_uring"
try:
    CompletionPort()
except EngineUnavailable as error:
    print(error.reason)
"""
        )
        assert "seccomp" in output.lower()

    def test_a_server_runs_all_the_same(self):
        output = blocked(
            """
import socket
from completionport import Handler, Server

class Echo(Handler):
    def received(self, connection, data):
        connection.send(data)

with Server(Echo(), "127.0.0.1", 0) as server:
    with socket.create_connection(server.address) as client:
        client.sendall(b"hello")
        print(client.recv(10).decode())
"""
        )
        assert output == "hello\n"


def test_every_public_name_is_exported():
    for name in (
        "AlreadyAssociated",
        "Completion",
        "CompletionPort",
        "CompletionPortError",
        "Connection",
        "EngineUnavailable",
        "Handle",
        "HandleClosed",
        "Handler",
        "Operation",
        "OperationAborted",
        "OperationPending",
        "Overlapped",
        "PortClosed",
        "PortForked",
        "Server",
    ):
        assert hasattr(completionport, name), name
        assert name in completionport.__all__, name


def test_every_error_has_the_common_base():
    for name in completionport.__all__:
        value = getattr(completionport, name)
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, completionport.CompletionPortError), name


def test_an_engine_error_carries_its_parts():
    error = EngineUnavailable("io_uring", "blocked by seccomp", "Allow it.")
    assert (error.engine, error.reason, error.remedy) == (
        "io_uring",
        "blocked by seccomp",
        "Allow it.",
    )
    assert "io_uring" in str(error)
    assert isinstance(error, RuntimeError)


def test_two_engines_run_side_by_side(make_pair):
    usable = [name for name in ENGINES if probe(name).usable]
    ports = [CompletionPort(engine=name) for name in usable]
    for port in ports:
        with port:
            near, far = make_pair("local")
            handle = port.associate(near, "key")
            handle.recv(10)
            far.sendall(b"hello")
            assert take_one(port).overlapped.result() == b"hello"
            handle.close()
