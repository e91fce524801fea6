"""What the documents say is so: their examples run, and the reference is up to date."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import completionport
from completionport import win32
from support import WINDOWS, run_python

ROOT = Path(__file__).parent.parent


def examples(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


BLOCKS = examples("README.md")
ABOUT_THREADS = examples("docs/threads.md")
FROM_WIN32 = examples("docs/from-win32.md")
ABOUT_EVENTS = examples("docs/events.md")
ABOUT_FILES = examples("docs/files.md")
ABOUT_SERVERS = examples("docs/servers.md")
OF_UNIX = re.compile(r'"sh"|os\.kill\(|O_DIRECTORY')


def parameters(page, texts):
    """The examples of a page, each with its number."""
    for number, text in enumerate(texts):
        marks = pytest.mark.skipif(
            WINDOWS and OF_UNIX.search(text) is not None,
            reason="the example shows it with what Unix has: a shell, kill(2), open directories",
        )
        yield pytest.param(text, id=f"{page}-{number}", marks=marks)


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


@pytest.mark.parametrize(
    "example",
    [
        *parameters("threads", ABOUT_THREADS),
        *parameters("from-win32", FROM_WIN32),
        *parameters("events", ABOUT_EVENTS),
        *parameters("files", ABOUT_FILES),
        *parameters("servers", ABOUT_SERVERS),
    ],
)
def test_the_examples_of_a_page_print_what_they_say(engine, example):
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


def test_the_page_about_win32_names_every_function():
    page = (ROOT / "docs/from-win32.md").read_text()
    constants = set(vars(win32.constants))
    types = {"HANDLE", "IN_ADDR", "SOCKADDR", "SOCKET", "SYSTEM_INFO", "sizeof"}
    for name in set(win32.__all__) - constants - types:
        assert re.search(rf"\b{name}\b", page), name


@pytest.mark.skipif(WINDOWS, reason="made where the compiled engines are, which they describe")
@pytest.mark.parametrize("tool", ["draw_architecture", "make_reference", "make_rules"])
def test_pages_that_are_made_from_the_code_are_made_from_todays(tool):
    done = subprocess.run(
        [sys.executable, ROOT / f"tools/{tool}.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_between_the_documents_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def headings(page):
    """The anchors of a page, as GitHub makes them."""
    seen, found = {}, set()
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        link = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        seen[link] = seen.get(link, -1) + 1
        found.add(f"{link}-{seen[link]}" if seen[link] else link)
    return found


def test_links_into_a_page_lead_to_a_heading():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            assert anchor in headings(page.parent / target if target else page), (page.name, anchor)


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs/reference.md").read_text()
    classes = {
        **{name: getattr(completionport, name) for name in completionport.__all__},
        **{name: getattr(win32, name) for name in win32.__all__},
    }
    # What stands in the language's own documentation.
    ordinary = {name for kind in (tuple, int, OSError, ValueError) for name in dir(kind)}
    for name, cls in classes.items():
        if not isinstance(cls, type) or cls.__name__ != name:
            continue
        if issubclass(cls, socket.socket):
            continue
        for member in dir(cls):
            if member.startswith("_") or member in ordinary:
                continue
            owners = [base.__name__ for base in cls.__mro__]
            assert any(f"`{owner}.{member}" in page for owner in owners), (name, member)
