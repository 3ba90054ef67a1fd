"""The API client against the simulator and, for what no decent server does, against raw sockets."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import random
import re
import socket
import ssl
import subprocess
import threading
import time
import traceback
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from etl import checkly, documents
from etl.checkly import Client, retry
from etl.checkly import client as client_module
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
)
from etl.simulator import Simulator, World

KEY = "cu_5ecret_of_test_checkly"
PASSWORD = "pr0xy-passw0rd"
ACCOUNT = "33333333-3333-4333-8333-333333333333"
ID = "11111111-1111-4111-8111-111111111111"
ANOTHER = "2222aaaa-2222-4222-8222-222222222222"
SESSIONS = "/v1/test-sessions"
GROUPS = "/v1/test-session-error-groups"
SINCE = datetime(2026, 11, 13, tzinfo=UTC)
MB = 1_000_000
ENVIRONMENT = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


# --- who plays what -----------------------------------------------------------------------------------------


class Pace:
    """Lets every call through at once and notes what the client says. `on_pause` may raise."""

    def __init__(self) -> None:
        self.acquired = 0
        self.pauses: list[float | None] = []
        self.answers = 0
        self.on_acquire: Callable[[], None] = lambda: None
        self.on_pause: Callable[[], None] = lambda: None

    def acquire(self) -> None:
        self.on_acquire()
        self.acquired += 1

    def pause(self, seconds: float | None) -> None:
        self.pauses.append(seconds)
        self.on_pause()

    def answered(self) -> None:
        self.answers += 1


Answer = Callable[[socket.socket, bytes], bytes | None]


class Server:
    """A raw server: `answer` gets the socket and the head of a request; the bytes that it returns are sent.

    None ends the connection. `heads` are the requests that came, `connections` counts.
    """

    def __init__(self, answer: Answer | bytes, tls: ssl.SSLContext | None = None) -> None:
        self._answer: Answer = answer if callable(answer) else lambda _socket, _head: answer
        self._tls = tls
        self.heads: list[bytes] = []
        self.connections = 0
        self.stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=5)
        for sock in (self._listener, *self._open):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError):
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._open.append(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while head := read_head(sock):
                self.heads.append(head)
                answer = self._answer(sock, head)
                if answer is None:
                    break
                sock.sendall(answer)
        sock.close()


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        more = sock.recv(65536)
        if not more:
            return b""
        head += more
    return head


def document_of(id_: str = ID, rest: bytes = b"") -> bytes:
    """A document that says of which test session it is. `rest` are its other fields."""
    return b'{"testSessionId": "%b"' % id_.encode() + (b", " + rest if rest else b"") + b"}"


DOCUMENT = document_of()


def http(body: bytes = DOCUMENT, status: int = 200, **headers: str | None) -> bytes:
    """An answer. A header of None is left out."""
    fields = {"content_length": str(len(body)), "content_type": "application/json", **headers}
    lines = [f"HTTP/1.1 {status} X", *(f"{n.replace('_', '-')}: {v}" for n, v in fields.items() if v is not None)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n", **headers: str | None) -> bytes:
    head = http(b"", 200, content_length=None, transfer_encoding="chunked", **headers)
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def slowly(data: bytes, at_once: int = 0, seconds: float = 0.05) -> Answer:
    """Byte by byte after the first `at_once`."""

    def answer(sock: socket.socket, _head: bytes) -> None:
        sock.sendall(data[:at_once])
        for byte in data[at_once:]:
            sock.sendall(bytes((byte,)))
            time.sleep(seconds)

    return answer


def in_turn(*answers: bytes) -> Answer:
    """One after the other, and no more than these."""
    waiting = iter(answers)
    return lambda _socket, _head: next(waiting)


def and_close(data: bytes) -> Answer:
    def answer(sock: socket.socket, _head: bytes) -> None:
        sock.sendall(data)

    return answer


def headers_of(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr(retry, "FIRST_BACKOFF", 0.001)


@pytest.fixture
def pace() -> Pace:
    return Pace()


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


MakeClient = Callable[..., Client]


@pytest.fixture
def make_client(pace: Pace, stop: threading.Event) -> Iterator[MakeClient]:
    made: list[Client] = []

    def make(
        url: str, *, timeout: float = 5.0, max_body: int = 10 * MB, key: str = KEY, connections: int = 9
    ) -> Client:
        made.append(
            Client(
                api_url=url,
                account_id=ACCOUNT,
                api_key=key,
                key_name="CHECKLY_API_KEY",
                user_agent="checkly-etl/test",
                timeout=timeout,
                max_body=max_body,
                pace=pace,
                stop=stop,
                connections=connections,
            )
        )
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make_client: MakeClient, simulator: Simulator) -> Client:
    return make_client(simulator.url)


@pytest.fixture
def session_id(small_world: World) -> str:
    return small_world.timetable()[0][1]


def page_of(entries: list[Any], **more: Any) -> bytes:
    return json.dumps({"length": len(entries), "entries": entries, **more}).encode()


def in_time(work: Callable[[], None], seconds: float = 5.0) -> None:
    """Do it in a thread of its own, so that a deadlock fails its test and no more."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    if failures:
        raise failures[0]


def secrets_in(text: str) -> list[str]:
    password = b64encode(f"user:{PASSWORD}".encode()).decode()
    return [secret for secret in (KEY, PASSWORD, password) if secret in text]


def printed(error: BaseException) -> str:
    return "\n".join((str(error), repr(error), "".join(traceback.format_exception(error))))


def everything_behind(error: BaseException) -> str:
    """An error and all that led to it, also what `from None` hides."""
    said, waiting = [], [error]
    while waiting:
        one = waiting.pop()
        said.append(printed(one))
        waiting += [other for other in {one.__cause__, one.__context__} if other is not None]
    return "\n".join(said)


# --- what is asked ------------------------------------------------------------------------------------------


def test_the_key_and_the_account_are_sent_exactly(client: Client, simulator: Simulator, session_id: str) -> None:
    client.fetch_test_session(session_id)
    (request,) = simulator.requests
    sent = {name: value for name, value in request.headers.items() if name != "host"}
    assert sent == {
        "authorization": f"Bearer {KEY}",
        "x-checkly-account": ACCOUNT,
        "accept": "application/json",
        "accept-encoding": "gzip, deflate",
        "user-agent": "checkly-etl/test",
    }
    assert (request.method, request.path, request.query) == ("GET", f"{SESSIONS}/{session_id}", {})


def test_a_document_comes_as_received(client: Client, small_world: World, session_id: str) -> None:
    document = client.fetch_test_session(session_id)
    assert json.loads(document.text) == small_world.detail(session_id)
    assert document.sha256 == sha256(document.body).hexdigest()


def test_a_compressed_document_is_unpacked(make_client: MakeClient) -> None:
    body = padded(2000)
    for encoding, packed in (
        ("gzip", gzip.compress(body)),
        ("deflate", zlib.compress(body)),
        ("X-GZip", gzip.compress(body)),
    ):
        with Server(http(packed, content_encoding=encoding)) as server:
            assert make_client(server.url).fetch_test_session(ID).body == body


# --- lists --------------------------------------------------------------------------------------------------


def test_a_list_is_walked_by_its_cursor_with_the_filters_repeated(make_client: MakeClient) -> None:
    world = World(seed=1, now=SINCE + timedelta(days=8), days=8)
    since, until = SINCE, SINCE + timedelta(days=7)
    with Simulator(world, rate_limit=0) as simulator:
        pages = list(make_client(simulator.url).list_test_sessions(since=since, until=until))
    expected = {
        id_
        for created, id_ in world.timetable()
        if since.timestamp() * 1000 <= created < until.timestamp() * 1000 and created <= world.at()
    }
    listed = [json.loads(entry.text)["id"] for page in pages for entry in page.entries]
    assert len(pages) > 1
    assert set(listed) == expected
    assert len(listed) == len(expected)
    assert [page.number for page in pages] == list(range(1, len(pages) + 1))
    assert [page.is_last for page in pages] == [False] * (len(pages) - 1) + [True]
    common = {"limit": ["100"], "from": [str(int(since.timestamp()))], "to": [str(int(until.timestamp()))]}
    first, *others = simulator.requests
    assert (first.path, first.query) == (SESSIONS, common)
    for request in others:
        assert set(request.query) == {"limit", "from", "to", "nextId"}
        assert {name: request.query[name] for name in common} == common
    assert len({request.query["nextId"][0] for request in others}) == len(others)


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (1_700_000_000, 1_700_000_060, ("1700000000", "1700000060")),
        (1_700_000_000.000001, 1_700_000_060.000001, ("1700000000", "1700000061")),
        (1_700_000_000.999999, 1_700_000_060.999999, ("1700000000", "1700000061")),
        (-1.5, -0.5, ("-2", "0")),
    ],
)
def test_the_bounds_of_a_list_are_whole_seconds_rounded_outwards(
    make_client: MakeClient, since: float, until: float, expected: tuple[str, str]
) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    with Server(http(page_of([]))) as server:
        walk = make_client(server.url).list_test_sessions(
            since=epoch + timedelta(microseconds=round(since * 1_000_000)),
            until=epoch + timedelta(microseconds=round(until * 1_000_000)),
        )
        assert [page.entries for page in walk] == [[]]
        assert server.heads[0].split()[1].decode() == f"{SESSIONS}?limit=100&from={expected[0]}&to={expected[1]}"


def test_a_list_without_an_end_has_no_upper_bound(make_client: MakeClient) -> None:
    with Server(http(page_of([]))) as server:
        list(make_client(server.url).list_test_sessions(since=SINCE))
        assert server.heads[0].split()[1].decode() == f"{SESSIONS}?limit=100&from={int(SINCE.timestamp())}"


