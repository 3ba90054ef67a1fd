"""Error groups: read the documents of those that are unknown, or older than a session that refers to them.

Hides when a page of them is cheaper than single calls, and what is one group's fault and what the account's. It makes
no row of a group: what was forgotten while it was read stays forgotten.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Connection

from etl import normalize, warehouse
from etl.checkly import PAGE_SIZE
from etl.database import now
from etl.documents import ERROR_GROUP, Document
from etl.errors import (
    ApiUnavailable,
    EtlError,
    Forbidden,
    NotInPlan,
    PayloadError,
    TestSessionNotFound,
    UnusableSession,
)
from etl.normalize import Drift
from etl.pipeline.run import AccountRun
from etl.warehouse import Payload

logger = logging.getLogger(__name__)

GIVE_UP_AFTER = 3  # that failed in a row, each after its short retries: a minute or more, of an API that hangs


def refresh_error_groups(run: AccountRun) -> None:
    """Read what is wanted with the fewest calls: pages of a hundred where many are, single ones where few are.

    Test sessions are safe by now: what fails here is a warning, and the next pass asks again.
    """
    if not run.export.error_groups or run.etl.stop.is_set():
        return
    wanted, known, asked_at = run.database.read(
        lambda c: (
            warehouse.error_groups_to_fetch(c, run.account.id, is_default=run.is_default),
            warehouse.count_error_groups(c, run.account.id),
            now(c),
        )
    )
    pages = math.ceil(known / PAGE_SIZE)
    if not wanted:
        return
    run.progress.begin("error groups", len(wanted))
    remaining = set(wanted)
    try:
        if len(remaining) > pages:
            try:
                _list(run, remaining, pages, asked_at)
            except (Forbidden, NotInPlan):
                raise
            except UnusableSession as error:
                logger.debug("%s; each error group is asked for by itself", error)
        _fetch_each(run, remaining, asked_at)
    except (Forbidden, NotInPlan) as error:
        # It is the account that may not read them, not this one error group.
        run.tell(
            f"{error}: error groups are known by their ids only; set export.error_groups to false", "error-groups"
        )
    except (ApiUnavailable, UnusableSession) as error:
        run.warn(f"error groups could not be read, the next pass tries again: {error}", "error-groups")


def _fetch_each(run: AccountRun, ids: Collection[str], asked_at: datetime) -> None:
    """One that cannot be read holds no other up; some in a row are the API's fault. Raises what that is."""
    failed: EtlError | None = None
    in_a_row = 0
    # In another order each time, so that it is not always the same few that are asked for before it is given up.
    for error_group_id in random.sample(sorted(ids), len(ids)):
        if run.etl.stop.is_set():
            break
        try:
            _fetch(run, error_group_id, asked_at)
            in_a_row = 0
        except ApiUnavailable as error:
            failed = error
            in_a_row += 1
            if in_a_row == GIVE_UP_AFTER:
                break
    if failed is not None:
        raise failed


def _list(run: AccountRun, remaining: set[str], expected_pages: int, asked_at: datetime) -> None:
    pages = run.client.list_error_groups()
    number = 0
    while (page := run.call(lambda: next(pages, None))) is not None:
        number += 1
        found: dict[str, Document] = {}  # a page may hold one twice
        for document in page:
            try:
                error_group_id, *_ = normalize.entry_key(document)
            except PayloadError:
                continue  # whatever it is, it is none that we want
            if error_group_id in remaining:
                found[error_group_id] = document
        _save(run, list(found.items()), asked_at)
        remaining.difference_update(found)
        # The account may have far more groups than we refer to: a page must be worth more than single calls.
        if len(remaining) <= 1 or number >= expected_pages + len(remaining) // 2 or run.etl.stop.is_set():
            return


def _fetch(run: AccountRun, error_group_id: str, asked_at: datetime) -> None:
    try:
        document = run.call(lambda: run.client.fetch_error_group(error_group_id))
    except TestSessionNotFound:
        # Not asked for ever: as a known one, it is asked for again when it is a day old and referred to.
        run.database.run(lambda c: warehouse.error_groups_gone(c, [error_group_id]))
    except NotInPlan:
        raise
    except UnusableSession as error:
        if isinstance(error, Forbidden):
            run.call(lambda: next(run.client.list_error_groups()))  # raises it, too, if it is meant for all of them
        run.tell(f"{error}; the next pass asks again", "error-groups")
        if isinstance(error, PayloadError):
            drift = _drift_of(error)
            run.database.run(lambda c: warehouse.save_drift(c, [drift]))
    else:
        _save(run, [(error_group_id, document)], asked_at)


def _save(run: AccountRun, found: Sequence[tuple[str, Document]], asked_at: datetime) -> None:
    batch: list[normalize.ErrorGroupRows] = []
    drifts: list[Drift] = []
    for error_group_id, document in found:
        try:
            batch.append(normalize.normalize_error_group(document, error_group_id=error_group_id))
        except PayloadError as error:
            # It stays unknown, so that the next pass asks again; `status` shows what is wrong with it.
            logger.debug("error group %s has an unusable document: %s", error_group_id, error)
            drifts.append(_drift_of(error))
            continue
        drifts.append(batch[-1].drift)

    usable = {rows.error_group["error_group_id"] for rows in batch}

    def write(connection: Connection) -> None:
        there = warehouse.lock_error_groups(connection, usable)  # the others were forgotten while they were read
        if run.export.keep_payloads:
            payloads = [
                Payload(ERROR_GROUP, id_, run.account.id, None, document) for id_, document in found if id_ in there
            ]
            warehouse.save_payloads(connection, payloads)
        kept = [rows for rows in batch if rows.error_group["error_group_id"] in there]
        warehouse.save_error_groups(connection, kept, account_id=run.account.id, asked_at=asked_at)
        warehouse.save_drift(connection, drifts)

    run.database.run(write)
    run.progress.advance(len(found))


def _drift_of(error: PayloadError) -> Drift:
    drift = Drift()
    drift.note(ERROR_GROUP, error.json_path, error.reason)
    return drift
