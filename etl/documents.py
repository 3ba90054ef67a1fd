"""API documents as received: bytes in, checked text, typed values out.

Hides the difference between what JSON allows and what our decoder and the databases take. msgspec
refuses a lone surrogate (`"\\ud800"`), which is legal JSON, and neither database can hold it, nor NUL, in
a text. A document that may hold either takes a slower way, in which both become U+FFFD; the text that is
kept in `etl_payloads` stays as it was received.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

import msgspec

from etl.errors import PayloadError

T = TypeVar("T")

REPLACEMENT = "\ufffd"
_SCANNER = json.JSONDecoder(parse_float=str, parse_int=str)  # finds ends; numbers of any size pass
_NO_SPACE = re.compile(r"[^ \t\n\r]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# Every NUL and every surrogate is written as one of these escapes: a raw one is no JSON, or no UTF-8.
_MAY_BE_UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


class NotJson(ValueError):
    """The bytes are no whole JSON text in UTF-8: a fault of the way, not of the document."""


@dataclass(frozen=True, slots=True)
class Document:
    """One JSON document. `body` is its text as received; `sha256` its hash in hex."""

    body: bytes
    sha256: str

    @property
    def text(self) -> str:
        """The text as received (without a byte order mark)."""
        return self.body.decode()


def read(body: bytes) -> Document:
    """Check that `body` is one whole JSON text. Raises NotJson; PayloadError if it is nested too deeply."""
    text = body.removeprefix(b"\xef\xbb\xbf")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8 (byte {error.start + 1})") from None
    try:
        if _MAY_BE_UNSTORABLE.search(text):
            _loads(text)
        else:
            msgspec.json.decode(text, type=msgspec.Raw)
    except RecursionError:
        raise PayloadError("$", "nested too deeply to be read") from None
    except ValueError as error:  # both decoders' errors; their texts hold positions, never values
        raise NotJson(f"not JSON: {error}") from None
    return known(text)


def known(body: bytes) -> Document:
    """A document whose text was checked before: one of ours, or a part of a checked one."""
    return Document(body=body, sha256=sha256(body).hexdigest())


def decode(document: Document, type_: type[T]) -> T:
    """Decode into a typed value. Raises PayloadError with the JSON path and the reason."""
    if _MAY_BE_UNSTORABLE.search(document.body):
        return convert(untyped(document), type_)
    with _payload_errors():
        return msgspec.json.decode(document.body, type=type_)


def items(document: Document, field: str | None = None) -> list[Document]:
    """The items of the array that the document is, or has as `field`, each as received. Raises PayloadError."""
    # By hand: msgspec.Raw would do it, but refuses the whole page for one lone surrogate.
    path = "$" if field is None else f"$.{field}"
    text = document.text
    with _payload_errors():
        begin = _skip_space(text, 0)
        if field is not None:
            if text[begin] != "{":
                raise PayloadError("$", "Expected `object`")
            fields = {name: at for name, at, _ in _members(text, begin)}
            if field not in fields:
                raise PayloadError("$", f"Object missing required field `{field}`")
            begin = fields[field]
        if text[begin] != "[":
            raise PayloadError(path, "Expected `array`")
        return [known(text[at:end].encode()) for _, at, end in _members(text, begin)]


def _members(text: str, at: int) -> Iterator[tuple[str | None, int, int]]:
    """Name, begin and end of what is in the array or object at `at` of a text that was checked before."""
    is_object = text[at] == "{"
    at = _skip_space(text, at + 1)
    while text[at] not in "]}":
        name = None
        if is_object:
            name, at = _SCANNER.raw_decode(text, at)
            at = _skip_space(text, _skip_space(text, at) + 1)
        _, end = _SCANNER.raw_decode(text, at)
        yield name, at, end
        at = _skip_space(text, end)
        if text[at] == ",":
            at = _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    found = _NO_SPACE.search(text, at)
    return found.start() if found else len(text)


def convert(value: Any, type_: type[T]) -> T:
    """The typed value of an untyped one. Raises PayloadError like `decode`."""
    with _payload_errors():
        return msgspec.convert(value, type_)


@contextmanager
def _payload_errors() -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise PayloadError("$", "nested too deeply to be read") from None
    except msgspec.ValidationError as error:
        reason, _, path = str(error).replace("got `OutOfRange`", "got a number out of range").partition(" - at `")
        raise PayloadError(path.rstrip("`") or "$", reason) from None
    except msgspec.DecodeError as error:
        raise PayloadError("$", str(error)) from None


def untyped(document: Document) -> Any:
    """Decode into dicts and lists, with what no database can hold replaced. Raises PayloadError."""
    with _payload_errors():
        value = _loads(document.body)
        return storable(value) if _MAY_BE_UNSTORABLE.search(document.body) else value


def storable(value: Any) -> Any:
    """The same value with U+FFFD in the place of NUL and lone surrogates."""
    if isinstance(value, str):
        return _UNSTORABLE.sub(REPLACEMENT, value)
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value


def _loads(text: bytes) -> Any:
    # Decoded here: for bytes, `json` guesses whether they are UTF-16.
    return json.loads(text.decode(), parse_constant=_no_constant, parse_float=_finite, parse_int=_integer)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class OutOfRange:
    """A number that no column can hold. In a field that is not typed it is of no account."""

    def __repr__(self) -> str:
        return "a number out of range"


def _finite(digits: str) -> float | OutOfRange:
    value = float(digits)
    return value if math.isfinite(value) else OutOfRange()


def _integer(digits: str) -> int | float | OutOfRange:
    # Python refuses to read integers of thousands of digits; as numbers they are out of range anyway.
    return int(digits) if len(digits) < 300 else _finite(digits)
