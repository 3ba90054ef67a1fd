"""A Checkly API that costs next to nothing: every body is prepared, an answer is a lookup and a write.

    .venv/bin/python -m bench.api --sessions 2000

Prints one line of JSON when it answers: its address, and what a faithful copy of it holds. `etl.simulator` is the one
to test against: it has faults, filters and time. This one has none of it, so that the seconds of a comparison are
those of the exporters. Documents have the shapes of Checkly's description. All sessions are final; 4 % of their
results are failed attempts that were tried again, and half of those failed again.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

ACCOUNT = "33333333-3333-4333-8333-333333333333"
APP = f"https://app.checklyhq.com/accounts/{ACCOUNT}/test-sessions"
PROJECT = "580aab10-9422-4a52-a899-c4df74a58920"
CHECKS = 200
GROUPS = 40
LOCATIONS = ("eu-central-1", "us-east-1", "ap-south-1")
TYPES = ("BROWSER", "API", "PLAYWRIGHT", "MULTI_STEP", "URL")


def _uuid(*of: object) -> str:
    """Random to look at, as Checkly's are: an index is written to all over."""
    digits = hashlib.md5(repr(of).encode(), usedforsecurity=False).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"


def _iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


class Documents:
    """The sessions of one account, created evenly over the `days` before now: bodies by path, list entries in order.

    Result `r` of session `s` is made from these two numbers alone.
    """

    def __init__(self, sessions: int, results: int, days: float) -> None:
        self.bodies: dict[bytes, bytes] = {}
        self.details: list[bytes] = []
        self.entries: list[bytes] = []  # oldest first
        self.created: list[float] = []
        self.lines: list[str] = []  # a result each: session, result, status
        self._checks = [(_uuid("check", n), TYPES[n % 5], f"Kasse {n}: bezahlen für später") for n in range(CHECKS)]
        self._groups = [_uuid("group", n) for n in range(GROUPS)]
        # Whole minutes, and not up to now: nothing of it is created after an exporter has begun.
        begin = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(days=days, minutes=5)
        for number in range(sessions):
            self._add(number, results, begin + timedelta(days=days) * number / sessions)
        groups = [self._group(id_, begin) for id_ in self._groups]
        self.bodies[b"/v1/test-session-error-groups"] = b"[" + b",".join(groups) + b"]"
        for id_, group in zip(self._groups, groups, strict=True):
            self.bodies[f"/v1/test-session-error-groups/{id_}".encode()] = group

    def _add(self, number: int, results: int, created: datetime) -> None:
        id_ = _uuid("session", number)
        started = created + timedelta(seconds=2)
        rows = list(self._rows(number, id_, results, started))
        statuses = [row["status"] for row in rows if row["resultType"] == "FINAL"]
        status = "FAILED" if "FAILED" in statuses else "PASSED"
        stopped = started + timedelta(minutes=4)
        common = {
            "name": "Nightly against production" if number % 3 else "Pull request",
            "status": status,
            "errorGroupIds": sorted({group for row in rows for group in row["errorGroupIds"]}),
            "startedAt": _iso(started),
            "stoppedAt": _iso(stopped),
        }
        git = {
            "environment": "staging" if number % 3 == 0 else "production",
            "repoUrl": "https://github.com/acme/webshop",
            "commitId": hashlib.sha1(b"%d" % (number // 4), usedforsecurity=False).hexdigest(),
            "commitOwner": "mlopez",
            "commitMessage": f"Merge pull request #{number} from acme/SHOP-{number}\n\nRemove the old banner",
            "branchName": "main" if number % 10 < 6 else f"feature-{number % 400}",
        }
        github = {
            "sha": git["commitId"], "repository": "acme/webshop", "runId": str(7_000_000 + number), "runAttempt": "1",
            "workflow": "e2e", "job": "checkly", "eventName": "push", "ref": "refs/heads/main",
            "serverUrl": "https://github.com",
        }  # fmt: skip
        detail = {
            "testSessionId": id_,
            "testSessionLink": f"{APP}/{id_}",
            **common,
            "timeElapsed": 240_000,
            "metadata": {**git, "github": github},
            "results": rows,
        }
        entry = {
            "id": id_,
            "accountId": ACCOUNT,
            "projectId": PROJECT,
            "provider": "GITHUB",
            "running": [],
            "passed": [_uuid("sequence", number, n) for n, status in enumerate(statuses) if status == "PASSED"],
            "failed": [_uuid("sequence", number, n) for n, status in enumerate(statuses) if status == "FAILED"],
            "cancelled": [],
            "region": "eu-central-1",
            "privateLocationId": None,
            "invoker": {"name": "mlopez", "picture": None},
            **common,
            **git,
            "created_at": _iso(created),
            "updated_at": _iso(stopped + timedelta(minutes=2)),
        }
        self.details.append(_encode(detail))
        self.bodies[f"/v1/test-sessions/{id_}".encode()] = self.details[-1]
        self.entries.append(_encode(entry))
        self.created.append(created.timestamp())
        self.lines += [f"{id_} {row['testSessionResultId']} {row['status']}" for row in rows]

    def _rows(self, number: int, session: str, results: int, started: datetime) -> Iterator[dict[str, Any]]:
        again = False
        for r in range(results):
            nth = number * results + r
            check_id, check_type, name = self._checks[(nth - again) * 37 % CHECKS]
            is_attempt = nth % 25 == 7 and r + 1 < results and not again
            is_failed = is_attempt or (again and nth // 25 % 2 == 0)
            id_ = _uuid("result", nth)
            begun = started + timedelta(milliseconds=331 * r)
            took = 500 + nth * 7919 % 9000
            yield {
                "testSessionResultId": id_,
                "testSessionResultLink": f"{APP}/{session}/results/{id_}",
                "checkId": check_id,
                "checkType": check_type,
                "name": name,
                "runLocation": LOCATIONS[number % 3],
                "errorGroupIds": [self._groups[nth // 25 % GROUPS]] if is_failed else [],
                "resultType": "ATTEMPT" if is_attempt else "FINAL",
                "status": "FAILED" if is_failed else "PASSED",
                "hasErrors": False,
                "hasFailures": is_failed,
                "isDegraded": nth % 50 == 0,
                "aborted": False,
                "responseTime": took,
                "startedAt": _iso(begun),
                "stoppedAt": _iso(begun + timedelta(milliseconds=took + 40)),
            }
            again = is_attempt

    def _group(self, id_: str, begin: datetime) -> bytes:
        return _encode(
            {
                "id": id_,
                "projectId": PROJECT,
                "environments": ["production", "staging"],
                "errorHash": hashlib.sha256(id_.encode()).hexdigest(),
                "rawErrorMessage": f"Error: expect(received).toBe(expected)\n\nExpected: 1\nReceived: {id_}",
                "cleanedErrorMessage": "Error: expect(received).toBe(expected) Expected: <number> Received: <uuid>",
                "firstSeen": _iso(begin),
                # Later than any session, so that a copy of it is never taken for older than one.
                "lastSeen": _iso(datetime.now(UTC) + timedelta(hours=1)),
                "archivedUntilNextEvent": False,
                "pwtMetadata": [],
                "rootCauseAnalyses": [],
            }
        )

    def page(self, query: bytes) -> bytes:
        """`GET /v1/test-sessions`: newest first, the cursor is a number in the order."""
        asked = {name: values[-1] for name, values in parse_qs(query.decode()).items()}
        limit = int(asked.get("limit", "20"))
        first = bisect_left(self.created, float(asked.get("from", "0")))
        end = bisect_left(self.created, float(asked["to"])) if "to" in asked else len(self.created)
        end = min(end, int(asked.get("nextId", end)))
        begin = max(first, end - limit)
        entries = self.entries[begin:end][::-1]
        next_id = b',"nextId":"%d"' % begin if begin > first else b""
        return b'{"length":%d,"entries":[%b]%b}' % (len(entries), b",".join(entries), next_id)


def _encode(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def digest(lines: Iterable[str]) -> str:
    """Of what a copy holds: `session result status` of each result, in order."""
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode() + b"\n")
    return found.hexdigest()


class _Connection(asyncio.Protocol):
    def __init__(self, documents: Documents, latency: float, limit: int, calls: deque[float]) -> None:
        self._documents, self._latency, self._limit, self._calls = documents, latency, limit, calls
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            path, _, query = head[4 : head.index(b" ", 4)].partition(b"?")
            body = self._documents.bodies.get(path)
            if path == b"/v1/test-sessions":
                body = self._documents.page(query)
            elif body is not None and query.startswith(b"limit=100&page=") and query != b"limit=100&page=1":
                body = b"[]"
            status = b"200 OK" if body is not None else b"404 Not Found"
            if self._limit and self._is_too_much():
                status, body = b"429 Too Many Requests", None
            body = b'{"error":"?"}' if body is None else body
            answer = b"HTTP/1.1 %b\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n%b"
            answer %= (status, len(body), body)
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, self._transport.write, answer)
            else:
                self._transport.write(answer)

    def _is_too_much(self) -> bool:
        """Whether there were more calls than the limit in the last 60 s, this one included."""
        now = time.monotonic()
        self._calls.append(now)
        while self._calls[0] <= now - 60:
            self._calls.popleft()
        return len(self._calls) > self._limit


async def serve(documents: Documents, latency: float, limit: int, expected: dict[str, object]) -> None:
    """Answer until the process ends."""
    loop = asyncio.get_running_loop()
    calls: deque[float] = deque()
    server = await loop.create_server(lambda: _Connection(documents, latency, limit, calls), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}", **expected}), flush=True)
    await server.serve_forever()


def main() -> None:
    """Prepare, then serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--results", type=int, default=20, help="of each session")
    parser.add_argument("--days", type=float, default=28.0, help="over which they were created, up to now")
    parser.add_argument("--latency", type=float, default=0.0, metavar="MS", help="of each answer")
    parser.add_argument("--limit", type=int, default=0, help="calls in any minute; more are answered 429")
    parser.add_argument("--dump", type=Path, help="write the documents of all sessions into this file, a line each")
    arguments = parser.parse_args()
    documents = Documents(arguments.sessions, arguments.results, arguments.days)
    if arguments.dump:
        arguments.dump.write_bytes(b"\n".join(documents.details) + b"\n")
    expected = {
        "test_sessions": len(documents.details),
        "results": len(documents.lines),
        "digest": digest(sorted(documents.lines)),
        "body_bytes": sum(map(len, documents.details)) // max(1, len(documents.details)),
    }
    documents.lines.clear()
    asyncio.run(serve(documents, arguments.latency / 1000, arguments.limit, expected))


if __name__ == "__main__":
    main()