@pytest.mark.parametrize("end", [{}, {"nextId": None}, {"nextId": ""}], ids=["absent", "null", "empty"])
def test_a_page_without_a_cursor_is_the_last(make_client: MakeClient, end: dict[str, Any]) -> None:
    pages = iter([page_of([{"n": 1}], nextId="a&b=c/ä"), page_of([{"n": 2}], **end)])
    with Server(lambda _socket, _head: http(next(pages))) as server:
        walked = list(make_client(server.url).list_test_sessions(since=SINCE))
        assert [(page.number, page.is_last) for page in walked] == [(1, False), (2, True)]
        assert [entry.text for page in walked for entry in page.entries] == ['{"n": 1}', '{"n": 2}']
        assert server.heads[1].split()[1].endswith(b"&nextId=a%26b%3Dc%2F%C3%A4")


@pytest.mark.parametrize("cursors", [["a", "a"], ["a", "b", "a"]])
def test_a_cursor_that_repeats_ends_the_walk_after_its_pages(make_client: MakeClient, cursors: list[str]) -> None:
    pages = iter([page_of([{"n": n}], nextId=cursor) for n, cursor in enumerate(cursors)])
    seen = []
    with Server(lambda _socket, _head: http(next(pages))) as server:
        walk = make_client(server.url).list_test_sessions(since=SINCE)
        for _ in cursors:
            seen += [entry.text for entry in next(walk).entries]
        with pytest.raises(ApiUnavailable, match="cursor repeats") as caught:
            next(walk)
        assert caught.value.kind == "cursor"
        assert seen == [f'{{"n": {n}}}' for n in range(len(cursors))]
        assert len(server.heads) == len(cursors)


def test_a_page_that_comes_again_and_again_under_new_cursors_ends_the_walk(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursors = itertools.count()
    monkeypatch.setattr(client_module, "SAME_PAGES", 3)
    with Server(lambda _socket, _head: http(page_of([{"n": 1}], nextId=f"{next(cursors)}"))) as server:
        walk = make_client(server.url).list_test_sessions(since=SINCE)
        with pytest.raises(ApiUnavailable, match="same page again and again"):
            list(walk)
        assert len(server.heads) == 4


ENTRIES = [
    rb'{ "name" : "emoji \ud83d\ude00" , "deep": [[{"entries": [1]}], "]}"] }',
    b'{"n": 1e99, "m": 1' + b"0" * 250 + rb', "x": "\\\"ud800"}',
    b'"]"',
    b"-1.50",
    b"null",
    b"[]",
]


@pytest.mark.parametrize("odd", [rb'"lone \ud800"', rb'{"name": "NUL \u0000"}', rb'"\\u0000"', b'"plain"'])
def test_entries_come_as_received_whatever_text_is_in_them(make_client: MakeClient, odd: bytes) -> None:
    entries = [odd, *ENTRIES]
    array = b"[ " + b" ,\n".join(entries) + b" ]"
    page = b' {"note": ["entries", {"entries": [0]}], "entries": ' + array + b', "nextId": null}\r\n'
    with Server(lambda _socket, head: http(array if b"error-groups" in head else page)) as server:
        client = make_client(server.url)
        (listed,) = client.list_test_sessions(since=SINCE)
        assert [entry.body for entry in listed.entries] == entries
        assert [entry.sha256 for entry in listed.entries] == [sha256(entry).hexdigest() for entry in entries]
        assert [group.body for group in next(client.list_error_groups())] == entries


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"[]", "$"),
        (b"{}", "$"),
        (b'{"entries": null}', "$.entries"),
        (b'{"entries": {}}', "$.entries"),
        (b'{"entries": [], "nextId": 7}', "$.nextId"),
        (rb'{"entries": {}, "x": "\ud800"}', "$.entries"),
        (rb'{"entries": [], "x": "\ud800", "nextId": 7}', "$.nextId"),
        (rb'["\ud800"]', "$"),
    ],
)
def test_a_list_that_is_none_is_unreadable_and_says_where(make_client: MakeClient, body: bytes, path: str) -> None:
    with Server(http(body)) as server:
        with pytest.raises(ApiUnavailable, match=rf"page 1: .* \({re.escape(path)}: ") as caught:
            list(make_client(server.url).list_test_sessions(since=SINCE))
        assert caught.value.kind == "unreadable"
        assert len(server.heads) == 4


def test_the_list_of_error_groups_is_an_array(make_client: MakeClient) -> None:
    with Server(http(b"{}")) as server:
        with pytest.raises(ApiUnavailable, match="array"):
            list(make_client(server.url).list_error_groups())
        assert len(server.heads) == 4


@pytest.mark.parametrize("sizes", [[100, 100, 7], [100, 0], [0]])
def test_error_groups_are_paged_until_a_page_is_not_full(make_client: MakeClient, sizes: list[int]) -> None:
    pages = iter(sizes)
    with Server(lambda _socket, _head: http(json.dumps([{"id": n} for n in range(next(pages))]).encode())) as server:
        assert [len(page) for page in make_client(server.url).list_error_groups()] == sizes
        asked = [head.split()[1].decode() for head in server.heads]
        assert asked == [f"{GROUPS}?limit=100&page={number}" for number in range(1, len(sizes) + 1)]


def test_one_error_group_is_asked_for_by_its_id(client: Client, simulator: Simulator, small_world: World) -> None:
    group = small_world.error_groups()[0]
    assert json.loads(client.fetch_error_group(group["id"]).text) == group
    assert simulator.requests[-1].path == f"{GROUPS}/{group['id']}"
    with pytest.raises(TestSessionNotFound):
        client.fetch_error_group(ID)


# --- what each status means ---------------------------------------------------------------------------------

# status: error of a document, error of the list, kind, tries
STATUSES: dict[int, tuple[type[EtlError], type[EtlError], str, int]] = {
    201: (ApiUnavailable, ApiUnavailable, "unavailable", 1),
    204: (ApiUnavailable, ApiUnavailable, "unavailable", 1),
    206: (ApiUnavailable, ApiUnavailable, "unavailable", 1),
    301: (ApiUnavailable, ApiUnavailable, "unavailable", 1),
    302: (ApiUnavailable, ApiUnavailable, "unavailable", 1),
    304: (ApiUnavailable, ApiUnavailable, "unavailable", 1),
    307: (ApiUnavailable, ApiUnavailable, "unavailable", 1),
    308: (ApiUnavailable, ApiUnavailable, "unavailable", 1),
    400: (Rejected, Rejected, "rejected", 1),
    401: (AccessDenied, AccessDenied, "access_denied", 1),
    404: (TestSessionNotFound, ApiDown, "not_found", 1),
    407: (ApiUnavailable, ApiUnavailable, "unavailable", 1),
    408: (ApiUnavailable, ApiUnavailable, "unavailable", 4),
    409: (Rejected, Rejected, "rejected", 1),
    410: (TestSessionNotFound, ApiDown, "not_found", 1),
    422: (Rejected, Rejected, "rejected", 1),
    451: (Rejected, Rejected, "rejected", 1),
    500: (ApiUnavailable, ApiUnavailable, "unavailable", 4),
    501: (ApiUnavailable, ApiUnavailable, "unavailable", 4),
    502: (ApiUnavailable, ApiUnavailable, "unavailable", 4),
    503: (ApiUnavailable, ApiUnavailable, "unavailable", 4),
    504: (ApiUnavailable, ApiUnavailable, "unavailable", 4),
    599: (ApiUnavailable, ApiUnavailable, "unavailable", 4),
}


@pytest.mark.parametrize("status", STATUSES)
def test_each_status_has_its_error(
    client: Client, simulator: Simulator, pace: Pace, session_id: str, status: int
) -> None:
    of_document, of_list, kind, tries = STATUSES[status]
    simulator.add_fault(kind="status", status=status)
    with pytest.raises(EtlError) as caught:
        client.fetch_test_session(session_id)
    assert type(caught.value) is of_document
    assert caught.value.kind == kind
    assert isinstance(caught.value, AccessDenied) or str(status) in str(caught.value)
    assert len(simulator.requests) == tries == client.calls.requests == pace.acquired
    assert client.calls.retries == tries - 1
    assert pace.answers == (0 if issubclass(of_document, ApiUnavailable) else 1)
    with pytest.raises(EtlError) as caught:
        list(client.list_test_sessions(since=SINCE))
    assert type(caught.value) is of_list
    assert len(simulator.requests) == 2 * tries


def test_402_on_a_document_ends_the_account_only_if_the_list_says_the_same(
    client: Client, simulator: Simulator, session_id: str
) -> None:
    simulator.add_fault(match=session_id, kind="status", status=402)
    with pytest.raises(Rejected, match="402"):
        client.fetch_test_session(session_id)
    simulator.add_fault(kind="status", status=402)
    with pytest.raises(AccessDenied, match="402"):
        client.fetch_test_session(session_id)
    with pytest.raises(NotInPlan):
        list(client.list_test_sessions(since=SINCE))


@pytest.mark.parametrize("status", [402, 410])
def test_a_document_that_is_refused_is_named(
    client: Client, simulator: Simulator, session_id: str, status: int
) -> None:
    simulator.add_fault(kind="status", status=status)
    with pytest.raises(EtlError, match=session_id):
        client.fetch_test_session(session_id)
    with pytest.raises(EtlError, match="list of test sessions"):
        client.check_access()


def test_a_403_on_the_list_is_the_account_s(client: Client, simulator: Simulator) -> None:
    simulator.add_fault(kind="status", status=403)
    with pytest.raises(AccessDenied, match=ACCOUNT):
        list(client.list_test_sessions(since=SINCE))
    with pytest.raises(AccessDenied):
        client.check_access()


