"""Error groups: their documents become rows."""

from __future__ import annotations

import json

from etl import documents
from etl.documents import ERROR_GROUP, Document, check_id
from etl.errors import PayloadError
from etl.normalize.drift import KEY_LENGTH, Drift, shown
from etl.normalize.models import ErrorGroup, RootCauseAnalysis
from etl.normalize.rows import ErrorGroupRows, Row
from etl.normalize.values import decode, is_json_column, other_id, text, utc

_ANALYSIS_DEPTH = 64  # a deeper one may exhaust the stack of what serializes it; Checkly's own are 4 deep


def normalize_error_group(document: Document, *, error_group_id: str) -> ErrorGroupRows:
    """Rows of one error group. Raises PayloadError for another id than the one asked for."""
    drift = Drift()
    group = decode(document, ErrorGroup, ERROR_GROUP, drift)
    check_id(group.id, error_group_id, "$.id")
    environments = dict.fromkeys(name[:KEY_LENGTH] for name in group.environments or ())
    return ErrorGroupRows(
        error_group={
            "error_group_id": error_group_id,
            "project_id": other_id(group.project_id, ERROR_GROUP, "$.projectId", drift),
            "error_hash": group.error_hash,
            "raw_error_message": group.raw_error_message,
            "cleaned_error_message": group.cleaned_error_message,
            "first_seen": utc(group.first_seen, "$.firstSeen"),
            "last_seen": utc(group.last_seen, "$.lastSeen"),
            "archived_until_next_event": group.archived_until_next_event,
        },
        environments=list(environments),
        playwright_tests=[
            {
                "error_group_id": error_group_id,
                "position": position,
                "project_name": test.project_name,
                "spec_id": text(test.spec_id),
                "test_file": test.test_file,
                "test_title": test.test_title,
                "suite_path": test.suite_path,
            }
            for position, test in enumerate(group.pwt_metadata or (), 1)
        ],
        root_cause_analyses=[
            _root_cause_analysis_row(error_group_id, position, analysis, drift)
            for position, analysis in enumerate(group.root_cause_analyses or (), 1)
        ],
        drift=drift,
    )


def _root_cause_analysis_row(error_group_id: str, position: int, document: RootCauseAnalysis, drift: Drift) -> Row:
    path = f"$.rootCauseAnalyses[{position - 1}]"
    try:
        whole = documents.untyped_part(document.analysis)
    except PayloadError:
        whole = documents.OutOfRange()
    if not is_json_column(whole, _ANALYSIS_DEPTH):
        drift.note(ERROR_GROUP, "$.rootCauseAnalyses[].analysis", shown(document.analysis))
        whole = None
    analysis = whole if isinstance(whole, dict) else {}

    def said(name: str) -> str | None:
        value = analysis.get(name)
        return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return {
        "error_group_id": error_group_id,
        "position": position,
        "root_cause_analysis_id": other_id(document.id, ERROR_GROUP, "$.rootCauseAnalyses[].id", drift),
        "created_at": utc(document.created_at, f"{path}.created_at"),
        "provider": document.provider,
        "model": document.model,
        "duration_ms": document.duration_ms,
        "classification": said("classification"),
        "user_impact": said("userImpact"),
        "root_cause": said("rootCause"),
        "code_fix": said("codeFix"),
        "analysis": whole,
    }
