"""`sync --wait`: export chosen test sessions until they are final, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sqlalchemy import Connection

from etl import session_queue, warehouse
from etl.errors import Interrupted
from etl.pipeline.drain import drain
from etl.pipeline.run import AccountRun, Etl, Outcome

FIRST_POLL = 2.0  # seconds until a running one is read again; somebody waits, so it is sooner than in a pass
LONGEST_POLL = 20.0


def export_until_final(run: AccountRun, ids: Sequence[str]) -> None:
    """Read those of the ids that are of this account again and again, until nothing is left to wait for.

    Raises what `drain` raises, Interrupted at the end of --max-time.
    """
    pause = FIRST_POLL
    while True:
        drain(run, only=ids)
        waiting, failing = run.database.read(partial(_waiting, run=run, ids=ids))
        if not waiting and not failing:
            return
        if run.stop.wait(pause):
            raise Interrupted("stopped while waiting for test sessions to end")
        pause = min(1.5 * pause, LONGEST_POLL)
        # Those that failed wait for as long as any other would: the count of their attempts goes on.
        run.database.run(partial(session_queue.enqueue, ids=waiting))


def _waiting(connection: Connection, run: AccountRun, ids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Ids of this account that are still to be exported: those without, and those with failures."""
    held = warehouse.held_columns(connection, ids)
    waiting: list[str] = []
    failing: list[str] = []
    for row in session_queue.waiting_rows(connection, ids, account_id=run.account.id, is_default=run.is_default):
        session = held.get(row.test_session_id)
        if row.attempts:
            failing.append(row.test_session_id)
        elif row.state == session_queue.LEASED or session is None or not session["is_final"]:
            waiting.append(row.test_session_id)
    return waiting, failing


def tell_what_became(etl: Etl, ids: Sequence[str], outcome: Outcome) -> None:
    """Put the sessions into the outcome; one that is not stored as final is a warning."""
    outcome.waited, letters, waiting_for = etl.database.read(
        lambda c: (
            warehouse.verdicts(c, ids),
            session_queue.dead_letters(c, ids=ids),
            session_queue.waiting_for(c, ids),
        )
    )
    stored = {row["test_session_id"]: row for row in outcome.waited}
    dead = {letter.test_session_id for letter in letters}
    others = {id_: account for id_, account in waiting_for.items() if account not in etl.settings.checkly.account_ids}
    for id_ in ids:
        if id_ in dead:
            problem = "could not be exported; see: checkly-etl dead list"
        elif id_ in others:
            problem = f"is of account {others[id_]}, which is not in these settings: add it, or run where it is"
        elif id_ not in stored:
            problem = "is not exported yet; the next sync goes on with it"
        elif not stored[id_]["is_final"]:
            problem = f"is stored as {stored[id_]['status']}, and not final yet; the next sync goes on with it"
        else:
            continue
        outcome.warn(f"test session {id_} {problem}", "not-final")
