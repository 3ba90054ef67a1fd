"""Faults on order: which request goes wrong, in which way, and how often.

Hides how a fault is chosen and counted, and checks what was ordered. How one is acted out on the wire
is the business of `server.py`.
"""

from __future__ import annotations

import functools
import random
import re
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KINDS = (
    "status",  # answer with `status`, `headers` and `body`
    "delay",  # answer after `seconds`
    "reset",  # no answer: the connection is reset
    "cut",  # the length of the whole, half of the body, then the connection is closed
    "garbage",  # 200 with an HTML page
    "redirect",  # 302 to `location`
    "trickle",  # the body, with `headers_too` also the head, byte by byte, `seconds` apart
    "wrong_id",  # 200 with the document of another id than the one asked for
    "not_utf8",  # 200 with a body that is no UTF-8
    "gzip_bomb",  # 200 with a small body that unpacks to `size` bytes
)


@dataclass(slots=True)
class Fault:
    """`times` None: until cleared. `skip`: so many matching requests are let through first."""

    kind: str
    match: str = ".*"
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    seconds: float = 1.0
    times: int | None = None
    probability: float = 1.0
    skip: int = 0
    location: str = "/_simulator/elsewhere"
    headers_too: bool = False
    size: int = 200_000_000
    seen: int = 0  # requests that matched
    hits: int = 0  # requests that went wrong

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*_CHECKS, "seen", "hits")}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_pattern(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


def _is_headers(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(text, str) and "\r" not in text and "\n" not in text for pair in value.items() for text in pair
    )


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kind": (lambda v: v in KINDS, f"one of {', '.join(KINDS)}"),
    "match": (_is_pattern, "a regular expression"),
    "status": (lambda v: _is_count(v) and 200 <= v <= 599, "a status from 200 to 599"),
    "headers": (_is_headers, "an object of strings, each on one line"),
    "body": (lambda v: v is None or isinstance(v, str), "a string or null"),
    "seconds": (lambda v: _is_number(v) and 0 <= v <= 86_400, "a number of seconds, 0 or more"),
    "times": (lambda v: v is None or (_is_count(v) and v > 0), "a whole number from 1, or null"),
    "probability": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "skip": (_is_count, "a whole number, 0 or more"),
    "location": (lambda v: isinstance(v, str) and "\n" not in v and "\r" not in v, "a URL"),
    "headers_too": (lambda v: isinstance(v, bool), "true or false"),
    "size": (lambda v: _is_count(v) and v <= 10**10, "a number of bytes, at most 10^10"),
}


def fault_from(fields: object) -> Fault:
    """Raises a ValueError that names every mistake."""
    if not isinstance(fields, dict):
        raise ValueError("a fault is a JSON object")
    problems = []
    if "kind" not in fields:
        problems.append("kind is missing")
    for name, value in fields.items():
        if name not in _CHECKS:
            problems.append(f"{name} is not a field of a fault ({', '.join(_CHECKS)})")
        elif not _CHECKS[name][0](value):
            problems.append(f"{name} must be {_CHECKS[name][1]}, not {value!r}")
    if problems:
        raise ValueError("; ".join(problems))
    return Fault(**fields)


class Faults:
    """The faults in force. The first one that applies to a request wins."""

    def __init__(self, seed: int) -> None:
        self._lock = threading.Lock()
        self._rng = random.Random(seed)
        self._faults: list[Fault] = []

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._faults.extend(faults)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def as_json(self) -> list[dict[str, Any]]:
        with self._lock:
            return [fault.as_json() for fault in self._faults]

    def pick(self, target: str) -> Fault | None:
        """The fault that this request (its path and query) meets."""
        with self._lock:
            for fault in self._faults:
                is_spent = fault.times is not None and fault.hits >= fault.times
                if is_spent or not re.search(fault.match, target):
                    continue
                fault.seen += 1
                if fault.seen > fault.skip and self._rng.random() < fault.probability:
                    fault.hits += 1
                    return fault
        return None


@functools.lru_cache(maxsize=2)
def gzip_bomb(size: int) -> bytes:
    """A gzip stream, a thousandth of `size`, of spaces: leading white space is good JSON."""
    packer = zlib.compressobj(level=9, wbits=31)
    block = b" " * 1_000_000
    parts = [packer.compress(block) for _ in range(size // len(block))]
    parts.append(packer.compress(b" " * (size % len(block))))
    parts.append(packer.flush())
    return b"".join(parts)
