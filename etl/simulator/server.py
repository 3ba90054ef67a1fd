"""The HTTP side: routes, keys, the rate limit, compression, and faults acted out on the wire.

Hides sockets and threads. One thread a connection; `Simulator` is a context manager that leaves no
socket and no thread behind.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import socketserver
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

from etl.simulator.documents import COMPRESS_FROM, ApiError, Body, Documents, Query, encode
from etl.simulator.faults import Fault, Faults, fault_from, gzip_bomb
from etl.simulator.timeline import stable_uuid
from etl.simulator.world import World

JSON_TYPE = "application/json; charset=utf-8"
UUID_PATTERN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
GARBAGE = "<!DOCTYPE html>\n<html><head><title>Just a moment...</title></head><body>Checking.</body></html>\n"


@dataclass(slots=True)
class RecordedRequest:
    """`status` is 0 while there is no answer, and stays 0 when the connection was reset instead."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    at: float  # time.monotonic() of its arrival
    status: int = 0


@dataclass(slots=True)
class Answer:
    status: int
    body: Body
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = JSON_TYPE


class SlidingWindow:
    """`limit` calls in any `window` seconds, for each account. A call that is refused takes no place."""

    def __init__(self, limit: int, window: float) -> None:
        self._limit = limit
        self._window = window
        self._lock = threading.Lock()
        self._arrivals: dict[str, deque[float]] = {}

    def wait(self, account_id: str, now: float) -> float:
        """0: come in; else the seconds until there is a place."""
        if not self._limit:
            return 0
        with self._lock:
            arrivals = self._arrivals.setdefault(account_id, deque())
            while arrivals and arrivals[0] <= now - self._window:
                arrivals.popleft()
            if len(arrivals) >= self._limit:
                return arrivals[0] + self._window - now
            arrivals.append(now)
            return 0


