"""Documents that nobody should ever send, with what must become of each, and a server that sends them as they are.

A fuzzed document is a good one with one to three things wrong. Whoever wrote the wrong thing knows what it must
lead to: `ROWS`, `DEAD` (the contract is broken), `NOT_JSON` (the way is broken), or `EITHER` where only a clear end
matters.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import itertools
import json
import random
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from tests.documents import Json, detail, entry, error_group, result, uuid

ROWS, EITHER, DEAD, NOT_JSON = "rows", "either", "dead", "not json"
DEPTH = 10_000


# --- JSON as nobody writes it -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raw:
    """Bytes that stand in a document as they are."""

    text: bytes


class Pairs(list[tuple[str, Any]]):
    """An object in which a key may stand twice."""


def encode(value: Any) -> bytes:
    """JSON, with lone surrogates and NUL as escapes and `Raw` as it is."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        value = Pairs(value.items())
    if isinstance(value, Pairs):
        return b"{" + b",".join(json.dumps(name).encode() + b":" + encode(item) for name, item in value) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(encode, value)) + b"]"
    return json.dumps(value).encode()


def nested(depth: int, *, of: str = "[]") -> Raw:
    """Arrays in arrays, or objects in objects."""
    if of == "[]":
        return Raw(b"[" * depth + b"]" * depth)
    return Raw(b'{"a":' * depth + b"1" + b"}" * depth)


# --- every field at every wrong type ------------------------------------------------------------------------------

# Name of a value -> (the value, its type).
VALUES: dict[str, tuple[Any, str]] = {
    "null": (None, "null"),
    "true": (True, "bool"),
    "false": (False, "bool"),
    "zero": (0, "number"),
    "minus one": (-1, "number"),
    "a fraction": (0.1, "number"),
    "2^63": (2**63, "number"),
    "10^30": (10**30, "number"),
    "minus 10^30": (-(10**30), "number"),
    "1e308": (Raw(b"1e308"), "number"),
    "1e-400": (Raw(b"1e-400"), "number"),
    "1e999": (Raw(b"1e999"), "out of range"),
    "-1e999": (Raw(b"-1e999"), "out of range"),
    "a number of 400 digits": (Raw(b"9" * 400), "out of range"),
    "a number of 5,000 digits": (Raw(b"9" * 5000), "out of range"),
    "NaN": (Raw(b"NaN"), "not json"),
    "Infinity": (Raw(b"-Infinity"), "not json"),
    "01": (Raw(b"01"), "not json"),
    "undefined": (Raw(b"undefined"), "not json"),
    "a raw tab": (Raw(b'"a\tb"'), "not json"),
    "half of an escape": (Raw(b'"\\u12"'), "not json"),
    "a byte of Latin-1": (Raw(b'"\xe9"'), "not json"),
    "a surrogate in UTF-8": (Raw(b'"\xed\xa0\x80"'), "not json"),
    "an overlong NUL": (Raw(b'"\xc0\x80"'), "not json"),
    "an empty text": ("", "text"),
    "a text": ("text", "text"),
    "a blank": (" \t\n ", "text"),
    "NUL": ("a\0b", "text"),
    "a lone surrogate": ("a\ud800b", "text"),
    "surrogates the wrong way round": ("\udc00\ud800", "text"),
    "an escaped backslash before u0000": (Raw(rb'"\\u0000 \\ud800"'), "text"),
    "an emoji": ("💥" * 3, "text"),
    "an emoji as escapes": (Raw(rb'"\ud83d\udca5"'), "text"),
    "right to left": ("\u202eabc\u2066\u200f", "text"),
    "a text that is code": ("'; DROP TABLE test_sessions; -- %s %(x)s {x} \\", "text"),
    "controls as escapes": (Raw(rb'"\u0001\u001b[31m\u007f\u2028\ufeff\ufffe\uffff"'), "text"),
    "3,000 letters": ("é" * 3_000, "text"),
    "a number as text": ("12", "text"),
    "[]": ([], "list"),
    "[null]": ([None], "list of wrong"),
    "[[]]": ([[]], "list of wrong"),
    "[1]": ([1], "list of wrong"),
    '["x"]': (["x"], "list of wrong"),
    "{}": ({}, "object"),
    '{"a": 1}': ({"a": 1}, "object"),
    "10,000 arrays": (nested(DEPTH), "deep"),
    "10,000 objects": (nested(DEPTH, of="{}"), "deep"),
    "500 arrays": (nested(500), "list of wrong"),
}
HUGE: dict[str, tuple[Any, str]] = {"a text of a megabyte": ("ab\u202e💥" * 250_000, "text")}

