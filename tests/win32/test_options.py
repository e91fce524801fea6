"""Options of sockets, their modes, extension functions, and the words of errors."""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from completionport import win32
from win32_support import differs_on_wine, reset, wait_for_data, wait_until

Closing = Callable[[Any], Any]


class TestWSAIoctl:
    @pytest.mark.parametrize(
        ("guid", "function"),
        [
            (win32.WSAID_ACCEPTEX, win32.AcceptEx),
            (win32.WSAID_CONNECTEX, win32.ConnectEx),
            (win32.WSAID_DISCONNECTEX, win32.DisconnectEx),
            (win32.WSAID_GETACCEPTEXSOCKADDRS, win32.GetAcceptExSockaddrs),
            (win32.WSAID_TRANSMITFILE, win32.TransmitFile),
        ],
    )
    def test_it_gives_each_extension_function(
        self, listener: win32.SOCKET, guid: uuid.UUID, function: Any
    ) -> None:
        answer = win32.WSAIoctl(listener, win32.SIO_GET_EXTENSION_FUNCTION_POINTER, guid)
        assert answer == (0, function)

    def test_a_function_that_is_not_known_is_refused(self, listener: win32.SOCKET) -> None:
        code = win32.SIO_GET_EXTENSION_FUNCTION_POINTER
        assert win32.WSAIoctl(listener, code, uuid.UUID(int=0)) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAEINVAL
        assert win32.WSAIoctl(listener, code, None) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAEFAULT

    def test_a_code_that_is_not_known_is_refused(self, listener: win32.SOCKET) -> None:
        assert win32.WSAIoctl(listener, 0x98000001) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAEOPNOTSUPP

    def test_keep_alive_times_are_the_sockets(self, near: win32.SOCKET) -> None:
        times = win32.tcp_keepalive(1, 3500, 1000)
        assert win32.WSAIoctl(near, win32.SIO_KEEPALIVE_VALS, times) == (0, None)
        assert win32.getsockopt(near, win32.SOL_SOCKET, win32.SO_KEEPALIVE)[1]
        if sys.platform == "linux":
            assert win32.getsockopt(near, win32.IPPROTO_TCP, win32.TCP_KEEPIDLE) == (0, 4)
            assert win32.getsockopt(near, win32.IPPROTO_TCP, win32.TCP_KEEPINTVL) == (0, 1)
        assert win32.WSAIoctl(near, win32.SIO_KEEPALIVE_VALS, win32.tcp_keepalive(0)) == (0, None)
        assert win32.getsockopt(near, win32.SOL_SOCKET, win32.SO_KEEPALIVE) == (0, 0)
        assert win32.WSAIoctl(near, win32.SIO_KEEPALIVE_VALS, 1) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAEFAULT

    def test_a_udp_socket_is_told_to_pass_over_refused_datagrams(self, closing: Closing) -> None:
        sock = closing(win32.socket(win32.AF_INET, win32.SOCK_DGRAM))
        assert win32.WSAIoctl(sock, win32.SIO_UDP_CONNRESET, False) == (0, None)

    def test_what_is_answered_at_once_takes_no_overlapped(self, listener: win32.SOCKET) -> None:
        with pytest.raises(ValueError, match="answers at once"):
            win32.WSAIoctl(listener, win32.FIONREAD, None, win32.OVERLAPPED())  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            win32.WSAIoctl(listener, "FIONREAD")  # type: ignore[arg-type]

    def test_a_closed_socket_is_none(self, listener: win32.SOCKET) -> None:
        win32.closesocket(listener)
        for code in (win32.SIO_GET_EXTENSION_FUNCTION_POINTER, win32.FIONREAD, 1):
            win32.SetLastError(0)
            assert win32.WSAIoctl(listener, code, win32.WSAID_ACCEPTEX)[0] == win32.SOCKET_ERROR
            assert win32.WSAGetLastError() == win32.WSAENOTSOCK