def test_a_403_on_a_document_is_told_from_the_account_s_by_one_probe(
    client: Client, simulator: Simulator, session_id: str
) -> None:
    simulator.add_fault(kind="status", status=403, match=f"{SESSIONS}/")

    def three_times() -> None:
        for _ in range(3):
            with pytest.raises(Forbidden, match=session_id):
                client.fetch_test_session(session_id)

    in_time(three_times)
    assert [request.path for request in simulator.requests].count(SESSIONS) == 1
    assert [request.query for request in simulator.requests if request.path == SESSIONS] == [{"limit": ["1"]}]
    assert client.calls.requests == 4


def test_threads_that_are_refused_together_probe_once(client: Client, simulator: Simulator, session_id: str) -> None:
    simulator.add_fault(kind="status", status=403, match=f"{SESSIONS}/")
    together = threading.Barrier(4)
    refused: list[BaseException] = []

    def fetch() -> None:
        together.wait()
        try:
            client.fetch_test_session(session_id)
        except EtlError as error:
            refused.append(error)

    threads = [threading.Thread(target=fetch, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert [type(error) for error in refused] == [Forbidden] * 4
    assert [request.path for request in simulator.requests].count(SESSIONS) == 1


def test_a_403_everywhere_is_the_account_s(client: Client, simulator: Simulator, session_id: str) -> None:
    simulator.add_fault(kind="status", status=403)

    def fetch() -> None:
        with pytest.raises(AccessDenied, match=ACCOUNT):
            client.fetch_test_session(session_id)

    in_time(fetch)


def test_a_plan_without_lists_says_nothing_about_a_403(client: Client, simulator: Simulator, session_id: str) -> None:
    simulator.add_fault(kind="status", status=403, match=f"{SESSIONS}/")
    simulator.add_fault(kind="status", status=402)

    def fetch() -> None:
        with pytest.raises(Forbidden):
            client.fetch_test_session(session_id)

    in_time(fetch)


def test_when_the_probe_fails_the_document_is_not_blamed(
    client: Client, simulator: Simulator, session_id: str
) -> None:
    simulator.add_fault(kind="status", status=403, match=f"{SESSIONS}/")
    simulator.add_fault(kind="status", status=500)

    def fetch() -> None:
        with pytest.raises(ApiUnavailable):
            client.fetch_test_session(session_id)

    in_time(fetch)


def test_a_403_on_an_error_group_costs_no_probe(client: Client, simulator: Simulator) -> None:
    simulator.add_fault(kind="status", status=403)
    with pytest.raises(Forbidden):
        client.fetch_error_group(ID)
    assert len(simulator.requests) == 1


def test_a_key_that_is_refused_is_the_end_even_of_the_probe(simulator: Simulator, make_client: MakeClient) -> None:
    with (
        Simulator(simulator.world, api_key="another") as strict,
        pytest.raises(AccessDenied, match="CHECKLY_API_KEY"),
    ):
        make_client(strict.url).check_access()


@pytest.mark.parametrize(
    ("status", "answers"),
    [(200, True), (402, True), (400, True), (404, False), (500, False)],
)
def test_only_an_answer_of_the_api_counts_as_answering(
    client: Client, simulator: Simulator, status: int, answers: bool
) -> None:
    if status != 200:
        simulator.add_fault(kind="status", status=status)
    assert client.is_answering() is answers
    assert len(simulator.requests) == 1  # asked once


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_the_account_says_more_than_whether_the_api_answers(
    client: Client, simulator: Simulator, status: int
) -> None:
    simulator.add_fault(kind="status", status=status)
    with pytest.raises(AccessDenied):
        client.is_answering()


def test_being_interrupted_is_no_answer_of_the_api(client: Client, pace: Pace) -> None:
    def interrupted() -> None:
        raise Interrupted("stopped")

    pace.on_acquire = interrupted
    with pytest.raises(Interrupted):
        client.is_answering()


# --- retries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_success_ends_the_retries(
    client: Client, simulator: Simulator, pace: Pace, session_id: str, failures: int
) -> None:
    simulator.add_fault(kind="status", status=503, times=failures)
    client.fetch_test_session(session_id)
    assert len(simulator.requests) == client.calls.requests == pace.acquired == failures + 1
    assert client.calls.retries == failures
    assert pace.answers == 1
    client.fetch_test_session(session_id)
    assert (client.calls.requests, client.calls.retries) == (failures + 2, failures)


@pytest.mark.parametrize("kind", ["status", "reset", "cut", "garbage", "not_utf8"])
def test_four_tries_are_made_and_counted(client: Client, simulator: Simulator, session_id: str, kind: str) -> None:
    simulator.add_fault(kind=kind)
    with pytest.raises(ApiUnavailable, match=r"\(4 tries\)") as caught:
        client.fetch_test_session(session_id)
    assert caught.value.kind == ("unavailable" if kind in ("status", "reset") else "unreadable")
    assert session_id in str(caught.value)
    assert (client.calls.requests, client.calls.retries) == (4, 3)
    assert len(simulator.requests) == 4


def test_retries_wait_longer_each_time_and_not_all_alike(
    client: Client, simulator: Simulator, stop: threading.Event, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_BACKOFF", 0.5)
    waits: list[float] = []
    monkeypatch.setattr(stop, "wait", lambda seconds: waits.append(seconds))
    simulator.add_fault(kind="status", status=500)
    for _ in range(20):
        with pytest.raises(ApiUnavailable):
            client.fetch_test_session(session_id)
    for number, usual in enumerate((0.5, 1.0, 2.0)):
        of_this_retry = waits[number::3]
        assert all(usual * 0.5 <= wait <= usual * 1.5 for wait in of_this_retry)
        assert len(set(of_this_retry)) > 1


def test_no_retry_is_begun_later_than_the_timeout(
    make_client: MakeClient, simulator: Simulator, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _low, _high: 1.0)
    monkeypatch.setattr(retry, "FIRST_BACKOFF", 0.2)
    simulator.add_fault(kind="status", status=500)
    client = make_client(simulator.url, timeout=0.5)
    began = time.monotonic()
    with pytest.raises(ApiUnavailable, match="2 tries"):
        client.fetch_test_session(session_id)
    assert time.monotonic() - began < 0.4  # nor is the wait for it


def test_waiting_for_the_rate_budget_takes_nothing_of_the_time_for_retries(
    make_client: MakeClient, simulator: Simulator, pace: Pace, session_id: str
) -> None:
    def slow_once() -> None:
        time.sleep(0.4)
        pace.on_acquire = lambda: None

    pace.on_acquire = slow_once
    simulator.add_fault(kind="status", status=500, times=1)
    make_client(simulator.url, timeout=0.3).fetch_test_session(session_id)


@pytest.mark.parametrize("status", [500, 503, 408])
def test_a_retry_after_of_a_fault_is_waited_for(
    client: Client, simulator: Simulator, session_id: str, status: int
) -> None:
    simulator.add_fault(kind="status", status=status, headers={"Retry-After": "0.3"}, times=1)
    began = time.monotonic()
    client.fetch_test_session(session_id)
    assert 0.3 <= time.monotonic() - began < 0.9


@pytest.mark.parametrize(("timeout", "wish"), [(60, "31"), (60, "100000"), (5, "6")])
def test_a_long_retry_after_of_a_fault_is_left_to_the_queue(
    make_client: MakeClient, simulator: Simulator, session_id: str, timeout: float, wish: str
) -> None:
    simulator.add_fault(kind="status", status=503, headers={"Retry-After": wish})
    with pytest.raises(ApiUnavailable, match="503"):
        make_client(simulator.url, timeout=timeout).fetch_test_session(session_id)
    assert len(simulator.requests) == 1


def test_a_retry_after_of_nothing_is_no_invitation_to_storm(
    client: Client, simulator: Simulator, stop: threading.Event, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_BACKOFF", 0.5)
    waits: list[float] = []
    monkeypatch.setattr(stop, "wait", lambda seconds: waits.append(seconds))
    simulator.add_fault(kind="status", status=503, headers={"Retry-After": "0"})
    with pytest.raises(ApiUnavailable):
        client.fetch_test_session(session_id)
    assert len(waits) == 3
    assert min(waits) >= 0.25


def test_stop_ends_the_wait_for_a_retry_at_once(
    client: Client, simulator: Simulator, stop: threading.Event, session_id: str
) -> None:
    simulator.add_fault(kind="status", status=503, headers={"Retry-After": "4"})
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Interrupted, match=session_id):
        client.fetch_test_session(session_id)
    assert time.monotonic() - began < 1
    assert len(simulator.requests) == 1


# --- 429 ----------------------------------------------------------------------------------------------------


def test_a_429_pauses_and_is_no_failure(client: Client, simulator: Simulator, pace: Pace, session_id: str) -> None:
    simulator.add_fault(kind="status", status=429, headers={"Retry-After": "7"}, times=6)
    client.fetch_test_session(session_id)
    assert pace.pauses == [7.0] * 6
    assert (client.calls.requests, client.calls.retries, pace.acquired, pace.answers) == (7, 6, 7, 1)


NOTHING = (None, "", " ", "soon", "nan", "-5", "0", "Mon, 32 Foo 2026 25:00:00 GMT", "Wed, 01 Jan 2020 00:00:00 GMT")
OVERFLOWING = ("Mon, 01 Jan 2024 00:00:00 +99999999999999999", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT")


@pytest.mark.parametrize("value", [*NOTHING, *OVERFLOWING])
def test_a_retry_after_that_says_nothing_is_none(
    client: Client, simulator: Simulator, pace: Pace, session_id: str, value: str | None
) -> None:
    headers = {} if value is None else {"Retry-After": value}
    simulator.add_fault(kind="status", status=429, headers=headers, times=1)
    client.fetch_test_session(session_id)
    assert pace.pauses == [None]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("12", 12.0), (" 1.5 ", 1.5), ("99999999999", 86_400.0), ("9" * 5000, 86_400.0)],
)
def test_a_retry_after_in_seconds_is_told_up_to_a_day(value: str, seconds: float) -> None:
    assert checkly.retry_after(value) == seconds


def test_a_retry_after_may_be_a_date(client: Client, simulator: Simulator, pace: Pace, session_id: str) -> None:
    until = datetime.now(UTC) + timedelta(seconds=90)
    for text in (format_datetime(until, usegmt=True), until.strftime("%a, %d %b %Y %H:%M:%S")):
        simulator.add_fault(kind="status", status=429, headers={"Retry-After": text}, times=1)
        client.fetch_test_session(session_id)
    assert all(seconds is not None and 85 < seconds <= 90 for seconds in pace.pauses)
    assert len(pace.pauses) == 2


def test_no_retry_after_is_a_bug_of_ours() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        text = "".join(rng.choice("0123456789 :+-,.;()JanMonGMTe\x00é/") for _ in range(rng.randint(0, 40)))
        seconds = checkly.retry_after(text)
        assert seconds is None or 0 < seconds <= 86_400


def test_what_the_pace_raises_ends_the_call(
    client: Client, simulator: Simulator, pace: Pace, session_id: str
) -> None:
    def long_pause() -> None:
        raise RateLimited("a long pause", seconds=900)

    pace.on_pause = long_pause
    simulator.add_fault(kind="status", status=429, headers={"Retry-After": "900"})
    with pytest.raises(RateLimited) as caught:
        client.fetch_test_session(session_id)
    assert caught.value.seconds == 900
    assert len(simulator.requests) == 1


def test_429_for_ever_ends_as_rate_limited(
    client: Client, simulator: Simulator, pace: Pace, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.2)
    pace.on_pause = lambda: time.sleep(0.05)
    simulator.add_fault(kind="status", status=429)
    with pytest.raises(RateLimited, match=session_id):
        client.fetch_test_session(session_id)
    assert 2 <= len(simulator.requests) <= 10


def test_a_pause_takes_nothing_of_the_time_for_retries(
    make_client: MakeClient, simulator: Simulator, pace: Pace, session_id: str
) -> None:
    pace.on_pause = lambda: time.sleep(0.4)
    simulator.add_fault(kind="status", status=429, times=1)
    simulator.add_fault(kind="status", status=503, times=1)
    make_client(simulator.url, timeout=0.3).fetch_test_session(session_id)


# --- the deadline -------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
LONG = b'{"a": "' + b"x" * 991 + b'"}'


def takes_a_second(client: Client) -> None:
    began = time.monotonic()
    with pytest.raises(ApiUnavailable) as caught:
        client.fetch_test_session(ID)
    took = time.monotonic() - began
    assert 0.9 < took < 1.5
    assert "did not answer within 1 s" in str(caught.value)
    assert caught.value.kind == "unavailable"
    assert client.calls.requests == 1  # a retry would begin too late


def silence(sock: socket.socket, _head: bytes) -> None:
    sock.recv(1)


def some_then_silence(sock: socket.socket, head: bytes) -> None:
    sock.sendall(HEAD + LONG[:500])
    silence(sock, head)


SLOW: dict[str, Answer] = {
    "nothing": silence,
    "a head in drips": slowly(HEAD + LONG),
    "a header in drips": slowly(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 5000, 20),
    "100 Continue for ever": slowly(b"HTTP/1.1 100 Continue\r\n\r\n" * 500, 25, 0.001),
    "a body in drips": slowly(HEAD + LONG, len(HEAD)),
    "a body that stops": some_then_silence,
    "chunks in drips": slowly(chunked(*[b" "] * 900), 60),
    "a chunk's length in drips": slowly(chunked(b"{}", end=b"0" * 500), 60),
    "trailers in drips": slowly(chunked(b"{}", end=b"0\r\n" + b"X: y\r\n" * 500), 80),
    "a body without an end in drips": slowly(b"HTTP/1.0 200 OK\r\n\r\n" + b" " * 900, 19),
    "gzip in drips": slowly(http(gzip.compress(random.Random(1).randbytes(900)), content_encoding="gzip"), 100),
}


def test_the_timeout_is_a_deadline_over_a_whole_call(make_client: MakeClient) -> None:
    # All at once: each takes a second.
    with ExitStack() as stack, ThreadPoolExecutor(len(SLOW)) as pool:
        servers = {name: stack.enter_context(Server(answer)) for name, answer in SLOW.items()}
        calls = {
            name: pool.submit(takes_a_second, make_client(server.url, timeout=1.0))
            for name, server in servers.items()
        }
        errors = {name: call.exception() for name, call in calls.items()}
    assert {name: error for name, error in errors.items() if error is not None} == {}


def test_the_deadline_holds_on_a_connection_that_is_used_again(make_client: MakeClient) -> None:
    def answer(sock: socket.socket, head: bytes) -> bytes | None:
        return slowly(HEAD + LONG, len(HEAD))(sock, head) if len(server.heads) > 1 else http()

    with Server(answer) as server:
        client = make_client(server.url, timeout=1.0)
        client.fetch_test_session(ID)
        client.calls.requests = 0
        takes_a_second(client)
        assert server.connections == 1


def test_the_simulator_s_trickle_meets_the_deadline(
    make_client: MakeClient, simulator: Simulator, session_id: str
) -> None:
    simulator.add_fault(kind="trickle", seconds=0.05, headers_too=True)
    takes_a_second(make_client(simulator.url, timeout=1.0))


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """Of a server that does not even take connections: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = []
        for number in (1, 2, 3):
            for _ in range(3):
                sock = socket.socket()
                sock.setblocking(False)
                with suppress(BlockingIOError):
                    sock.connect((f"127.0.0.{number}", port))
                waiting.append(sock)
        time.sleep(0.05)
        yield port
        for sock in waiting:
            sock.close()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """The name api.test has these addresses."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "api.test":
            return real(host, *args, **kwargs)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_the_deadline_holds_over_all_addresses_of_a_host(
    make_client: MakeClient, deaf_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, *[(f"127.0.0.{number}", deaf_port) for number in (1, 2, 3)])
    takes_a_second(make_client("http://api.test", timeout=1.0))


def test_an_address_that_is_deaf_or_closed_leaves_time_for_the_next(
    make_client: MakeClient, deaf_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(http()) as server:
        resolve_to(monkeypatch, ("127.0.0.1", deaf_port), ("127.0.0.1", 1), ("127.0.0.1", server.port))
        make_client("http://api.test", timeout=1.0).fetch_test_session(ID)


def test_a_tls_server_that_never_shakes_hands_meets_the_deadline(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        takes_a_second(make_client(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=1.0))


def test_the_deadline_counts_a_proxy_s_connect(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hello(sock: socket.socket, _head: bytes) -> None:
        time.sleep(0.7)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while sock.recv(65536):
            pass

    with Server(no_hello) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        takes_a_second(make_client("https://api.test", timeout=1.0))


def test_a_slow_proxy_s_connect_leaves_less_for_the_answer(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, ssl.SSLContext]
) -> None:
    ca, context = certificate

    def answer(sock: socket.socket, head: bytes) -> None:
        time.sleep(0.6)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with context.wrap_socket(sock, server_side=True) as inner:
            read_head(inner)
            proxy.stopping.wait(3)

    with Server(answer) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca))
        takes_a_second(make_client("https://localhost:1", timeout=1.0))


# --- bodies -------------------------------------------------------------------------------------------------


def padded(size: int) -> bytes:
    return document_of(rest=b'"a": "%b"' % (b"x" * (size - len(document_of(rest=b'"a": ""')))))


@pytest.mark.parametrize("way", ["length", "chunked", "until the end", "gzip", "gzip chunked"])
@pytest.mark.parametrize("more", [0, 1])
def test_a_body_of_exactly_max_body_is_read_and_one_byte_more_is_not(
    make_client: MakeClient, way: str, more: int
) -> None:
    body = padded(200_000 + more)
    packed = gzip.compress(body)
    answer = {
        "length": http(body),
        "chunked": chunked(body[:70_000], body[70_000:]),
        "until the end": http(body, content_length=None, connection="close"),
        "gzip": http(packed, content_encoding="gzip"),
        "gzip chunked": chunked(packed[:9], packed[9:], content_encoding="gzip"),
    }[way]
    with Server(and_close(answer)) as server:
        client = make_client(server.url, max_body=200_000)
        if more:
            with pytest.raises(PayloadError, match=r"over 200000 bytes \(checkly.max_body\)"):
                client.fetch_test_session(ID)
            assert len(server.heads) == 4
        else:
            assert client.fetch_test_session(ID).body == body


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """Answers of some hundred kilobytes that unpack to 200 MB."""

    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    spaces = b" " * MB
    deflated = b"".join([*(packer.compress(spaces) for _ in range(200)), packer.flush()])
    packed = b"\x1f\x8b\x08" + bytes(7) + deflated + bytes(8)
    return {
        "gzip": http(packed, content_encoding="gzip"),
        "gzip, chunked": chunked(packed[:1000], packed[1000:], content_encoding="gzip"),
        "raw deflate": http(deflated, content_encoding="deflate"),
        "gzip in gzip": http(gzip.compress(packed), content_encoding="gzip, gzip"),
        "in a redirect": http(packed, 302, content_encoding="gzip", location="/elsewhere"),
        "in a refusal": http(packed, 400, content_encoding="gzip"),
    }


def peak_of(work: Callable[[], None]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "name", ["gzip", "gzip, chunked", "raw deflate", "gzip in gzip", "in a redirect", "in a refusal"]
)
def test_a_bomb_is_refused_before_it_has_grown(make_client: MakeClient, bombs: dict[str, bytes], name: str) -> None:
    with Server(bombs[name]) as server:
        client = make_client(server.url, max_body=2 * MB)

        def fetch() -> None:
            with pytest.raises((PayloadError, ApiUnavailable, Rejected)) as caught:
                client.fetch_test_session(ID)
            assert isinstance(caught.value, PayloadError) is not name.startswith("in a")

        assert peak_of(fetch) < 12 * MB


def test_the_simulator_s_bomb_is_refused(make_client: MakeClient, simulator: Simulator, session_id: str) -> None:
    simulator.add_fault(kind="gzip_bomb", size=50 * MB)
    with pytest.raises(PayloadError, match="max_body"):
        make_client(simulator.url, max_body=2 * MB).fetch_test_session(session_id)
    assert len(simulator.requests) == 4


def test_a_body_that_is_too_long_by_its_own_word_is_not_waited_for(make_client: MakeClient) -> None:
    def answer(sock: socket.socket, head: bytes) -> None:
        sock.sendall(http(b"", content_length=str(MB + 1)))
        silence(sock, head)

    with Server(answer) as server:
        client = make_client(server.url, max_body=MB, timeout=2.0)
        began = time.monotonic()
        with pytest.raises(PayloadError, match="max_body"):
            client.fetch_test_session(ID)
        assert time.monotonic() - began < 1


def endless(head: bytes, block: bytes) -> Answer:
    def answer(sock: socket.socket, _head: bytes) -> None:
        sock.sendall(head)
        while True:
            sock.sendall(block)

    return answer


@pytest.mark.parametrize(
    ("name", "head", "block"),
    [
        ("a body", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" " * 65536),
        ("a chunk of -1 bytes", chunked(end=b"-1\r\n"), b" " * 65536),
        ("a chunk's length", chunked(), b"0" * 65536),
        ("a trailer", chunked(b"{}", end=b"0\r\n"), b"a" * 65536),
        ("a header", b"HTTP/1.1 200 OK\r\nX: ", b"a" * 65536),
        ("headers", b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 10_000),
        ("a status line", b"HTTP/1.1 200 ", b"a" * 65536),
    ],
)
def test_what_never_ends_fills_no_memory(make_client: MakeClient, name: str, head: bytes, block: bytes) -> None:
    with Server(endless(head, block)) as server:
        client = make_client(server.url, max_body=MB, timeout=1.0)

        def fetch() -> None:
            with pytest.raises((PayloadError, ApiUnavailable)) as caught:
                client.fetch_test_session(ID)
            assert isinstance(caught.value, PayloadError) is (name == "a body")

        assert peak_of(fetch) < 6 * MB


WHOLE = document_of(rest=b'"a": [1, 2, 3], "b": "%b"' % (b"x" * 500))

UNREADABLE: dict[str, Answer | bytes] = {
    "cut": and_close(http(WHOLE[:200], content_length=str(len(WHOLE)))),
    "cut before it begins": and_close(http(b"", content_length="500")),
    "cut within a chunk": and_close(chunked(WHOLE[:200], end=b"100\r\n" + WHOLE[200:300])),
    "cut between chunks": and_close(chunked(WHOLE[:200], end=b"")),
    "cut without a length": and_close(b"HTTP/1.0 200 OK\r\n\r\n" + WHOLE[:200]),
    "cut gzip": http(gzip.compress(WHOLE)[:30], content_encoding="gzip"),
    "no gzip": http(WHOLE, content_encoding="gzip"),
    "broken gzip": http(gzip.compress(WHOLE)[:20] + b"\xff" * 40, content_encoding="gzip"),
    "an unknown encoding": http(zlib.compress(WHOLE), content_encoding="br"),
    "no chunks": and_close(http(WHOLE, content_length=None, transfer_encoding="chunked")),
    "empty": http(b""),
    "HTML": http(b"<!DOCTYPE html><p>Just a moment"),
    "two documents": http(b"{} {}"),
    "NaN": http(b'{"a": NaN}'),
    "Infinity and NUL": http(rb'{"a": -Infinity, "b": "\u0000"}'),
    "a bare word": http(b"{a: 1}"),
    "a line break in a text": http(b'{"a": "\n"}'),
    "latin-1": http('{"a": "ä"}'.encode("latin-1")),
    "a surrogate in UTF-8": http(b'{"a": "\xed\xa0\x80"}'),
    "UTF-16": http('{"a": 1}'.encode("utf-16")),
    "UTF-16 without a mark": http('{"a": 1}'.encode("utf-16-le")),
    "two marks": http(b"\xef\xbb\xbf\xef\xbb\xbf" + rb'{"a": "\u0000"}'),
    "a half escape": http(rb'{"a": "\ud8"}'),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_body_that_is_not_whole_json_is_tried_again(make_client: MakeClient, name: str) -> None:
    """A fault of the way, not of the document: so it is retried, and never called a bad session."""

    def answer(sock: socket.socket, head: bytes) -> bytes | None:
        if len(server.heads) % 4 == 0 and is_mended:
            return http(WHOLE)
        spoiled = UNREADABLE[name]
        return spoiled if isinstance(spoiled, bytes) else spoiled(sock, head)

    is_mended = False
    with Server(answer) as server:
        client = make_client(server.url)
        with pytest.raises(ApiUnavailable, match=rf"{ID}.*\(4 tries\)") as caught:
            client.fetch_test_session(ID)
        assert caught.value.kind == "unreadable"
        assert "xxx" not in str(caught.value)
        is_mended = True
        assert client.fetch_test_session(ID).body == WHOLE
        assert (client.calls.requests, client.calls.retries) == (8, 6)


@pytest.mark.parametrize(
    "text",
    [
        document_of(rest=rb'"a": "\ud800 lone, \udfff lone"'),
        document_of(rest=rb'"a": "NUL \u0000"'),
        document_of(rest='"a": "ä \U0001f600"'.encode()),
        b" \r\n" + document_of(rest=b'"a": 1.50, "a": 1e2') + b"\t\n",
        document_of(rest=rb'"a": "\u00e4\/"'),
    ],
)
def test_the_text_of_a_document_is_kept_as_received(make_client: MakeClient, text: bytes) -> None:
    with Server(http(text)) as server:
        document = make_client(server.url).fetch_test_session(ID)
    assert document.text.encode() == document.body == text
    assert document.sha256 == sha256(text).hexdigest()


def test_a_byte_order_mark_is_left_out(make_client: MakeClient) -> None:
    with Server(http(b"\xef\xbb\xbf" + DOCUMENT)) as server:
        assert make_client(server.url).fetch_test_session(ID).body == DOCUMENT


@pytest.mark.parametrize("text", [b"[" * 100_000 + b"]" * 100_000, rb'["\ud800",' + b"[" * 99_999 + b"]" * 100_000])
def test_json_that_is_nested_too_deeply_is_a_payload_error(make_client: MakeClient, text: bytes) -> None:
    with Server(http(text)) as server, pytest.raises(PayloadError, match="nested too deeply"):
        make_client(server.url).fetch_test_session(ID)


def test_what_no_database_can_hold_is_replaced_in_values_only() -> None:
    document = documents.read(rb'{"a\u0000": ["\ud800", "\ud83d\ude00"]}')
    assert documents.untyped(document) == {"a\ufffd": ["\ufffd", "\U0001f600"]}
    assert documents.decode(document, dict[str, list[str]]) == {"a\ufffd": ["\ufffd", "\U0001f600"]}


# --- whose document it is -----------------------------------------------------------------------------------

FETCHES: dict[str, Callable[[Client, str], documents.Document]] = {
    "testSessionId": Client.fetch_test_session,
    "id": Client.fetch_error_group,
}
DEEP = b"[" * 100_000 + b"]" * 100_000

# What a proxy or a cache may answer instead of the document, and what is said of it.
OF_ANOTHER = f"$.testSessionId: is the document of {ANOTHER}, not of {ID} that was asked for"
NOT_IT: dict[str, tuple[bytes, str]] = {
    "another id": (document_of(ANOTHER), OF_ANOTHER),
    "another id in capitals": (document_of(ANOTHER.upper()), OF_ANOTHER),
    "the id, then another": (document_of(rest=document_of(ANOTHER)[1:-1]), OF_ANOTHER),
    "the id elsewhere": (b'{"id": "%b", "a": %b}' % (ID.encode(), DOCUMENT), "$.testSessionId: is missing"),
    "no fields": (b"{}", "$.testSessionId: is missing"),
    "an id of null": (b'{"testSessionId": null}', "$.testSessionId: Expected `str`, got `null`"),
    "an id of a number": (b'{"testSessionId": 7}', "$.testSessionId: Expected `str`, got `int`"),
    "an id that is nested": (b'{"testSessionId": [%b]}' % DOCUMENT, "$.testSessionId: Expected `str`, got `array`"),
    "no UUID": (document_of("../etc"), "$.testSessionId: is not a UUID"),
    "more than a UUID": (document_of(f"{ID}\\n"), "$.testSessionId: is not a UUID"),
    "an array": (b"[%b]" % DOCUMENT, "$: Expected `object`, got `array`"),
    "a text": (b'"%b"' % ID.encode(), "$: Expected `object`, got `str`"),
    "null": (b"null", "$: Expected `object`, got `null`"),
    "nested deeply": (document_of(rest=b'"a": ' + DEEP), "$: nested too deeply to be read"),
    "nested deeply where the id is": (b'{"testSessionId": %b}' % DEEP, "$: nested too deeply to be read"),
    "over max_body": (padded(300_001), "$: the body is over 300000 bytes (checkly.max_body)"),
}


@pytest.mark.parametrize("name", NOT_IT)
def test_a_document_that_is_not_the_one_asked_for_is_asked_for_again(
    make_client: MakeClient, pace: Pace, name: str
) -> None:
    wrong, said = http(NOT_IT[name][0]), NOT_IT[name][1]
    # A document of the right id is at fault itself if it cannot be read; anything else is a failed call.
    is_its_own_fault = name in ("nested deeply", "nested deeply where the id is", "over max_body")
    with Server(in_turn(wrong, wrong, wrong, http(), *[wrong] * 4)) as server:
        client = make_client(server.url, max_body=300_000)
        assert client.fetch_test_session(ID).body == DOCUMENT
        assert (client.calls.requests, client.calls.retries, pace.acquired) == (4, 3, 4)
        with pytest.raises((PayloadError, ApiUnavailable)) as caught:
            client.fetch_test_session(ID)
        if is_its_own_fault:
            assert str(caught.value) == said
            assert caught.value.kind == "payload"
        else:
            wrong_200 = "answered 200 with JSON that is not what was asked for"
            assert str(caught.value) == f"test session {ID}: {wrong_200} ({said}) (4 tries)"
            assert caught.value.kind == "unreadable"
        assert (client.calls.requests, client.calls.retries, pace.acquired) == (8, 6, 8)
        assert pace.answers == (8 if is_its_own_fault else 1)


@pytest.mark.parametrize("field", FETCHES)
def test_another_id_every_time_is_a_failed_call_that_names_both(make_client: MakeClient, field: str) -> None:
    right, wrong = (http(json.dumps({field: id_}).encode()) for id_ in (ID, ANOTHER))
    with Server(in_turn(wrong, right, *[wrong] * 4)) as server:
        client = make_client(server.url)
        assert json.loads(FETCHES[field](client, ID).text) == {field: ID}
        with pytest.raises(ApiUnavailable, match=rf"\$\.{field}: .* of {ANOTHER}, not of {ID}") as caught:
            FETCHES[field](client, ID)
        assert caught.value.kind == "unreadable"
        assert len(server.heads) == 6


def test_the_simulator_s_wrong_id_is_asked_for_again(
    client: Client, simulator: Simulator, small_world: World, session_id: str
) -> None:
    simulator.add_fault(kind="wrong_id", times=3)
    assert json.loads(client.fetch_test_session(session_id).text) == small_world.detail(session_id)
    assert len(simulator.requests) == 4
    simulator.add_fault(kind="wrong_id")
    with pytest.raises(ApiUnavailable, match=f"not of {session_id} that was asked for"):
        client.fetch_test_session(session_id)
    assert len(simulator.requests) == 8


@pytest.mark.parametrize(
    "body",
    [
        document_of("abcdefab-1111-4111-8111-111111111111".upper()),
        document_of(r"\u0061bcdefab-1111-4111-8111-111111111111"),
        rb'{"testSession\u0049d": "abcdefab-1111-4111-8111-111111111111", "a": "\ud800 \u0000"}',
        b'{"a": [], "testSessionId" :\t"abcdefab-1111-4111-8111-111111111111"\n}',
    ],
)
def test_the_id_may_be_spelled_in_any_way(make_client: MakeClient, body: bytes) -> None:
    with Server(http(body)) as server:
        assert make_client(server.url).fetch_test_session("abcdefab-1111-4111-8111-111111111111").body == body
        assert len(server.heads) == 1


ASK: dict[str, tuple[Callable[[Client], Any], bytes]] = {
    "a document": (lambda client: client.fetch_test_session(ID), http()),
    "an error group": (lambda client: client.fetch_error_group(ID), http(json.dumps({"id": ID}).encode())),
    "test sessions": (lambda client: list(client.list_test_sessions(since=SINCE)), http(page_of([]))),
    "error groups": (lambda client: list(client.list_error_groups()), http(b"[]")),
}


@pytest.mark.parametrize("what", ASK)
@pytest.mark.parametrize("at", range(4))
def test_where_the_way_failed_even_once_no_document_is_blamed(make_client: MakeClient, what: str, at: int) -> None:
    """`{"error": ...}` is neither a document nor a list. The kind is that of the last failure."""
    ask, good = ASK[what]
    wrong, cut, fault = http(b'{"error": "try later"}'), http(b'{"entr'), http(b"", 503)
    for other, kind in ((cut, "unreadable"), (fault, "unavailable")):
        answers = [wrong] * 4
        answers[at] = other
        with Server(in_turn(*answers, *answers[:3], good)) as server:
            client = make_client(server.url)
            with pytest.raises(ApiUnavailable, match=r"\(4 tries\)$") as caught:
                ask(client)
            assert caught.value.kind == (kind if at == 3 else "unreadable")
            ask(client)
            assert (client.calls.requests, client.calls.retries) == (8, 6)


def test_a_list_that_is_none_once_is_asked_for_again_where_the_walk_is(make_client: MakeClient) -> None:
    wrong = http(b'{"error": "try later"}')
    first, second = (http(page_of([{"n": n}], **more)) for n, more in enumerate(({"nextId": "a"}, {})))
    with Server(in_turn(wrong, first, wrong, wrong, second)) as server:
        pages = make_client(server.url).list_test_sessions(since=SINCE)
        assert [(page.number, page.entries[0].text) for page in pages] == [(1, '{"n": 0}'), (2, '{"n": 1}')]
        assert [b"nextId=a" in head for head in server.heads] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AccessDenied), (404, TestSessionNotFound), (410, TestSessionNotFound), (422, Rejected)],
)
def test_an_answer_that_says_more_ends_the_search_for_the_right_document(
    make_client: MakeClient, status: int, error: type[EtlError]
) -> None:
    with Server(in_turn(http(document_of(ANOTHER)), http(b"", status))) as server:
        with pytest.raises(error):
            make_client(server.url).fetch_test_session(ID)
        assert len(server.heads) == 2