# What a field takes: types of values that become rows.
_TEXT, _NUMBER, _BOOL, _TIME = {"null", "text"}, {"null", "number"}, {"null", "bool"}, {"null"}
_TEXT_OR_NUMBER = _TEXT | _NUMBER
_DETAIL = {
    "testSessionId": set[str](),
    "status": {"text"},
    "startedAt": set[str](),
    "testSessionLink": _TEXT,
    "name": _TEXT,
    "errorGroupIds": {"null", "list"},
    "stoppedAt": _TIME,
    "timeElapsed": _NUMBER,
    "metadata": {"null", "object"},
    "results": {"null", "list"},
}
_METADATA = {
    **dict.fromkeys(("environment", "repoUrl", "commitId", "commitOwner", "commitMessage", "branchName"), _TEXT),
    "github": {"null", "object"},
}
_GITHUB = {
    "reporting": _BOOL,
    **dict.fromkeys(("runId", "runAttempt"), _TEXT_OR_NUMBER),
    **dict.fromkeys(("repository", "sha", "workflow", "job", "eventName", "ref", "headRef", "baseRef"), _TEXT),
    "serverUrl": _TEXT,
}
_RESULT = {
    "testSessionResultId": set[str](),
    "status": {"text"},
    **dict.fromkeys(("testSessionResultLink", "checkId", "checkType", "name", "runLocation", "resultType"), _TEXT),
    "errorGroupIds": {"null", "list"},
    **dict.fromkeys(("hasErrors", "hasFailures", "isDegraded", "aborted"), _BOOL),
    "responseTime": _NUMBER,
    **dict.fromkeys(("startedAt", "stoppedAt"), _TIME),
}
_ENTRY = [
    "accountId", "projectId", "name", "provider", "region", "privateLocationId", "repoUrl", "commitId",
    "commitOwner", "commitMessage", "branchName", "environment", "errorGroupIds", "stoppedAt", "created_at",
    "updated_at", "invoker",
]  # fmt: skip
# Of numbers, those that are whole; the others are no ids of runs.
_FRACTIONS = {"a fraction", "1e308", "1e-400"}


def verdict_of(takes: set[str], name: str, field_name: str) -> str:
    """What must become of a field that takes some types, with a value of `VALUES`."""
    type_ = {**VALUES, **HUGE}[name][1]
    if type_ == "not json":
        return NOT_JSON
    if field_name in ("runId", "runAttempt") and (name in _FRACTIONS or type_ in ("number", "out of range")):
        return ROWS if name in ("zero", "minus one", "2^63") else EITHER
    return ROWS if type_ in takes else DEAD


def _wrong_type(rng: random.Random, document: Json) -> tuple[str, str]:
    values = HUGE if rng.random() < 0.005 else VALUES
    # Not too often no JSON: failures of the way, ten in a row, are an outage.
    name = rng.choice([name for name in values if values[name][1] != "not json" or rng.random() < 0.2])
    fields, place = rng.choice([(_DETAIL, ""), (_METADATA, "metadata"), (_GITHUB, "github"), (_RESULT, "results")])
    target: Any = document
    if place in ("metadata", "github"):
        target = document.get("metadata")
        if place == "github" and isinstance(target, dict):
            target = target.setdefault("github", {})
    elif place == "results":
        target = rng.choice(_results(document) or [None])
    if not isinstance(target, dict):  # something else that is wrong has taken its place
        return "nothing", ROWS
    field_name = rng.choice(list(fields))
    target[field_name] = values[name][0]
    return f"{place}.{field_name} is {name}", verdict_of(fields[field_name], name, field_name)


# --- other things that can be wrong -------------------------------------------------------------------------------

DATES: dict[Any, str] = {
    "2026-11-14T10:00:00": ROWS,
    "2026-11-14T10:00:00.123456789Z": ROWS,
    "2026-11-14T10:00:00.5+05:30": ROWS,
    "2026-11-14T10:00:00-00:00": ROWS,
    "0001-01-01T00:00:00Z": ROWS,
    "9999-12-31T23:59:59.999Z": ROWS,
    "1969-12-31T23:59:59Z": ROWS,
    "2026-11-14T10:00:00." + "9" * 300 + "Z": EITHER,
    "2026-11-14t10:00:00z": EITHER,
    "2026-11-14 10:00:00Z": EITHER,
    "2016-12-31T23:59:60Z": EITHER,
    "2026-11-14T24:00:00Z": EITHER,
    "0000-01-01T00:00:00Z": DEAD,
    "0001-01-01T00:00:00+14:00": DEAD,
    "9999-12-31T23:59:59-14:00": DEAD,
    "+12026-11-14T10:00:00Z": DEAD,
    "2026-02-30T10:00:00Z": DEAD,
    "2026-11-14": DEAD,
    "1763114400": DEAD,
    1763114400: DEAD,
    1763114400.5: DEAD,
    "\u200f2026-11-14T10:00:00Z": DEAD,
    "٢٠٢٦-11-14T10:00:00Z": DEAD,
    "now": DEAD,
}
STATUSES = ("PAUSED", "passed", "", "PASSED ", "R" * 3000, "RUNNING", "FAILED", "CANCELLED", "P\u0000ASSED")


