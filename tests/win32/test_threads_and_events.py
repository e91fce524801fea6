"""CreateThread, events, waits, and the small functions beside them."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

from completionport import OperationAborted, win32
from completionport.interface import error_codes
from win32_support import LONG


class TestThreads:
    def test_a_thread_runs_its_function_with_its_parameter(self, closing):
        seen = []

        def function(parameter):
            seen.append((parameter, threading.current_thread() is threading.main_thread()))
            return 7

        thread = closing(win32.CreateThread(None, 0, function, "parameter", 0, None))
        assert win32.WaitForSingleObject(thread, LONG) == win32.WAIT_OBJECT_0
        assert seen == [("parameter", False)]
        assert win32.GetExitCodeThread(thread) == (True, 7)

    def test_a_handle_can_be_closed_while_the_thread_runs(self):
        go, ended = threading.Event(), threading.Event()

        def function(parameter):
            go.wait()
            ended.set()

        thread = win32.CreateThread(None, 0, function, None, 0, None)
        assert win32.GetExitCodeThread(thread) == (True, win32.STILL_ACTIVE)
        assert win32.WaitForSingleObject(thread, 0) == win32.WAIT_TIMEOUT
        assert win32.CloseHandle(thread)
        assert win32.WaitForSingleObject(thread, 0) == win32.WAIT_FAILED
        assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE
        go.set()
        assert ended.wait(LONG / 1000)

    def test_all_threads_can_be_waited_for_at_once(self, closing):
        gates = [threading.Event() for _ in range(3)]
        threads = [
            closing(win32.CreateThread(None, 0, lambda gate: gate.wait(), gate)) for gate in gates
        ]
        assert win32.WaitForMultipleObjects(threads, True, 0) == win32.WAIT_TIMEOUT
        gates[1].set()
        assert win32.WaitForMultipleObjects(threads, False, LONG) == win32.WAIT_OBJECT_0 + 1
        for gate in gates:
            gate.set()
        assert win32.WaitForMultipleObjects(threads, True, LONG) == win32.WAIT_OBJECT_0

    def test_what_is_no_function_is_refused(self):
        with pytest.raises(TypeError, match="lpStartAddress"):
            win32.CreateThread(None, 0, "function", None)


class TestEvents:
    def test_a_manual_event_stays_signalled(self, closing):
        event = closing(win32.CreateEvent(None, True, False, None))
        assert win32.WaitForSingleObject(event, 0) == win32.WAIT_TIMEOUT
        assert win32.SetEvent(event)
        for _ in range(2):
            assert win32.WaitForSingleObject(event, 0) == win32.WAIT_OBJECT_0
        assert win32.ResetEvent(event)
        assert win32.WaitForSingleObject(event, 0) == win32.WAIT_TIMEOUT

    def test_an_event_that_resets_itself_lets_one_wait_through(self, closing):
        event = closing(win32.CreateEvent(None, False, True, None))
        assert win32.WaitForSingleObject(event, 0) == win32.WAIT_OBJECT_0
        assert win32.WaitForSingleObject(event, 0) == win32.WAIT_TIMEOUT

    def test_a_thread_that_waits_is_woken(self, closing):
        event = closing(win32.CreateEvent(None, False, False, None))
        thread = closing(
            win32.CreateThread(None, 0, lambda _: win32.WaitForSingleObject(event, LONG), None)
        )
        win32.SetEvent(event)
        assert win32.WaitForSingleObject(thread, LONG) == win32.WAIT_OBJECT_0
        assert win32.GetExitCodeThread(thread) == (True, win32.WAIT_OBJECT_0)

    def test_a_thread_is_no_event(self, closing):
        event = closing(win32.CreateEvent(None, False, False, None))
        assert win32.CloseHandle(event)
        assert not win32.SetEvent(event)
        assert win32.GetLastError() == win32.ERROR_INVALID_HANDLE


class TestSmallFunctions:
    def test_system_info(self):
        info = win32.GetSystemInfo()
        assert info.dwNumberOfProcessors >= 1
        assert info.dwPageSize % 4096 == 0
        assert info.dwAllocationGranularity % info.dwPageSize == 0

    def test_startup_fills_in_its_structure(self):
        data = win32.WSADATA()
        assert win32.MAKEWORD(2, 2) == 0x0202
        assert win32.WSAStartup(win32.MAKEWORD(2, 2), data) == 0
        assert data.wVersion == 0x0202
        assert win32.WSACleanup() == 0

    def test_numbers_in_network_order(self):
        assert win32.ntohs(win32.htons(5050)) == 5050
        assert win32.htons(5050).to_bytes(2, sys.byteorder) == b"\x13\xba"
        assert win32.ntohl(win32.htonl(0x7F000001)) == 0x7F000001

    def test_an_address_in_its_structure(self):
        address = win32.SOCKADDR_IN()
        address.sin_family = win32.AF_INET
        address.sin_port = win32.htons(5050)
        address.sin_addr.s_addr = win32.inet_addr("10.1.2.3")
        assert address.address == ("10.1.2.3", 5050)
        assert win32.inet_ntoa(address.sin_addr) == "10.1.2.3"
        assert win32.inet_addr("no address") == win32.INADDR_NONE
        assert win32.sizeof(address) == win32.sizeof(win32.SOCKADDR_IN) == 16

    def test_an_address_of_ipv6(self):
        address = win32.SOCKADDR_IN6()
        address.assign(socket.AF_INET6, ("::1", 5050))
        assert address.address[:2] == ("::1", 5050)

    def test_every_name_is_there(self):
        for name in win32.__all__:
            assert hasattr(win32, name), name
        assert len(set(win32.__all__)) == len(win32.__all__)


@pytest.mark.skipif(sys.platform != "win32", reason="it asks ntdll, so it takes Windows")
def test_the_table_of_codes_says_what_windows_says():
    """Windows' own translation of each status in the table to its Windows code."""
    import ctypes

    translate = ctypes.WinDLL("ntdll").RtlNtStatusToDosError
    translate.restype, translate.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    differing = {
        name: (hex(status), windows, translate(status))
        for name, (status, windows) in error_codes.STATUSES.items()
        if translate(status) != windows
    }
    assert differing == {}


def test_errors_of_the_library_carry_both_codes():
    error = OperationAborted()
    assert (error.winerror, error.winsock_error) == (
        win32.ERROR_OPERATION_ABORTED,
        win32.WSA_OPERATION_ABORTED,
    )