class Simulator:
    """A Checkly look-alike. It listens from the start and serves inside `with`.

    `accounts` gives every account a world of its own; without it any account id sees `world`.
    """

    def __init__(
        self,
        world: World | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        rate_limit: int = 600,
        rate_window: float = 60.0,
        accounts: Mapping[str, World] | None = None,
    ) -> None:
        if world is None:
            world = next(iter(accounts.values())) if accounts else World()
        self.world = world
        self.account_id = world.account_id
        self.api_key = api_key
        self._own = Documents(world)
        self._accounts: dict[str, Documents] | None = None
        if accounts is not None:
            self._accounts = {self.account_id: self._own}
            for account_id, other in accounts.items():
                self._accounts[account_id.lower()] = self._own if other is world else Documents(other)
            if world in accounts.values():
                self.account_id = next(id_.lower() for id_, other in accounts.items() if other is world)
        self.faults = Faults(world.seed)
        self.limiter = SlidingWindow(rate_limit, rate_window)
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._requests: deque[RecordedRequest] = deque(maxlen=100_000)
        self._thread: threading.Thread | None = None
        self._server = _Server(self, host, port)

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    # -- life ------------------------------------------------------------------------------------------

    def __enter__(self) -> Simulator:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.close_all()

    def serve_forever(self) -> None:
        """Serves in the foreground, inside `with` or without it, until Ctrl-C."""
        with contextlib.suppress(KeyboardInterrupt), self if self._thread is None else contextlib.nullcontext():
            self.stopping.wait()

    # -- for tests -------------------------------------------------------------------------------------

    @property
    def requests(self) -> list[RecordedRequest]:
        """What arrived so far, in that order; the newest 100,000. Calls of /_simulator are left out."""
        with self._lock:
            return list(self._requests)

    def clear_requests(self) -> None:
        with self._lock:
            self._requests.clear()

    def record(self, request: RecordedRequest) -> None:
        with self._lock:
            self._requests.append(request)

    def add_fault(self, **fields: object) -> None:
        self.faults.add(fault_from(fields))

    def clear_faults(self) -> None:
        self.faults.clear()

    def put_test_session(self, detail: dict[str, Any] | bytes, entry: dict[str, Any] | None = None) -> None:
        """Adds or replaces one test session. Bytes are sent as they are.

        It is found under the entry's id, else under the detail's. Without an entry the list stays as it
        is: a new test session is then known by its id only.
        """
        self._own.put_test_session(detail, entry)

    def remove_test_session(self, test_session_id: str) -> None:
        self._own.remove_test_session(test_session_id)

    def put_result(self, test_session_id: str, result_id: str, document: dict[str, Any] | bytes) -> None:
        """Adds or replaces the detail of one result; without it a session that was put has one made of its row."""
        self._own.put_result(test_session_id, result_id, document)

    def put_error_group(self, group: dict[str, Any]) -> None:
        self._own.put_error_group(group)

    # -- the API ---------------------------------------------------------------------------------------

    def answer(self, path: str, query: Query, headers: Mapping[str, str]) -> Answer:
        """What a GET gets when nothing is wrong with the way. Raises ApiError."""
        parts = path.split("/")[1:]
        match parts:
            case ["next", "accounts", _] | ["v1", *_]:
                self._check_key(headers)
            case _:
                raise ApiError(404, f"There is nothing at {path}.")
        asked = headers.get("x-checkly-account", "").lower()
        if parts[0] == "next":
            self._documents(parts[2].lower())
            return _ok(encode({"id": parts[2], "name": "Acme QA", "runtimeId": "2025.04"}))
        documents = self._documents(asked)
        account_id = asked if UUID_PATTERN.fullmatch(asked) else self.account_id
        match parts[1:]:
            case ["test-sessions"]:
                body = documents.test_sessions(query, account_id)
            case ["test-sessions", id_]:
                body = documents.test_session(_uuid(id_))
            case ["test-sessions", id_, "completion"]:
                body = self._completion(documents, _uuid(id_), query)
            case ["test-sessions", id_, "results", result_id]:
                body = documents.result(_uuid(id_), _uuid(result_id))
            case ["test-session-error-groups"]:
                body = documents.error_groups(query)
            case ["test-session-error-groups", "projects", project_id]:
                body = documents.error_groups(query, _uuid(project_id))
            case ["test-session-error-groups", id_]:
                body = documents.error_group(_uuid(id_))
            case _:
                raise ApiError(404, f"There is nothing at {path}.")
        return Answer(200, body)

    def _check_key(self, headers: Mapping[str, str]) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(401, "Send your API key: `Authorization: Bearer KEY`.")
        if self.api_key is not None and key.strip() != self.api_key:
            raise ApiError(401, "This API key is not valid.")

    def _documents(self, account_id: str) -> Documents:
        if self._accounts is None or not account_id:
            return self._own
        if account_id not in self._accounts:
            raise ApiError(403, "This API key has no access to this account.")
        return self._accounts[account_id]

    def _completion(self, documents: Documents, test_session_id: str, query: Query) -> Body:
        try:
            seconds = float(query.get("maxWaitSeconds", ["30"])[-1])
        except ValueError:
            seconds = math.nan
        if not 1 <= seconds <= 30:
            raise ApiError(400, "maxWaitSeconds must be a number from 1 to 30.")
        deadline = time.monotonic() + seconds
        while not documents.is_final(test_session_id):
            left = deadline - time.monotonic()
            if left <= 0 or self.stopping.wait(min(left, 0.1)):
                raise ApiError(408, f"Test session {test_session_id} is still running. Ask again.")
        return documents.test_session(test_session_id)

    def control(self, method: str, path: str, body: bytes) -> Answer:
        """The simulator's own routes. Raises ApiError."""
        if path != "/_simulator/faults":
            raise ApiError(404, f"There is nothing at {path}.")
        match method:
            case "GET":
                return _ok(encode(self.faults.as_json()))
            case "DELETE":
                self.faults.clear()
                return _ok(b"[]")
            case "POST":
                try:
                    ordered = json.loads(body)
                    faults = [fault_from(f) for f in (ordered if isinstance(ordered, list) else [ordered])]
                except ValueError as error:
                    raise ApiError(400, f"This is no fault: {error}.") from None
                self.faults.add(*faults)
                return Answer(201, Body(encode(self.faults.as_json())))
            case _:
                raise ApiError(405, f"{method} is not allowed here.")


def _ok(body: bytes) -> Answer:
    return Answer(200, Body(body))


