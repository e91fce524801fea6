"""Names of hosts, addresses as texts, and datagrams by the calls that wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from completionport import win32


@pytest.mark.parametrize(
    ("family", "make", "text"),
    [
        (win32.AF_INET, win32.IN_ADDR, "127.0.0.1"),
        (win32.AF_INET6, win32.IN6_ADDR, "::1"),
        (win32.AF_INET6, win32.IN6_ADDR, "fe80::1:2"),
    ],
)
def test_an_address_becomes_a_text_and_back(
    system: str, family: int, make: Callable[[], Any], text: str
) -> None:
    address = make()
    assert win32.inet_pton(family, text, address) == 1
    assert win32.inet_ntop(family, address) == text


def test_it_is_filled_into_a_structure(system: str) -> None:
    local, six = win32.SOCKADDR_IN(), win32.SOCKADDR_IN6()
    local.sin_family, local.sin_port = win32.AF_INET, win32.htons(5050)
    assert win32.inet_pton(win32.AF_INET, "127.0.0.1", local.sin_addr) == 1
    assert local.address == ("127.0.0.1", 5050)
    six.sin6_family, six.sin6_port, six.sin6_scope_id = win32.AF_INET6, win32.htons(5050), 3
    assert win32.inet_pton(win32.AF_INET6, "fe80::1", six.sin6_addr) == 1
    assert six.address == ("fe80::1", 5050, 0, 3)


@pytest.mark.parametrize("text", ["", "localhost", "1.2.3", "1.2.3.4.5", "::1", "\0", "1.2.3.256"])
def test_a_text_that_is_no_address(system: str, text: str) -> None:
    assert win32.inet_pton(win32.AF_INET, text, win32.IN_ADDR()) == 0


def test_families_that_are_none(system: str) -> None:
    assert win32.inet_pton(77, "127.0.0.1", win32.IN_ADDR()) == win32.SOCKET_ERROR
    assert win32.WSAGetLastError() == win32.WSAEAFNOSUPPORT
    assert win32.inet_pton(win32.AF_INET6, "::1", win32.IN_ADDR()) == win32.SOCKET_ERROR
    assert win32.WSAGetLastError() == win32.WSAEFAULT
    assert win32.inet_ntop(77, win32.IN_ADDR()) is win32.NULL
    assert win32.WSAGetLastError() == win32.WSAEAFNOSUPPORT
    with pytest.raises(TypeError):
        win32.inet_pton(win32.AF_INET, "127.0.0.1", bytearray(4))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        win32.inet_pton(win32.AF_INET, b"127.0.0.1", win32.IN_ADDR())  # type: ignore[arg-type]


class TestGetaddrinfo:
    def test_what_is_found_can_be_bound(self, closing: Callable[[Any], Any]) -> None:
        hints = win32.ADDRINFO()
        hints.ai_family, hints.ai_socktype = win32.AF_INET, win32.SOCK_STREAM
        hints.ai_flags = win32.AI_PASSIVE | win32.AI_NUMERICHOST
        code, found = win32.getaddrinfo("127.0.0.1", "0", hints)
        assert code == 0
        (one,) = found
        assert (one.ai_family, one.ai_socktype) == (win32.AF_INET, win32.SOCK_STREAM)
        assert one.ai_addr is not None
        assert one.ai_addrlen == win32.sizeof(win32.SOCKADDR_IN)
        sock = closing(win32.socket(one.ai_family, one.ai_socktype, one.ai_protocol))
        assert win32.bind(sock, one.ai_addr) == 0
        win32.freeaddrinfo(found)

    def test_localhost_is_known(self, system: str) -> None:
        code, found = win32.getaddrinfo("localhost", "80")
        assert code == 0
        assert {one.ai_family for one in found} <= {win32.AF_INET, win32.AF_INET6}
        assert found

    @pytest.mark.parametrize("name", ["not an address", "a..b", "x" * 70])
    def test_what_is_no_address_has_winsocks_code(self, system: str, name: str) -> None:
        hints = win32.ADDRINFO()
        hints.ai_flags = win32.AI_NUMERICHOST
        code, found = win32.getaddrinfo(name, None, hints)
        assert (code, found) == (win32.WSAHOST_NOT_FOUND, [])
        assert win32.WSAGetLastError() == code

    def test_wrong_arguments(self, system: str) -> None:
        with pytest.raises(TypeError):
            win32.getaddrinfo(b"localhost")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            win32.getaddrinfo("localhost", 80)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            win32.getaddrinfo("localhost", "80", {})  # type: ignore[arg-type]


class TestDatagrams:
    @pytest.fixture
    def two(self, closing: Callable[[Any], Any]) -> list[win32.SOCKET]:
        socks = [closing(win32.socket(win32.AF_INET, win32.SOCK_DGRAM)) for _ in range(2)]
        for sock in socks:
            assert win32.bind(sock, ("127.0.0.1", 0)) == 0
        return socks

    def test_they_are_sent_and_received(self, two: list[win32.SOCKET]) -> None:
        near, far = two
        where, sender = win32.SOCKADDR_IN(), win32.SOCKADDR_IN()
        assert win32.getsockname(far, where) == 0
        assert win32.sendto(near, b"hello", 0, where) == 5
        room = bytearray(16)
        assert win32.recvfrom(far, room, 0, sender) == 5
        assert room[:5] == b"hello"
        assert sender.address == near.getsockname()
        assert win32.sendto(far, b"again", 0, sender.address) == 5
        assert win32.recvfrom(near, room) == 5

    def test_one_that_is_too_long_says_so(self, two: list[win32.SOCKET]) -> None:
        near, far = two
        sender = win32.SOCKADDR_IN()
        assert win32.sendto(near, b"hello", 0, far.getsockname()) == 5
        room = bytearray(2)
        assert win32.recvfrom(far, room, 0, sender) == win32.SOCKET_ERROR
        assert win32.WSAGetLastError() == win32.WSAEMSGSIZE
        assert room == b"he"
        assert sender.address == near.getsockname()


def test_what_is_printed_of_addresses_and_handles() -> None:
    code, found = win32.getaddrinfo("127.0.0.1", "80")
    assert code == 0
    assert "127.0.0.1" in repr(found[0])
    assert repr(win32.INVALID_HANDLE_VALUE) == "<INVALID_HANDLE_VALUE>"
    assert repr(win32.INVALID_SOCKET) == "<INVALID_SOCKET>"
