"""What the documents say is so: their examples run, and the reference is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support import run_python

ROOT = Path(__file__).parent.parent


def examples(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


BLOCKS = examples("README.md")
ABOUT_THREADS = examples("docs/threads.md")


def test_the_readmes_server_answers(engine, monkeypatch):
    import completionport

    servers = []
    started = threading.Event()

    class Server(completionport.Server):
        def __init__(self, handler, host, port):
            super().__init__(handler, host, 0, engine=engine)
            servers.append(self)

        def start(self):
            super().start()
            started.set()

    monkeypatch.setattr(completionport, "Server", Server)
    thread = threading.Thread(target=exec, args=(BLOCKS[0], {}))
    thread.start()
    assert started.wait(10)
    import socket

    with socket.create_connection(servers[0].address, timeout=10) as client:
        client.sendall(b"hello")
        assert client.recv(10) == b"hello"
    servers[0].stop()
    thread.join()


def test_the_readmes_port_prints_what_it_says():
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[1]], capture_output=True, text=True, timeout=20
    )
    expected = re.search(r"# (my connection .*)", BLOCKS[1])[1]
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize("number", range(len(ABOUT_THREADS)))
def test_the_examples_about_threads_print_what_they_say(engine, number):
    example = ABOUT_THREADS[number]
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", example, re.MULTILINE)
    assert expected
    assert run_python(example, engine=engine).stdout.splitlines() == expected


def test_every_name_of_the_article_is_in_the_readmes_table():
    table = (ROOT / "README.md").read_text()
    for name in (
        "CreateIoCompletionPort", "GetQueuedCompletionStatus", "PostQueuedCompletionStatus",
        "WSARecv", "WSASend", "WSAAccept", "WSASocket", "CONTAINING_RECORD", "OVERLAPPED",
        "GetSystemInfo", "CreateThread", "closesocket", "CloseHandle", "WSAGetOverlappedResult",
        "GetLastError", "WSAStartup", "GlobalAlloc", "HeapFree", "ZeroMemory", "WSABUF",
    ):  # fmt: skip
        assert name in table, name


def test_the_reference_is_made_from_todays_docstrings():
    done = subprocess.run(
        [sys.executable, ROOT / "tools/make_reference.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_between_the_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
