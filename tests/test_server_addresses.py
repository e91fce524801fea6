"""Where a server listens, and on what."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from completionport import Server
from server_support import Echo, Recorder
from support import (
    HOST,
    LONG,
    WINDOWS,
    descriptors,
    has_ipv6,
    needs_reuse_port,
    needs_unix_sockets,
    read_exactly,
    wait_until,
    windows_has_no,
)


class TestAddresses:
    def test_a_connection_knows_both_addresses(self, serve, dial):
        handler = Recorder()
        server = serve(handler)
        client = dial(server)
        connection = handler.first()
        assert connection.peername == client.getsockname()
        assert connection.sockname == client.getpeername() == server.address
        assert connection.server is server
        assert not connection.closing
        client.close()
        handler.end()
        assert connection.peername[0] == "127.0.0.1"
        assert connection.closing

    def test_port_zero_takes_a_free_one(self, serve):
        one, two = serve(Echo()), serve(Echo())
        assert one.address[0] == "127.0.0.1"
        assert one.address[1] > 0
        assert one.address != two.address

    def test_a_host_name(self, serve, dial):
        client = dial(serve(Echo(), host="localhost"))
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"

    @pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
    def test_ipv6(self, serve, nothing_left):
        handler = Echo()
        server = serve(handler, host="::1")
        with socket.create_connection(server.address[:2], timeout=LONG) as client:
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            assert handler.first().peername == client.getsockname()

    def test_an_address_in_use_is_told(self, serve, engine):
        server = serve(Echo())
        host, port = server.address
        before = descriptors()
        with pytest.raises(OSError, match=f"can't listen on {host}, port {port}: .") as caught:
            Server(Echo(), host, port, engine=engine)
        assert type(caught.value) is OSError
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.winsock_error == 10048
        assert WINDOWS or caught.value.strerror.endswith(os.strerror(errno.EADDRINUSE))
        assert descriptors() == before

    @windows_has_no("address that two sockets can be bound to, of which one listens")
    def test_an_address_at_which_another_socket_listens_by_then(self, engine, monkeypatch):
        bind = socket.socket.bind
        with socket.socket() as other:

            def bind_and_let_another_listen(sock, address):
                bind(sock, address)
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                bind(other, sock.getsockname())
                other.listen()

            monkeypatch.setattr(socket.socket, "bind", bind_and_let_another_listen)
            before = descriptors()
            with pytest.raises(OSError, match=r"can't listen on 127\.0\.0\.1, port 0: ") as caught:
                Server(Echo(), port=0, engine=engine)
            assert caught.value.errno == errno.EADDRINUSE
            assert descriptors() == before

    def test_an_address_of_another_machine_is_told(self, engine):
        with pytest.raises(OSError, match=r"can't listen on 192\.0\.2\.1, port 0: ") as caught:
            Server(Echo(), "192.0.2.1", 0, engine=engine)
        assert caught.value.errno == errno.EADDRNOTAVAIL

    @windows_has_no("port that takes a privilege")
    def test_a_port_that_takes_a_privilege(self, engine, monkeypatch):
        def refuse(sock, address):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(socket.socket, "bind", refuse)
        with pytest.raises(PermissionError, match=r"every address, port 80: .*below 1024 need"):
            Server(Echo(), "", 80, engine=engine)
        with pytest.raises(PermissionError, match=f"5050: {os.strerror(errno.EACCES)}$"):
            Server(Echo(), port=5050, engine=engine)

    def test_a_name_that_is_unknown_is_told(self, engine):
        with pytest.raises(socket.gaierror, match=r"can't listen on name\.invalid, port 80: ."):
            Server(Echo(), "name.invalid", 80, engine=engine)

    def test_a_listening_socket_of_the_program(self, serve, dial):
        listener = socket.create_server(("127.0.0.1", 0))
        server = serve(Echo(), listener=listener)
        assert server.address == listener.getsockname()
        client = dial(server)
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"
        server.stop()
        assert listener.fileno() == -1

    @pytest.mark.parametrize("mode", [0, 5.0])
    def test_a_listening_socket_in_another_mode(self, serve, dial, mode):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(mode)
        server = serve(Echo(), listener=listener)
        for _ in range(3):
            client = dial(server)
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"

    def test_clients_that_were_waiting_before_the_start_are_served(self, serve, nothing_left):
        listener = socket.create_server(("127.0.0.1", 0))
        clients = [socket.create_connection(listener.getsockname(), LONG) for _ in range(5)]
        serve(Echo(), listener=listener)
        for client in clients:
            with client:
                client.sendall(b"hello")
                assert read_exactly(client, 5) == b"hello"

    @needs_unix_sockets
    def test_a_unix_socket(self, serve, tmp_path):
        path = str(tmp_path / "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        handler = Echo()
        server = serve(handler, listener=listener)
        assert server.address == path
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LONG)
            client.connect(path)
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            assert handler.first().sockname == path

    @needs_reuse_port
    def test_two_servers_share_a_port(self, serve, dial):
        handlers = [Recorder(), Recorder()]
        server = serve(handlers[0], reuse_port=True)
        serve(handlers[1], reuse_port=True, port=server.address[1])
        for _ in range(60):
            dial(server)
        wait_until(lambda: sum(len(handler.connections) for handler in handlers) == 60)
        assert all(handler.connections for handler in handlers)

    def test_a_port_is_free_again_at_once(self, serve, dial):
        server = serve(Echo(), host=HOST)
        client = dial(server)
        client.sendall(b"x")
        read_exactly(client, 1)
        server.stop()
        again = serve(Echo(), host=HOST, port=server.address[1])
        assert again.address == server.address


@pytest.mark.parametrize("kind", ["unbound", "bound", "datagrams", "connected"])
def test_a_socket_that_does_not_listen_is_refused(engine, make_pair, kind):
    with socket.socket() as plain, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        if kind == "bound":
            plain.bind(("127.0.0.1", 0))
        given = {"datagrams": datagrams, "connected": make_pair()[0]}.get(kind, plain)
        with pytest.raises(ValueError, match=r"listen\(\)"):
            Server(Echo(), listener=given, engine=engine)
        assert given.fileno() >= 0


def test_a_socket_of_tls_is_refused(engine, port, make_pair):
    ssl = pytest.importorskip("ssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    near, _ = make_pair()
    with context.wrap_socket(near, do_handshake_on_connect=False) as wrapped:
        with pytest.raises(TypeError, match="plain text"):
            port.associate(wrapped, "key")
        with pytest.raises(TypeError, match="plain text"):
            Server(Echo(), listener=wrapped, engine=engine)
