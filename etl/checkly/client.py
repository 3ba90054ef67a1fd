"""The Checkly API client: what may be asked, and what each answer means. Callers get checked documents or our errors.

Trusts the network with nothing: a 200 that is not the document that was asked for is a failed call, like an HTML page
or a 503. It is asked for again (`retry`) and says nothing about the session. A body of a test session or a result
that is over 4 MB is refused, unless its caller works on nothing else meanwhile. `transport` does the exchange.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Generic, NoReturn, Protocol, TypeVar
from urllib.parse import urlencode

import msgspec

from etl import documents
from etl.checkly import retry
from etl.checkly.retry import CALL_OUTCOMES, Failed, Throttled, Tries, bare, http_date, outcome_of, retry_after
from etl.checkly.transport import Answer, TooLarge, Transport
from etl.documents import Document
from etl.errors import (
    AccessDenied,
    ApiDown,
    ApiUnavailable,
    EtlError,
    Forbidden,
    Interrupted,
    LargeDocument,
    NotInPlan,
    PayloadError,
    Rejected,
    TestSessionNotFound,
    UnusableSession,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

PAGE_SIZE = 100  # the API's maximum for every list
LARGE_BODY = 4_000_000  # bytes: of larger ones, one is in memory at a time
SAME_PAGES = 20  # in a row, each with a cursor of its own: the list is going round

_RETRIED_STATUSES = frozenset({408, 500, 502, 503, 504})


class Pace(Protocol):
    """The rate budget as the client uses it: implemented over the warehouse by the pipeline."""

    def acquire(self) -> None:
        """Return when one call may be made. Raises RateLimited or Interrupted instead of waiting too long."""

    def pause(self, seconds: float | None) -> None:
        """The API answered 429, with this Retry-After."""

    def answered(self) -> None:
        """The API answered something else."""


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
        headers = {
            "Authorization": f"Bearer {api_key}",
            "x-checkly-account": account_id,
            "Accept": "application/json",
            "Accept-Encoding": "gzip, deflate",
            "User-Agent": user_agent,
        }
        self._transport = Transport(api_url, headers, timeout=timeout, connections=connections)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

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
        if self._date is None or (theirs := http_date(self._date[0] or "")) is None:
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

    def _list(
        self, params: dict[str, str], what: str, *, tries: int | None = None
    ) -> tuple[list[Document], str | None]:
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
        tries: int | None = None,
        may_be_large: bool = True,
    ) -> T:
        """Return what `read` makes of a document, with short retries.

        `read` raises PayloadError for a document that is not the one that was asked for: that is a failed call.
        """
        if params:
            path += f"?{urlencode(params)}"
        tried = Tries(what, tries or retry.TRIES, self._timeout)
        while True:
            self._pace.acquire()
            is_repeated = tried.begin()
            with self._lock:
                self.calls.requests += 1
                self.calls.retries += is_repeated
            became = self._try(path, what, read, may_be_large, tried)
            if isinstance(became, _Read):
                return became.value
            if became is None:
                continue
            wait = tried.wait_after(became)
            if wait is None:
                raise tried.given_up(became) from None
            logger.debug("%s: %s; try %d begins in %.1f s", what, became, tried.failures + 1, wait)
            if self._stop.wait(wait):
                raise Interrupted(f"{what}: stopped while waiting to try again") from None

    def _try(
        self, path: str, what: str, read: Callable[[Document], T], may_be_large: bool, tried: Tries
    ) -> _Read[T] | Failed | PayloadError | None:
        """Make one call. Returns what was read, why it failed, or None after a 429. Raises what ends the tries."""
        try:
            value = self._counted(lambda: _understood(read, self._fetch(path, what, may_be_large)))
        except Throttled as error:
            logger.debug("%s: answered 429, Retry-After %s", what, error.retry_after or "none")
            self._pace.pause(error.retry_after)
            tried.throttled()
            return None
        except Failed as error:
            return bare(error)
        except PayloadError as error:
            self._pace.answered()
            return bare(error)
        except LargeDocument as error:
            self._pace.answered()
            raise bare(error) from None
        except (UnusableSession, AccessDenied):
            self._pace.answered()
            raise
        self._pace.answered()
        return _Read(value)

    def _counted(self, call: Callable[[], T]) -> T:
        """Count what became of a call."""
        outcome = "ok"
        try:
            return call()
        except LargeDocument:
            raise
        except (EtlError, Failed, Throttled) as error:
            outcome = outcome_of(error)
            raise
        finally:
            with self._lock:
                self.calls.outcomes[outcome] += 1

    def _fetch(self, path: str, what: str, may_be_large: bool) -> Document:
        limit, too_large = self._max_body, f"the body is over {self._max_body} bytes (checkly.max_body)"
        is_limited = not may_be_large and limit > LARGE_BODY
        try:
            answer = self._transport.get(path, limit=LARGE_BODY if is_limited else limit)
        except TooLarge:
            if is_limited:
                raise LargeDocument(f"{what}: the body is over {LARGE_BODY} bytes") from None
            raise PayloadError("$", too_large) from None
        self._date = answer.headers.get("Date"), datetime.now(UTC)
        if answer.status != 200:
            self._refuse(answer, what)
        try:
            return documents.read(answer.body)
        except documents.NotJson as error:
            raise Failed(f"answered 200 with a body that is {error}", kind="unreadable") from None

    def _refuse(self, answer: Answer, what: str) -> NoReturn:
        """Turn any status but 200 into an error. The body says nothing that we could pass on."""
        status = answer.status
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
            raise Throttled(retry_after(answer.headers.get("Retry-After")))
        if status in _RETRIED_STATUSES:
            raise Failed(f"the API answered {status}", retry_after(answer.headers.get("Retry-After")))
        if status == 407:
            raise Failed("the proxy wants a password (407)", is_passing=False, step="proxy")
        if 400 <= status < 500:
            raise Rejected(f"{what}: the API rejects the request ({status})")
        if 300 <= status < 400:
            raise Failed(
                f"{self.api_url} answered {status}: redirects are not followed; check CHECKLY_API_URL",
                is_passing=False,
            )
        raise Failed(f"the API answered {status}", is_passing=status >= 500)


@dataclass(frozen=True, slots=True)
class _Read(Generic[T]):
    value: T


def _understood(read: Callable[[Document], T], document: Document) -> T:
    try:
        return read(document)
    except PayloadError as error:
        if error.reason == documents.NESTED:
            raise
        reason = f"answered 200 with JSON that is not what was asked for ({error})"
        raise Failed(reason, kind="unreadable") from None
