"""The Checkly API client: what to ask, how to wait, when to try again, and what each answer means.

Hides HTTP: callers get checked JSON documents or an error of our tree. Trusts the network with nothing:

- `timeout` is a deadline over a whole exchange, connecting and body included. (`requests`' own timeouts are
  per read: a server that sends a byte a second would hold a worker for ever.)
- A body larger than `max_body`, counted after decompression, is refused while it is read; one of a test session
  or a result that is larger than 4 MB as well, unless its caller works on nothing else beside it.
- Proxies and caches answer with anything: a 200 that is not the document that was asked for is a failed call, like
  an HTML page or a 503. It is asked for again and says nothing about the session.
- Redirects are errors (`requests` would follow them with `x-checkly-account` still set), `.netrc` is never
  read (it would replace our Authorization header), cookies are not kept; proxies and CA bundles come from
  the environment, looked up once.
- Short retries (seconds, with jitter) happen here; long ones (minutes) are the queue's business.
"""

from __future__ import annotations

import http.client
import io
import logging
import math
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import urlencode

import msgspec
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from etl import documents
from etl.documents import Document
from etl.errors import (
    AccessDenied,
    ApiDown,
    ApiUnavailable,
    ConfigError,
    EtlError,
    Forbidden,
    Interrupted,
    LargeDocument,
    NotInPlan,
    PayloadError,
    RateLimited,
    Rejected,
    TestSessionNotFound,
    UnusableSession,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
E = TypeVar("E", bound=Exception)

PAGE_SIZE = 100  # the API's maximum for every list
LARGE_BODY = 4_000_000  # bytes: of larger ones, one is in memory at a time
TRIES = 4
FIRST_BACKOFF = 0.5  # seconds; doubles
SAME_PAGES = 20  # in a row, each with a cursor of its own: the list is going round
LONGEST_RETRY_AFTER = 30.0  # of a 5xx; a longer wish is left to the queue
LONGEST_PAUSE = 300.0  # of a 429; a longer one ends the pass

_RETRIED_STATUSES = frozenset({408, 500, 502, 503, 504})
_CHUNK = 64 * 1024
SLACK = 0.1  # seconds that an exchange may take longer than its deadline


class Pace(Protocol):
    """The rate budget as the client uses it: implemented over the warehouse by the pipeline."""

    def acquire(self) -> None:
        """Return when one call may be made. Raises RateLimited or Interrupted instead of waiting too long."""

    def pause(self, seconds: float | None) -> None:
        """The API answered 429, with this Retry-After."""

    def answered(self) -> None:
        """The API answered something else."""


# What may become of one call, for the metrics.
CALL_OUTCOMES = (
    "ok",
    "not_found",
    "refused",
    "rejected",
    "throttled",
    "server_error",
    "unreachable",
    "unreadable",
)


@dataclass(slots=True)
class Calls:
    """What the client did, for `etl_runs`. The client counts under its lock; to read a number needs none."""

    requests: int = 0
    retries: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CALL_OUTCOMES, 0))


@dataclass(frozen=True, slots=True)
class Page:
    """One page of `GET /v1/test-sessions`: list entries as received."""

    entries: list[Document]
    number: int
    is_last: bool


class _Cursor(msgspec.Struct):
    next_id: str | None = msgspec.field(default=None, name="nextId")


def _entries_and_cursor(document: Document) -> tuple[list[Document], str | None]:
    return documents.items(document, "entries"), documents.decode(document, _Cursor).next_id or None


def _document_of(id_: str, field: str, alias: str | None = None) -> Callable[[Document], Document]:
    """The document itself, if its `field` says that it is of this id; where that is missing, its `alias`."""

    def checked(document: Document) -> Document:
        fields = documents.decode(document, dict[str, msgspec.Raw])
        names = [name for name in (field, alias) if name is not None and name in fields]
        if not names:
            raise PayloadError(f"$.{field}", "is missing")
        for name in names:
            try:
                documents.check_id(documents.decode_part(fields[name], str), id_, f"$.{name}")
            except PayloadError as error:
                raise PayloadError(f"$.{name}", error.reason) from None
        return document

    return checked