def _date(rng: random.Random, document: Json) -> tuple[str, str]:
    date = rng.choice(list(DATES))
    target, name = document, rng.choice(("startedAt", "stoppedAt"))
    if isinstance(document.get("results"), list) and document["results"] and rng.random() < 0.5:
        target = rng.choice(document["results"])
    if isinstance(target, dict):
        target[name] = date
    return f"{name} is {date!r:.60}", DATES[date]


def _status(rng: random.Random, document: Json) -> tuple[str, str]:
    for target in [document, *_results(document)]:
        target["status"] = rng.choice(STATUSES)
    return "statuses that nobody knows", ROWS


def _missing(rng: random.Random, document: Json) -> tuple[str, str]:
    results = _results(document)
    target, needed = document, {"testSessionId", "status", "startedAt"}
    if results and rng.random() < 0.5:
        target, needed = rng.choice(results), {"testSessionResultId", "status"}
    name = rng.choice(list(target))
    del target[name]
    return f"{name} is missing", DEAD if name in needed else ROWS


def _unknown(rng: random.Random, document: Json) -> tuple[str, str]:
    target = rng.choice([document, *_results(document)])
    # A field of no account: whatever is in it costs nothing. (But a depth that nothing can read.)
    values = [name for name, (_, type_) in VALUES.items() if type_ not in ("not json", "deep")]
    name = rng.choice(("new", "", "a.b", "$", "💥", "n" * 3000, "a\0b", "\ud800", "TestSessionId", "`"))
    target[name] = VALUES[rng.choice(values)][0]
    return f"the unknown field {name!r:.40}", ROWS


def _ids(rng: random.Random, document: Json) -> tuple[str, str]:
    id_ = str(document.get("testSessionId"))
    wrong = {
        id_.upper(): ROWS,
        uuid(0xFFFF_FFFF): DEAD,
        id_ + " ": DEAD,
        id_.replace("-", ""): DEAD,
        "{" + id_ + "}": DEAD,
        "urn:uuid:" + id_: DEAD,
        id_ + "\n": DEAD,
        id_.replace("0", "\u0660"): DEAD,
        id_[:-1]: DEAD,
    }
    document["testSessionId"] = rng.choice(list(wrong))
    return f"the id is {document['testSessionId']!r}", wrong[document["testSessionId"]]


def _twice(rng: random.Random, document: Json) -> tuple[str, str]:
    results = _results(document)
    if not results:
        return "nothing", ROWS
    one = rng.choice(results)
    document["results"] = [*results, {**one, "name": "again"}, dict(one)]
    if rng.random() < 0.5 and isinstance(one.get("testSessionResultId"), str):
        document["results"][-1]["testSessionResultId"] = one["testSessionResultId"].upper()
    return "a result stands three times", ROWS


def _many(rng: random.Random, document: Json) -> tuple[str, str]:
    if rng.random() < 0.95:
        document["errorGroupIds"] = [uuid(number) for number in (1, 2, 1)] + [uuid(3).upper(), uuid(3)]
        return "error groups that repeat", ROWS
    document["errorGroupIds"] = [uuid(0x1000_0000 + number) for number in range(10_000)]
    return "10,000 error groups", ROWS


def _no_results(rng: random.Random, document: Json) -> tuple[str, str]:
    if rng.random() < 0.5:
        document["results"] = []
    else:
        document.pop("results", None)
    return "no results", ROWS


def _results(document: Json) -> list[Json]:
    results = document.get("results")
    return [item for item in results if isinstance(item, dict)] if isinstance(results, list) else []


_WRONG: list[Callable[[random.Random, Json], tuple[str, str]]] = [
    *[_wrong_type] * 8,
    _date,
    _date,
    _status,
    _missing,
    _missing,
    _unknown,
    _unknown,
    _ids,
    _twice,
    _many,
    _no_results,
]


