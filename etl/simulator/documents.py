"""One account's answers as bytes: pages, filters and cursors of the lists, and what a test put in.

Hides the cache (a document that cannot change any more is rendered and compressed once), the cursor's
contents, and that a test may replace any test session, result detail or error group by a document of its own.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import math
import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any
from uuid import UUID

from etl.simulator.timeline import stable_uuid
from etl.simulator.world import Json, World

STATUSES = ("RUNNING", "FAILED", "PASSED", "CANCELLED")
PROVIDERS = ("GITHUB", "VERCEL", "API", "TRIGGER", "PW_REPORTER")
COMPRESS_FROM = 1024

Query = Mapping[str, Sequence[str]]


class ApiError(Exception):
    """An answer other than 200, with the body that the API's description calls ApiError."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def body(self) -> bytes:
        phrase = HTTPStatus(self.status).phrase
        return encode({"statusCode": self.status, "error": phrase, "message": self.message})


class Body:
    """Bytes to send, compressed at most once."""

    def __init__(self, plain: bytes) -> None:
        self.plain = plain
        self._gzipped: bytes | None = None

    def gzipped(self) -> bytes:
        if self._gzipped is None:
            self._gzipped = gzip.compress(self.plain, compresslevel=1, mtime=0)
        return self._gzipped