class Client:
    """One account's view of the API. Thread-safe; close it when done.

    Every method raises AccessDenied (401, or the whole account refused), ApiUnavailable (after short retries),
    RateLimited, Interrupted; the others as each says.
    """

    def __init__(
        self,
        *,
        api_url: str,
        account_id: str,
        api_key: str,
        key_name: str,
        user_agent: str,
        timeout: float,
        max_body: int,
        pace: Pace,
        stop: threading.Event,
        connections: int,
    ) -> None:
        self.api_url = api_url
        self.account_id = account_id
        self._key_name = key_name  # of the variable, for messages
        self.calls = Calls()
        self._date: tuple[str | None, datetime] | None = None  # the last answer's, and when it came by our clock
        self._timeout = timeout
        self._max_body = max_body
        self._pace = pace
        self._stop = stop
        self._lock = threading.Lock()  # the counts of calls
        self._probing = threading.Lock()  # the next: a call is made under it
        self._account_is_allowed = False
        self._headers = {
            "Authorization": f"Bearer {api_key}",
            "x-checkly-account": account_id,
            "Accept": "application/json",
            "Accept-Encoding": "gzip, deflate",
            "User-Agent": user_agent,
        }
        # No `requests.Session`: it keeps cookies, and reads a redirect's body even if told not to follow it.
        self._adapter = _DeadlineAdapter(api_url, _ca_bundle(), _proxies(api_url), connections)

    def close(self) -> None:
        """Close the connections."""
        self._adapter.close()

    # --- test sessions ---

    def fetch_test_session(self, test_session_id: str, *, alone: bool = False) -> Document:
        """`GET /v1/test-sessions/{testSessionId}`.

        Raises TestSessionNotFound, Forbidden, Rejected, PayloadError; LargeDocument unless `alone` for a body over
        LARGE_BODY.
        """
        what = f"test session {test_session_id}"
        is_it = _document_of(test_session_id, "testSessionId")
        try:
            return self._get(f"/v1/test-sessions/{test_session_id}", {}, what, is_it, may_be_large=alone)
        except Forbidden:
            self._tell_apart(what)
            raise
        except NotInPlan as error:
            try:
                self._probe(what)
            except NotInPlan:
                raise AccessDenied(
                    f"{what}: the account's plan allows neither it nor the list (402)", status=402
                ) from error
            raise Rejected(str(error)) from error

    def fetch_test_session_result(self, test_session_id: str, result_id: str, *, alone: bool = False) -> Document:
        """`GET /v1/test-sessions/{testSessionId}/results/{testSessionResultId}`. Raises as `fetch_test_session`,
        and `NotInPlan` for a 402."""
        what = f"result {result_id} of test session {test_session_id}"
        is_it = _document_of(result_id, "testSessionResultId", "id")
        path = f"/v1/test-sessions/{test_session_id}/results/{result_id}"
        try:
            return self._get(path, {}, what, is_it, may_be_large=alone)
        except Forbidden:
            self._tell_apart(what)
            raise

    def list_test_sessions(self, *, since: datetime, until: datetime | None = None) -> Iterator[Page]:
        """`GET /v1/test-sessions`, page by page: sessions created from `since` (inclusive) to `until` (exclusive).

        Raises NotInPlan for a 402. A cursor that repeats, or a page that does, ends the walk with ApiUnavailable,
        because the rest of the list cannot be reached.
        """
        params: dict[str, str] = {"limit": str(PAGE_SIZE), "from": str(math.floor(since.timestamp()))}
        if until is not None:
            # Both are whole seconds at the API: rounded outwards, so that nothing falls between.
            params["to"] = str(math.ceil(until.timestamp()))
        seen: set[str] = set()
        number = repeated = 0
        before: list[Document] | None = None
        while True:
            number += 1
            what = f"list of test sessions, page {number}"
            entries, cursor = self._list(params, what)
            repeated = repeated + 1 if entries == before else 0
            if repeated == SAME_PAGES:
                raise ApiUnavailable(
                    f"{what}: it is the same page again and again, so the list never ends; the API at {self.api_url} "
                    "misbehaves",
                    kind="cursor",
                )
            before = entries
            yield Page(entries, number, is_last=cursor is None)
            if cursor is None:
                return
            if cursor in seen:
                raise ApiUnavailable(
                    f"{what}: the cursor repeats, so the list never ends; the API at {self.api_url} misbehaves",
                    kind="cursor",
                )
            seen.add(cursor)
            params["nextId"] = cursor

    def check_access(self) -> None:
        """One short call: does the API answer, and is the account let in? Raises NotInPlan for a 402."""
        self._list({"limit": "1"}, "list of test sessions", tries=1)

    def clock_skew(self) -> timedelta | None:
        """How far this machine's clock is ahead of the API's, to a second or two; None if no answer told the time."""
        if self._date is None or (theirs := _http_date(self._date[0] or "")) is None:
            return None
        return self._date[1] - theirs

    def is_answering(self) -> bool:
        """Does the API answer at all? For telling an outage from bad documents. Raises what ends the account."""
        try:
            self.check_access()
        except (ApiUnavailable, ApiDown, PayloadError):
            return False  # also a 200 that is no list: some proxy's page
        except UnusableSession:
            return True  # a refusal of this one call is an answer
        return True

    def _list(self, params: dict[str, str], what: str, *, tries: int = TRIES) -> tuple[list[Document], str | None]:
        try:
            return self._get("/v1/test-sessions", params, what, _entries_and_cursor, tries=tries)
        except Forbidden as error:
            raise AccessDenied(
                f"the API refuses account {self.account_id} (403); check the account id, and that the key in "
                f"{self._key_name} belongs to that account",
                status=403,
            ) from error
        except TestSessionNotFound as error:
            raise ApiDown(
                f"{self.api_url} answered 404 to the list of test sessions: this is not the Checkly API; "
                "check CHECKLY_API_URL"
            ) from error

    def _probe(self, what: str) -> None:
        """Ask the list on behalf of one document that was refused."""
        self._list({"limit": "1"}, what)

    def _tell_apart(self, what: str) -> None:
        """After a 403 on one document: is it the document or the account? Asked once."""
        with self._probing:
            if not self._account_is_allowed:
                with suppress(NotInPlan):  # the plan says nothing about who may come in
                    self._probe(what)
                self._account_is_allowed = True

    # --- error groups ---

    def fetch_error_group(self, error_group_id: str) -> Document:
        """`GET /v1/test-session-error-groups/{id}`. Raises TestSessionNotFound, Forbidden, Rejected, PayloadError."""
        is_it = _document_of(error_group_id, "id")
        return self._get(
            f"/v1/test-session-error-groups/{error_group_id}", {}, f"error group {error_group_id}", is_it
        )

    def list_error_groups(self) -> Iterator[list[Document]]:
        """`GET /v1/test-session-error-groups`, page by page; a page that is not full is the last."""
        number = 0
        while True:
            number += 1
            params = {"limit": str(PAGE_SIZE), "page": str(number)}
            what = f"list of error groups, page {number}"
            groups = self._get("/v1/test-session-error-groups", params, what, documents.items)
            yield groups
            if len(groups) < PAGE_SIZE:
                return

    # --- one call ---

    def _get(
        self,
        path: str,
        params: dict[str, str],
        what: str,
        read: Callable[[Document], T],
        *,
        tries: int = TRIES,
        may_be_large: bool = True,
    ) -> T:
        """What `read` makes of a document, with short retries. None is begun later than `timeout` after the first.

        `read` raises PayloadError for a document that is not the one that was asked for: that is a failed call.
        """
        if params:
            path += f"?{urlencode(params)}"
        began: float | None = None
        throttled_since: float | None = None
        failures = 0
        has_failed_otherwise = False  # not each failure was the document's own
        while True:
            self._pace.acquire()
            began = began or time.monotonic()  # waiting for one's turn says nothing about the API
            with self._lock:
                self.calls.requests += 1
                self.calls.retries += failures > 0 or throttled_since is not None
            failed: _Failed | PayloadError
            try:
                answer = self._counted(lambda: _understood(read, self._exchange(path, what, may_be_large)))
            except _Throttled as error:
                began = None
                throttled_since = throttled_since or time.monotonic()
                logger.debug("%s: answered 429, Retry-After %s", what, error.retry_after or "none")
                self._pace.pause(error.retry_after)
                if time.monotonic() - throttled_since > LONGEST_PAUSE:
                    raise RateLimited(
                        f"{what}: the API has answered 429 for {LONGEST_PAUSE:.0f} s; try again later",
                        seconds=LONGEST_PAUSE,
                    ) from None
                continue
            except PayloadError as error:
                self._pace.answered()
                failed = _bare(error)
            except LargeDocument as error:
                self._pace.answered()
                raise _bare(error) from None
            except (UnusableSession, AccessDenied):
                self._pace.answered()
                raise
            except _Failed as error:
                failed, has_failed_otherwise = _bare(error), True
            else:
                self._pace.answered()
                return answer
            failures += 1
            asked_wait = failed.retry_after if isinstance(failed, _Failed) else None
            wait = asked_wait or FIRST_BACKOFF * 2 ** (failures - 1) * random.uniform(0.5, 1.5)  # noqa: S311
            if (
                (isinstance(failed, _Failed) and not failed.is_passing)
                or failures >= tries
                or wait > LONGEST_RETRY_AFTER
                or time.monotonic() + wait - began > self._timeout
            ):
                if isinstance(failed, PayloadError) and not has_failed_otherwise and failures >= min(2, tries):
                    raise failed
                tried = f" ({failures} tries)" if failures > 1 else ""
                if isinstance(failed, PayloadError):
                    raise ApiUnavailable(f"{what}: {failed}{tried}", kind="unreadable") from None
                raise ApiUnavailable(f"{what}: {failed.reason}{tried}", kind=failed.kind, step=failed.step) from None
            reason = failed.reason if isinstance(failed, _Failed) else failed
            logger.debug("%s: %s; try %d begins in %.1f s", what, reason, failures + 1, wait)
            if self._stop.wait(wait):
                raise Interrupted(f"{what}: stopped while waiting to try again") from None

    def _counted(self, call: Callable[[], T]) -> T:
        """Count what became of a call."""
        outcome = "ok"
        try:
            return call()
        except LargeDocument:
            raise
        except (EtlError, _Failed, _Throttled) as error:
            outcome = _outcome_of(error)
            raise
        finally:
            with self._lock:
                self.calls.outcomes[outcome] += 1

    def _exchange(self, path: str, what: str, may_be_large: bool) -> Document:
        """One request and its answer. The one place where the HTTP libraries' errors become ours."""
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
            self._date = response.headers.get("Date"), datetime.now(UTC)
            try:
                if response.status != 200:
                    self._refuse(response, what)
                body = self._read(response, what, may_be_large)
            except BaseException:
                response.close()  # what was not read would be taken for the next answer
                raise
            finally:
                response.release_conn()
        except urllib3.exceptions.SSLError as error:
            # A connection that broke off may work the next time, a certificate that is not good will not.
            passing = isinstance(_root(error), (ssl.SSLEOFError, ssl.SSLZeroReturnError))
            raise _Failed(f"TLS failed: {_cause(error)}", is_passing=passing, step="TLS") from error
        except urllib3.exceptions.ProxyError as error:
            cause = _cause(error)
            passing = not cause.endswith(" 407")  # a password is wrong however often it is tried
            reason = f"the proxy to {self.api_url} cannot be used: {cause}"
            raise _Failed(reason, is_passing=passing, step="proxy") from error
        except (urllib3.exceptions.HTTPError, requests.RequestException, OSError, ValueError) as error:
            # The libraries let a ValueError pass for some of what is no HTTP, such as a chunk of -2 bytes.
            raise _Failed(self._explain(error), step="connection") from error
        try:
            return documents.read(body)
        except documents.NotJson as error:
            raise _Failed(f"answered 200 with a body that is {error}", kind="unreadable") from None

    def _read(self, response: urllib3.BaseHTTPResponse, what: str, may_be_large: bool) -> bytes:
        too_large: EtlError = PayloadError("$", f"the body is over {self._max_body} bytes (checkly.max_body)")
        limit = self._max_body
        if not may_be_large and limit > LARGE_BODY:
            limit, too_large = LARGE_BODY, LargeDocument(f"{what}: the body is over {LARGE_BODY} bytes")
        if (response.length_remaining or 0) > limit:
            raise too_large
        body = bytearray()
        try:
            for chunk in response.stream(_CHUNK, decode_content=True):
                body += chunk
                if len(body) > limit:
                    raise too_large
        except (urllib3.exceptions.ProtocolError, urllib3.exceptions.DecodeError) as error:
            raise _Failed(f"the body was cut short: {_cause(error)}", kind="unreadable") from error
        return bytes(body)

    def _refuse(self, response: urllib3.BaseHTTPResponse, what: str) -> NoReturn:
        """Turn any status but 200 into an error. The body says nothing that we could pass on."""
        status = response.status
        if status == 401:
            raise AccessDenied(
                f"the API refuses the key of account {self.account_id} (401); check {self._key_name}, or make a new "
                "key at https://app.checklyhq.com/settings/user/api-keys",
                status=401,
            )
        if status == 402:
            raise NotInPlan(f"{what}: the account's plan does not allow it (402)")
        if status == 403:
            raise Forbidden(f"{what}: the API refuses access (403)")
        if status in (404, 410):
            raise TestSessionNotFound(f"{what}: Checkly does not have it, or no longer ({status})")
        if status == 429:
            raise _Throttled(retry_after(response.headers.get("Retry-After")))
        if status in _RETRIED_STATUSES:
            raise _Failed(f"the API answered {status}", retry_after(response.headers.get("Retry-After")))
        if status == 407:
            raise _Failed("the proxy wants a password (407)", is_passing=False, step="proxy")
        if 400 <= status < 500:
            raise Rejected(f"{what}: the API rejects the request ({status})")
        if 300 <= status < 400:
            raise _Failed(
                f"{self.api_url} answered {status}: redirects are not followed; check CHECKLY_API_URL",
                is_passing=False,
            )
        raise _Failed(f"the API answered {status}", is_passing=status >= 500)

    def _explain(self, error: Exception) -> str:
        took_too_long = isinstance(error, urllib3.exceptions.TimeoutError) and not isinstance(
            error, urllib3.exceptions.NewConnectionError
        )
        if took_too_long or isinstance(_root(error), TimeoutError):
            return f"{self.api_url} did not answer within {self._timeout:g} s"
        return f"{self.api_url} cannot be reached: {_cause(error)}"