def test_a_429_is_no_try_of_a_document(make_client: MakeClient, pace: Pace) -> None:
    wrong, throttled = http(document_of(ANOTHER)), http(b"", 429, retry_after="7")
    with Server(in_turn(wrong, throttled, wrong, throttled, wrong, wrong)) as server:
        with pytest.raises(ApiUnavailable, match=ANOTHER):
            make_client(server.url).fetch_test_session(ID)
        assert (len(server.heads), pace.pauses) == (6, [7.0, 7.0])


def test_stop_ends_the_wait_for_the_right_document(
    make_client: MakeClient, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_BACKOFF", 2.0)
    stop.set()
    with Server(in_turn(http(document_of(ANOTHER)))) as server, pytest.raises(Interrupted, match=ID):
        make_client(server.url).fetch_test_session(ID)


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"status": "ok"}'])
def test_a_200_that_is_no_list_is_no_answer_of_the_api(make_client: MakeClient, body: bytes) -> None:
    """A proxy that answers everything so is an outage: nothing that failed before may be blamed for it."""
    with Server(http(body)) as server:
        assert make_client(server.url).is_answering() is False


@pytest.mark.parametrize("status", [402, 403])
def test_when_the_probe_s_answer_is_no_list_the_document_is_not_blamed(make_client: MakeClient, status: int) -> None:
    def answer(_sock: socket.socket, head: bytes) -> bytes:
        return http(b"", status) if ID.encode() in head else http(b'{"status": "ok"}')

    with Server(answer) as server, pytest.raises(ApiUnavailable):
        make_client(server.url).fetch_test_session(ID)


