"""Fetching for strangers: public addresses alone, also after redirects and when a name changes; size and time end."""

import contextlib
import http.server
import socket
import threading
import time

import pytest

from eagle_model.infer import fetch as fetching
from eagle_model.infer.fetch import RequestError, fetch, is_public

PUBLIC = "93.184.216.34"


class _Handler(http.server.BaseHTTPRequestHandler):
    pages: dict[str, tuple[int, dict[str, str], bytes]]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Host")))
        if self.path == "/drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"X-A: b\r\n")
                    time.sleep(0.1)
            return
        status, headers, body = self.pages[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch):
    """A server of this machine that stands for all public addresses, and a table of names."""
    handler = type("Handler", (_Handler,), {"pages": {}, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    names: dict[str, list[list[str]]] = {}
    connected: list[str] = []

    def resolve(host, port, **_):
        answers = names[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    def connect(address, port, seconds):
        connected.append(address)
        sock = socket.socket()
        sock.settimeout(seconds)
        sock.connect(server.server_address)
        return sock

    monkeypatch.setattr(fetching.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetching, "_open_socket", connect)
    handler.names, handler.connected = names, connected
    names["films.example"] = [[PUBLIC]]
    yield handler
    server.shutdown()
    server.server_close()


def get(url: str, *, hosts=("*",), max_bytes: int = 1000, seconds: float = 5) -> bytes:
    return b"".join(fetch(url, hosts=hosts, max_bytes=max_bytes, seconds=seconds))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1", "2001::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34"])
def test_addresses_that_are_public(address):
    assert is_public(address)


def test_a_file_is_fetched_from_the_address_that_was_checked(web):
    web.pages["/a.png?x=1"] = (200, {}, b"picture")
    assert get("http://films.example/a.png?x=1", hosts=("films.example",)) == b"picture"
    assert (web.connected, web.asked) == ([PUBLIC], [("/a.png?x=1", "films.example")])


def test_a_name_that_changes_its_address_is_asked_once(web):
    web.names["films.example"] = [[PUBLIC], ["127.0.0.1"]]
    web.pages["/a"] = (200, {}, b"a")
    assert get("http://films.example/a") == b"a"
    assert web.connected == [PUBLIC]


@pytest.mark.parametrize("answers", [["127.0.0.1"], [PUBLIC, "10.0.0.7"], ["::1"], []])
def test_a_name_with_a_private_address_is_refused(web, answers):
    web.names["films.example"] = [answers]
    with pytest.raises(RequestError, match=r"host films\.example has an address that is not public"):
        get("http://films.example/a")
    assert not web.connected


def test_redirects_are_checked_as_the_first_url_was(web):
    web.names |= {"inside.example": [["192.168.0.9"]], "other.example": [[PUBLIC]]}
    web.pages["/a"] = (302, {"Location": "/b"}, b"")
    web.pages["/b"] = (301, {"Location": "http://inside.example/secret"}, b"")
    with pytest.raises(RequestError, match=r"host inside\.example has an address that is not public"):
        get("http://films.example/a")
    web.pages["/b"] = (307, {"Location": "http://other.example/c"}, b"")
    web.pages["/c"] = (200, {}, b"c")
    assert get("http://films.example/a") == b"c"
    with pytest.raises(RequestError, match=r"host other\.example is not among those"):
        get("http://films.example/a", hosts=("films.example",))
    web.pages["/b"] = (302, {"Location": "file:///etc/passwd"}, b"")
    with pytest.raises(RequestError, match="leads to no http or https address"):
        get("http://films.example/a")
    web.pages["/b"] = (302, {"Location": "/a"}, b"")
    with pytest.raises(RequestError, match="is a redirect, the 6th in a row"):
        get("http://films.example/a")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://user:word@films.example/", "holds a user name or password"),
        ("http://films.example/a b", "spaces or other characters"),
        ("http://films.example/a\r\nHost: x", "spaces or other characters|is no URL"),
        ("http:///a", "no http or https address"),
        ("http://films.example:99999/", "is no URL"),
    ],
)
def test_urls_that_are_refused(web, url, said):
    with pytest.raises(RequestError, match=said):
        get(url)
    assert not web.connected


def test_what_comes_has_an_end(web):
    web.pages |= {"/long": (200, {}, b"x" * 1001), "/said": (200, {"Content-Length": "5000"}, b"")}
    for path in ("/long", "/said"):
        with pytest.raises(RequestError, match="larger than 1000 bytes") as raised:
            get(f"http://films.example{path}")
        assert raised.value.status == 413
    web.pages["/packed"] = (200, {"Content-Encoding": "gzip"}, b"x")
    with pytest.raises(RequestError, match="came packed"):
        get("http://films.example/packed")
    web.pages["/cut"] = (200, {"Content-Length": "100"}, b"x")
    with pytest.raises(RequestError, match="broke off"):
        get("http://films.example/cut")
    web.pages["/gone"] = (404, {}, b"")
    with pytest.raises(RequestError, match="answered 404 Not Found"):
        get("http://films.example/gone")


def test_a_server_that_drips_is_left(web):
    began = time.monotonic()
    with pytest.raises(RequestError, match=r"took longer than 0\.3 s"):
        get("http://films.example/drip", seconds=0.3)
    assert time.monotonic() - began < 3
