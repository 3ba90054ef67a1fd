"""The daemon: `sync` on a schedule, one pass at a time, until a signal; and how it is, over HTTP.

    schedule    when a pass is due: crontab(5) or an interval, on APScheduler
    state       what happened: passes, misses, totals; whether it lives and is well
    metrics     the same in Prometheus' words
    http        /livez, /healthz, /metrics
    systemd     readiness, where NOTIFY_SOCKET is set

A pass is the pipeline's; here is only when, and what is told of it. A pass that fails never ends the schedule. All
that HTTP tells is what the last pass left in memory: a probe costs no query, and answers when the database does not.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack

from etl import inbox, pipeline, schema
from etl.daemon import systemd
from etl.daemon.http import Server
from etl.daemon.metrics import exposition
from etl.daemon.schedule import TICK_SECONDS, Schedule
from etl.daemon.state import State
from etl.errors import EtlError, Interrupted, SchemaNotCurrent, WarehouseUnavailable, runbook
from etl.pipeline import Etl, Outcome

__all__ = ["State", "run", "run_pass"]

logger = logging.getLogger(__name__)


def run(etl: Etl, *, version: str, stopped_by: Callable[[], str]) -> None:
    """Pass after pass until `etl.stop` is set; then the pass under way is waited for, and the log says by what.

    Raises SchemaNotCurrent at the start, where `migrate` is needed, and ConfigError for an address that cannot be
    listened on. A warehouse that cannot be reached yet is no reason not to start.
    """
    accounts = etl.settings.require_accounts()
    try:
        etl.database.read(schema.check_current)
    except SchemaNotCurrent:
        raise
    except (WarehouseUnavailable, Interrupted) as error:
        logger.warning("%s; the first pass tries again", error, extra=runbook("warehouse"))
    state = State(
        loss_warning_hours=etl.settings.observe.loss_warning_hours,
        accounts=[account.id for account in accounts],
        inboxes=[inbox.name_of(source) for source in etl.settings.inbox],
    )
    listening = "no address listened on (observe.listen)"
    with ExitStack() as stack:
        if etl.settings.observe.listen is not None:
            token = etl.settings.observe.token
            server = Server(
                etl.settings.observe.listen,
                token.reveal() if token else None,
                state,
                exposition(state, version=version, schema=schema.HEAD),
            )
            stack.enter_context(server)
            listening = f"listening on {server.address}"
        schedule = Schedule(
            etl.settings.schedule,
            run_pass=lambda: run_pass(etl, state),
            tick=lambda: _tick(state),
            skipped=state.skipped,
            tick_seconds=min(TICK_SECONDS, (systemd.watchdog_seconds() or math.inf) / 2),
        )
        logger.info("the daemon begins: %s, first pass now; warehouse %s; %s", schedule, etl.database.name, listening)
        stack.enter_context(schedule)
        systemd.notify("READY=1")
        while not etl.stop.wait(1.0):
            schedule.look_at_the_clock()
        systemd.notify("STOPPING=1")
        logger.info("the daemon ends: %s", stopped_by())


def run_pass(etl: Etl, state: State) -> Outcome:
    """One pass, whatever becomes of it; told to `state`, and in one line to the log."""
    outcome = Outcome()
    state.began(outcome)
    began = time.monotonic()
    try:
        etl.database.read(schema.check_current)
        pipeline.sync(etl, outcome)
    except EtlError as error:
        if str(error) not in outcome.failures and not etl.stop.is_set():
            outcome.fail(str(error), error.section)
    except Exception as error:
        outcome.bug = error
        logger.critical("a bug in checkly-etl, please report it", exc_info=error, extra=runbook("bug"))
    finally:
        # Nothing is held between two passes: a server may restart, a pooler need not keep our connections.
        etl.database.close()
    seconds = time.monotonic() - began
    state.ended(outcome, seconds)
    logger.info(
        "%s, %.1f s",
        outcome.summary("sync"),
        seconds,
        extra={"command": "sync", "seconds": round(seconds, 3), **outcome.fields},
    )
    return outcome


def _tick(state: State) -> None:
    state.ticked()
    systemd.watchdog()
