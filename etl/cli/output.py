"""What a command prints: its result on stdout, as lines or as one JSON object, what went wrong on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from etl.cli.arguments import Arguments
from etl.errors import EXIT_OK, ConfigError
from etl.redaction import Redactor
from etl.terminal import one_line

if TYPE_CHECKING:
    from etl.cli.composition import Signals
    from etl.pipeline import Outcome
    from etl.session_queue import DeadLetter


@contextmanager
def to_stdout(what: str = "the result") -> Iterator[None]:
    """What is written within goes out at once: that a disk is full is told while there is somebody to tell it."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # Python would try, and fail, once more with what is left in its buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader went away (`| head`), which is his right
            raise ConfigError(f"{what} cannot be written to stdout: {error.strerror}") from None


def say(*lines: str) -> None:
    """Print lines of a result."""
    with to_stdout():
        for line in lines:
            print(line)


def _complain(text: str) -> None:
    with suppress(OSError):  # nobody reads it: no reason to end otherwise
        print(text, file=sys.stderr)


def fail(
    problems: Sequence[str], exit_code: int, redactor: Redactor, wants_json: bool, outcome: str = "failed"
) -> int:
    for problem in problems:
        _complain(redactor.hide(one_line(f"checkly-etl: {problem}")))
    if wants_json:
        with suppress(ConfigError):  # why this failed is told
            _say_json(
                {"outcome": outcome, "error": redactor.hide("; ".join(problems)) or None, "exit_code": exit_code}
            )
    return exit_code


def done(
    arguments: Arguments, value: Mapping[str, Any], text: Sequence[str], problems: Sequence[str], code: int
) -> int:
    """End a command that is no run: its result on stdout, as one object or as lines, what went wrong on stderr."""
    hide = arguments.redactor.hide  # what the API told may hold what it was told
    for problem in problems:
        _complain(hide(one_line(f"checkly-etl: {problem}")))
    if arguments.json:
        outcome = {"outcome": "ok" if code == EXIT_OK else "failed", "error": "; ".join(problems) or None}
        _say_json(_hidden({**outcome, "exit_code": code, **value}, hide))
    else:
        say(*(hide(one_line(line)) for line in text))
    return code


def end_run(arguments: Arguments, command: str, outcome: Outcome, signals: Signals) -> int:
    exit_code = 128 + signals.number if signals.number is not None else outcome.exit_code
    error = arguments.redactor.hide(outcome.error) if outcome.error else None
    is_quiet = arguments.quiet and exit_code == EXIT_OK  # a cron job that went well sends no mail
    if arguments.json:
        _say_json(
            {"command": command, "outcome": outcome.word, "error": error, "exit_code": exit_code}
            | {"test_sessions_listed": outcome.listed, "test_sessions_enqueued": outcome.enqueued}
            | outcome.counters
            | ({"test_sessions": outcome.waited} if getattr(arguments, "wait", None) else {})
        )
    elif not is_quiet:
        say(
            outcome.summary(command),
            *(
                f"test session {row['test_session_id']} {row['status']}, "
                + (f"verdict {row['verdict']}" if row["is_final"] else "not final yet")
                for row in outcome.waited
            ),
        )
    if getattr(arguments, "log_format", "text") == "json":
        logging.getLogger(__name__).info(outcome.summary(command), extra={"command": command, **outcome.fields})
    if outcome.is_interrupted or (outcome.is_out_of_time and not is_quiet):
        _complain("checkly-etl: stopped before the end, claims given back; run it again to go on")
    if outcome.counters["test_sessions_dead"]:
        _complain("checkly-etl: some test sessions could not be exported; see: checkly-etl dead list")
    return exit_code