def encode(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


class Documents:
    """What one account holds: a world, and over it what tests have put or removed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._lock = threading.Lock()
        self._order = world.timetable()  # (created_ms, id), oldest first
        self._details: dict[str, Body] = {}
        self._entries: dict[str, tuple[Json, bytes]] = {}
        self._put_details: dict[str, bytes] = {}
        self._put_entries: dict[str, Json] = {}
        self._put_results: dict[tuple[str, str], bytes] = {}
        self._put_groups: dict[str, Json] = {}
        self._removed: set[str] = set()

    # -- test sessions ---------------------------------------------------------------------------------

    def test_sessions(self, query: Query, account_id: str) -> Body:
        """ListTestSessionsResponse, newest first."""
        limit = _integer(query, "limit", default=20, most=100)
        begin, end = _seconds(query, "from"), _seconds(query, "to")
        position = _decode_cursor(query["nextId"][-1]) if "nextId" in query else None
        accepts = _entry_filter(query)
        at = self.world.at()
        with self._lock:
            # A cursor is a place in the order, not a number of rows: what arrives later moves nothing.
            index = len(self._order) if position is None else bisect_left(self._order, position)
            page: list[tuple[tuple[int, str], bytes]] = []
            while index and len(page) <= limit:
                index -= 1
                created, id_ = place = self._order[index]
                if begin is not None and created < begin:
                    break
                if end is not None and created >= end:
                    continue
                found = self._entry(id_, at)
                if found is not None and accepts(found[0]):
                    page.append((place, found[1]))
        more = len(page) > limit
        page = page[:limit]
        entries = b",".join(entry for _, entry in page)
        own, asked = self.world.account_id.encode(), account_id.encode()
        if own != asked:
            entries = entries.replace(b'"accountId":"%s"' % own, b'"accountId":"%s"' % asked)
        next_id = b',"nextId":"%s"' % _encode_cursor(page[-1][0]) if more else b""
        return Body(b'{"length":%d,"entries":[%s]%s}' % (len(page), entries, next_id))

    def test_session(self, test_session_id: str) -> Body:
        """FindOneTestSessionResponse."""
        cached = self._details.get(test_session_id)
        if cached is not None:
            return cached
        with self._lock:
            put = self._put_details.get(test_session_id)
            if put is not None:
                return self._details.setdefault(test_session_id, Body(put))
            at = self.world.at()
            document = None
            if test_session_id not in self._removed:
                document = self.world.detail(test_session_id, at)
            if document is None:
                raise ApiError(404, f"Test session {test_session_id} does not exist.")
            body = Body(encode(document))
            if self.world.is_settled(test_session_id, at):
                self._details[test_session_id] = body
            return body

    def is_final(self, test_session_id: str) -> bool:
        put = self._put_details.get(test_session_id)
        document = _parse(put) if put is not None else self.world.detail(test_session_id)
        if document is None or test_session_id in self._removed:
            raise ApiError(404, f"Test session {test_session_id} does not exist.")
        return document.get("status") != "RUNNING"

    def result(self, test_session_id: str, result_id: str) -> Body:
        """FindOneTestSessionResultResponse."""
        own = self._put_results.get((test_session_id, result_id))
        if own is not None:
            return Body(own)
        put = self._put_details.get(test_session_id)
        if put is not None:
            document = _result_of(_parse(put), result_id)
        elif test_session_id in self._removed:
            document = None
        else:
            document = self.world.result(test_session_id, result_id)
        if document is None:
            raise ApiError(404, f"Test session {test_session_id} has no result {result_id}.")
        return Body(encode(document))

    def _entry(self, test_session_id: str, at: int) -> tuple[Json, bytes] | None:
        cached = self._entries.get(test_session_id)
        if cached is not None:
            return cached
        put = self._put_entries.get(test_session_id)
        document = put if put is not None else self.world.entry(test_session_id, at)
        if document is None:
            return None
        found = document, encode(document)
        if put is not None or self.world.is_settled(test_session_id, at):
            self._entries[test_session_id] = found
        return found

    # -- error groups ----------------------------------------------------------------------------------

    def error_groups(self, query: Query, project_id: str | None = None) -> Body:
        """TestSessionErrorGroupsList, the one seen last first."""
        limit = _integer(query, "limit", default=10, most=100)
        page = _integer(query, "page", default=1, most=10**9)
        with self._lock:
            put = dict(self._put_groups)
        groups = [group for group in self.world.error_groups() if group["id"] not in put]
        groups = [*reversed(put.values()), *groups]
        if project_id is not None:
            groups = [group for group in groups if group.get("projectId") == project_id]
        return Body(encode(groups[(page - 1) * limit : page * limit]))

    def error_group(self, error_group_id: str) -> Body:
        """TestSessionErrorGroup."""
        document = self._put_groups.get(error_group_id) or self.world.error_group(error_group_id)
        if document is None:
            raise ApiError(404, f"Test session error group {error_group_id} does not exist.")
        return Body(encode(document))

    # -- what tests put in -----------------------------------------------------------------------------

    def put_test_session(self, detail: Json | bytes, entry: Json | None) -> None:
        """Adds or replaces a test session. Without an entry the list stays as it is."""
        raw = detail if isinstance(detail, bytes) else encode(detail)
        named = (entry or {}).get("id") or (_parse(raw) or {}).get("testSessionId")
        if not isinstance(named, str):
            raise ValueError("the test session has no id: neither an entry with `id`, nor a `testSessionId`")
        id_ = named.lower()
        with self._lock:
            self._removed.discard(id_)
            self._details.pop(id_, None)
            self._put_details[id_] = raw
            if entry is not None:
                self._unlist(id_)
                self._put_entries[id_] = dict(entry)
                insort(self._order, (self._created_ms(entry), id_))

    def remove_test_session(self, test_session_id: str) -> None:
        id_ = test_session_id.lower()
        with self._lock:
            self._unlist(id_)
            self._details.pop(id_, None)
            self._put_details.pop(id_, None)
            self._put_entries.pop(id_, None)
            self._removed.add(id_)

    def put_result(self, test_session_id: str, result_id: str, document: Json | bytes) -> None:
        """Adds or replaces the detail of one result."""
        raw = document if isinstance(document, bytes) else encode(document)
        with self._lock:
            self._put_results[test_session_id.lower(), result_id.lower()] = raw

    def put_error_group(self, group: Json) -> None:
        with self._lock:
            self._put_groups[group["id"]] = dict(group)

    def _unlist(self, test_session_id: str) -> None:
        self._entries.pop(test_session_id, None)
        self._order = [place for place in self._order if place[1] != test_session_id]

    def _created_ms(self, entry: Json) -> int:
        """An entry whose creation time cannot be read counts as new: tests put broken ones, too."""
        try:
            return round(datetime.fromisoformat(entry["created_at"]).timestamp() * 1000)
        except (KeyError, TypeError, ValueError):
            return self.world.at()


# -- the query string --------------------------------------------------------------------------------------


def _values(query: Query, name: str, allowed: Sequence[str] | None = None) -> set[str]:
    """An array, in the description's spelling (`name=A`) or in the official CLI's (`name[]=A`)."""
    values = {*query.get(name, ()), *query.get(f"{name}[]", ())}
    unknown = sorted(values.difference(allowed)) if allowed else []
    if allowed and unknown:
        raise ApiError(400, f"{name}: {unknown[0]!r} is not one of {', '.join(allowed)}.")
    return values


def _integer(query: Query, name: str, *, default: int, most: int) -> int:
    text = query.get(name, [""])[-1]
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise ApiError(400, f"{name} must be a whole number from 1 to {most}.")
    return int(text)


def _seconds(query: Query, name: str) -> float | None:
    """A Unix time in seconds, as milliseconds."""
    if name not in query:
        return None
    try:
        seconds = float(query[name][-1])
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ApiError(400, f"{name} must be a Unix timestamp in seconds.")
    return round(seconds * 1000, 3)  # 1.1 s are 1100 ms, not 1100.0000000000002


def _entry_filter(query: Query) -> Callable[[Json], bool]:
    statuses = _values(query, "statuses", STATUSES)
    providers = _values(query, "providers", PROVIDERS)
    branches, users = _values(query, "branches"), _values(query, "users")
    group = query.get("errorGroupId", [""])[-1]
    no_users = query.get("noUsers", ["false"])[-1].lower()
    if no_users not in ("true", "false"):
        raise ApiError(400, "noUsers must be true or false.")
    text = query.get("textSearch", [""])[-1].lower()
    if "textSearch" in query and not 3 <= len(text) <= 200:
        raise ApiError(400, "textSearch must have 3 to 200 characters.")

    tests: list[Callable[[Json], bool]] = []
    if statuses:
        tests.append(lambda entry: entry.get("status") in statuses)
    if providers:
        tests.append(lambda entry: entry.get("provider") in providers)
    if branches:
        tests.append(lambda entry: entry.get("branchName") in branches)
    if users or no_users == "true":
        tests.append(
            lambda entry: bool(users & _users(entry)) or (no_users == "true" and not _users(entry)),
        )
    if group:
        tests.append(lambda entry: group in (entry.get("errorGroupIds") or ()))
    if text:
        tests.append(lambda entry: any(text in str(entry.get(name) or "").lower() for name in _SEARCHED))
    return lambda entry: all(test(entry) for test in tests)


_SEARCHED = ("name", "branchName", "commitId", "commitMessage", "commitOwner", "repoUrl", "environment")


def _users(entry: Json) -> set[str]:
    invoker = entry.get("invoker") or {}
    return {user for user in (entry.get("commitOwner"), invoker.get("name")) if user}


def _encode_cursor(place: tuple[int, str]) -> bytes:
    return base64.urlsafe_b64encode(f"{place[0]}:{place[1]}".encode())


def _decode_cursor(text: str) -> tuple[int, str]:
    try:
        created, _, id_ = base64.b64decode(text, altchars=b"-_", validate=True).decode().partition(":")
        return int(created), str(UUID(id_))
    except (ValueError, binascii.Error):
        raise ApiError(400, "nextId is not a cursor of this list.") from None


# -- documents that were put ---------------------------------------------------------------------------


def _parse(raw: bytes | None) -> Json | None:
    try:
        document = json.loads(raw or b"null")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _result_of(detail: Json | None, result_id: str) -> Json | None:
    """The detail of a result that was put as a row. Attempts share the sequence of the FINAL after them."""
    executions: dict[tuple[Any, ...], int] = {}
    for row in (detail or {}).get("results") or ():
        if not isinstance(row, dict):
            continue
        key = (row.get("checkId"), row.get("checkType"), row.get("name"), row.get("runLocation"))
        number = executions.setdefault(key, 0)
        if row.get("testSessionResultId") == result_id:
            return {
                "id": result_id,
                **row,
                "filePath": None,
                "isCancelled": row.get("status") == "CANCELLED",
                "overMaxResponseTime": False,
                "attempts": 1,
                "sequenceId": stable_uuid((detail or {}).get("testSessionId"), key, number),
                "scheduleError": None,
                "traceId": None,
                "created_at": row.get("startedAt") or (detail or {}).get("startedAt"),
            }
        if row.get("resultType") == "FINAL":
            executions[key] += 1
    return None
