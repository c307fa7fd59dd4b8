"""Bytes of pictures that come by URL: http(s) with limits, and `data:` URLs. No third-party package."""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection
from typing import Any, Self
from urllib.parse import unquote_to_bytes, urlsplit

from sat_models.errors import InputError

MAX_BYTES = 32 * 2**20
"""Encoded size of a picture that comes from memory or the network."""
TIMEOUT = 20.0
"""Seconds a download may take in all."""
ANY_HOST = "*"
"""In a list of allowed hosts: every host with a public address."""

_PLAIN_ALPHABET = bytes.maketrans(b"-_", b"+/")
_REMEDY = "Check the address in a browser, or download the picture and give its path."
_HEADERS = {"User-Agent": "Mozilla/5.0 (cogvlm-sat-zoo)", "Accept": "image/*,*/*"}


def download(
    url: str, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT, allowed_hosts: Collection[str] | None = None
) -> bytes:
    """Bytes behind an http(s) URL; redirects stay within http(s).

    Args:
        url: the address.
        max_bytes: the download stops as soon as it is longer, or at once where the server says that it will be.
        timeout: seconds in all, however the server spreads its answer over them.
        allowed_hosts: for a server that takes URLs from strangers: nothing but these, at every redirect. Entries are
            `host`, `host:port` or `ANY_HOST`. Names must lead to public addresses only, and the address that was
            checked is the one that is connected to; an entry that is an IP address allows that address even if it is
            private. No proxy is used. None: no restriction (the user's own command line).

    Raises:
        InputError: another scheme, a refused host, no answer in time, an error status, or more than `max_bytes`.
    """
    try:
        scheme = urlsplit(url).scheme.lower()
        if scheme not in ("http", "https"):
            raise InputError(f"Picture '{url}' has the scheme '{scheme}'. Allowed: http, https, or a plain file path.")
        with _Attempt(url, timeout, allowed_hosts) as attempt:
            return attempt.read(max_bytes)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"Picture '{url}': the server answered {error.code} {error.reason}. {_REMEDY}") from error
    except TimeoutError as error:
        raise InputError(f"Picture '{url}': no complete answer within {timeout:g} s. {_REMEDY}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"Picture '{url}' could not be downloaded ({reason}). {_REMEDY}") from error


def data_url(text: str) -> bytes:
    """Bytes of `data:[type][;base64],payload`.

    Base64 is read as other servers read it: with or without padding and line breaks, in the plain or the URL alphabet.

    Raises:
        InputError: no comma, or a payload that is not base64.
    """
    head, comma, payload = text.partition(",")
    if not comma:
        raise InputError(f"data: URL '{text[:40]}' has no comma. Form: data:image/png;base64,<payload>.")
    try:
        raw = unquote_to_bytes(payload)
    except UnicodeEncodeError as error:
        raise InputError(f"data: URL '{head[:40]}': the payload is no text that can be encoded ({error}).") from error
    if head.rpartition(";")[2].strip().lower() != "base64":
        return raw
    digits = b"".join(raw.split()).translate(_PLAIN_ALPHABET).rstrip(b"=")
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error as error:
        raise InputError(f"data: URL '{head[:40]}': the payload is not base64 ({error}). Encode it again.") from error


def is_public(address: str) -> bool:
    """True if an IP address is one of the public internet: not this machine, a private network, link-local, multicast,
    reserved, nor an IPv6 form that carries such an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        carried = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            carried.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(inner is not None and not is_public(str(inner)) for inner in carried):
            return False
        ip = ip.ipv4_mapped or ip
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class _Attempt:
    """One download, redirects included, that is over at its deadline whatever the server does.

    A socket's own timeout counts from byte to byte, so a server that drips one at a time would hold it for ever. Here a
    timer shuts the connections down.
    """

    def __init__(self, url: str, timeout: float, allowed_hosts: Collection[str] | None) -> None:
        self._url, self._timeout = url, timeout
        self._allowed = None if allowed_hosts is None else {entry.lower() for entry in allowed_hosts}
        self._deadline = time.monotonic() + timeout
        self._timer = threading.Timer(timeout, self._cut)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._late = False

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        for connection in self._sockets:
            connection.close()
        timed_out = isinstance(getattr(error, "reason", error), TimeoutError)
        if error is not None and not isinstance(error, InputError) and (self._late or timed_out):
            raise TimeoutError from error

    def read(self, max_bytes: int) -> bytes:
        """The body, given up as soon as it is too long."""
        request = urllib.request.Request(self._url, headers=_HEADERS)
        with self._opener().open(request, timeout=self._timeout) as reply:
            announced = reply.headers.get("Content-Length", "")
            if announced.isdigit() and int(announced) > max_bytes:
                raise self._too_large(max_bytes)
            body = self._read_capped(reply, max_bytes)
        if self._late:
            raise TimeoutError
        return body

    def connect(self, address: tuple[str, int], *_: Any) -> socket.socket:
        """A connection to a host that was checked, to the very address that was checked."""
        host, port = address
        found = self._addresses(host, port)
        self._check(host, port, found)
        failure: OSError | None = None
        for where in found:
            try:
                left = max(0.001, self._deadline - time.monotonic())
                connection = socket.create_connection((where, port), timeout=left)
            except OSError as error:
                failure = error
                continue
            with self._lock:
                self._sockets.append(connection.dup())  # stays ours when TLS takes the other one over
                if self._late:
                    self._shut(self._sockets[-1])
            return connection
        raise failure or OSError(f"'{host}' has no address")

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise InputError(f"Picture '{self._url}': the host '{host}' is not known ({error}). {_REMEDY}") from error
        return list(dict.fromkeys(str(info[4][0]) for info in infos))

    def _check(self, host: str, port: int, addresses: list[str]) -> None:
        """Refuses a host that is not allowed, or has any address that is not."""
        if self._allowed is None:
            return
        bare = host.lower().strip("[]").rstrip(".")
        named = not self._allowed.isdisjoint((bare, f"{bare}:{port}", f"[{bare}]:{port}"))
        if not named and ANY_HOST not in self._allowed:
            raise InputError(f"Picture '{self._url}': the host '{host}' (port {port}) is not allowed on this server.")
        if named and _is_address(bare):
            return
        if not all(map(is_public, addresses)):
            raise InputError(
                f"Picture '{self._url}': '{host}' is on this machine or in a private network; this server refuses that."
            )

    def _opener(self) -> urllib.request.OpenerDirector:
        """An opener that knows http and https only, so that a redirect cannot lead to a file or ftp."""
        opener = urllib.request.OpenerDirector()
        handlers: list[urllib.request.BaseHandler] = [
            _Web(self),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ]
        if self._allowed is None:
            handlers.append(urllib.request.ProxyHandler())
        for handler in handlers:
            opener.add_handler(handler)
        return opener

    def _read_capped(self, reply: io.BufferedIOBase, max_bytes: int) -> bytes:
        chunks, total = [], 0
        while chunk := reply.read1(65536):
            total += len(chunk)
            if total > max_bytes:
                raise self._too_large(max_bytes)
            if time.monotonic() > self._deadline:
                raise TimeoutError
            chunks.append(chunk)
        return b"".join(chunks)

    def _too_large(self, max_bytes: int) -> InputError:
        return InputError(f"Picture '{self._url}' is larger than {max_bytes} bytes. Give a smaller copy.")

    def _cut(self) -> None:
        with self._lock:
            self._late = True
            for connection in self._sockets:
                self._shut(connection)

    @staticmethod
    def _shut(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _connection(base: type[http.client.HTTPConnection], attempt: _Attempt) -> Any:
    """Makes connections of `base` whose socket comes from `attempt`."""

    def make(host: str, **kwargs: Any) -> http.client.HTTPConnection:
        connection = base(host, **kwargs)
        connection._create_connection = attempt.connect  # where http.client lets a caller open the socket
        return connection

    return make


class _Web(urllib.request.AbstractHTTPHandler):
    """http and https over the attempt's own connections."""

    def __init__(self, attempt: _Attempt) -> None:
        super().__init__()
        self._attempt = attempt

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_connection(http.client.HTTPConnection, self._attempt), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_connection(http.client.HTTPSConnection, self._attempt), req, context=_tls())


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Checks certificates and names; reading the system's authorities takes a while, so once."""
    return ssl.create_default_context()
