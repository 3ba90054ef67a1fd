"""Replay: stored payloads become rows again, without the API."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection

from etl import normalize, session_queue, warehouse
from etl.database import chunks
from etl.documents import ERROR_GROUP, TEST_SESSION, TEST_SESSION_RESULT, TEST_SESSION_SUMMARY
from etl.errors import PayloadError, runbook
from etl.normalize import TestSessionRows
from etl.pipeline.run import Etl, Outcome
from etl.pipeline.saving import Details, regroup, save_test_sessions

logger = logging.getLogger(__name__)

BATCH = 100
NEWER_ROWS = (
    "some test sessions are newer than their stored payloads (export.keep_payloads was off): they stay as they are; "
    "fetch them again with: checkly-etl backfill --force"
)


def replay_payloads(etl: Etl, etl_run_id: str, outcome: Outcome) -> None:
    """Rewrite the rows of every stored payload, a hundred in a transaction; what it wrote, `outcome` counts."""
    etl.progress.begin("replaying", etl.database.read(lambda c: warehouse.count_payloads(c, TEST_SESSION)))
    of_sessions = partial(warehouse.payload_ids, kind=TEST_SESSION)
    of_groups = partial(warehouse.payload_ids, kind=ERROR_GROUP)
    for next_ids, rebuild in (
        (of_sessions, _test_sessions),
        (warehouse.ids_without_payload, _executions),
        (of_groups, _error_groups),
    ):
        after: str | None = None
        while not etl.stop.is_set():
            ids = etl.database.read(partial(next_ids, after=after, limit=BATCH))
            if not ids:
                break
            after = ids[-1]
            saved, problems = etl.database.run(partial(rebuild, ids=ids, etl_run_id=etl_run_id))
            outcome.counters["test_sessions_saved"] += len(saved.changed)
            outcome.counters["results_saved"] += saved.results
            for problem in problems:
                outcome.warn(problem, "replay")
            etl.progress.advance(len(saved.changed))
    if without := etl.database.read(warehouse.count_without_payload):
        # No reason to exit 1: whoever prunes has chosen that.
        logger.warning(
            "test sessions without a stored document (export.keep_payloads, prune): %s; their executions are folded "
            "again, all else stays as it is; those that Checkly still has are read again by: checkly-etl backfill "
            "--force --since …",
            f"{without:,}",
            extra=runbook("replay"),
        )


def _test_sessions(connection: Connection, ids: Sequence[str], etl_run_id: str) -> tuple[warehouse.Saved, list[str]]:
    held = warehouse.held_columns(connection, ids, lock=True)
    details = warehouse.load_payloads(connection, TEST_SESSION, ids)
    summaries = warehouse.load_payloads(connection, TEST_SESSION_SUMMARY, ids)
    batch: list[TestSessionRows] = []
    problems: list[str] = []
    given_up = session_queue.discarded(connection, ids)
    for id_, (detail, account_id) in details.items():
        row = held.get(id_)
        if row is None and id_ in given_up:
            continue
        summary = summaries[id_][0] if id_ in summaries else None
        if row is not None:
            # While export.keep_payloads was off, rows went on without their payloads.
            if row["payload_sha256"] != detail.sha256:
                problems.append(NEWER_ROWS)
                _fold_again(connection, row, etl_run_id)
                continue
            if summary is not None and row["summary_sha256"] != summary.sha256:
                summary = None  # then the row's own columns say what the list said last
        try:
            batch.append(
                normalize.normalize_test_session(
                    detail, test_session_id=id_, account_id=account_id, summary=summary, held=row
                )
            )
        except PayloadError as error:
            problems.append(f"the stored payload of test session {id_} cannot be replayed: {error}")
    of_results = _details(connection, [rows.test_session_id for rows in batch], problems)
    saved = save_test_sessions(connection, batch, etl_run_id, rewrite=True, details=of_results)
    # The document of a dead letter is kept, too: this release could read it.
    session_queue.bury_no_more(connection, [id_ for id_ in saved.changed if id_ not in held])
    return saved, problems


def _executions(connection: Connection, ids: Sequence[str], etl_run_id: str) -> tuple[warehouse.Saved, list[str]]:
    """Fold the stored results of test sessions whose document is not stored."""
    for test_session in warehouse.held_columns(connection, ids, lock=True).values():
        _fold_again(connection, test_session, etl_run_id)
    return warehouse.Saved(), []


def _fold_again(connection: Connection, test_session: Mapping[str, Any], etl_run_id: str) -> None:
    if regroup(connection, test_session):
        warehouse.stamp(connection, test_session["test_session_id"], etl_run_id)


def _details(connection: Connection, ids: Sequence[str], problems: list[str]) -> Details:
    """The details of results whose own documents are stored."""
    details: dict[str, dict[str, dict[str, Any]]] = {}
    for test_session_id, fetched in warehouse.result_payloads(connection, ids).items():
        for some in chunks(sorted(fetched)):
            for id_, (document, _) in warehouse.load_payloads(connection, TEST_SESSION_RESULT, some).items():
                try:
                    rows = normalize.normalize_result_detail(document, test_session_result_id=id_)
                except PayloadError as error:
                    problems.append(f"the stored payload of result {id_} cannot be replayed: {error}")
                    continue
                told = {**rows.columns, "details_fetched_at": fetched[id_]}
                details.setdefault(test_session_id, {})[id_] = told
    return details


def _error_groups(connection: Connection, ids: Sequence[str], etl_run_id: str) -> tuple[warehouse.Saved, list[str]]:
    problems: list[str] = []
    by_account: dict[str, list[normalize.ErrorGroupRows]] = {}
    for id_, (document, account_id) in warehouse.load_payloads(connection, ERROR_GROUP, ids, lock=True).items():
        try:
            rows = normalize.normalize_error_group(document, error_group_id=id_)
        except PayloadError as error:
            problems.append(f"the stored payload of error group {id_} cannot be replayed: {error}")
            continue
        by_account.setdefault(account_id or "", []).append(rows)
    for account_id, batch in sorted(by_account.items()):
        warehouse.save_error_groups(connection, batch, account_id=account_id or None, asked_at=None)
    return warehouse.Saved(), problems
