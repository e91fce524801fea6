"""Whatever a program gives: TypeError, ValueError, or what Windows answers."""

from __future__ import annotations

import inspect
from array import array

import pytest

from completionport import win32
from win32_support import ROOM

ODD = [None, object(), "text", b"bytes", bytearray(8), array("d", [1.0]), 1.5, True, 0, -1, 2**31]
ODD += [2**64, 2**200, [], [1], {}, (), ("127.0.0.1",), ("127.0.0.1", 2**17), ("127.0.0.1", -1)]
ODD += [("no address at all", 80), ("127.0.0.1", "80"), ("127.0.0.1", None), ("::1", 1, 2, 3, 4)]
ODD += [win32.INVALID_HANDLE_VALUE, win32.INVALID_SOCKET, win32.OVERLAPPED(), win32.SOCKADDR_IN()]
ODD += [win32.WSABUF(), win32.WSABUF(-1, bytearray(2)), win32.WSABUF("1", bytearray(2))]
ODD += [win32.WSABUF(1, None), win32.WSABUF(1, "text"), "nul\0nul", lambda: None, int]


def places():
    """Arguments that each function takes, one set that is right."""
    number = ("127.0.0.1", 9)
    return {
        "AcceptEx": lambda t: (t.listener, t.fresh(), bytearray(99), 0, ROOM, ROOM, t.over()),
        "CancelIo": lambda t: (t.near,),
        "CancelIoEx": lambda t: (t.near, t.over()),
        "CloseHandle": lambda t: (t.event(),),
        "ConnectEx": lambda t: (t.bound(), number, b"x", t.over()),
        "CreateEvent": lambda t: (None, True, False, None),
        "CreateFile": lambda t: (t.path, 0, 0, None, 3, 0, None),
        "CreateIoCompletionPort": lambda t: (t.fresh(), t.port, "key", 0),
        "CreateThread": lambda t: (None, 0, t.work, None, 0, None),
        "DisconnectEx": lambda t: (t.near, t.over(), 0, 0),
        "DuplicateHandle": lambda t: (t.process, t.event(), t.process, 0, False, 2),
        "FlushFileBuffers": lambda t: (t.file,),
        "FormatMessage": lambda t: (win32.FORMAT_MESSAGE_FROM_SYSTEM, None, 5, 0),
        "GetAcceptExSockaddrs": lambda t: (bytearray(99), 0, ROOM, ROOM),
        "GetExitCodeThread": lambda t: (t.event(),),
        "GetFileSizeEx": lambda t: (t.file,),
        "GetOverlappedResult": lambda t: (t.near, t.over(), False),
        "GetQueuedCompletionStatus": lambda t: (t.posted(), 0),
        "GetQueuedCompletionStatusEx": lambda t: (t.posted(), 5, 0, False),
        "HasOverlappedIoCompleted": lambda t: (t.over(),),
        "MAKEWORD": lambda t: (2, 2),
        "PostQueuedCompletionStatus": lambda t: (t.port, 1, None, None),
        "ReadFile": lambda t: (t.file, bytearray(5), t.over()),
        "ResetEvent": lambda t: (t.event(),),
        "SetEvent": lambda t: (t.event(),),
        "SetFileCompletionNotificationModes": lambda t: (t.near, 0),
        "SetFilePointerEx": lambda t: (t.file, 0, 0),
        "SetLastError": lambda t: (5,),
        "TransmitFile": lambda t: (t.near, t.file, 0, 0, t.over(), None, 0),
        "WSAAccept": lambda t: (t.quick, t.address()),
        "WSAGetOverlappedResult": lambda t: (t.near, t.over(), False),
        "WSAIoctl": lambda t: (t.near, win32.FIONREAD, None, None, None),
        "WSARecv": lambda t: (t.near, bytearray(5), 0, t.over()),
        "WSARecvFrom": lambda t: (t.near, bytearray(5), 0, t.over(), t.address()),
        "WSASend": lambda t: (t.near, b"x", 0, t.over()),
        "WSASendTo": lambda t: (t.near, b"x", 0, number, t.over()),
        "WSASetLastError": lambda t: (5,),
        "WSASocket": lambda t: (win32.AF_INET, win32.SOCK_STREAM, 0, None, 0, 1),
        "WaitForMultipleObjects": lambda t: ([t.event()], False, 0),
        "WaitForSingleObject": lambda t: (t.event(), 0),
        "WriteFile": lambda t: (t.file, b"x", t.over()),
        "accept": lambda t: (t.quick, t.address()),
        "bind": lambda t: (t.fresh(), number),
        "closesocket": lambda t: (t.fresh(),),
        "connect": lambda t: (t.near, number),
        "freeaddrinfo": lambda t: (None,),
        "getaddrinfo": lambda t: ("127.0.0.1", "80", None),
        "getpeername": lambda t: (t.near, t.address()),
        "getsockname": lambda t: (t.near, t.address()),
        "getsockopt": lambda t: (t.near, win32.SOL_SOCKET, win32.SO_RCVBUF, 0),
        "htonl": lambda t: (1,),
        "htons": lambda t: (1,),
        "inet_addr": lambda t: ("127.0.0.1",),
        "inet_ntoa": lambda t: (t.address().sin_addr,),
        "inet_ntop": lambda t: (win32.AF_INET, t.address().sin_addr),
        "inet_pton": lambda t: (win32.AF_INET, "127.0.0.1", t.address().sin_addr),
        "ioctlsocket": lambda t: (t.near, win32.FIONREAD, 0),
        "listen": lambda t: (t.bound(), 5),
        "ntohl": lambda t: (1,),
        "ntohs": lambda t: (1,),
        "recv": lambda t: (t.quick, bytearray(5), 0),
        "recvfrom": lambda t: (t.quick, bytearray(5), 0, t.address()),
        "send": lambda t: (t.quick, b"x", 0),
        "sendto": lambda t: (t.quick, b"x", 0, number),
        "setsockopt": lambda t: (t.near, win32.SOL_SOCKET, win32.SO_RCVBUF, 4096),
        "shutdown": lambda t: (t.fresh(), 0),
        "sizeof": lambda t: (t.address(),),
        "socket": lambda t: (win32.AF_INET, win32.SOCK_STREAM, 0),
        "WSAStartup": lambda t: (win32.MAKEWORD(2, 2), win32.WSADATA()),
    }


