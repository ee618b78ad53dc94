"""Fetching a file by http or https for someone who is not trusted: never from a private address.

    for chunk in fetch("https://example.org/page.png", hosts=("example.org",), max_bytes=1 << 24, seconds=30):
        file.write(chunk)

Whoever names the URL chooses where this machine connects to, so: the host must be one of those that the operator named;
a name is resolved once, all its addresses must be public, and the connection goes to the address that was checked (a
name that changes its address afterwards changes nothing); each redirect is checked as the first URL was. Proxies that
the environment names are not used: they would resolve the name again. What comes is never unpacked, and size and time
have an end.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator
from urllib.parse import SplitResult, urljoin, urlsplit

ANY_HOST = "*"  # among `hosts`: all that are public
MAX_REDIRECTS = 5  # limit: browsers take 20; a picture's address needs one or two
CHUNK_BYTES = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address is in the last four bytes


class RequestError(Exception):
    """What a client asked for that cannot be done: an HTTP status, 4xx, and a sentence."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param = message, status, param


def fetch(url: str, *, hosts: Collection[str], max_bytes: int, seconds: float) -> Iterator[bytes]:
    """The bytes of a URL, in pieces.

    Args:    hosts: names that may be asked, or `*` for all public ones.  max_bytes: of the body.
             seconds: for all of it, redirects too; looking a name up takes as long as the system's resolver does.
    Raises:  RequestError: 400 for a URL that is refused or does not answer, 413 for a body that is too large.
    """
    deadline = time.monotonic() + seconds
    for _ in range(MAX_REDIRECTS + 1):
        parts = _checked(url, hosts)
        connection = _connect(parts, deadline)
        # The socket's own time limit counts from byte to byte: a server that sends one now and then would hold us.
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [connection.sock])
        timer.daemon = True
        timer.start()
        try:
            response = _ask(connection, parts)
            if response.status in (301, 302, 303, 307, 308) and (target := response.headers.get("Location")):
                url = urljoin(url, target)
                continue
            if response.status != 200:
                raise RequestError(f"{_short(url)} answered {response.status} {response.reason}; needs 200.")
            yield from _body(response, url, max_bytes, deadline)
            return
        except (OSError, http.client.HTTPException) as error:
            late = time.monotonic() >= deadline
            why = f"took longer than {seconds:g} s" if late else f"broke off: {error or type(error).__name__}"
            raise RequestError(f"{_short(url)} {why}.") from error
        finally:
            timer.cancel()
            connection.close()
    raise RequestError(f"{_short(url)} is a redirect, the {MAX_REDIRECTS + 1}th in a row; give the file's own URL.")


def _short(url: str) -> str:
    return url if len(url) <= 200 else url[:197] + "..."


def _checked(url: str, hosts: Collection[str]) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RequestError(f"{_short(url)} is no URL: {error}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise RequestError(f"{_short(url)} leads to no http or https address.")
    if parts.username is not None or parts.password is not None:
        raise RequestError("the URL of a medium holds a user name or password; give one without.")
    if any(ord(c) <= 32 or ord(c) >= 127 for c in url):
        raise RequestError(f"{_short(url)!r} holds spaces or other characters that a URL escapes with %.")
    if ANY_HOST not in hosts and parts.hostname not in hosts:
        raise RequestError(f"host {parts.hostname} is not among those that this server fetches from.")
    return parts


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet's, however it is written."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(ip.packed[-4:])))
        if ip.sixtofour is not None or ip.teredo is not None:
            return False  # a tunnel's: leads to an IPv4 address again
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _connect(parts: SplitResult, deadline: float) -> http.client.HTTPConnection:
    """A connection to an address that was checked."""
    host = parts.hostname
    assert host is not None  # _checked
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RequestError(f"host {host} is not known: {error}.") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):  # one private address is enough to refuse the name
        raise RequestError(f"host {host} has an address that is not public; nothing is fetched from there.")
    connection = http.client.HTTPConnection(host, port)
    remaining = max(0.1, deadline - time.monotonic())
    try:
        connection.sock = _open_socket(addresses[0], port, remaining)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
    except (OSError, ssl.SSLError) as error:
        connection.close()
        raise RequestError(f"host {host} does not answer: {error}.") from error
    return connection


def _open_socket(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=seconds)


def _ask(connection: http.client.HTTPConnection, parts: SplitResult) -> http.client.HTTPResponse:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.auto_open = 0  # or it would look the name up again
    connection.request("GET", target, headers={"Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"})
    return connection.getresponse()


def _body(response: http.client.HTTPResponse, url: str, max_bytes: int, deadline: float) -> Iterator[bytes]:
    too_large = RequestError(f"{_short(url)} is larger than {max_bytes} bytes.", status=413)
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestError(f"{_short(url)} came packed, though it was asked for as it is.")
    if response.length is not None and response.length > max_bytes:
        raise too_large
    announced, num_bytes = response.length, 0
    while chunk := response.read1(CHUNK_BYTES):
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise too_large
        yield chunk
    if time.monotonic() >= deadline or (announced is not None and num_bytes != announced):
        raise OSError(f"{num_bytes} of {announced} bytes came")


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it ended by itself
        sock.shutdown(socket.SHUT_RDWR)