# --- large bodies -------------------------------------------------------------------------------------------

LARGE = 4 * MB


def in_ways(body: bytes) -> dict[str, bytes]:
    packed = gzip.compress(body, 1)
    return {
        "length": http(body),
        "chunked": chunked(body[:70_000], body[70_000:]),
        "gzip": http(packed, content_encoding="gzip"),
        "gzip chunked": chunked(packed[:9], packed[9:], content_encoding="gzip"),
    }


WAYS = tuple(in_ways(b""))


@pytest.mark.parametrize("way", WAYS)
def test_a_large_body_is_refused_at_once_and_read_alone(make_client: MakeClient, pace: Pace, way: str) -> None:
    body = padded(LARGE + 1)
    with Server(in_ways(body)[way]) as server:
        client = make_client(server.url)
        with pytest.raises(LargeDocument, match=f"^test session {ID}: the body is over 4000000 bytes$") as caught:
            client.fetch_test_session(ID)
        assert caught.value.kind == "large"
        assert (client.calls.requests, client.calls.retries, pace.answers) == (1, 0, 1)
        assert client.fetch_test_session(ID, alone=True).body == body
        assert (client.calls.requests, client.calls.retries, pace.answers) == (2, 0, 2)


@pytest.mark.parametrize("way", WAYS)
def test_a_body_of_exactly_4_mb_is_not_large(make_client: MakeClient, way: str) -> None:
    body = padded(LARGE)
    with Server(in_ways(body)[way]) as server:
        assert make_client(server.url).fetch_test_session(ID).body == body
        assert len(server.heads) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_is_not_used_again_with_half_a_body_in_it(make_client: MakeClient, way: str) -> None:
    noise = random.Random(1).randbytes(3 * MB).hex().encode()  # does not come in one piece, even packed
    large, small = in_ways(document_of(rest=b'"a": "%b"' % noise))[way], in_ways(DOCUMENT)[way]
    with Server(in_turn(large, small, small)) as server:
        client = make_client(server.url)
        with pytest.raises(LargeDocument):
            client.fetch_test_session(ID)
        for _ in range(2):
            assert client.fetch_test_session(ID).body == DOCUMENT
        assert (client.calls.requests, server.connections) == (3, 2)


