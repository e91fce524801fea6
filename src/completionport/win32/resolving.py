"""Names of hosts, and addresses as texts."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from ..interface.error_codes import add_codes
from .constants import AF_INET, AF_INET6, SOCKET_ERROR, WSAEAFNOSUPPORT, WSAEFAULT
from .last_error import WSASetLastError
from .structures import ADDRINFO, IN6_ADDR, IN_ADDR, SOCKADDR_IN, SOCKADDR_IN6


def getaddrinfo(
    pNodeName: str | None, pServiceName: str | None = None, pHints: ADDRINFO | None = None
) -> tuple[int, list[ADDRINFO]]:
    """Look a host and a service up: ``(0, addresses)``, or ``(code, [])``.

    ``pNodeName``: a name or an address as text, or None for this host. ``pServiceName``: a name or
    a number as text, or None. ``pHints``: an `ADDRINFO` that says what is wanted.

    The code is Winsock's (``WSAHOST_NOT_FOUND``), and the last error too. It waits for the name
    server; `completionport.CompletionPort.getaddrinfo` does not. `freeaddrinfo` does nothing.
    """
    for name, value in (("pNodeName", pNodeName), ("pServiceName", pServiceName)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} must be a text or None, not {type(value).__name__}")
    if pHints is not None and not isinstance(pHints, ADDRINFO):
        raise TypeError(f"pHints must be an ADDRINFO or None, not {type(pHints).__name__}")
    hints = ADDRINFO() if pHints is None else pHints
    try:
        found = socket.getaddrinfo(
            pNodeName,
            pServiceName,
            hints.ai_family,
            hints.ai_socktype,
            hints.ai_protocol,
            hints.ai_flags,
        )
    except UnicodeError:  # a label that is too long, or empty
        found, code = [], int(add_codes(socket.gaierror(socket.EAI_NONAME, "")).winsock_error)  # type: ignore[attr-defined]
    except OSError as error:
        found, code = [], int(add_codes(error).winsock_error)  # type: ignore[attr-defined]
    else:
        code = 0
    answers = []
    for family, kind, protocol, canonical, address in found:
        if family not in (AF_INET, AF_INET6):
            continue
        one = ADDRINFO()
        one.ai_flags = hints.ai_flags
        one.ai_family, one.ai_socktype, one.ai_protocol = int(family), int(kind), protocol
        one.ai_canonname = canonical or None
        structure = SOCKADDR_IN() if family == AF_INET else SOCKADDR_IN6()
        structure.assign(family, address)
        one.ai_addr, one.ai_addrlen = structure, structure.SIZE
        answers.append(one)
    if code:
        WSASetLastError(code)
    return code, answers


def freeaddrinfo(pAddrInfo: Sequence[ADDRINFO] | ADDRINFO | None) -> None:
    """Nothing: what `getaddrinfo` gave are objects of Python."""


def inet_pton(Family: int, pszAddrString: str, pAddrBuf: IN_ADDR | IN6_ADDR) -> int:
    """Fill in an address from its text: 1, 0 for a text that is none, or ``SOCKET_ERROR``.

    ``Family``: ``AF_INET`` with an `IN_ADDR` (``sin_addr``), ``AF_INET6`` with an `IN6_ADDR`
    (``sin6_addr``); another one: ``WSAEAFNOSUPPORT``. With the other structure: ``WSAEFAULT``.
    """
    if not isinstance(pszAddrString, str):
        raise TypeError(f"an address is a text, not {type(pszAddrString).__name__}")
    code = _wrong_family(Family, pAddrBuf)
    if code:
        WSASetLastError(code)
        return SOCKET_ERROR
    try:
        pAddrBuf._memory[:] = socket.inet_pton(Family, pszAddrString)
    except (OSError, ValueError):
        return 0
    return 1


def inet_ntop(Family: int, pAddr: IN_ADDR | IN6_ADDR) -> str | None:
    """The text of an address; ``NULL`` and the last error for a family that is not known."""
    code = _wrong_family(Family, pAddr)
    if code:
        WSASetLastError(code)
        return None
    return socket.inet_ntop(Family, bytes(pAddr._memory))


def _wrong_family(family: int, address: IN_ADDR | IN6_ADDR) -> int:
    if not isinstance(address, (IN_ADDR, IN6_ADDR)):
        raise TypeError(f"an IN_ADDR or IN6_ADDR was expected, not {type(address).__name__}")
    if not isinstance(family, int):
        raise TypeError(f"a family is a number, not {type(family).__name__}")
    if family not in (AF_INET, AF_INET6):
        return WSAEAFNOSUPPORT
    return 0 if isinstance(address, IN_ADDR) == (family == AF_INET) else WSAEFAULT
