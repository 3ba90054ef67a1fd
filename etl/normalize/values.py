"""Values: decode documents with their unknown fields noted, and bring ids, times and numbers into shape."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec

from etl import documents
from etl.documents import UUID, Document, our_id
from etl.errors import PayloadError
from etl.normalize.drift import Drift, shown

S = TypeVar("S", bound=msgspec.Struct)

_MILLISECOND = timedelta(milliseconds=1)


def decode(document: Document, type_: type[S], kind: str, drift: Drift) -> S:
    """Decode, and note as drift every field that `type_` does not have."""
    text, is_cut = documents.with_short_texts(document)
    if is_cut:
        drift.note(kind, "$", f"a text of over {documents.LONGEST_TEXT} bytes, cut in its column")
    return decode_part(msgspec.Raw(text), type_, kind, drift, "$")


def decode_part(raw: msgspec.Raw, type_: type[S], kind: str, drift: Drift, path: str) -> S:
    """The same for a part of a document that stands at `path`."""
    try:
        return documents.decode_part(raw, type_)
    except PayloadError as error:
        with named_fields():
            return _decode_pruned(raw, type_, kind, drift, path, error)


def _decode_pruned(raw: msgspec.Raw, type_: type[S], kind: str, drift: Drift, path: str, first: PayloadError) -> S:
    """Either illegal or only unknown: without its unknown fields it tells."""
    unknown = Drift()
    pruned = _pruned(raw, _type_info(type_), path, kind, unknown)
    if not unknown.found:
        raise first
    value = documents.decode_part(pruned, type_)
    drift.add(unknown)
    return value


def decode_leniently(document: Document, type_: type[S], kind: str, drift: Drift) -> tuple[S, list[str]]:
    """Decode a document, and each field for itself if need be. Returns the names of the fields that are broken.

    A broken field takes its default and is noted as drift. Raises PayloadError for what is no object, and where a
    broken or missing field has no default.
    """
    try:
        return decode(document, type_, kind, drift), []
    except PayloadError as error:
        if error.reason == documents.NESTED:
            raise
    fields = documents.decode(document, dict[str, msgspec.Raw])
    broken = []
    for field in msgspec.structs.fields(type_):
        if field.encode_name in fields and not field.required:
            try:
                _check_field(fields[field.encode_name], field.type, kind, f"$.{field.encode_name}")
            except PayloadError as error:
                drift.note(kind, f"$.{field.encode_name}{error.json_path[1:]}", error.reason)
                broken.append(field.name)
                del fields[field.encode_name]
    return decode_part(_encoded(fields), type_, kind, drift, "$"), broken


def _check_field(raw: msgspec.Raw, type_: Any, kind: str, path: str) -> None:
    """Raise PayloadError if the field is not of its type; what it holds beyond its type is no fault here."""
    documents.decode_part(_pruned(raw, _type_info(type_), path, kind, Drift()), type_)


_MISSING_FIELD = re.compile(r"Object missing required field `(\w+)`")


@contextmanager
def named_fields() -> Iterator[None]:
    """A missing field is named by the path, like any other fault."""
    try:
        yield
    except PayloadError as error:
        missing = _MISSING_FIELD.fullmatch(error.reason)
        if missing is None:
            raise
        raise PayloadError(f"{error.json_path}.{missing[1]}", "is missing") from None


@functools.cache
def _type_info(type_: Any) -> msgspec.inspect.Type:
    return msgspec.inspect.type_info(type_)


def _pruned(raw: msgspec.Raw, type_: msgspec.inspect.Type, path: str, kind: str, drift: Drift) -> msgspec.Raw:
    """Without what the type does not know (noted), at any depth. What is no such value at all stays as it is."""
    if isinstance(type_, msgspec.inspect.UnionType):
        for option in type_.types:
            raw = _pruned(raw, option, path, kind, drift)
        return raw
    try:
        if isinstance(type_, msgspec.inspect.ListType) and _holds_structs(type_.item_type):
            items = documents.decode_part(raw, list[msgspec.Raw])
            return _encoded([_pruned(item, type_.item_type, f"{path}[]", kind, drift) for item in items])
        if isinstance(type_, msgspec.inspect.StructType):
            fields = documents.decode_part(raw, dict[str, msgspec.Raw])
            known = {field.encode_name: field.type for field in type_.fields}
            for name in [name for name in fields if name not in known]:
                drift.note(kind, f"{path}.{name}", shown(fields.pop(name)))
            return _encoded(
                {name: _pruned(item, known[name], f"{path}.{name}", kind, drift) for name, item in fields.items()}
            )
    except PayloadError as error:
        if error.reason == documents.NESTED:
            raise
        # Of another type: whoever decodes it says so.
    return raw


def _holds_structs(type_: msgspec.inspect.Type) -> bool:
    return isinstance(type_, msgspec.inspect.StructType)


def _encoded(value: list[msgspec.Raw] | dict[str, msgspec.Raw]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def our_ids(values: Iterable[str], json_path: str) -> list[str]:
    return list(dict.fromkeys(our_id(value, f"{json_path}[{i}]") for i, value in enumerate(values)))


def other_id(value: str | None, kind: str, json_path: str, drift: Drift) -> str | None:
    """An id that is no key of ours: no UUID becomes null plus drift."""
    if value is None or UUID.fullmatch(value):
        return value
    lowered = value.lower()
    if UUID.fullmatch(lowered):
        return lowered
    drift.note(kind, json_path, value)
    return None


def count(value: float | None, kind: str, json_path: str, drift: Drift) -> int | None:
    """A whole number that a column can hold: any other becomes null plus drift."""
    if value is None or (value.is_integer() and 0 <= value < 2**31):
        return None if value is None else int(value)
    drift.note(kind, json_path, str(value))
    return None


def utc(value: datetime | None, json_path: str) -> datetime | None:
    """In UTC; one without an offset is taken as UTC."""
    if value is None or value.tzinfo is UTC:
        return value
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise PayloadError(json_path, "lies outside of the years 1 to 9999 in UTC") from None


def utc_or_none(value: datetime | None, kind: str, json_path: str, drift: Drift) -> datetime | None:
    """In UTC; a time that lies outside of the years 1 to 9999 there becomes null plus drift."""
    try:
        return utc(value, json_path)
    except PayloadError as error:
        drift.note(kind, json_path, error.reason)
        return None


def is_json_column(value: Any, depth: int) -> bool:
    """Whether a value can stand in a JSON column: nested in at most `depth` levels, every number in range.

    Without recursion, because the value may be as deep as a sender likes.
    """
    level = [value]
    for _ in range(depth + 1):
        if any(isinstance(item, documents.OutOfRange) for item in level):
            return False
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return True
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return False


def text(value: str | int | None) -> str | None:
    return None if value is None else str(value)


def milliseconds(started_at: datetime | None, stopped_at: datetime | None) -> float | None:
    if started_at is None or stopped_at is None:
        return None
    return (stopped_at - started_at) / _MILLISECOND
