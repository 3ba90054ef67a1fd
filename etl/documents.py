"""API documents as received: bytes in, checked text, typed values out.

Hides the difference between what JSON allows and what our decoder and the databases take. msgspec
refuses a lone surrogate (`"\\ud800"`), which is legal JSON, and neither database can hold it, nor NUL, in
a text. Both are decoded as U+FFFD; the text that is kept in `etl_payloads` stays as it was received.

Documents may be as large as `checkly.max_body`: nothing here copies one without need, or makes a `str` of it
(four times its size, if it holds one emoji).
"""

from __future__ import annotations

import codecs
import json
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, TypeVar

import msgspec

from etl.errors import PayloadError

T = TypeVar("T")

# Kinds of documents, in `etl_payloads.kind` and `etl_drift.kind`.
TEST_SESSION = "test_session"
TEST_SESSION_SUMMARY = "test_session_summary"  # a list entry
TEST_SESSION_RESULT = "test_session_result"
ERROR_GROUP = "error_group"

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
REPLACEMENT = "\ufffd"
_SCANNER = json.JSONDecoder(parse_float=str, parse_int=str)  # finds ends; numbers of any size pass
_NO_SPACE = re.compile(r"[^ \t\n\r]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# Every NUL and every surrogate is written as one of these escapes: a raw one is no JSON, or no UTF-8.
_MAY_BE_UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
# Each escape once, so that an escaped backslash hides what follows it; a pair of surrogates is one character.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u0000|u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_PIECE = 1 << 20
LONGEST_TEXT = 4_000_000  # bytes, as written in JSON: a column holds no longer one, and nor does our memory
_LEAP_SECOND = re.compile(rb'"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d):60((?:\.\d+)?(?:[Zz]|[+-]\d\d:?\d\d)?)"')
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_HIGH_AT_END = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
NESTED = "nested too deeply to be read"


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
    text = body.removeprefix(codecs.BOM_UTF8)
    _check_utf8(text)
    try:
        _decoder(msgspec.Raw).decode(_without_unstorable(text))
    except RecursionError:
        raise PayloadError("$", NESTED) from None
    except msgspec.DecodeError as error:  # its text holds positions, never values
        raise NotJson(f"not JSON: {error}") from None
    return known(text)


def _check_utf8(text: bytes) -> None:
    """In pieces: the whole as a `str` might be four times as large."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(text)
    for at in range(0, len(text), _PIECE):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(view[at : at + _PIECE], final=at + _PIECE >= len(text))
        except UnicodeDecodeError as error:
            raise NotJson(f"not UTF-8 (byte {at - pending + error.start + 1})") from None


def _without_unstorable(text: bytes) -> bytes | bytearray:
    """The same JSON with U+FFFD in the place of NUL and lone surrogates, of the same length."""
    if not _MAY_BE_UNSTORABLE.search(text):
        return text
    replaced: bytearray | None = None
    for escape in _ESCAPE.finditer(text):
        if escape[1] is not None:
            replaced = bytearray(text) if replaced is None else replaced
            replaced[escape.start(1) : escape.end(1)] = b"ufffd"
    return text if replaced is None else replaced


def known(body: bytes) -> Document:
    """A document whose text was checked before: one of ours, or a part of a checked one."""
    return Document(body=body, sha256=sha256(body).hexdigest())


def decode(document: Document, type_: type[T]) -> T:
    """Decode into a typed value. Raises PayloadError with the JSON path and the reason."""
    return decode_part(_without_unstorable(document.body), type_)


def with_short_texts(document: Document) -> tuple[bytes | bytearray, bool]:
    """The document for `decode_part`, without the rest of texts over LONGEST_TEXT; and whether there was any."""
    text = _without_unstorable(document.body)
    if len(text) <= LONGEST_TEXT:
        return text, False
    short = bytearray()
    copied = 0
    for string in _STRING.finditer(text):
        if string.end() - string.start() - 2 > LONGEST_TEXT:  # without its quotes
            short += memoryview(text)[copied : string.start() + 1]
            short += _cut(bytes(memoryview(text)[string.start() + 1 : string.start() + 1 + LONGEST_TEXT]))
            copied = string.end() - 1
    if not copied:
        return text, False
    short += memoryview(text)[copied:]
    return short, True


def _cut(begin: bytes) -> bytes:
    """The beginning of a long text, without half an escape or half a character at its end."""
    if b"\\" in begin[-12:]:
        begin = begin[: begin.index(b"\\", len(begin) - 12)]
        begin = begin[:-6] if _HIGH_AT_END.search(begin) else begin
        run = len(begin) - len(begin.rstrip(b"\\"))
        begin = begin[: len(begin) - run % 2]
    return begin.decode(errors="ignore").encode()


def decode_part(part: msgspec.Raw | bytes | bytearray, type_: type[T]) -> T:
    """The same for a part that was decoded as `msgspec.Raw`."""
    try:
        return _decoder(type_).decode(part)
    except (RecursionError, msgspec.MsgspecError) as error:
        moved = _without_leap_seconds(part)
        if moved is None:
            raise _payload_error(error) from None
    return decode_part(moved, type_)


def _without_leap_seconds(part: msgspec.Raw | bytes | bytearray) -> bytes | None:
    """The same JSON with each leap second as the second after it; None if it holds none.

    RFC 3339 allows :60 (https://www.rfc-editor.org/rfc/rfc3339#section-5.6), Python and our decoder do not.
    """
    if not _LEAP_SECOND.search(part):
        return None
    moved = _LEAP_SECOND.sub(_second_after, memoryview(part))
    return None if moved == part else moved


def _second_after(leap: re.Match[bytes]) -> bytes:
    try:
        minute = datetime.fromisoformat(leap[1].decode()) + timedelta(minutes=1)
    except (ValueError, OverflowError):
        return leap[0]  # no time at all, or the last second of the year 9999
    return b'"' + minute.isoformat(timespec="seconds").encode() + leap[2] + b'"'


def _decoder(type_: type[T]) -> msgspec.json.Decoder[T]:
    """msgspec crashes the process where two threads meet a type for the first time (0.22): one builds it."""
    decoder = _decoders.get(type_)
    if decoder is None:
        with _building:
            decoder = _decoders.get(type_) or _decoders.setdefault(type_, msgspec.json.Decoder(type_))
    return decoder


_building = threading.Lock()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def items(document: Document, field: str | None = None) -> list[Document]:
    """The items of the array that the document is, or has as `field`, each as received. Raises PayloadError."""
    path = "$" if field is None else f"$.{field}"
    clean = _without_unstorable(document.body)
    whole: msgspec.Raw | bytes | bytearray = clean
    try:
        if field is not None:
            fields = decode_part(whole, dict[str, msgspec.Raw])
            if field not in fields:
                raise PayloadError("$", f"Object missing required field `{field}`")
            whole = fields[field]
        raws = decode_part(whole, list[msgspec.Raw])
    except PayloadError as error:
        raise PayloadError(path if error.reason.startswith("Expected `array`") else "$", error.reason) from None
    if clean is document.body:
        return [known(bytes(raw)) for raw in raws]
    try:
        return [known(text) for text in _items_as_received(document.text, field)]
    except RecursionError as error:
        raise _payload_error(error) from None


def _items_as_received(text: str, field: str | None) -> Iterator[bytes]:
    """By hand, for a text that msgspec does not take as it is; what it is was checked before."""
    begin = _skip_space(text, 0)
    if field is not None:
        begin = {name: at for name, at, _ in _members(text, begin)}[field]
    for _, at, end in _members(text, begin):
        yield text[at:end].encode()


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


def _payload_error(error: Exception) -> PayloadError:
    if isinstance(error, RecursionError):
        return PayloadError("$", NESTED)
    reason, _, path = str(error).partition(" - at `")
    return PayloadError(path.rstrip("`") or "$", reason)


def untyped(document: Document) -> Any:
    """Decode into dicts and lists, with what no database can hold replaced. Raises PayloadError."""
    return untyped_part(_without_unstorable(document.body))


def untyped_part(part: msgspec.Raw | bytes | bytearray) -> Any:
    """The same for a part that was decoded as `msgspec.Raw`."""
    try:
        # Decoded here: for bytes, `json` guesses whether they are UTF-16.
        text = bytes(part).decode()
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer)
    except (RecursionError, ValueError) as error:
        raise _payload_error(error) from None


def our_id(value: str, json_path: str) -> str:
    """A key of ours: a UUID in lower case. Raises PayloadError."""
    lowered = value.lower()
    if not UUID.fullmatch(lowered):
        raise PayloadError(json_path, "is not a UUID")
    return lowered


def check_id(found: str, asked: str, json_path: str) -> None:
    """Raises PayloadError for the document of another id than the one that was asked for."""
    if our_id(found, json_path) != asked:
        raise PayloadError(json_path, f"is the document of {found.lower()}, not of {asked} that was asked for")


def storable(value: Any) -> Any:
    """The same value with U+FFFD in the place of NUL and lone surrogates."""
    if isinstance(value, str):
        return _UNSTORABLE.sub(REPLACEMENT, value)
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value


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
