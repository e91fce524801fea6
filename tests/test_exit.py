"""The interpreter can exit whatever threads do at that moment (rule 15)."""

from __future__ import annotations

import signal
import sys
import textwrap

import pytest

from completionport.engines import COMPILED
from support import python_process, run_python, send_signal

WAITING = """
import sys, threading
from completionport import CompletionPort
from support import local_pair, wait_for_stats

port = CompletionPort(4)
near, far = local_pair()
handle = port.associate(near, "key")
handle.recv(10)
threads = [threading.Thread(target=port.get, daemon=True) for _ in range(5)]
for thread in threads:
    thread.start()
wait_for_stats(port, waiting=5)
"""

BUSY = """
import sys, threading
from completionport import CompletionPort
from support import local_pair, wait_until

port = CompletionPort(4)
near, far = local_pair()
one, two = port.associate(near, "one"), port.associate(far, "two")
packets = 0

def work(port=port):
    global packets
    while True:
        transferred, key, overlapped, error = port.get()
        packets += 1
        handle = one if key == "one" else two
        if overlapped.operation == 3:
            handle.send(overlapped.result())
        else:
            handle.recv(100)

for handle in (one, two):
    for _ in range(10):
        handle.send(b"x" * 50)
threads = [threading.Thread(target=work, daemon=True) for _ in range(5)]
for thread in threads:
    thread.start()
wait_until(lambda: packets > 100)
"""

EVERYTHING_ELSE = """
import os, subprocess, sys, threading
from completionport import CompletionPort, open_directory

port = CompletionPort(4)
process = subprocess.Popen(
    [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
)
watched = port.associate(process, "process")
directory = port.associate(open_directory("."), "directory")
directory.read_changes()
directory.read_changes()
timer = port.post_after(600)
path = os.path.join(os.environ["FOLDER"], "file")
file = port.associate(open(path, "wb", 0), "file")
for number in range(50):
    file.write(b"x" * 1000)
    file.fsync()
    file.stat()
threads = [threading.Thread(target=port.get, daemon=True) for _ in range(5)]
for thread in threads:
    thread.start()
"""


def run(script, engine, **options):
    done = run_python(script, engine=engine, timeout=30, **options)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("state", [WAITING, BUSY], ids=["waiting", "busy"])
class TestWorkersAtTheEnd:
    def test_the_main_thread_falls_off_the_end(self, engine, state):
        assert run(state + "print('end')", engine) == "end\n"

    def test_sys_exit(self, engine, state):
        done = run_python(state + "sys.exit(7)", engine=engine, timeout=30, status=7)
        assert done.stderr == ""

    def test_an_exception(self, engine, state):
        done = run_python(state + "raise KeyError('x')", engine=engine, timeout=30, status=1)
        assert done.stderr.rstrip().endswith("KeyError: 'x'")

    def test_the_names_are_gone_first(self, engine, state):
        run(state + "del port, handle, threads, near, far", engine)

    def test_again_and_again(self, engine, state):
        for _ in range(3):
            run(state, engine)


@pytest.mark.parametrize("end", ["", "del port, watched, directory, timer, file, threads"])
def test_everything_else_that_is_under_way(engine, tmp_path, end):
    for _ in range(3):
        run(EVERYTHING_ELSE + end, engine, FOLDER=str(tmp_path))


def test_threads_end_with_a_packet_while_the_interpreter_does(engine):
    """Free-threaded, a lock may go to a thread that is stopped for good: the end waits for none."""
    if engine in COMPILED:
        pytest.skip("a compiled engine has no code of Python's at the end of a thread")
    script = """
        import threading, time
        from completionport import CompletionPort
        from support import wait_until

        port = CompletionPort(20)
        scheduler = port._core.scheduler
        end_turn = scheduler.end_turn
        ending = 0

        def slow(place):
            # As on a busy machine, where a thread waits for its processor anywhere.
            global ending
            ending += 1
            until = time.perf_counter() + 0.01
            while time.perf_counter() < until:
                pass
            end_turn(place)

        scheduler.end_turn = slow
        threads = [threading.Thread(target=port.get, daemon=True) for _ in range(20)]
        for thread in threads:
            thread.start()
        for _ in threads:
            port.post()
        wait_until(lambda: ending >= 3)
    """
    run(script, engine)


def test_the_end_waits_for_no_thread_that_it_has_stopped_with_a_lock(engine):
    """What a thread leaves behind is seen to by the main thread, when no other one goes on."""
    if engine in COMPILED:
        pytest.skip("a compiled engine holds its locks only where no thread is stopped")
    script = """
        import threading
        from completionport import CompletionPort

        port = CompletionPort(2)
        at_work, holds_it = threading.Event(), threading.Event()

        def work():
            port.get()
            at_work.set()
            threading.Event().wait()

        def hold():
            with port._core.scheduler._lock:
                holds_it.set()
                threading.Event().wait()

        port.post()
        threading.Thread(target=work, daemon=True).start()
        at_work.wait()
        threading.Thread(target=hold, daemon=True).start()
        holds_it.wait()
        print("end")
        """
    assert run(textwrap.dedent(script), engine) == "end\n"


