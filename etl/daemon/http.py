"""/livez, /healthz and /metrics. Hides the server; knows only what `state` and the metrics tell.

The metrics ask for the bearer token where there is one. Probes of a cluster carry none, so the other two do not.
"""

from __future__ import annotations

import hmac
import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from etl.daemon.metrics import Exposition
from etl.daemon.state import State
from etl.errors import ConfigError

logger = logging.getLogger(__name__)

IDLE_SECONDS = 10  # a client that says nothing for so long is left
TEXT = "text/plain; charset=utf-8"


class Server:
    """Listens on `listen` (host:port; port 0 takes a free one) inside `with`. Raises ConfigError if it cannot."""

    def __init__(self, listen: str, token: str | None, state: State, metrics: Exposition) -> None:
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        is_v6 = ":" in host

        class Handler(_Handler):
            pass

        Handler.token, Handler.state, Handler.metrics = token, state, staticmethod(metrics)

        class Listener(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if is_v6 else socket.AF_INET
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                logger.debug("a client of observe.listen went away", exc_info=True)

        try:
            self._server = Listener((host, int(port)), Handler)
        except OSError as error:
            raise ConfigError(f"observe.listen: {listen} cannot be used: {error.strerror or error}") from error
        found = self._server.server_address
        self.address = f"[{found[0]!s}]:{found[1]}" if is_v6 else f"{found[0]!s}:{found[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    timeout = IDLE_SECONDS
    server_version = "checkly-etl"
    sys_version = ""
    token: str | None
    state: State
    metrics: Exposition

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/livez":
            self._probe(*self.state.is_live())
        elif path == "/healthz":
            self._probe(*self.state.is_well())
        elif path == "/metrics":
            if not self._may_read():
                self._send(401, "send the token of observe.token: `Authorization: Bearer TOKEN`\n")
                return
            body, content_type = type(self).metrics(self.headers.get("Accept", ""))
            self._send(200, body, content_type)
        else:
            self._send(404, "there are /livez, /healthz and /metrics\n")

    do_HEAD = do_GET

    def _probe(self, is_good: bool, said: str) -> None:
        self._send(200 if is_good else 503, f"{'ok' if is_good else 'not ok'}: {said}\n")

    def _may_read(self) -> bool:
        if self.token is None:
            return True
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        is_it = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
        return scheme.lower() == "bearer" and is_it

    def _send(self, status: int, body: str | bytes, content_type: str = TEXT) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: probes come every few seconds."""
