"""One exchange with the API over HTTP, and a deadline over all of it. The only module that knows the HTTP libraries.

- `timeout` is a deadline over a whole exchange, connecting and body included. (`requests`' own timeouts are
  per read: a server that sends a byte a second would hold a worker without end.)
- A body over the limit, counted after decompression, is refused while it is read.
- Redirects are not followed (`requests` would follow them with `x-checkly-account` still set), `.netrc` is never
  read (it would replace our Authorization header), cookies are not kept.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from etl.checkly.proxies import ca_bundle, proxies_of
from etl.checkly.retry import Failed

SLACK = 0.1  # seconds that an exchange may take longer than its deadline
SMALL = 64 * 1024  # bytes of a refusal that are read so that its connection can be used again
_CHUNK = 64 * 1024


class TooLarge(Exception):
    """The body is over the limit."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API answered; the body of a refusal is not kept."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Connections to one host, with the same headers for every call. Thread-safe; close it when done."""

    def __init__(self, api_url: str, headers: Mapping[str, str], *, timeout: float, connections: int) -> None:
        self._api_url, self._headers, self._timeout = api_url, headers, timeout
        # No `requests.Session`: it keeps cookies, and reads a redirect's body even if told not to follow it.
        self._adapter = _DeadlineAdapter(api_url, ca_bundle(), proxies_of(api_url), connections)

    def close(self) -> None:
        """Close the connections."""
        self._adapter.close()

    def get(self, path: str, *, limit: int) -> Answer:
        """Return the answer to a GET. Raises Failed, and TooLarge for a 200 with a body of more than `limit` bytes.

        The one place where the HTTP libraries' errors become ours.
        """
        try:
            pool, prefix = self._adapter.way
            response = pool.urlopen(
                "GET",
                f"{prefix}{path}",
                headers=self._headers,
                retries=False,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
                timeout=_Deadline(self._timeout),
            )
            try:
                if response.status == 200:
                    return Answer(200, response.headers, _body(response, limit))
                _skip_small_body(response)
                return Answer(response.status, response.headers, b"")
            except BaseException:
                response.close()  # what was not read would be taken for the next answer
                raise
            finally:
                response.release_conn()
        except urllib3.exceptions.SSLError as error:
            # A connection that broke off may work the next time, a certificate that is not good will not.
            passing = isinstance(_root(error), (ssl.SSLEOFError, ssl.SSLZeroReturnError))
            raise Failed(f"TLS failed: {_cause(error)}", is_passing=passing, step="TLS") from error
        except urllib3.exceptions.ProxyError as error:
            cause = _cause(error)
            passing = not cause.endswith(" 407")  # a password is wrong however often it is tried
            reason = f"the proxy to {self._api_url} cannot be used: {cause}"
            raise Failed(reason, is_passing=passing, step="proxy") from error
        except (urllib3.exceptions.HTTPError, requests.RequestException, OSError, ValueError) as error:
            # The libraries let a ValueError pass for some of what is no HTTP, such as a chunk of -2 bytes.
            raise Failed(self._explain(error), step="connection") from error

    def _explain(self, error: Exception) -> str:
        took_too_long = isinstance(error, urllib3.exceptions.TimeoutError) and not isinstance(
            error, urllib3.exceptions.NewConnectionError
        )
        if took_too_long or isinstance(_root(error), TimeoutError):
            return f"{self._api_url} did not answer within {self._timeout:g} s"
        return f"{self._api_url} cannot be reached: {_cause(error)}"


def _body(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    if (response.length_remaining or 0) > limit:
        raise TooLarge
    body = bytearray()
    try:
        for chunk in response.stream(_CHUNK, decode_content=True):
            body += chunk
            if len(body) > limit:
                raise TooLarge
    except (urllib3.exceptions.ProtocolError, urllib3.exceptions.DecodeError) as error:
        raise Failed(f"the body was cut short: {_cause(error)}", kind="unreadable") from error
    return bytes(body)


def _skip_small_body(response: urllib3.BaseHTTPResponse) -> None:
    """Read a refusal to its end, so that the next call needs no new connection; a large one costs its connection."""
    read = 0
    is_whole = False
    with suppress(urllib3.exceptions.HTTPError, OSError, ValueError):
        if (response.length_remaining or 0) <= SMALL:
            for chunk in response.stream(_CHUNK, decode_content=False):
                read += len(chunk)
                if read > SMALL:
                    break
            else:
                is_whole = True
    if not is_whole:
        response.close()


# --- what the libraries say -------------------------------------------------------------------------------------


def _root(error: BaseException) -> BaseException:
    """The innermost error: libraries wrap in `reason`, `args` and `__cause__`."""
    for _ in range(10):
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((item for item in error.args if isinstance(item, BaseException)), error.__cause__)
        if inner is None:
            return error
        error = inner
    return error


def _cause(error: Exception) -> str:
    # Only the innermost error's own words: the outer ones repeat the URL, the proxy's with its password.
    root = _root(error)
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    if isinstance(root, (urllib3.exceptions.IncompleteRead, http.client.IncompleteRead)):
        return "the connection ended early"
    if isinstance(root, (ValueError, http.client.HTTPException)) and not isinstance(root, ConnectionError):
        return "this is not HTTP"  # their own words quote what came, or what was to be sent
    text = str(root.args[0]) if root.args and isinstance(root.args[0], str) else type(root).__name__
    if answered := re.match(r"Tunnel connection failed: \d+", text):
        return answered[0]
    return text[:200]


# --- a deadline over a whole exchange ---------------------------------------------------------------------------


def _left(deadline: float) -> float:
    """Seconds, for a socket: 0 would mean not to wait at all, and be another error."""
    return max(0.001, deadline - time.monotonic())


class _Deadline(urllib3.Timeout):
    """What is left of one exchange, whenever urllib3 asks. (Its own clock leaves out a proxy's CONNECT.)"""

    def __init__(self, seconds: float) -> None:
        super().__init__(total=seconds)
        self._deadline = time.monotonic() + seconds

    def clone(self) -> _Deadline:
        return self

    def start_connect(self) -> float:
        return time.monotonic()

    @property
    def connect_timeout(self) -> float:
        return _left(self._deadline)

    @property
    def read_timeout(self) -> float:
        return _left(self._deadline)


class _DeadlineReader(io.RawIOBase):
    """Reads from the socket until the deadline, however slowly the bytes come."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, seconds: float) -> None:
        self._sock, self._raw, self._patience = sock, raw, seconds
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("deadline")
        if self._patience - left > SLACK:  # each time would be a system call a read
            self._sock.settimeout(left)
            self._patience = left
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DeadlineResponse(http.client.HTTPResponse):
    """What is left of the total when the response begins is the deadline for all of it, headers and body."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        left = sock.gettimeout()
        if left is not None:
            raw = self.fp.detach()
            self.fp = io.BufferedReader(_DeadlineReader(sock, raw, left), _CHUNK)

    def begin(self) -> None:
        super().begin()
        # urllib3 refuses this too, but later, and then forgets to close the socket.
        lengths = ",".join(self.headers.get_all("Content-Length", [])).split(",")
        if len({length.strip() for length in lengths}) > 1:
            raise http.client.HTTPException("two lengths")

    def _safe_read(self, amt: int) -> bytes:
        # urllib3 takes a chunk of -1 bytes for good, which here means: all that ever comes.
        if amt < 0:
            raise ValueError("a negative length")
        return super()._safe_read(amt)  # type: ignore[misc, no-any-return]


class _Connection(HTTPConnection):
    """Connects within the time that is left, over all addresses, a proxy and TLS."""

    response_class = _DeadlineResponse
    _deadline = 0.0

    def _new_conn(self) -> socket.socket:
        # urllib3 gives the whole time to each address: one that is silent would leave none to the others.
        total = self.timeout
        self._deadline = time.monotonic() + (total if isinstance(total, (int, float)) else 0)
        try:
            addresses = socket.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise urllib3.exceptions.NameResolutionError(self.host, self, error) from error
        while True:
            family, kind, protocol, _, address = addresses.pop(0)
            sock = socket.socket(family, kind, protocol)
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(_left(self._deadline) / (len(addresses) + 1))
                sock.connect(address)
                sock.settimeout(_left(self._deadline))
                return sock
            except TimeoutError as error:
                sock.close()
                if not addresses:
                    raise urllib3.exceptions.ConnectTimeoutError(self, "connecting timed out") from error
            except OSError as error:
                sock.close()
                if not addresses:
                    raise urllib3.exceptions.NewConnectionError(self, _cause(error)) from error

    def _tunnel(self) -> None:
        super()._tunnel()
        self.sock.settimeout(_left(self._deadline))


class _SecureConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _DeadlineAdapter(HTTPAdapter):
    """What `requests` knows of proxies and certificates, for one host and without its work for each call."""

    def __init__(self, url: str, verify: str | bool, proxies: dict[str, str], connections: int) -> None:
        super().__init__(pool_maxsize=connections)
        self._url, self._verify, self._proxies = url, verify, proxies

    @cached_property
    def way(self) -> tuple[HTTPConnectionPool, str]:
        """Connections to the host, and what paths begin with: of a plain proxy, the whole URL.

        Found out once: it costs as much as a call. Raises what `requests` raises.
        """
        request = requests.Request("GET", self._url).prepare()
        pool: Any = self.get_connection_with_tls_context(request, self._verify, self._proxies)
        self.cert_verify(pool, self._url, self._verify, None)  # type: ignore[no-untyped-call]
        return pool, self.request_url(request, self._proxies).rstrip("/")

    def close(self) -> None:
        if "way" in self.__dict__:
            self.way[0].close()  # the manager's own would wait until nobody knows the pool
        super().close()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
        return manager