def _uuid(text: str) -> str:
    if not UUID_PATTERN.fullmatch(text):
        raise ApiError(400, f"{text!r} is not a UUID.")
    return str(UUID(text))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: who wants to know looks at `Simulator.requests`."""

    def _serve(self) -> None:
        arrived = time.monotonic()
        simulator = self.server.simulator
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._read_body(headers)
        path, _, query_string = self.path.partition("?")
        if path.startswith("/_simulator/"):
            try:
                answer = simulator.control(self.command, path, body)
            except ApiError as error:
                answer = Answer(error.status, Body(error.body()))
            self._send(answer, headers)
            return
        query = parse_qs(query_string, keep_blank_values=True) if query_string else {}
        request = RecordedRequest(self.command, path, query, headers, arrived)
        simulator.record(request)
        wait = 0.0
        if path.startswith("/v1/"):
            wait = simulator.limiter.wait(headers.get("x-checkly-account", "").lower(), arrived)
        if wait:
            answer = Answer(429, Body(ApiError(429, "Rate limit exceeded.").body()))
            answer.headers["Retry-After"] = str(math.ceil(wait))
            fault = None
        else:
            fault = simulator.faults.pick(self.path)
            answer = self._answer(fault, path, query, headers)
        if fault is not None and fault.kind == "reset":
            self._reset()
            return
        request.status = answer.status
        self._send(answer, headers, fault)

    # Any method gets an answer in JSON; all but GET the same one.
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve

    def _read_body(self, headers: Mapping[str, str]) -> bytes:
        if "transfer-encoding" in headers:  # nobody needs it here; what follows would not be understood
            self.close_connection = True
        length = headers.get("content-length", "0")
        return self.rfile.read(int(length)) if length.isdigit() and length != "0" else b""

    def _answer(self, fault: Fault | None, path: str, query: Query, headers: Mapping[str, str]) -> Answer:
        simulator = self.server.simulator
        match fault:
            case Fault(kind="reset"):
                return Answer(0, Body(b""))
            case Fault(kind="status"):
                content = fault.body.encode() if fault.body is not None else _error_body(fault.status)
                return Answer(fault.status, Body(content), dict(fault.headers))
            case Fault(kind="garbage"):
                page = (fault.body if fault.body is not None else GARBAGE).encode()
                return Answer(200, Body(page), dict(fault.headers), "text/html; charset=utf-8")
            case Fault(kind="redirect"):
                return Answer(302, Body(b""), {"Location": fault.location, **fault.headers})
            case Fault(kind="gzip_bomb"):
                return _ok(b"{}")
            case Fault(kind="delay"):
                simulator.stopping.wait(fault.seconds)
        try:
            if self.command != "GET":
                raise ApiError(405, f"{self.command} is not allowed here.")
            answer = simulator.answer(path, query, headers)
        except ApiError as error:
            answer = Answer(error.status, Body(error.body()))
        match fault:
            case Fault(kind="wrong_id"):
                answer.body = Body(_with_another_id(answer.body.plain, path))
            case Fault(kind="not_utf8"):
                answer.body = Body(_not_utf8(answer.body.plain))
        return answer

    def _send(self, answer: Answer, headers: Mapping[str, str], fault: Fault | None = None) -> None:
        kind = fault.kind if fault else ""
        content, encoding = answer.body.plain, ""
        if kind == "gzip_bomb" and fault:
            content, encoding = gzip_bomb(fault.size), "gzip"
        elif len(content) > COMPRESS_FROM and "gzip" in headers.get("accept-encoding", ""):
            content, encoding = answer.body.gzipped(), "gzip"
        if kind == "cut":
            self.close_connection = True
        fields = {
            "Date": self.date_time_string(),
            "Content-Type": answer.content_type,
            "Content-Length": str(len(content)),
        }
        if encoding:
            fields["Content-Encoding"] = encoding
        if self.close_connection:
            fields["Connection"] = "close"
        fields |= answer.headers
        phrase = HTTPStatus(answer.status).phrase if answer.status in _KNOWN else "Unknown"
        lines = [f"HTTP/1.1 {answer.status} {phrase}", *(f"{name}: {text}" for name, text in fields.items())]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        if self.command == "HEAD" or answer.status in (204, 304):
            content = b""
        if kind == "cut":
            content = content[: len(content) // 2]
        if kind == "trickle" and fault:
            self._trickle(head, content, fault)
        else:
            self.wfile.write(head + content)  # one write: one packet for a small answer

    def _trickle(self, head: bytes, content: bytes, fault: Fault) -> None:
        at_once, slowly = (b"", head + content) if fault.headers_too else (head, content)
        self.wfile.write(at_once)
        for byte in slowly:
            if self.server.simulator.stopping.wait(fault.seconds):
                self.close_connection = True
                return
            self.wfile.write(bytes((byte,)))

    def _reset(self) -> None:
        """RST, not FIN: no lingering, and the descriptor closed before anybody can say good-bye."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


_KNOWN = frozenset(int(status) for status in HTTPStatus)


def _error_body(status: int) -> bytes:
    return ApiError(status, "A fault, as ordered.").body() if status in _KNOWN else b"{}"


def _with_another_id(content: bytes, path: str) -> bytes:
    """The same document, but of an id that was not asked for (the last one in the path)."""
    asked = UUID_PATTERN.findall(path)
    return content.replace(asked[-1].lower().encode(), stable_uuid("not", asked[-1]).encode()) if asked else content


def _not_utf8(content: bytes) -> bytes:
    """Breaks the first string, so that the JSON around it stays good."""
    return content.replace(b'"', b'"\xff\xfe', 1)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, simulator: Simulator, host: str, port: int) -> None:
        self.simulator = simulator
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of the host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = (str(part) for part in self.server_address[:2])  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._open.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def close_all(self) -> None:
        """Hangs up on everybody and waits until the threads have let go of their sockets."""
        self.server_close()
        with self._changed:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._open, timeout=5)