class Things:
    """What the arguments are made of."""

    def __init__(self, pair, listener, port, path, closing):
        self.near, self.far = pair
        self.near.setblocking(False)  # calls that wait are tried as well
        self.process = win32.GetCurrentProcess()
        self.listener, self.port, self.path = listener, port, path
        self.closing = closing
        self.file = closing(win32.CreateFile(path, win32.GENERIC_READ | win32.GENERIC_WRITE))
        self.quick = self.fresh()
        self.quick.setblocking(False)
        self.over, self.address = win32.OVERLAPPED, win32.SOCKADDR_IN

    def posted(self):
        """The port, which does not have anybody wait."""
        assert win32.PostQueuedCompletionStatus(self.port, 0, None, None)
        return self.port

    def fresh(self):
        return self.closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))

    def bound(self):
        sock = self.fresh()
        assert win32.bind(sock, ("127.0.0.1", 0)) == 0
        return sock

    def event(self):
        return self.closing(win32.CreateEvent(None, True, True, None))

    def work(self, parameter):
        return None


@pytest.mark.parametrize("name", sorted(places()))
def test_what_makes_no_sense_is_told_as_promised(
    name, pair, listener, port, tmp_path, closing, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    things = Things(pair, listener, port, path, closing)
    make = places()[name]
    function = getattr(win32, name)
    refused = 0
    for place in range(len(make(things))):
        for odd in ODD:
            arguments = list(make(things))
            if callable(odd) and name == "CreateThread":
                continue  # it is a function
            arguments[place] = odd
            try:
                answer = function(*arguments)
            except (TypeError, ValueError) as error:
                refused += not isinstance(error, UnicodeError)
            except Exception as error:
                raise AssertionError(f"argument {place} = {odd!r}: {error!r}") from error
            else:
                if name == "WSAStartup" and answer == 0:
                    assert win32.WSACleanup() == 0
                is_new = isinstance(answer, (win32.SOCKET, win32.HANDLE)) and answer is not port
                if is_new and answer not in (win32.INVALID_SOCKET, win32.INVALID_HANDLE_VALUE):
                    closing(answer)
    assert refused or name == "freeaddrinfo"


def test_every_function_is_looked_at():
    without_arguments = {
        "GetCurrentProcess",
        "GetLastError",
        "GetSystemInfo",
        "WSACleanup",
        "WSAGetLastError",
    }
    functions = {name for name in win32.__all__ if inspect.isfunction(getattr(win32, name))} - {
        "CONTAINING_RECORD"
    }
    assert functions - without_arguments == set(places())


@pytest.mark.parametrize(
    ("make", "field", "value", "error"),
    [
        (win32.OVERLAPPED, "Offset", -1, ValueError),
        (win32.OVERLAPPED, "Offset", 2**32, ValueError),
        (win32.OVERLAPPED, "OffsetHigh", "1", TypeError),
        (win32.OVERLAPPED, "hEvent", 5, TypeError),
        (win32.SOCKADDR_IN, "sin_family", -1, ValueError),
        (win32.SOCKADDR_IN, "sin_port", 2**16, ValueError),
        (win32.SOCKADDR_IN, "sin_port", "80", TypeError),
        (win32.IN_ADDR, "s_addr", 2**32, ValueError),
        (win32.IN_ADDR, "s_addr", None, TypeError),
    ],
)
def test_fields_of_structures_take_what_fits(make, field, value, error):
    structure = make()
    with pytest.raises(error):
        setattr(structure, field, value)


def test_the_name_of_a_file_is_named_where_it_is_none() -> None:
    with pytest.raises(TypeError, match="lpFileName"):
        win32.CreateFile(3, win32.GENERIC_READ)  # type: ignore[arg-type]