def test_workers_that_are_no_daemons_end_when_the_port_is_closed(engine):
    script = WAITING.replace("daemon=True", "daemon=False").replace(
        "target=port.get", "target=quiet"
    )
    script = script.replace(
        "threads = [",
        """
def quiet():
    try:
        port.get()
    except PortClosed:
        print("closed\\n", end="")

threads = [""",
    ).replace("import CompletionPort", "import CompletionPort, PortClosed")
    assert run(script + "port.close()", engine) == "closed\n" * 5


def test_a_port_is_closed_at_exit(engine):
    run(
        WAITING.replace("Thread(target=port.get", "Thread(target=quiet").replace(
            "threads = [",
            """
import atexit
from completionport import PortClosed

def quiet():
    try:
        port.get()
    except PortClosed:
        pass

atexit.register(port.close)
threads = [""",
        ),
        engine,
    )


def test_operations_under_way_at_the_end(engine):
    run(
        """
        from completionport import CompletionPort
        from support import local_pair

        port = CompletionPort()
        near, far = local_pair()
        handle = port.associate(near, "key")
        buffer = bytearray(100)
        handle.recv(buffer)
        handle.recv(10)
        handle.send(bytes(8_000_000))
        port.post(1, 2, 3)
        assert port.get(0.01) is not None
        """,
        engine,
    )


def test_a_port_in_a_thread_local(engine):
    run(
        """
        import threading
        from completionport import CompletionPort

        local = threading.local()
        local.port = CompletionPort()
        local.port.post(1)
        local.port.get()

        def work():
            local.port = CompletionPort()
            local.port.post(1)
            local.port.get()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        """,
        engine,
    )


def test_a_descriptor_that_outlives_the_names_of_its_module():
    done = run_python(
        """
        import os
        from completionport.watches import own_descriptor
        kept = own_descriptor.OwnDescriptor(os.open(os.devnull, os.O_RDONLY))
        for name in list(vars(own_descriptor)):
            if not name.startswith("__"):
                setattr(own_descriptor, name, None)
        """
    )
    assert done.stderr == ""


def test_an_exit_hook_that_uses_the_port(engine):
    output = run(
        """
        import atexit
        from completionport import CompletionPort

        port = CompletionPort()

        @atexit.register
        def last():
            port.post("late")
            print(port.get().transferred)
            port.close()
        """,
        engine,
    )
    assert output == "late\n"


def test_ctrl_c_ends_a_program_that_waits_in_get(engine):
    script = """
        import threading
        from completionport import CompletionPort
        from support import wait_for_stats

        port = CompletionPort(8)
        for _ in range(3):
            threading.Thread(target=port.get, daemon=True).start()
        wait_for_stats(port, waiting=3)
        threading.Thread(
            target=lambda: (wait_for_stats(port, waiting=4), print("ready", flush=True)),
            daemon=True,
        ).start()
        try:
            port.get()
        except KeyboardInterrupt:
            print("interrupted")
        """
    with python_process(script, engine=engine) as process:
        assert process.stdout.readline() == "ready\n"
        send_signal(signal.SIGINT, process.pid)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "interrupted\n", "")


def test_an_unhandled_ctrl_c_ends_the_program_too(engine):
    script = WAITING + "print('ready', flush=True)\nport.get()"
    with python_process(script, engine=engine) as process:
        assert process.stdout.readline() == "ready\n"
        send_signal(signal.SIGINT, process.pid)
        _, errors = process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, 130, 0xC000013A)  # the last one on Windows
    assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.skipif(
    getattr(sys, "_is_gil_enabled", lambda: True)(), reason="this interpreter has the GIL"
)
def test_the_package_leaves_the_gil_off(engine):
    """An extension module that does not declare itself safe switches the GIL on, with a warning."""
    run_python(
        """
        import sys
        from completionport import CompletionPort, Handler, Server

        with CompletionPort() as port:
            port.post(1)
            port.get()
        assert not sys._is_gil_enabled()
        """,
        engine=engine,
        options=("-W", "error"),
    )


def test_an_object_that_closes_a_port_at_the_end_does_not_wait_for_a_stopped_thread(engine):
    """A daemon thread closes it already: the pool's thread, for which it waits, is stopped."""
    if engine not in COMPILED:
        pytest.skip("in this engine a close() waits for another one as long as that takes")
    run_python(
        f"""
        import threading, time
        from completionport import CompletionPort

        class Owner:
            def __del__(self):
                port.close()

        port = CompletionPort(engine={engine!r})
        owner = Owner()
        begun = threading.Event()

        def function():
            begun.set()
            time.sleep(2)

        port.submit(function)
        begun.wait(20)
        closer = threading.Thread(target=port.close, daemon=True)
        closer.start()
        while not port.closed:
            time.sleep(0.001)
        """
    )