class TestIoctlsocket:
    def test_a_socket_that_does_not_wait_says_so(self, near: win32.SOCKET) -> None:
        assert win32.ioctlsocket(near, win32.FIONBIO, 1)[0] == 0
        assert win32.recv(near, bytearray(1)) == win32.SOCKET_ERROR
        assert win32.WSAGetLastError() == win32.WSAEWOULDBLOCK
        assert win32.WSARecv(near, bytearray(1), 0, win32.NULL) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAEWOULDBLOCK
        assert win32.ioctlsocket(near, win32.FIONBIO, 0)[0] == 0
        assert near.gettimeout() is None

    def test_it_tells_how_much_is_there(self, near: win32.SOCKET, far: win32.SOCKET) -> None:
        assert win32.ioctlsocket(near, win32.FIONREAD) == (0, 0)
        assert win32.send(far, b"twelve bytes") == 12
        wait_until(lambda: win32.ioctlsocket(near, win32.FIONREAD) == (0, 12))
        assert win32.WSAIoctl(near, win32.FIONREAD) == (0, 12)

    def test_it_tells_where_urgent_data_is(self, near: win32.SOCKET, far: win32.SOCKET) -> None:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        assert win32.send(far, b"a") == 1
        assert win32.send(far, b"!", win32.MSG_OOB) == 1
        wait_until(lambda: win32.ioctlsocket(near, win32.FIONREAD)[1])
        wait_until(lambda: win32.recv(near, bytearray(8), win32.MSG_PEEK) >= 1)
        assert win32.ioctlsocket(near, win32.SIOCATMARK)[0] == 0

    def test_other_commands_are_refused(self, near: win32.SOCKET) -> None:
        assert win32.ioctlsocket(near, 1) == (win32.SOCKET_ERROR, None)
        assert win32.WSAGetLastError() == win32.WSAEOPNOTSUPP
        with pytest.raises(TypeError):
            win32.ioctlsocket(near, "FIONBIO")  # type: ignore[arg-type]


class TestGetsockopt:
    def test_options_that_were_set_are_told(self, near: win32.SOCKET) -> None:
        assert win32.setsockopt(near, win32.IPPROTO_TCP, win32.TCP_NODELAY, 1) == 0
        result, value = win32.getsockopt(near, win32.IPPROTO_TCP, win32.TCP_NODELAY)
        assert (result, bool(value)) == (0, True)
        assert win32.getsockopt(near, win32.SOL_SOCKET, win32.SO_TYPE) == (0, win32.SOCK_STREAM)
        result, data = win32.getsockopt(near, win32.SOL_SOCKET, win32.SO_TYPE, 4)
        assert (result, data) == (0, win32.SOCK_STREAM.to_bytes(4, "little"))

    def test_times_are_milliseconds(self, near: win32.SOCKET) -> None:
        for option in (win32.SO_RCVTIMEO, win32.SO_SNDTIMEO):
            assert win32.setsockopt(near, win32.SOL_SOCKET, option, 1500) == 0
            assert win32.getsockopt(near, win32.SOL_SOCKET, option) == (0, 1500)

    def test_an_error_is_told_once(self, closing: Closing) -> None:
        near = closing(win32.socket(win32.AF_INET, win32.SOCK_STREAM))
        assert win32.getsockopt(near, win32.SOL_SOCKET, win32.SO_ERROR) == (0, 0)

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows tells it to the calls only")
    def test_a_reset_is_told_in_winsocks_code(
        self, pair: tuple[win32.SOCKET, win32.SOCKET]
    ) -> None:
        near, far = pair
        reset(far)
        wait_for_data(near)
        answer = win32.getsockopt(near, win32.SOL_SOCKET, win32.SO_ERROR)
        assert answer == (0, win32.WSAECONNRESET)
        assert win32.getsockopt(near, win32.SOL_SOCKET, win32.SO_ERROR) == (0, 0)

    def test_how_long_it_is_connected(
        self, closing: Closing, pair: tuple[win32.SOCKET, win32.SOCKET]
    ) -> None:
        for sock in pair:
            result, seconds = win32.getsockopt(sock, win32.SOL_SOCKET, win32.SO_CONNECT_TIME)
            assert result == 0
            assert 0 <= seconds < 60
        alone = closing(win32.socket(win32.AF_INET, win32.SOCK_STREAM))
        answer = win32.getsockopt(alone, win32.SOL_SOCKET, win32.SO_CONNECT_TIME)
        assert answer == (0, 0xFFFFFFFF)

    def test_what_can_only_be_set_is_refused(self, near: win32.SOCKET) -> None:
        for option in (win32.SO_UPDATE_ACCEPT_CONTEXT, win32.SO_UPDATE_CONNECT_CONTEXT):
            answer = win32.getsockopt(near, win32.SOL_SOCKET, option)
            assert answer == (win32.SOCKET_ERROR, None)
            assert win32.WSAGetLastError() == win32.WSAENOPROTOOPT

    def test_wrong_arguments(self, near: win32.SOCKET) -> None:
        with pytest.raises(TypeError):
            win32.getsockopt(near, "SOL_SOCKET", win32.SO_TYPE)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="optlen"):
            win32.getsockopt(near, win32.SOL_SOCKET, win32.SO_TYPE, 5000)
        win32.closesocket(near)
        assert win32.getsockopt(near, win32.SOL_SOCKET, win32.SO_TYPE)[0] == win32.SOCKET_ERROR
        assert win32.WSAGetLastError() == win32.WSAENOTSOCK