def proxy_of(api_url: str) -> str | None:
    """The proxy that the environment names for this URL, with its password. Raises ConfigError if it is no URL."""
    return select_proxy(api_url, _proxies(api_url))


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, in either form (seconds, or an HTTP date).

    None if it says nothing, nothing that can be read, or no time at all: one's own backoff is better than a storm.
    https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Retry-After
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        seconds = float(text[:20])
    else:
        moment = _http_date(text)
        if moment is None:
            return None
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return min(seconds, 86_400.0) if seconds > 0 else None


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _understood(read: Callable[[Document], T], document: Document) -> T:
    try:
        return read(document)
    except PayloadError as error:
        if error.reason == documents.NESTED:
            raise
        reason = f"answered 200 with JSON that is not what was asked for ({error})"
        raise _Failed(reason, kind="unreadable") from None


# --- faults inside of one call: never seen outside of this file -----------------------------------------------


class _Failed(Exception):
    def __init__(
        self,
        reason: str,
        retry_after: float | None = None,
        *,
        kind: str = "unavailable",
        is_passing: bool = True,
        step: str = "answer",
    ) -> None:
        super().__init__(reason)
        self.reason, self.retry_after, self.kind, self.is_passing = reason, retry_after, kind, is_passing
        self.step = step


class _Throttled(Exception):
    def __init__(self, retry_after: float | None) -> None:
        super().__init__("429")
        self.retry_after = retry_after


