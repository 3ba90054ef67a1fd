"""Result details: what a result's own document tells about it, and what of that document may be kept."""

from __future__ import annotations

from typing import Any

import msgspec

from etl import documents
from etl.documents import TEST_SESSION_RESULT, UUID, Document, check_id
from etl.normalize.drift import SIGNED, Drift, may_be_signed
from etl.normalize.models import ResultDetail
from etl.normalize.rows import ResultDetailRows
from etl.normalize.values import count, decode, other_id

_LONGEST_SCALAR = 100_000  # bytes of a value that is kept
_DETAIL_FIELDS = frozenset({"filePath", "scheduleError", "traceId"})  # texts of theirs become columns


def reduced_result(document: Document) -> Document:
    """What may be kept of a result's document: its own scalar fields and the ids of its error groups.

    Its sections (apiCheckResult and the like: logs, requests, responses, assets) are large, and hold secrets of
    customers and signed URLs. A text with a URL that has a query string or a fragment may be signed as well: where
    it has a column, those are cut off, and else it is left out, whatever field it is in.
    """
    kept: dict[str, msgspec.Raw | str | list[str]] = {}
    for name, raw in documents.decode(document, dict[str, msgspec.Raw]).items():
        value = memoryview(raw)
        if name.endswith("CheckResult") or may_be_signed(name) or len(value) > _LONGEST_SCALAR:
            continue
        first = bytes(value[:1])
        if name == "errorGroupIds" and first == b"[":
            ids = documents.decode_part(raw, list[Any])
            kept[name] = [id_ for id_ in ids if isinstance(id_, str) and UUID.fullmatch(id_.lower())]
        elif first == b'"' and may_be_signed(text := documents.decode_part(raw, str)):
            if name in _DETAIL_FIELDS:
                kept[name] = SIGNED.sub(r"\1", text)
        elif first not in b"[{":
            kept[name] = raw
    return documents.known(msgspec.json.encode(kept))


def normalize_result_detail(document: Document, *, test_session_result_id: str) -> ResultDetailRows:
    """What a document that `reduced_result` made tells. Raises PayloadError for another id than the one asked for."""
    drift = Drift()
    detail = decode(document, ResultDetail, TEST_SESSION_RESULT, drift)
    own, alias = detail.test_session_result_id, detail.id
    check_id(own or alias or "", test_session_result_id, "$.testSessionResultId")

    def other(value: str | None, path: str) -> str | None:
        return other_id(value, TEST_SESSION_RESULT, path, drift)

    return ResultDetailRows(
        columns={
            "sequence_id": other(detail.sequence_id, "$.sequenceId"),
            "attempts": count(detail.attempts, TEST_SESSION_RESULT, "$.attempts", drift),
            "file_path": detail.file_path,
            "private_location_id": other(detail.private_location_id, "$.privateLocationId"),
            "over_max_response_time": detail.over_max_response_time,
            "is_cancelled": detail.is_cancelled,
            "schedule_error": detail.schedule_error,
            "trace_id": detail.trace_id,
        },
        drift=drift,
    )