class TestFormatMessage:
    FLAGS = win32.FORMAT_MESSAGE_FROM_SYSTEM | win32.FORMAT_MESSAGE_IGNORE_INSERTS

    @pytest.mark.parametrize(
        "name",
        [
            *("ERROR_SUCCESS", "ERROR_FILE_NOT_FOUND", "ERROR_ACCESS_DENIED", "ERROR_IO_PENDING"),
            *("WAIT_TIMEOUT", "WSAECONNRESET", "WSAECONNREFUSED", "WSAEADDRINUSE", "WSAEINVAL"),
            *("ERROR_INVALID_HANDLE", "ERROR_INVALID_PARAMETER", "ERROR_NETNAME_DELETED"),
            *("WSAENOTCONN", "WSAENOTSOCK", "WSAEWOULDBLOCK", "WSAETIMEDOUT", "ERROR_HANDLE_EOF"),
            *("ERROR_OPERATION_ABORTED", "ERROR_CONNECTION_ABORTED", "WSAHOST_NOT_FOUND"),
        ],
    )
    @differs_on_wine("it has no text for many codes", always=False)
    def test_a_code_has_a_text(self, system: str, name: str) -> None:
        text = win32.FormatMessage(self.FLAGS, win32.NULL, getattr(win32, name), 0)
        assert text.endswith("\r\n")
        assert len(text.strip()) > 5

    @pytest.mark.skipif(sys.platform == "win32", reason="there the texts are the system's")
    def test_each_code_has_the_text_that_belongs_to_it(self) -> None:
        """Of several errnos with one code: 87 was "No such process", 10054 "Protocol error"."""
        texts = {
            name: win32.FormatMessage(self.FLAGS, win32.NULL, code).removesuffix(".\r\n")
            for name, code in vars(win32).items()
            if re.match("ERROR_|WSAE|WSA[HNT]", name)
        }
        assert len(texts) > 70
        assert [name for name, text in texts.items() if not text] == []
        for name, text in texts.items():
            if name.startswith("WSAE"):
                assert text == os.strerror(getattr(errno, name[3:])), name
        for code, words in {
            "ERROR_INVALID_PARAMETER": "argument",
            "ERROR_INVALID_HANDLE": "handle",
            "ERROR_PATH_NOT_FOUND": "folder",
            "ERROR_NETNAME_DELETED": "reset",
            "ERROR_ABANDONED_WAIT_0": "closed",
            "ERROR_TOO_MANY_OPEN_FILES": os.strerror(errno.EMFILE),
            "ERROR_ACCESS_DENIED": os.strerror(errno.EACCES),
        }.items():
            assert words in texts[code], code

    def test_a_code_without_a_text(self, system: str) -> None:
        assert win32.FormatMessage(self.FLAGS, win32.NULL, 0x2FFFFFFF) == ""
        assert win32.GetLastError() == win32.ERROR_MR_MID_NOT_FOUND

    def test_other_sources_are_refused(self, system: str) -> None:
        with pytest.raises(ValueError, match="FORMAT_MESSAGE_FROM_SYSTEM"):
            win32.FormatMessage(0, win32.NULL, 5)
        with pytest.raises(TypeError):
            win32.FormatMessage(self.FLAGS, win32.NULL, "5")  # type: ignore[arg-type]