def _bytes(rng: random.Random, body: bytes) -> tuple[bytes, str, str]:
    """The text around the document."""
    match rng.randrange(12):
        case 0:
            return codecs.BOM_UTF8 + body, "a byte order mark", ROWS
        case 1:
            return b" \n\t\r" * 5 + body + b"\r\n \t" * 5, "white space around it", ROWS
        case 2:
            # A gap of a key that stands twice: the last one wins, here and in every language.
            return body[:-1] + b',"name":"the last one"}', "a key that stands twice", EITHER
        case 3 if rng.random() < 0.3:
            return body[: rng.randrange(len(body))], "cut short", NOT_JSON
        case 4 if rng.random() < 0.3:
            return body + body, "twice in a row", NOT_JSON
        case 5 if rng.random() < 0.3:
            return body.decode("utf-8", "replace").encode("utf-16"), "in UTF-16", NOT_JSON
        case 6 if rng.random() < 0.3:
            return b"//x\n" + body, "with a comment", NOT_JSON
        case 7 if rng.random() < 0.3:
            return b"[" + body + b"]", "in an array", DEAD
        case 8 if rng.random() < 0.3:
            return b'"' + codecs.encode(body[:50], "hex") + b'"', "a text", DEAD
        case 9 if rng.random() < 0.3:
            return body + b"\0", "with a NUL at the end", NOT_JSON
        case _:
            return body, "", ROWS


@dataclass(frozen=True)
class Fuzzed:
    """One hostile document, what is wrong with it, and what must become of it."""

    test_session_id: str
    body: bytes
    what: str
    verdict: str
    entry: bytes | None = None


def fuzzed(seed: int, count: int, *, first: int = 1) -> Iterator[Fuzzed]:
    """Documents of sessions `first`, `first` + 1 and so on. Every second has a list entry, some of them hostile."""
    for number in range(first, first + count):
        rng = random.Random(seed * 1_000_003 + number)
        document = detail(number, results=[result(n) for n in range(1, rng.randint(2, 5))])
        verdicts, wrongs = [], []
        for wrong in rng.sample(_WRONG, rng.choice((0, 1, 1, 1, 2, 3))):
            what, verdict = wrong(rng, document)
            wrongs.append(what)
            verdicts.append(verdict)
        # A second wrong thing may undo the first: then only a clear end is certain.
        verdict = verdicts[0] if len(verdicts) == 1 else EITHER if set(verdicts) - {ROWS} else ROWS
        body, what, of_bytes = _bytes(rng, encode(document))
        verdict = _over(of_bytes, verdict)
        listed: bytes | None = None
        if number % 2:
            what_of_entry, listed = _entry(rng, number)  # whatever it is, it costs no session its rows
            what += f"; entry: {what_of_entry}" if what_of_entry else ""
        yield Fuzzed(uuid(number), body, "; ".join([*wrongs, what]), verdict, listed)


def _over(outer: str, inner: str) -> str:
    """What becomes of a document in which something is wrong, and around it something else."""
    if inner == ROWS:
        return outer
    if outer == NOT_JSON:
        return EITHER  # what is nested too deeply is not read to its end
    return inner if outer == ROWS or inner == outer else EITHER


def _entry(rng: random.Random, number: int) -> tuple[str, bytes]:
    document, what = entry(number), ""
    if rng.random() < 0.3:
        name = rng.choice([name for name, (_, type_) in VALUES.items() if type_ not in ("not json", "deep")])
        field_name = rng.choice(_ENTRY)
        document[field_name] = VALUES[name][0]
        what = f"{field_name} is {name}"
    elif rng.random() < 0.2:
        document["id"] = uuid(number).upper()
        what = "id in upper case"
    return what, encode(document)


# --- error groups -------------------------------------------------------------------------------------------------

_ANALYSIS = {"id": uuid(1), "created_at": "2026-11-14T10:00:00Z", "analysis": {"classification": "flaky"}}
_GROUP_FIELDS = tuple(error_group(1))


