"""The proxy that breaks connections on demand."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from celeriac.testing.proxy import Proxy


class Echo(threading.Thread):
    """Sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"echo://me:secret@127.0.0.1:{self.listener.getsockname()[1]}/place?a=b"
        self.got = bytearray()
        self.changed = threading.Condition()
        self.start()

    def run(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(peer,), daemon=True).start()

    def serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(1 << 16):
                    with self.changed:
                        self.got += data
                        self.changed.notify_all()
                    peer.sendall(data)
            except ConnectionError:
                pass

    def wait_for(self, data: bytes) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: data in self.got, 5)

    def close(self) -> None:
        if self.is_alive():
            self.listener.shutdown(socket.SHUT_RDWR)
            self.join()
            self.listener.close()


@pytest.fixture
def server() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(server: Echo) -> Iterator[Proxy]:
    with Proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connect(proxy) as client:
        assert said(client, b"hello") == b"hello"
        yield client


def connect(proxy: Proxy, timeout: float = 5.0) -> socket.socket:
    return socket.create_connection(proxy.address, timeout)


def said(client: socket.socket, data: bytes) -> bytes:
    """The answer to `data`; it ends where the other side ends."""
    client.sendall(data)
    return heard(client, len(data))


def heard(client: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (more := client.recv(size - len(got))):
        got += more
    return got


def is_silent(client: socket.socket) -> bool:
    client.settimeout(0.1)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5.0)
    return False


def test_its_url_is_the_servers_at_another_place(proxy: Proxy) -> None:
    assert proxy.url == f"echo://me:secret@127.0.0.1:{proxy.address[1]}/place?a=b"


@pytest.mark.parametrize("server", ["localhost", "redis://localhost/0", "unix:///tmp/socket"])
def test_a_server_without_host_and_port_is_refused(server: str) -> None:
    with pytest.raises(ValueError, match="host and a port"):
        Proxy(server)


def test_it_passes_everything_both_ways(client: socket.socket) -> None:
    data = bytes(range(256)) * 20_000
    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append(heard(client, len(data))))
    reader.start()
    client.sendall(data)
    reader.join(10)
    assert answers == [data]


def test_an_end_is_passed_on(proxy: Proxy, client: socket.socket) -> None:
    assert proxy.connections == 1
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    with connect(proxy) as another:
        assert said(another, b"still here") == b"still here"


def test_a_cut_resets_what_is_open(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with connect(proxy) as another:
        assert said(another, b"again") == b"again"


def test_it_can_refuse(proxy: Proxy, client: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.resume()
    with connect(proxy) as another:
        assert said(another, b"again") == b"again"


def test_a_stall_holds_bytes_both_ways(proxy: Proxy, client: socket.socket, server: Echo) -> None:
    proxy.stall()
    client.sendall(b"held")
    with connect(proxy) as another:
        another.sendall(b"too")
        assert is_silent(client)
        assert is_silent(another)
        assert server.got == b"hello"
        proxy.resume()
        assert heard(client, 4) == b"held"
        assert heard(another, 3) == b"too"


def test_a_black_hole_answers_nobody(proxy: Proxy, client: socket.socket) -> None:
    proxy.black_hole()
    with pytest.raises(TimeoutError):
        connect(proxy, timeout=0.2)
    client.sendall(b"held")
    assert is_silent(client)
    proxy.resume()
    assert heard(client, 4) == b"held"
    with connect(proxy) as another:
        assert said(another, b"again") == b"again"


def test_dropped_replies_are_replies_to_what_was_done(
    proxy: Proxy, client: socket.socket, server: Echo
) -> None:
    proxy.drop_replies()
    client.sendall(b"done")
    server.wait_for(b"done")
    assert is_silent(client)
    proxy.resume()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_one_reply_is_cut(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut_reply(b"needle", passing=4)
    assert said(client, b"hay") == b"hay"
    client.sendall(b"the needle")
    proxy.wait_for_cut(5)
    assert heard(client, 4) == b"the "
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with connect(proxy) as another:
        assert said(another, b"another needle") == b"another needle"


def test_a_reply_that_comes_in_pieces_is_cut_too(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut_reply(b"needle")
    assert said(client, b"nee") == b"nee"
    client.sendall(b"dle")
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_cut_that_never_comes_is_told(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut_reply(b"needle")
    with pytest.raises(TimeoutError):
        proxy.wait_for_cut(0.05)


def test_bytes_can_be_late(proxy: Proxy, client: socket.socket) -> None:
    proxy.delay(0.1)
    begun = time.monotonic()
    assert said(client, b"late") == b"late"
    assert 0.2 <= time.monotonic() - begun < 1
    proxy.resume()
    begun = time.monotonic()
    assert said(client, b"late") == b"late"
    assert time.monotonic() - begun < 0.2


def test_a_server_that_is_away_is_a_reset(server: Echo) -> None:
    with Proxy(server.url) as proxy:
        server.close()
        with pytest.raises(ConnectionResetError), connect(proxy) as client:
            client.recv(1)


def test_it_leaves_nothing_behind(server: Echo) -> None:
    with Proxy(server.url) as proxy, connect(proxy) as client:
        assert said(client, b"hello") == b"hello"
        proxy.black_hole()
    assert not [each for each in threading.enumerate() if each.name == "celeriac-proxy"]
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