@pytest.mark.parametrize("max_body", [MB, LARGE])
def test_a_max_body_that_is_no_larger_is_the_limit(make_client: MakeClient, max_body: int) -> None:
    """Alone it could not be read either."""
    with Server(http(padded(max_body + 1))) as server:
        client = make_client(server.url, max_body=max_body)
        for alone in (False, True):
            with pytest.raises(PayloadError, match=rf"over {max_body} bytes \(checkly.max_body\)"):
                client.fetch_test_session(ID, alone=alone)
        assert len(server.heads) == 8


def test_alone_max_body_is_the_limit(make_client: MakeClient) -> None:
    with Server(in_turn(http(padded(5 * MB)), *[http(padded(5 * MB + 1))] * 4)) as server:
        client = make_client(server.url, max_body=5 * MB)
        assert len(client.fetch_test_session(ID, alone=True).body) == 5 * MB
        with pytest.raises(PayloadError, match=r"over 5000000 bytes \(checkly.max_body\)"):
            client.fetch_test_session(ID, alone=True)


def test_what_is_no_test_session_may_be_large(make_client: MakeClient) -> None:
    group = json.dumps({"id": ID, "a": "x" * LARGE}).encode()
    page = page_of(["x" * LARGE])
    with Server(in_turn(http(group), http(page), http(b"[%b]" % group))) as server:
        client = make_client(server.url)
        assert client.fetch_error_group(ID).body == group
        assert len(next(client.list_test_sessions(since=SINCE)).entries[0].body) == LARGE + 2
        assert [found.body for found in next(client.list_error_groups())] == [group]