def _outcome_of(error: Exception) -> str:
    match error:
        case _Failed(kind="unreadable") | PayloadError():
            return "unreadable"
        case _Failed(step="answer"):
            return "server_error"
        case _Throttled():
            return "throttled"
        case TestSessionNotFound():
            return "not_found"
        case AccessDenied() | Forbidden():
            return "refused"
        case Rejected():
            return "rejected"  # a 402 as well: who knows of it has set export.discover to false, or lives with it
        case _:
            return "unreachable"


def _bare(error: E) -> E:
    """Without its traceback and causes: their frames hold the body, and errors are kept for a while."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


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


def _proxies(api_url: str) -> dict[str, str]:
    proxies = get_environ_proxies(api_url)
    proxy = select_proxy(api_url, proxies)
    if proxy:
        # Checked here, because later the libraries' errors would tell its password.
        try:
            parts = urllib3.util.parse_url(proxy if "://" in proxy else f"http://{proxy}")
        except urllib3.exceptions.LocationParseError:
            parts = urllib3.util.Url()
        # A password that is not percent-encoded ends the host for a parser, and its rest is what the @ comes after.
        is_torn = "@" in (parts.request_uri + (parts.fragment or ""))
        if parts.scheme not in ("http", "https") or not parts.host or is_torn:
            name = f"{api_url.split(':', 1)[0].upper()}_PROXY"
            raise ConfigError(
                f"{name} (or ALL_PROXY) must be the URL of an HTTP proxy, http://HOST:PORT or "
                "http://USER:PASSWORD@HOST:PORT with special characters as %XX"
            )
    return proxies


def _ca_bundle() -> str | bool:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        path = os.environ.get(name)
        if path:
            if not Path(path).exists():
                raise ConfigError(f"{name}: there is no file {path}")
            return path
    return True


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