def fuzzed_group(seed: int, number: int) -> tuple[str, bytes]:
    """What is wrong with an error group, and its document."""
    rng = random.Random(seed * 1_000_003 + number)
    playwright = {"projectName": "p", "specId": 1, "testFile": "f", "testTitle": "t", "suitePath": ["a"]}
    group = error_group(number, pwtMetadata=[playwright], rootCauseAnalyses=[{**_ANALYSIS}])
    values = [name for name, (_, type_) in VALUES.items() if type_ != "not json"]
    what = []
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.choice(("", "pwtMetadata", "rootCauseAnalyses", "analysis"))
        name = rng.choice(values)
        if place == "analysis":
            analyses = group["rootCauseAnalyses"]
            target = analyses[0].get("analysis") if isinstance(analyses, list) and analyses else None
        elif place:
            target = group[place][0] if isinstance(group.get(place), list) and group[place] else None
        else:
            target = group
        if not isinstance(target, dict):
            continue
        field_name = rng.choice(_GROUP_FIELDS if not place else list(target))
        target[field_name] = VALUES[name][0]
        what.append(f"{place}.{field_name} is {name}")
    return "; ".join(what), encode(group)


# --- documents that are large -------------------------------------------------------------------------------------


def large(number: int, results: int, *, name: bytes = b"number %d", **fields: Any) -> bytes:
    """A session of so many results, about 570 bytes each. `name` of a check is JSON and takes its number."""
    document = detail(number, **fields, results=Raw(b"@"))
    head, tail = encode(document).split(b"@")
    before, after = encode(result(0, testSessionResultId="@ID@", name="@NAME@")).split(b"@ID@")
    middle, after = after.split(b"@NAME@")
    # Not all alike, as in life: a hundred checks in a thousand executions each.
    parts = (
        b"%b%08x-0000-4000-9000-%012x%b%b%b" % (before, n, number, middle, name % (n % 100), after)
        for n in range(results)
    )
    return head + b"[" + b",".join(parts) + b"]" + tail


def padded(body: bytes, size: int) -> bytes:
    """The same document with white space up to a size."""
    return body + b" " * (size - len(body))


def bomb(body: bytes, size: int) -> bytes:
    """A small gzip body that unpacks to a document of `size` bytes."""
    packer = zlib.compressobj(level=9, wbits=31)
    parts = [packer.compress(body)]
    block = b" " * 1_000_000
    left = size - len(body)
    while left > 0:
        parts.append(packer.compress(block[:left]))
        left -= len(block)
    return b"".join([*parts, packer.flush()])


# --- a server that sends bytes as they are ------------------------------------------------------------------------


@dataclass
class RawCheckly:
    """Serves details, list entries and error groups as they were given; `gzipped` bodies say that they are."""

    details: dict[str, bytes | Callable[[], bytes]] = field(default_factory=dict)
    entries: list[bytes] = field(default_factory=list)
    groups: dict[str, bytes] = field(default_factory=dict)
    gzipped: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    together: int = 0  # the first so many details are answered at once, and none before
    _arrivals: Iterator[int] = field(default_factory=itertools.count)

    def __enter__(self) -> RawCheckly:
        raw = self
        barrier = threading.Barrier(self.together) if self.together else None

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                raw.requests.append(self.path)
                body = raw._body(self.path)
                is_detail = body is not None and self.path.startswith("/v1/test-sessions/")
                if barrier is not None and is_detail and next(raw._arrivals) < raw.together:
                    with contextlib.suppress(threading.BrokenBarrierError):  # the others do not come (any more)
                        barrier.wait(20)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                if self.path.rsplit("/", 1)[-1] in raw.gzipped:
                    self.send_header("Content-Encoding", "gzip")
                self.end_headers()
                try:
                    self.wfile.write(body or b"")
                except OSError:  # refused while it was read
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hangs up is no error of ours."""

            def server_bind(self) -> None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                super().server_bind()

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def _body(self, target: str) -> bytes | None:
        path, _, query = target.partition("?")
        parameters = parse_qs(query)
        match path.split("/")[2:]:
            case ["test-sessions"]:
                at, limit = int(parameters.get("nextId", ["0"])[0]), int(parameters["limit"][0])
                page = self.entries[at : at + limit]
                cursor = f'"{at + limit}"' if at + limit < len(self.entries) else "null"
                return b'{"entries":[' + b",".join(page) + b'],"nextId":' + cursor.encode() + b"}"
            case ["test-sessions", id_]:
                body = self.details.get(id_)
                return body() if callable(body) else body
            case ["test-session-error-groups"]:
                at = (int(parameters["page"][0]) - 1) * int(parameters["limit"][0])
                return b"[" + b",".join(list(self.groups.values())[at : at + int(parameters["limit"][0])]) + b"]"
            case ["test-session-error-groups", id_]:
                return self.groups.get(id_)
        return None


def gzipped(body: bytes) -> bytes:
    """As a server would compress it."""
    return gzip.compress(body, compresslevel=1, mtime=0)