def test_a_large_body_after_a_wrong_one_is_refused_at_once(make_client: MakeClient) -> None:
    with Server(in_turn(http(document_of(ANOTHER)), http(padded(LARGE + 1)))) as server:
        with pytest.raises(LargeDocument):
            make_client(server.url).fetch_test_session(ID)
        assert len(server.heads) == 2


def test_a_body_that_is_large_by_its_own_word_is_not_waited_for(make_client: MakeClient) -> None:
    def answer(sock: socket.socket, head: bytes) -> None:
        sock.sendall(http(b"", content_length=str(LARGE + 1)))
        silence(sock, head)

    with Server(answer) as server:
        client = make_client(server.url, timeout=2.0)
        began = time.monotonic()
        with pytest.raises(LargeDocument):
            client.fetch_test_session(ID)
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("name", ["gzip", "gzip, chunked", "raw deflate", "gzip in gzip"])
def test_a_body_that_unpacks_to_more_than_4_mb_is_noticed_while_it_is_read(
    make_client: MakeClient, bombs: dict[str, bytes], name: str
) -> None:
    with Server(bombs[name]) as server:
        client = make_client(server.url, max_body=64 * MB)

        def fetch() -> None:
            with pytest.raises(LargeDocument):
                client.fetch_test_session(ID)

        assert peak_of(fetch) < 12 * MB
        assert len(server.heads) == 1


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (LargeDocument, chunked(padded(LARGE + 1))),
        (ApiUnavailable, http(document_of(rest=b'"a": %b, "testSessionId": "no UUID"' % padded(2 * MB)))),
        (ApiUnavailable, http(padded(2 * MB)[:-1])),
        (ApiUnavailable, and_close(http(padded(2 * MB), content_length=str(3 * MB)))),
    ],
    ids=["large", "another document", "no JSON", "cut"],
)
def test_an_error_keeps_no_body(make_client: MakeClient, kind: type[EtlError], answer: Answer | bytes) -> None:
    """The queue's workers put errors aside until a batch is recorded."""
    kept: list[BaseException] = []
    with Server(answer) as server:
        client = make_client(server.url)
        tracemalloc.start()
        try:
            for _ in range(5):
                with pytest.raises(kind) as caught:
                    client.fetch_test_session(ID)
                kept.append(caught.value)
            assert tracemalloc.get_traced_memory()[0] < 2 * MB
        finally:
            tracemalloc.stop()


def test_four_tries_take_no_more_memory_than_one(make_client: MakeClient) -> None:
    right = http(padded(10 * MB))
    wrong = http(document_of(rest=b'"a": %b, "testSessionId": "no UUID"' % padded(10 * MB - 100)))

    def peak(*answers: bytes) -> int:
        with Server(in_turn(*answers)) as server:
            client = make_client(server.url, max_body=20 * MB)

            def fetch() -> None:
                client.fetch_test_session(ID, alone=True)

            return peak_of(fetch)

    assert peak(wrong, wrong, wrong, right) < peak(right) + 2 * MB


# --- answers that are hardly HTTP ---------------------------------------------------------------------------

