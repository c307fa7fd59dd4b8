"""Bytes of pictures that come by URL: http(s) with limits, and `data:` URLs. No third-party package."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import ipaddress
import socket
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from ..errors import InputError

MAX_BYTES = 32 * 2**20
"""Encoded size of a picture that comes from memory or the network."""
TIMEOUT = 20.0
"""Seconds a download may take in all."""

_REMEDY = "Check the address in a browser, or download the picture and give its path."
_HEADERS = {"User-Agent": "Mozilla/5.0 (cogvlm-sat-zoo)", "Accept": "image/*,*/*"}


def download(url: str, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT, public_only: bool = False) -> bytes:
    """Bytes behind an http(s) URL; redirects stay within http(s).

    Args:
        url: the address.
        max_bytes: the download stops as soon as it is longer.
        timeout: seconds in all.
        public_only: refuse hosts of this machine and of private networks, redirects included.

    Raises:
        InputError: another scheme, a refused host, no answer in time, an error status, or more than `max_bytes`.
    """
    deadline = time.monotonic() + timeout
    try:
        scheme = urlsplit(url).scheme.lower()
        if scheme not in ("http", "https"):
            raise InputError(f"Picture '{url}' has the scheme '{scheme}'. Allowed: http, https, or a plain file path.")
        if public_only:
            _check_public(url)
        request = urllib.request.Request(url, headers=_HEADERS)
        with _web_opener(public_only).open(request, timeout=timeout) as reply:
            return _read_capped(reply, url, max_bytes, deadline)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"Picture '{url}': the server answered {error.code} {error.reason}. {_REMEDY}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise InputError(f"Picture '{url}': no complete answer within {timeout:g} s. {_REMEDY}") from error
        raise InputError(f"Picture '{url}' could not be downloaded ({reason}). {_REMEDY}") from error


def data_url(text: str) -> bytes:
    """Bytes of `data:[type][;base64],payload`.

    Raises:
        InputError: no comma, or a payload that is not base64.
    """
    head, comma, payload = text.partition(",")
    if not comma:
        raise InputError(f"data: URL '{text[:40]}' has no comma. Form: data:image/png;base64,<payload>.")
    raw = unquote_to_bytes(payload)
    if not head.lower().endswith(";base64"):
        return raw
    try:
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except binascii.Error as error:
        raise InputError(f"data: URL '{head[:40]}': the payload is not base64 ({error}). Encode it again.") from error


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects to public hosts only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_public(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _web_opener(public_only: bool) -> urllib.request.OpenerDirector:
    """An opener that knows http and https only, so that a redirect cannot lead to a file or ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        _CheckedRedirects if public_only else urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _check_public(url: str) -> None:
    """Refuses a URL whose host has an address that is not public.

    The name is resolved again for the connection, so an attacker's name server may still answer differently then; a
    server open to strangers belongs behind a proxy that forbids private networks as well.
    """
    host = urlsplit(url).hostname or ""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError) as error:
        raise InputError(f"Picture '{url}': the host '{host}' is not known ({error}). {_REMEDY}") from error
    for address in addresses:
        ip = ipaddress.ip_address(address.split("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not ip.is_global:
            raise InputError(f"Picture '{url}' lies on this machine or in a private network; this server refuses that.")


def _read_capped(reply: io.BufferedIOBase, url: str, max_bytes: int, deadline: float) -> bytes:
    """The body, given up as soon as it is too long or too late."""
    chunks, total = [], 0
    while chunk := reply.read1(65536):
        total += len(chunk)
        if total > max_bytes:
            raise InputError(f"Picture '{url}' is larger than {max_bytes} bytes. Download it and give a smaller copy.")
        if time.monotonic() > deadline:
            raise TimeoutError
        chunks.append(chunk)
    return b"".join(chunks)
