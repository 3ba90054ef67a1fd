"""Intake: ids out of texts and inboxes become rows of the queue.

An inbox's message is acknowledged only after its ids are committed. So a crash brings it once more, which changes
nothing: an id that waits already waits, and one that is exported already is found unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Connection

from etl import accounts, inbox, session_queue
from etl.config import InboxFile, InboxQueue, Settings
from etl.errors import InboxUnavailable, Interrupted, LeaseLost, WarehouseUnavailable, runbook
from etl.inbox import Batch, Source, ledger
from etl.pipeline.run import Etl, InboxCount, Outcome, in_thread
from etl.redaction import Redactor

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Enqueued:
    """What became of texts: `ids` are queued, `discarded` ones stay given up, `empty` texts hold none.

    `not_taken` are lines of the other texts that name an id among other words, so that it is not known what it is of.
    """

    ids: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    not_taken: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)  # what else to do about these texts and lines


def enqueue_texts(
    connection: Connection,
    settings: Settings,
    texts: Iterable[str],
    *,
    source: str = session_queue.ENQUEUE,
    force: bool = False,
) -> Enqueued:
    """Queue every id of the texts, each for the account that its link names if that is one of ours."""
    result = Enqueued()
    found: dict[str, None] = {}
    named: dict[str, str] = {}
    for text in texts:
        of_text = inbox.find(text)
        result.advice += [advice for advice in of_text.advice if advice not in result.advice]
        if not of_text.ids:
            result.empty.append(text)
            continue
        result.not_taken += of_text.not_taken
        found |= dict.fromkeys(of_text.ids)
        named |= inbox.find_accounts(text)
    # What nobody ever exported from would wait for ever: it is tried with the default account.
    ours = settings.checkly.account_ids | (accounts.known(connection) if named else set())
    of_ours = {id_: account for id_, account in named.items() if account in ours}
    _, result.discarded = session_queue.enqueue(connection, found, accounts=of_ours, force=force, source=source)
    result.ids = [id_ for id_ in found if id_ not in result.discarded]
    return result


def take_in(etl: Etl, outcome: Outcome) -> None:
    """Read every inbox to its end. One that cannot be read is a warning, and the pass goes on without it."""
    for settings in etl.settings.inbox:
        if etl.stop.is_set():
            return
        name = inbox.name_of(settings)
        reading = etl.database.run(partial(ledger.begin, inbox=name, lease=etl.settings.export.lease))
        if reading is None:
            logger.debug("inbox %s is read by another process", name)
            continue
        count = outcome.inboxes[name] = InboxCount()
        error: str | None = "it was not read to its end"
        try:
            if _read(etl, settings, reading, count):
                error = None
        except LeaseLost as lost:
            logger.debug("%s", lost)
        except Interrupted:
            return
        except InboxUnavailable as unavailable:
            error = str(unavailable)
            count.is_up = False
            outcome.warn(f"{error}; the pass goes on without it", "inbox-down")
        except WarehouseUnavailable:
            raise
        except Exception as bug:  # raised at the end of the run: one odd message must not hold up everything else
            logger.critical(
                "inbox %s: a bug in checkly-etl, please report it", name, exc_info=bug, extra=runbook("bug")
            )
            error = f"a bug in checkly-etl ({type(bug).__name__})"
            count.is_up = False
            outcome.bug = outcome.bug or bug
        finally:
            etl.database.run(partial(ledger.end, reading=reading, error=error))
        if count.rejected:
            plural = "s" * (count.rejected > 1)
            outcome.warn(
                f"inbox {name}: {count.rejected} message{plural} without a test session id, kept in "
                + "; ".join(["etl_inbox_rejects", *count.advice, "see: checkly-etl status"]),
                "inbox-reject",
            )


def _read(etl: Etl, settings: InboxFile | InboxQueue, reading: ledger.Reading, count: InboxCount) -> bool:
    """Whether it was read to its end."""
    position = reading.position
    with closing(inbox.open_source(settings)) as source:
        while not etl.stop.is_set():
            batch = in_thread(etl, partial(source.receive, position))
            if batch is None:
                return True
            taken = etl.database.run(partial(_commit, etl=etl, source=source, batch=batch, reading=reading))
            count.messages += len(batch.messages)
            count.rejected += len(taken.empty) + len(taken.not_taken)
            count.advice += [advice for advice in taken.advice if advice not in count.advice]
            position = batch.position or position
            in_thread(etl, partial(source.acknowledge, batch))
    return False


def _commit(connection: Connection, etl: Etl, source: Source, batch: Batch, reading: ledger.Reading) -> Enqueued:
    if not ledger.received(connection, reading, batch.position, etl.settings.export.lease):
        raise LeaseLost(f"inbox {source.name} took too long and went to another process")
    texts = [message.text for message in batch.messages]
    taken = enqueue_texts(connection, etl.settings, texts, source=session_queue.INBOX)
    hide = Redactor(etl.settings.secrets).hide  # what CI sends by mistake may be the key itself
    ledger.reject(connection, source.name, [hide(text) for text in (*taken.empty, *taken.not_taken)])
    return taken