def status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    from etl.warehouse import when_lost

    yield f"warehouse      {status['warehouse']}"
    yield f"test sessions  {status['test_sessions']:,}"
    for reason in status["replay_due"]:
        yield f"replay due     run checkly-etl replay: {reason}"
    if due := status["result_details_due"]:
        yield f"result details {due:,} still to be read"
    for row in status["freshness"]:
        yield f"account        {row['account_id'] or '(not assigned yet)'}"
        yield f"  last success   {utc(row['last_success_at'])}"
        yield f"  newest session {utc(row['newest_started_at'])}"
        work = f"{row['due']} due, {row['scheduled']} scheduled, {row['leased']} leased, {row['dead']} dead"
        yield f"  queue          {work}"
        if until := status["paused"].get(row["account_id"]):
            yield f"  paused         by the API until {utc(until)}: no pass calls it before"
        hours = row["hours_until_loss"]
        if hours is not None:
            yield f"  loss           {when_lost(hours)}: the oldest session that is known and not exported"
    more = status["not_listed"]
    yield from _listing(
        "dead letters (checkly-etl dead list)",
        [f"{row['test_session_id']}  {row['error_kind']}: {row['last_error']}" for row in status["dead"]],
        more["dead"],
    )
    yield from _listing(
        "stale: RUNNING when last seen, and not read again",
        [f"{row['test_session_id']}  {row['status']} since {utc(row['started_at'])}" for row in status["stale"]],
        more["stale"],
    )
    yield from _listing(
        "inboxes",
        [
            f"{row['inbox']}: last read {utc(row['last_read_at'])}, last message {utc(row['last_received_at'])}, "
            f"{row['rejects']} without an id" + (f"  {row['last_error']}" if row["last_error"] else "")
            for row in status["inboxes"]
        ],
    )
    yield from _listing(
        "inbox messages without a test session id (etl_inbox_rejects)",
        [f"{utc(row['received_at'])}  {row['inbox']}: {row['text'][:100]!r}" for row in status["inbox_rejects"]],
        more["inbox_rejects"],
    )
    yield from _listing(
        "last runs",
        [
            f"{utc(row['started_at'])}  {row['command']:9}{row['outcome'] or 'running':12}"
            f"{row['test_sessions_saved']} saved, {row['test_sessions_unchanged']} unchanged, "
            f"{row['test_sessions_dead']} dead" + (f"  {row['error']}" if row["error"] else "")
            for row in status["runs"]
        ],
    )
    yield from _listing(
        "unknown to this release (drift)",
        [
            f"{row['kind']} {row['json_path']}: {row['occurrences']} times, as in {row['example']}"
            for row in status["drift"]
        ],
        more["drift"],
    )


def _listing(title: str, lines: Sequence[str], more: int = 0) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        for line in lines:
            yield f"  {line}"
        if more:
            yield f"  … and {more:,} more"


def dead_lines(letters: Sequence[DeadLetter]) -> Iterator[str]:
    for letter in letters:
        yield f"{letter.test_session_id}  {utc(letter.last_error_at)}  {letter.error_kind}: {letter.last_error}"
    if not letters:
        yield "no dead letters"


def shown_lines(letters: Sequence[DeadLetter]) -> Iterator[str]:
    for letter in letters:
        for name, value in as_dict(letter).items():
            shown = utc(value) if isinstance(value, datetime) else value
            yield f"{name:20} {'-' if shown is None else shown}"
        yield f"{'what to do':20} {_ADVICE.get(letter.error_kind or '', _ADVICE_ELSE)}"


_ADVICE = {
    "not_found": "Checkly does not have it (a wrong id, another account's, past its retention): dead discard ID",
    "forbidden": "let the key's user see it at Checkly, then: dead retry ID",
    "rejected": "the API rejects the id itself: dead discard ID",
    "payload": "the document breaks the API's contract: report it with the reason, retry after an upgrade",
    "unreadable": "every answer was cut short, no JSON or another's: look at proxies, then: dead retry ID",
    "unavailable": "this one document failed while others came: dead retry ID",
    "bug": "a bug in checkly-etl: report the traceback of the log, retry after an upgrade",
}
_ADVICE_ELSE = "dead retry ID to try again, dead discard ID to give it up"


def _say_json(value: Mapping[str, Any]) -> None:
    say(json.dumps(value, default=_as_json, ensure_ascii=False))


def _hidden(value: Any, hide: Callable[[str], str]) -> Any:
    """The texts in a value without secrets; its keys are ours."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {key: _hidden(item, hide) for key, item in value.items()}
    return [_hidden(item, hide) for item in value] if isinstance(value, (list, tuple)) else value


def _as_json(value: object) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def as_dict(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def utc(value: datetime | None) -> str:
    return "never" if value is None else f"{value:%Y-%m-%d %H:%M:%S} UTC"