HARDLY_HTTP = {
    "nothing": and_close(b""),
    "another protocol": and_close(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "half a head": and_close(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "10,000 header lines": and_close(
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 10_000 + b"Content-Length: %d\r\n\r\n" % len(DOCUMENT) + DOCUMENT
    ),
    "a huge header": and_close(http(x="a" * 1_000_000)),
    "two lengths": and_close(http(content_length=f"{len(DOCUMENT)}, {len(DOCUMENT) + 1}")),
    "a chunk of -2 bytes": and_close(chunked(end=b"-2\r\n")),
    "a chunk of -1 bytes": and_close(chunked(end=b"-1\r\n" + DOCUMENT)),
    "an echo": lambda _sock, head: head,
    "the key as a status line": lambda _sock, head: f"Authorization: Bearer {KEY}\r\n\r\n".encode(),
    "the key as a chunk's length": lambda _sock, head: chunked(end=f"{KEY}\r\n".encode()),
    "the key as a length": and_close(http(content_length=f"1, 2, {KEY}")),
}


@pytest.mark.parametrize("name", HARDLY_HTTP)
def test_what_is_no_http_is_an_error_of_ours_that_repeats_nothing(make_client: MakeClient, name: str) -> None:
    with Server(HARDLY_HTTP[name]) as server:
        client = make_client(server.url, timeout=2.0)
        with pytest.raises(ApiUnavailable) as caught:
            client.fetch_test_session(ID)
        assert client.calls.requests == 4
        assert secrets_in(printed(caught.value)) == []
        assert "SSH" not in str(caught.value)


@pytest.mark.parametrize("length", ["9" * 5000, "x", "-2", f"{len(DOCUMENT)}, {len(DOCUMENT)}"])
def test_a_length_that_cannot_be_read_is_no_bug_of_ours(make_client: MakeClient, length: str) -> None:
    with Server(and_close(http(content_length=length))) as server:
        client = make_client(server.url)
        with suppress(EtlError):
            assert client.fetch_test_session(ID).body == DOCUMENT


# --- redirects, .netrc, cookies, connections ----------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_error_and_carries_the_account_header_nowhere(make_client: MakeClient, status: int) -> None:
    with Server(http()) as elsewhere, Server(http(b"", status, location=f"{elsewhere.url}/x")) as server:
        with pytest.raises(ApiUnavailable, match="redirects are not followed; check CHECKLY_API_URL"):
            make_client(server.url).fetch_test_session(ID)
        assert len(server.heads) == 1
        assert elsewhere.connections == 0


@pytest.mark.parametrize("location", ["http://[::1", "\xff\xfe", "http://host:port/", "//", "%zz", ""])
def test_a_redirect_to_nonsense_is_just_a_redirect(make_client: MakeClient, location: str) -> None:
    with Server(http(b"", 302, location=location)) as server, pytest.raises(ApiUnavailable, match="302"):
        make_client(server.url).fetch_test_session(ID)


def test_netrc_does_not_replace_the_key(
    make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\ndefault login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with Server(http()) as server:
        make_client(server.url).fetch_test_session(ID)
        assert headers_of(server.heads[0])["authorization"] == f"Bearer {KEY}"


def test_cookies_are_not_sent_back(make_client: MakeClient) -> None:
    with Server(http(set_cookie="a=b; Path=/")) as server:
        client = make_client(server.url)
        client.fetch_test_session(ID)
        client.fetch_test_session(ID)
        assert len(server.heads) == 2
        assert "cookie" not in headers_of(server.heads[1])


@pytest.mark.parametrize(
    "answer",
    [http(), chunked(DOCUMENT), http(gzip.compress(DOCUMENT), content_encoding="gzip")],
    ids=["length", "chunked", "gzip"],
)
def test_one_connection_serves_many_calls(make_client: MakeClient, answer: bytes) -> None:
    with Server(answer) as server:
        client = make_client(server.url)
        for _ in range(10):
            client.fetch_test_session(ID)
        assert (len(server.heads), server.connections) == (10, 1)


def test_threads_share_as_many_connections_as_they_are(make_client: MakeClient) -> None:
    with Server(http()) as server:
        client = make_client(server.url, connections=4)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: client.fetch_test_session(ID), range(100)))
        assert server.connections <= 4
        assert client.calls.requests == 100


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(make_client: MakeClient) -> None:
    with Server(and_close(http())) as server:
        client = make_client(server.url)
        for _ in range(3):
            client.fetch_test_session(ID)
            time.sleep(0.05)
        assert (client.calls.requests, server.connections) == (3, 3)


def test_close_closes_the_connections(make_client: MakeClient) -> None:
    closed = threading.Event()

    def answer(sock: socket.socket, _head: bytes) -> None:
        sock.sendall(http())
        if sock.recv(1) == b"":
            closed.set()

    with Server(answer) as server:
        client = make_client(server.url)
        client.fetch_test_session(ID)
        assert not closed.is_set()
        client.close()
        assert closed.wait(2)


@pytest.mark.parametrize("port_is_closed", [True, False])
def test_a_host_that_cannot_be_reached_is_named(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, port_is_closed: bool
) -> None:
    def unknown(*_args: Any, **_kwargs: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if not port_is_closed:
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    client = make_client("http://127.0.0.1:1" if port_is_closed else "http://api.test")
    reason = "Connection refused" if port_is_closed else "Name or service not known"
    with pytest.raises(
        ApiUnavailable, match=rf"^test session {ID}: {client.api_url} cannot be reached: {reason} \(4"
    ):
        client.fetch_test_session(ID)


# --- TLS ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate of localhost, and a server's context with it."""
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "ca.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(made)]
    try:
        subprocess.run([*command.split(), *names], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return made, context


Certificate = tuple[Path, ssl.SSLContext]


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_ca_bundle_of_the_environment_is_honoured(
    make_client: MakeClient, certificate: Certificate, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ca, context = certificate
    with Server(http(), tls=context) as server:
        monkeypatch.setenv(name, str(ca))
        client = make_client(f"https://localhost:{server.port}")
        client.fetch_test_session(ID)
        client.fetch_test_session(ID)
        assert (len(server.heads), server.connections) == (2, 1)


def test_a_certificate_that_nobody_vouches_for_ends_the_call_at_once(
    make_client: MakeClient, certificate: Certificate
) -> None:
    with Server(http(), tls=certificate[1]) as server:
        client = make_client(f"https://localhost:{server.port}")
        with pytest.raises(ApiUnavailable, match=r"TLS failed: .*self.signed certificate"):
            client.fetch_test_session(ID)
        assert (client.calls.requests, server.heads) == (1, [])


def test_a_certificate_of_another_host_is_refused(
    make_client: MakeClient, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    with (
        Server(http(), tls=certificate[1]) as server,
        pytest.raises(ApiUnavailable, match=r"TLS failed: .*127\.0\.0\.1"),
    ):
        make_client(server.url).fetch_test_session(ID)
    assert server.heads == []


def test_a_handshake_that_breaks_off_is_tried_again(
    make_client: MakeClient, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up_twice() -> None:
            for _ in range(2):
                with listener.accept()[0] as sock:
                    sock.recv(65536)
            with certificate[1].wrap_socket(listener.accept()[0], server_side=True) as sock:
                read_head(sock)
                sock.sendall(http())

        thread = threading.Thread(target=hang_up_twice, daemon=True)
        thread.start()
        client = make_client(f"https://localhost:{listener.getsockname()[1]}")
        client.fetch_test_session(ID)
        thread.join(5)
        assert client.calls.requests == 3


def test_the_deadline_holds_over_tls(
    make_client: MakeClient, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    with Server(slowly(HEAD + LONG, len(HEAD)), tls=certificate[1]) as server:
        takes_a_second(make_client(f"https://localhost:{server.port}", timeout=1.0))


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_ca_bundle_that_is_missing_is_a_config_error(
    make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=rf"{name}: there is no file .*none\.pem"):
        make_client("https://localhost")


def test_a_ca_bundle_that_holds_no_certificate_is_told(
    make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Certificate
) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "empty.pem"))
    with Server(http(), tls=certificate[1]) as server, pytest.raises(ApiUnavailable):
        make_client(f"https://localhost:{server.port}").fetch_test_session(ID)


# --- proxies ------------------------------------------------------------------------------------------------


def with_password(proxy: Server) -> str:
    return f"http://user:{PASSWORD}@127.0.0.1:{proxy.port}"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_for_plain_http_is_used(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with Server(http()) as proxy:
        monkeypatch.setenv(name, with_password(proxy))
        make_client("http://api.test").fetch_test_session(ID)
        (head,) = proxy.heads
    assert head.startswith(f"GET http://api.test{SESSIONS}/{ID} HTTP/1.1\r\n".encode())
    basic = b64encode(f"user:{PASSWORD}".encode()).decode()
    assert headers_of(head)["proxy-authorization"] == f"Basic {basic}"


def test_a_proxy_without_a_scheme_is_used(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(http()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{proxy.port}")
        make_client("http://api.test").fetch_test_session(ID)
        assert len(proxy.heads) == 1


@pytest.mark.parametrize("spared", ["127.0.0.1", "127.0.0.0/8", "*"])
def test_no_proxy_is_honoured(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, spared: str) -> None:
    with Server(http()) as proxy, Server(http()) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        make_client(server.url).fetch_test_session(ID)
        assert (len(proxy.heads), len(server.heads)) == (1, 0)
        monkeypatch.setenv("NO_PROXY", f"example.com,{spared}" if spared != "*" else "*")
        make_client(server.url).fetch_test_session(ID)
        assert (len(proxy.heads), len(server.heads)) == (1, 1)


def test_a_proxy_for_https_sees_neither_the_key_nor_the_account(
    make_client: MakeClient, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, context = certificate
    inner_heads: list[bytes] = []

    def tunnel(sock: socket.socket, _head: bytes) -> None:
        sock.sendall(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
        with context.wrap_socket(sock, server_side=True) as inner:
            while head := read_head(inner):
                inner_heads.append(head)
                inner.sendall(http())

    with Server(tunnel) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", with_password(proxy))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca))
        client = make_client("https://localhost:1234")
        client.fetch_test_session(ID)
        client.fetch_test_session(ID)
        (head,) = proxy.heads
        client.close()
    assert head.startswith(b"CONNECT localhost:1234 HTTP/1.")
    assert "proxy-authorization" in headers_of(head)
    assert KEY.encode() not in head
    assert ACCOUNT.encode() not in head
    assert [headers_of(inner)["authorization"] for inner in inner_heads] == [f"Bearer {KEY}"] * 2
    assert "proxy-authorization" not in headers_of(inner_heads[0])


@pytest.mark.parametrize(("status", "tries"), [(407, 1), (403, 4), (502, 4)])
def test_a_proxy_that_refuses_is_told_from_the_api(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, status: int, tries: int
) -> None:
    with Server(and_close(f"HTTP/1.1 {status} your password {PASSWORD} is bad\r\n\r\n".encode())) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", with_password(proxy))
        client = make_client("https://api.test")
        with pytest.raises(ApiUnavailable, match=rf"the proxy to https://api\.test .*failed: {status}") as caught:
            client.fetch_test_session(ID)
        assert client.calls.requests == tries
        assert secrets_in(printed(caught.value)) == []


def test_a_proxy_for_plain_http_that_wants_a_password_ends_the_call_at_once(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(http(b"", 407)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        client = make_client("http://api.test")
        with pytest.raises(ApiUnavailable, match="proxy wants a password"):
            client.fetch_test_session(ID)
        assert client.calls.requests == 1


@pytest.mark.parametrize(
    "proxy",
    [
        f"socks5://user:{PASSWORD}@127.0.0.1:1",
        f"http://user:{PASSWORD}@127.0.0.1:port",
        f"http://user:{PASSWORD}@",
        f"http://user:{PASSWORD}@[::1",
        f"ftp://user:{PASSWORD}@127.0.0.1",
        *(f"http://user:Sup@r{mark}{PASSWORD}@127.0.0.1:1" for mark in "/?#"),
    ],
)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
def test_a_proxy_that_cannot_be_one_is_a_config_error_without_its_password(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, proxy: str, name: str
) -> None:
    monkeypatch.setenv(name, proxy)
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as caught:
        make_client("https://api.test")
    assert secrets_in(str(caught.value) + "".join(traceback.format_exception(caught.value))) == []


# --- secrets ------------------------------------------------------------------------------------------------


def test_no_secret_is_in_what_the_client_says(
    make_client: MakeClient,
    simulator: Simulator,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    session_id: str,
) -> None:
    said: list[str] = []

    def fetch(client: Client, tell: Callable[[BaseException], str] = everything_behind) -> None:
        said.extend((repr(client), str(client), repr(client.calls)))
        try:
            said.append(repr(client.fetch_test_session(session_id)))
        except EtlError as error:
            said.append(tell(error))
        else:
            said.append("it worked")

    with caplog.at_level(logging.DEBUG), ExitStack() as stack:
        for name in ("etl", "urllib3", "requests"):
            caplog.set_level(logging.DEBUG, logger=name)
        fetch(make_client(simulator.url))
        for status in STATUSES:
            simulator.clear_faults()
            simulator.add_fault(kind="status", status=status, headers={"X-Echo": "x"})
            fetch(make_client(simulator.url))
        for kind in ("reset", "cut", "garbage", "redirect", "not_utf8", "gzip_bomb"):
            simulator.clear_faults()
            simulator.add_fault(kind=kind, size=3 * MB)
            fetch(make_client(simulator.url, max_body=2 * MB))
        simulator.clear_faults()
        answers: list[Answer | bytes] = [*HARDLY_HTTP.values(), silence]
        for answer in answers:
            # What a hostile server sends back is kept out of sight only.
            fetch(make_client(stack.enter_context(Server(answer)).url, timeout=0.2), printed)
        tls = stack.enter_context(Server(http(), tls=certificate[1]))
        fetch(make_client(f"https://localhost:{tls.port}"))
        refuses = stack.enter_context(Server(and_close(b"HTTP/1.1 407 no\r\n\r\n")))
        for url in (with_password(refuses), f"http://user:{PASSWORD}@127.0.0.1:1"):
            monkeypatch.setenv("HTTP_PROXY", url)
            monkeypatch.setenv("HTTPS_PROXY", url)
            for api_url in ("http://api.test", "https://api.test"):
                fetch(make_client(api_url))
    assert "DEBUG" in caplog.text
    assert said.count("it worked") == 1
    assert [text for text in [*said, caplog.text] if secrets_in(text)] == []


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\u20ac", f" {KEY}"])
def test_a_key_that_no_header_can_hold_is_not_shown(make_client: MakeClient, simulator: Simulator, key: str) -> None:
    with pytest.raises(EtlError) as caught:
        make_client(simulator.url, key=key).fetch_test_session(ID)
    assert secrets_in(printed(caught.value)) == []


# --- connections of refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 404, 410, 422, 503])
@pytest.mark.parametrize(
    "refused",
    [lambda status: http(b'{"message": "no"}', status), lambda status: http(b"", status)],
    ids=["with a body", "empty"],
)
def test_a_refusal_does_not_cost_its_connection(
    make_client: MakeClient, status: int, refused: Callable[[int], bytes]
) -> None:
    """1,000 error groups that Checkly does not have cost 1,000 connections, with TLS a handshake each."""
    with Server(refused(status)) as server:
        client = make_client(server.url)
        for _ in range(5):
            with pytest.raises(EtlError):
                client.fetch_error_group(ID)
        assert server.connections == 1


def test_a_large_refusal_is_not_read_and_costs_its_connection(make_client: MakeClient) -> None:
    with Server(http(b" " * 10_000_000, 404)) as server:
        client = make_client(server.url)
        for _ in range(3):
            with pytest.raises(TestSessionNotFound):
                client.fetch_error_group(ID)
        assert server.connections == 3
