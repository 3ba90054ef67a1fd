"""A TCP proxy that drops, delays and cuts: what networks, firewalls and load balancers do."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


def _readable(*sockets: socket.socket) -> list[socket.socket]:
    """Those that have something to read, within a tenth of a second. (`select` ends at 1,024 open files.)"""
    poll = select.poll()
    by_number = {one.fileno(): one for one in sockets}
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(100)]


class Proxy:
    """Forwards 127.0.0.1:`port` to a host and port. Change its attributes while it runs.

    `refuse`: new connections are reset. `delay`: seconds before each piece is passed on. `stall`: nothing is passed
    on, and nobody is told. `cut_probability`: chance that a piece is the last of its connection, passed on in half.
    """

    def __init__(self, host: str, port: int, *, seed: int = 1) -> None:
        self._target = (host, port)
        self.refuse = False
        self.stall = False
        self.delay = 0.0
        self.cut_probability = 0.0
        self.cuts = 0
        self.accepted = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self.cut()
        self._thread.join(10)
        self._listener.close()

    def cut(self) -> int:
        """Reset every connection that there is. Returns how many."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair, reset=True)
        return len(pairs)

    def _accept(self) -> None:
        while not self._closing.is_set():
            if not _readable(self._listener):
                continue
            client, _ = self._listener.accept()
            self.accepted += 1
            if self.refuse:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=10)
        except OSError:
            client.close()
            return
        pair = (client, server)
        with self._lock:
            self._pairs.add(pair)
        others = {client: server, server: client}
        try:
            while not self._closing.is_set():
                for ready in _readable(*pair):
                    piece = ready.recv(65536)
                    if self.delay:
                        time.sleep(self.delay)
                    while self.stall and not self._closing.is_set():
                        time.sleep(0.02)
                    if not piece:
                        return
                    with self._lock:
                        is_cut = self._random.random() < self.cut_probability
                    others[ready].sendall(piece[: len(piece) // 2] if is_cut else piece)
                    if is_cut:
                        self.cuts += 1
                        self._end(pair, reset=True)
                        return
        except (OSError, ValueError):
            return
        finally:
            self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket], *, reset: bool = False) -> None:
        with self._lock:
            if pair not in self._pairs:
                return
            self._pairs.discard(pair)
        for one in pair:
            try:
                if reset:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                else:
                    one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()
