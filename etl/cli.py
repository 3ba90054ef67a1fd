"""The command line: commands, exit codes, and the composition root.

Hides argparse and how the pieces are put together. A command is one function below; what it imports, it imports
itself, so that `--help` costs nothing. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from etl.errors import EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE, EXIT_WARNING, ConfigError, EtlError, runbook
from etl.terminal import Bar, Redactor, one_line, set_up_logging

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from etl.config import Settings
    from etl.database import Database
    from etl.pipeline import Etl, Outcome
    from etl.session_queue import DeadLetter

Arguments = argparse.Namespace
HARD_STOP = 3.0  # seconds after `schedule.grace` in which a signalled process is over at the latest


def run(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code. Errors of ours become a message on stderr, never a traceback."""
    redactor = Redactor()
    redactor.learn(_secrets_of(os.environ))
    wants_json = "--json" in argv
    try:
        arguments = _parser().parse_args(argv)
        arguments.redactor = redactor
        _set_up_terminal(arguments)
        code: int = arguments.command_function(arguments)
    except ConfigError as error:
        return _failed(error.problems, error.exit_code, redactor, wants_json)
    except EtlError as error:
        return _failed([str(error)], error.exit_code, redactor, wants_json)
    except _Signalled as signalled:
        return _failed([], 128 + signalled.number, redactor, wants_json, outcome="interrupted")
    except BrokenPipeError:
        # The reader of our stdout went away (`| head`): not an error, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(getattr(arguments, "exit_code", EXIT_OK))
    except Exception as error:
        logging.getLogger(__name__).critical(
            "a bug in checkly-etl, please report it", exc_info=error, extra=runbook("bug")
        )
        return _failed([f"a bug in checkly-etl ({type(error).__name__})"], EXIT_WARNING, redactor, wants_json)
    return code


def _failed(
    problems: Sequence[str], exit_code: int, redactor: Redactor, wants_json: bool, outcome: str = "failed"
) -> int:
    for problem in problems:
        print(redactor.hide(one_line(f"checkly-etl: {problem}")), file=sys.stderr)
    if wants_json:
        _print_json({"outcome": outcome, "error": redactor.hide("; ".join(problems)) or None, "exit_code": exit_code})
    return exit_code


def _done(
    arguments: Arguments, value: Mapping[str, Any], text: Sequence[str], problems: Sequence[str], code: int
) -> int:
    """End a command that is no run: its result on stdout, as one object or as lines, what went wrong on stderr."""
    hide = arguments.redactor.hide  # what the API told may hold what it was told
    if arguments.json:
        outcome = {"outcome": "ok" if code == EXIT_OK else "failed", "error": "; ".join(problems) or None}
        _print_json(_hidden({**outcome, "exit_code": code, **value}, hide))
    else:
        for line in text:
            print(hide(one_line(line)))
    for problem in problems:
        print(hide(one_line(f"checkly-etl: {problem}")), file=sys.stderr)
    return code


# --- commands ---------------------------------------------------------------------------------------------------


def _migrate(arguments: Arguments) -> int:
    from etl import schema

    settings = _settings(arguments)
    with _database(settings, create=True, check=False) as database:
        changed = schema.migrate(database)
        print(f"{'migrated' if changed else 'already current'}: {database.name}")
    return EXIT_OK


def _sync(arguments: Arguments) -> int:
    from etl import pipeline

    texts, problems = _texts_of(arguments.wait or [])
    if problems:
        raise ConfigError(problems)
    with _etl(arguments, max_time=arguments.max_time) as (etl, signalled):
        outcome = pipeline.sync_until_final(etl, texts) if texts else pipeline.sync(etl)
    return _report(arguments, "sync", outcome, signalled)


def _daemon(arguments: Arguments) -> int:
    from etl import daemon

    # A signal is how a daemon ends: that is no failure.
    with _etl(arguments) as (etl, _):
        daemon.run(etl, version=_version())
    return EXIT_OK


def _backfill(arguments: Arguments) -> int:
    from etl import pipeline
    from etl.database import now
    from etl.errors import Interrupted

    with _etl(arguments) as (etl, signalled):
        since, until = _range(arguments, etl.database.read(now))
        if arguments.plan:
            try:
                plan = pipeline.plan_backfill(etl, since=since, until=until, force=arguments.force)
            except Interrupted:
                raise _Signalled(signalled.number or signal.SIGINT) from None
            minutes = "no rate limit" if plan.minutes is None else f"about {plan.minutes:.0f} min at the rate budget"
            line = (
                f"{plan.listed:,} test sessions in the range, {plan.to_fetch:,} to fetch: {plan.calls:,} API calls "
                f"plus error groups, {minutes}"
            )
            return _done(arguments, _as_dict(plan), [line], [], EXIT_OK)
        outcome = pipeline.backfill(
            etl, since=since, until=until, newest_first=arguments.newest_first, force=arguments.force
        )
    return _report(arguments, "backfill", outcome, signalled)


def _enqueue(arguments: Arguments) -> int:
    from etl import pipeline

    sources = arguments.ids or ([] if sys.stdin.isatty() else ["-"])
    if not sources:
        raise ConfigError("enqueue needs ids, links or files, or - to read them from stdin")
    texts, problems = _texts_of(sources)
    settings = _settings(arguments)
    with _database(settings) as database:
        enqueued = database.run(lambda c: pipeline.enqueue_texts(c, settings, texts, force=arguments.force))
    queued, refused = len(enqueued.ids), enqueued.discarded
    code = EXIT_USAGE if problems else EXIT_WARNING if refused else EXIT_OK
    problems += [f"{id_} was discarded and stays so; queue it all the same with --force" for id_ in refused]
    return _done(arguments, {"queued": queued, "discarded": refused}, [f"{queued} queued"], problems, code)


def _status(arguments: Arguments) -> int:
    from etl import session_queue, warehouse
    from etl.inbox import ledger

    settings = _settings(arguments)
    with _database(settings) as database:

        def read(connection: Connection) -> dict[str, Any]:
            return {
                "warehouse": database.name,
                "test_sessions": warehouse.count_test_sessions(connection),
                "freshness": warehouse.freshness(connection),
                "queue": session_queue.count_states(connection),
                "dead": [_as_dict(letter) for letter in session_queue.dead_letters(connection, limit=20)],
                "stale": warehouse.stale_test_sessions(connection),
                "inboxes": ledger.states(connection),
                "inbox_rejects": ledger.rejects(connection),
                "runs": warehouse.last_runs(connection),
                "drift": warehouse.drift(connection),
            }

        status = database.read(read)
    return _done(arguments, status, list(_status_lines(status)), [], EXIT_OK)


def _dead(arguments: Arguments) -> int:
    from etl import session_queue

    action = arguments.action
    ids = _ids_of(arguments.ids)
    if action in ("retry", "discard") and not ids and not arguments.all:
        raise ConfigError(f"dead {action} needs ids, or --all")
    if action in ("retry", "discard") and ids and arguments.all:
        raise ConfigError(f"dead {action} takes ids or --all, not both")
    if action == "show" and not ids:
        raise ConfigError("dead show needs an id; see: checkly-etl dead list")
    settings = _settings(arguments)
    with _database(settings) as database:

        def work(connection: Connection) -> tuple[list[session_queue.DeadLetter], int]:
            letters = session_queue.dead_letters(connection, ids=ids or None)
            if action == "retry":
                return letters, session_queue.revive(connection, ids or None)
            if action == "discard":
                return letters, session_queue.discard(connection, ids or None)
            return letters, 0

        letters, count = database.run(work)
    missing = sorted(set(ids) - {letter.test_session_id for letter in letters})
    problems = [f"{id_} is no dead letter; see: checkly-etl dead list" for id_ in missing]
    code = EXIT_USAGE if missing else EXIT_OK
    if action in ("list", "show"):
        value: dict[str, Any] = {"dead": [_as_dict(letter) for letter in letters]}
        lines = list(_dead_lines(letters) if action == "list" else _shown_lines(letters))
    else:
        value = {"retried" if action == "retry" else "discarded": count}
        lines = [f"{count} {'queued again' if action == 'retry' else 'discarded'}"]
    return _done(arguments, value, lines, problems, code)


def _prune(arguments: Arguments) -> int:
    from etl import upkeep
    from etl.database import now

    settings = _settings(arguments)
    stop = threading.Event()
    counts: dict[str, int] = {}
    with _Signals(stop, settings.schedule.grace.total_seconds()) as signals, _database(settings) as database:
        before = _when("--before", arguments.before, database.read(now))
        for what in upkeep.PRUNABLES:
            if arguments.plan:
                counts[what.name] = database.read(partial(upkeep.count_prunable, what=what, before=before))
                continue
            counts[what.name] = 0
            after: tuple[Any, ...] | None = ()
            while after is not None and not stop.is_set():
                deleted, after = database.run(partial(upkeep.prune, what=what, before=before, after=after or None))
                counts[what.name] += deleted
    told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    verb = "would be deleted" if arguments.plan else "deleted"
    lines = [f"from before {_time(before)}: {told} {verb}; the rows of test sessions stay"]
    code = EXIT_OK if signals.number is None else 128 + signals.number
    problems = [] if code == EXIT_OK else ["stopped before the end; run it again to go on"]
    return _done(arguments, {"before": before, "plan": arguments.plan, **counts}, lines, problems, code)


def _forget(arguments: Arguments) -> int:
    from etl import session_queue, upkeep

    ids = _ids_of(arguments.ids)
    settings = _settings(arguments)

    def work(connection: Connection, id_: str) -> upkeep.Forgotten:
        session_queue.shut_out(connection, id_)
        return upkeep.forget_test_session(connection, id_)

    with _database(settings) as database:
        forgotten = {id_: database.run(partial(work, id_=id_)) for id_ in ids}
    lines = [
        f"{id_}: {'forgotten' if gone.test_sessions else 'nothing was held of it'}, {gone.payloads} payloads and "
        f"{len(gone.error_groups)} error groups deleted; it will not be exported again"
        for id_, gone in forgotten.items()
    ]
    value = {"forgotten": [{"test_session_id": id_, **_as_dict(gone)} for id_, gone in forgotten.items()]}
    return _done(arguments, value, lines, [], EXIT_OK)


def _replay(arguments: Arguments) -> int:
    from etl import pipeline

    with _etl(arguments) as (etl, signalled):
        outcome = pipeline.replay(etl)
    return _report(arguments, "replay", outcome, signalled)


def _doctor(arguments: Arguments) -> int:
    from etl import doctor

    settings = _settings(arguments)
    found: list[doctor.Finding] = []

    def tell(finding: doctor.Finding) -> None:
        found.append(finding)
        if not arguments.json:  # each at once: the next one may take its time
            mark = finding.status.replace("failed", "FAILED")
            print(arguments.redactor.hide(one_line(f"{mark:8} {finding.what}: {finding.text}")), flush=True)

    source = arguments.config or (Path("config.yaml") if Path("config.yaml").exists() else "the environment alone")
    later = _later_releases(settings)
    tell(doctor.Finding("settings", EXIT_USAGE if later else EXIT_OK, "; ".join(later) or f"read from {source}"))
    for finding in doctor.examine(settings, _user_agent()):
        tell(finding)
    codes = {finding.exit_code for finding in found}
    code = next(code for code in (EXIT_USAGE, EXIT_UNREACHABLE, EXIT_WARNING, EXIT_OK) if code in codes)
    if not arguments.json:
        return code
    checks = [{"check": f.what, "status": f.status, "exit_code": f.exit_code, "text": f.text} for f in found]
    return _done(arguments, {"checks": checks}, [], [f"{f.what}: {f.text}" for f in found if f.exit_code], code)


def _simulate(arguments: Arguments) -> int:
    from etl.simulator import Simulator, World

    if arguments.port > 65535:
        raise ConfigError("--port must be at most 65535")
    world = World(seed=arguments.seed, now=arguments.now)
    try:
        simulator = Simulator(
            world,
            host=arguments.host,
            port=arguments.port,
            api_key=arguments.api_key or None,
            rate_limit=arguments.rate_limit,
        )
    except OSError as error:
        raise ConfigError(f"{arguments.host}:{arguments.port} cannot be used: {error.strerror or error}") from error
    print(f"A simulated Checkly API answers at {simulator.url}")
    print(f"  export CHECKLY_API_URL={simulator.url} CHECKLY_ACCOUNT_ID={simulator.account_id}")
    key = "the key that --api-key gave" if arguments.api_key else "anything"
    print(f"  export CHECKLY_API_KEY=...   ({key})", flush=True)
    simulator.serve_forever()
    return EXIT_OK


def _demo(arguments: Arguments) -> int:
    from etl import demo, pipeline

    stop = threading.Event()
    with _Signals(stop, grace=5.0) as signals:
        outcome = demo.run(
            lambda line: print(line, flush=True), arguments.bar or pipeline.Silent(), _user_agent(), stop
        )
    for problem in [*outcome.failures, *outcome.warnings]:
        print(f"checkly-etl: {problem}", file=sys.stderr)
    return 128 + signals.number if signals.number is not None else outcome.exit_code


# --- the composition root ---------------------------------------------------------------------------------------


def _settings(arguments: Arguments) -> Settings:
    from etl import config

    settings = config.load(arguments.config, os.environ)
    secrets = {
        settings.checkly.api_key.reveal(),
        *(account.api_key.reveal() for account in settings.checkly.accounts),
    }
    if settings.observe.token:
        secrets.add(settings.observe.token.reveal())
    secrets |= _passwords([settings.warehouse.url.reveal()])
    secrets |= {secret for source in settings.inbox for secret in source.secrets}
    arguments.redactor.learn(secrets)
    return settings


def _secrets_of(env: Mapping[str, str]) -> set[str]:
    """What must not be told even before the settings say what is a secret: their own errors quote what they found."""
    secrets = {
        value
        for name, value in env.items()
        if name.startswith("CHECKLY_") and name.endswith(("_KEY", "__TOKEN")) and value
    }
    urls = [value for name, value in env.items() if name.lower().endswith(("_proxy", "_url"))]
    return secrets | _passwords(urls)


def _passwords(urls: Iterable[str]) -> set[str]:
    from urllib.parse import unquote

    found = {url.split("://", 1)[-1].rpartition("@")[0].partition(":")[2] for url in urls}
    return found | {unquote(password) for password in found}


@contextmanager
def _database(
    settings: Settings, *, create: bool = False, check: bool = True, stop: threading.Event | None = None
) -> Iterator[Database]:
    from etl import schema
    from etl.database import Database

    database = Database(
        settings.warehouse.url.reveal(),
        schema=settings.warehouse.schema,
        create=create,
        connections=settings.export.concurrency + 4,
        stop=stop,
    )
    try:
        if check:
            database.read(schema.check_current)
        yield database
    finally:
        database.close()


@contextmanager
def _etl(arguments: Arguments, *, max_time: timedelta | None = None) -> Iterator[tuple[Etl, _Signals]]:
    """Everything that a long command needs; a signal or the end of `max_time` makes it stop soon."""
    from etl.pipeline import Etl, Silent

    settings = _settings(arguments)
    if arguments.command != "replay":
        settings.require_accounts()  # before anything is touched
        if later := _later_releases(settings):
            raise ConfigError(later)
    stop = threading.Event()
    # The signals last longer than the database: closing it is not to be interrupted.
    with _Signals(stop, settings.schedule.grace.total_seconds()) as signals:
        try:
            # The daemon checks the schema itself: it waits for a warehouse that cannot be reached yet.
            is_checked = arguments.command != "daemon"
            with _database(settings, check=is_checked, stop=stop) as database, _alarm(max_time) as alarm:
                etl = Etl(settings, database, user_agent=_user_agent(), stop=stop, progress=arguments.bar or Silent())
                alarm.append(etl)
                yield etl, signals
        except EtlError:
            if signals.number is not None:  # what failed was no longer waited for
                raise _Signalled(signals.number) from None
            raise


@contextmanager
def _alarm(max_time: timedelta | None) -> Iterator[list[Etl]]:
    """Stops what is put into the list when the time is up."""
    stopped: list[Etl] = []

    def end_of_time() -> None:
        for etl in stopped:
            etl.time_is_up = True
            etl.stop.set()

    if max_time is None:
        yield stopped
        return
    timer = threading.Timer(max_time.total_seconds(), end_of_time)
    timer.daemon = True
    timer.start()
    try:
        yield stopped
    finally:
        timer.cancel()


def _later_releases(settings: Settings) -> list[str]:
    """Settings of the contract that this release cannot follow: to ignore them would lose data in silence."""
    problems = []
    if settings.export.result_details != "none":
        problems.append("export.result_details: this release knows none only; take it out")
    return problems


class _Signalled(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


class _Signals:
    """The first SIGINT or SIGTERM sets `stop`, a second one ends the process at once."""

    def __init__(self, stop: threading.Event, grace: float) -> None:
        self._stop, self._grace = stop, grace
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        self._stop.set()
        # A call that hangs must not hold the process: its claims are given back by the next run of this machine.
        timer = threading.Timer(self._grace + HARD_STOP, os._exit, [128 + number])
        timer.daemon = True
        timer.start()


def _raise_signalled(number: int, _frame: object) -> NoReturn:
    raise _Signalled(number)


def _user_agent() -> str:
    return f"checkly-etl/{_version()}"


def _version() -> str:
    try:
        return version("checkly-etl")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+checkout"


# --- what is printed ----------------------------------------------------------------------------------------------


def _report(arguments: Arguments, command: str, outcome: Outcome, signals: _Signals) -> int:
    exit_code = 128 + signals.number if signals.number is not None else outcome.exit_code
    arguments.exit_code = exit_code
    error = arguments.redactor.hide(outcome.error) if outcome.error else None
    if arguments.json:
        _print_json(
            {"command": command, "outcome": outcome.word, "error": error, "exit_code": exit_code}
            | {"test_sessions_listed": outcome.listed, "test_sessions_enqueued": outcome.enqueued}
            | outcome.counters
            | ({"test_sessions": outcome.waited} if getattr(arguments, "wait", None) else {})
        )
    elif exit_code != EXIT_OK or not arguments.quiet:  # a quiet cron job that went well sends no mail
        print(outcome.summary(command))
        for row in outcome.waited:
            print(
                f"test session {row['test_session_id']} {row['status']}, "
                + (f"verdict {row['verdict']}" if row["is_final"] else "not final yet")
            )
    if getattr(arguments, "log_format", "text") == "json":
        logging.getLogger(__name__).info(outcome.summary(command), extra={"command": command, **outcome.fields})
    if outcome.is_interrupted or outcome.is_out_of_time:
        print("checkly-etl: stopped before the end, claims given back; run it again to go on", file=sys.stderr)
    if outcome.counters["test_sessions_dead"]:
        print("checkly-etl: some test sessions could not be exported; see: checkly-etl dead list", file=sys.stderr)
    return exit_code


def _status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    yield f"warehouse      {status['warehouse']}"
    yield f"test sessions  {status['test_sessions']:,}"
    for row in status["freshness"]:
        yield f"account        {row['account_id'] or '(not assigned yet)'}"
        yield f"  last success   {_time(row['last_success_at'])}"
        yield f"  newest session {_time(row['newest_started_at'])}"
        work = f"{row['due']} due, {row['scheduled']} scheduled, {row['leased']} leased, {row['dead']} dead"
        yield f"  queue          {work}"
        hours = row["hours_until_loss"]
        if hours is not None:
            when = f"in {hours:.1f} hours" if hours > 0 else f"since {-hours:.1f} hours"
            yield f"  loss           {when}: the oldest session that is known and not exported"
    yield from _listing(
        "dead letters (checkly-etl dead list)",
        [f"{row['test_session_id']}  {row['error_kind']}: {row['last_error']}" for row in status["dead"]],
    )
    yield from _listing(
        "stale: RUNNING when last seen, and not read again",
        [f"{row['test_session_id']}  {row['status']} since {_time(row['started_at'])}" for row in status["stale"]],
    )
    yield from _listing(
        "inboxes",
        [
            f"{row['inbox']}: last read {_time(row['last_read_at'])}, last message {_time(row['last_received_at'])}, "
            f"{row['rejects']} without an id" + (f"  {row['last_error']}" if row["last_error"] else "")
            for row in status["inboxes"]
        ],
    )
    yield from _listing(
        "inbox messages without a test session id (etl_inbox_rejects)",
        [f"{_time(row['received_at'])}  {row['inbox']}: {row['text'][:100]!r}" for row in status["inbox_rejects"]],
    )
    yield from _listing(
        "last runs",
        [
            f"{_time(row['started_at'])}  {row['command']:9}{row['outcome'] or 'running':12}"
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
    )


def _listing(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        for line in lines:
            yield f"  {line}"


def _dead_lines(letters: Sequence[DeadLetter]) -> Iterator[str]:
    for letter in letters:
        yield f"{letter.test_session_id}  {_time(letter.last_error_at)}  {letter.error_kind}: {letter.last_error}"
    if not letters:
        yield "no dead letters"


def _shown_lines(letters: Sequence[DeadLetter]) -> Iterator[str]:
    for letter in letters:
        for name, value in _as_dict(letter).items():
            shown = _time(value) if isinstance(value, datetime) else value
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


def _print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value, default=_as_json, ensure_ascii=False))


def _hidden(value: Any, hide: Callable[[str], str]) -> Any:
    """The texts in a value without secrets; its keys are ours."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {key: _hidden(item, hide) for key, item in value.items()}
    return [_hidden(item, hide) for item in value] if isinstance(value, (list, tuple)) else value


def _as_json(value: object) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _as_dict(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _time(value: datetime | None) -> str:
    return "never" if value is None else f"{value:%Y-%m-%d %H:%M:%S} UTC"


# --- arguments ----------------------------------------------------------------------------------------------------


def _texts_of(sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """The texts of ids, links and files (`-`: stdin) that hold an id, and what is wrong with the others."""
    from etl import inbox

    texts: list[str] = []
    problems: list[str] = []
    for source in sources:
        try:
            text = inbox.decode(sys.stdin.buffer.read()) if source == "-" else inbox.read_argument(source)
        except ValueError as error:
            problems.append(str(error))
            continue
        if inbox.find_ids(text):
            texts.append(text)
        else:
            shown = "stdin" if source == "-" else repr(source[:100])
            problems.append(f"{shown} holds no test session id (nor is it a file that does)")
    return texts, problems


def _ids_of(arguments: Sequence[str]) -> list[str]:
    from etl import inbox

    ids: list[str] = []
    problems: list[str] = []
    for argument in arguments:
        found = inbox.find_ids(argument)
        ids += found
        if not found:
            problems.append(f"{argument[:100]!r} is no test session id")
    if problems:
        raise ConfigError(problems)
    return ids


def _range(arguments: Arguments, moment: datetime) -> tuple[datetime, datetime | None]:
    from etl import config

    problems: list[str] = []
    times: dict[str, datetime | None] = {"--since": None, "--until": None}
    for name, value in (("--since", arguments.since), ("--until", arguments.until)):
        if value is not None:
            try:
                times[name] = config.parse_when(value, moment)
            except ValueError as error:
                problems.append(f"{name}: {error}")
    since, until = times["--since"], times["--until"]
    if since is not None and until is not None and until <= since:
        problems.append("--until must be after --since")
    if problems or since is None:
        raise ConfigError(problems)
    return since, until


def _when(name: str, text: str, moment: datetime) -> datetime:
    from etl.config import parse_when

    try:
        return parse_when(text, moment)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def _duration(text: str) -> timedelta:
    from etl.config import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be {error}") from None


def _moment(text: str) -> datetime:
    from datetime import UTC

    from etl.config import parse_when

    try:
        return parse_when(text, datetime.now(UTC))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError("must be a whole number, 0 or more")
    return int(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see: {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    # Global options stand before or after the command; SUPPRESS keeps the second parser from undoing the first.
    common = _Parser(add_help=False)
    group = common.add_argument_group("global options, before or after the command")
    group.add_argument(
        "--config", metavar="FILE", type=Path, default=argparse.SUPPRESS, help="settings (config.yaml)"
    )
    group.add_argument(
        "--log-format", choices=("text", "json"), default=argparse.SUPPRESS, help="format of the log on stderr"
    )
    group.add_argument("-q", dest="quiet", action="store_true", default=argparse.SUPPRESS, help="warnings only")
    group.add_argument("-v", dest="verbose", action="store_true", default=argparse.SUPPRESS, help="say more")

    parser = _Parser(
        prog="checkly-etl",
        description="Export Checkly test sessions into your own SQL warehouse, before they are deleted.",
        epilog="Two variables are enough: CHECKLY_API_KEY and CHECKLY_ACCOUNT_ID. First: checkly-etl migrate, "
        "then: checkly-etl sync. Exit codes: 0 done, 1 look at it, 2 usage or settings, 3 unreachable or refused.",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"checkly-etl {_version()}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )

    def add(name: str, function: Callable[[Arguments], int], help_: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_, description=help_, parents=[common])
        command.set_defaults(command_function=function)
        return command

    def add_json(command: argparse.ArgumentParser) -> None:
        command.add_argument("--json", action="store_true", help="print one JSON object on stdout")

    add("migrate", _migrate, "create or upgrade the warehouse's schema")

    sync = add("sync", _sync, "one pass: discover what is new, export what is due (for cron)")
    sync.add_argument("--max-time", type=_duration, metavar="10m", help="stop after this time, give the rest back")
    sync.add_argument(
        "--wait",
        action="append",
        metavar="ID",
        help="only this test session (or those of a file), until it is final; exit 0 if it is stored then",
    )
    add_json(sync)

    backfill = add("backfill", _backfill, "export every test session created in a past range, oldest first")
    backfill.add_argument("--since", required=True, metavar="T", help="ISO date or time, or an age such as 90d")
    backfill.add_argument("--until", metavar="T", help="exclusive; until now without it")
    backfill.add_argument("--newest-first", action="store_true", help="newest first")
    backfill.add_argument("--force", action="store_true", help="fetch what we hold, too")
    backfill.add_argument("--plan", action="store_true", help="only say what it would cost; nothing is queued")
    add_json(backfill)

    enqueue = add("enqueue", _enqueue, "queue ids, links, files or pasted CI output")
    enqueue.add_argument("ids", nargs="*", metavar="X", help="an id, a link or a file; - reads stdin")
    enqueue.add_argument("--force", action="store_true", help="discarded and leased ones, too")
    add_json(enqueue)

    add(
        "daemon",
        _daemon,
        "sync on a schedule (schedule.cron or schedule.interval) until SIGTERM; /livez /healthz /metrics",
    )

    add_json(add("status", _status, "freshness, queue, dead and stale sessions, last runs, drift"))

    # Each action is a command of its own to argparse: it would take no id behind an option otherwise.
    dead = add("dead", _dead, "what could not be exported, and why")
    actions = dead.add_subparsers(
        title="actions", dest="action", metavar="ACTION", required=True, parser_class=_Parser
    )
    for name, help_ in (
        ("list", "every dead letter, with its reason"),
        ("show", "all about some of them, and what to do"),
        ("retry", "queue them again"),
        ("discard", "give them up for good"),
    ):
        action = actions.add_parser(name, help=help_, description=help_, parents=[common])
        action.add_argument("ids", nargs="*", metavar="ID")
        if name in ("retry", "discard"):
            action.add_argument("--all", action="store_true", help="every dead letter")
        add_json(action)

    add_json(add("replay", _replay, "rebuild all rows from the stored payloads, without the API"))
    add_json(add("doctor", _doctor, "check settings, API, account and warehouse, and say what to do"))

    prune = add("prune", _prune, "delete old payloads, runs and rejected messages; the rows of test sessions stay")
    prune.add_argument("--before", required=True, metavar="T", help="ISO date or time, or an age such as 400d")
    prune.add_argument("--plan", action="store_true", help="only count; nothing is deleted")
    add_json(prune)

    forget = add("forget", _forget, "delete all that is held of a test session, for good")
    forget.add_argument("what", choices=("test-session",), metavar="test-session")
    forget.add_argument("ids", nargs="+", metavar="ID")
    add_json(forget)

    simulate = add("simulate", _simulate, "serve a simulated Checkly API")
    simulate.add_argument("--host", default="127.0.0.1")
    simulate.add_argument("--port", type=_count, default=4010)
    simulate.add_argument("--api-key", help="the one key that is let in (any without it)")
    simulate.add_argument("--seed", type=_count, default=1, help="another seed, another world")
    simulate.add_argument("--now", type=_moment, metavar="T", help="fix the world's clock")
    simulate.add_argument("--rate-limit", type=_count, default=600, metavar="N", help="calls per 60 s, 0 for none")

    add("demo", _demo, "simulated history in ./demo, in a minute")
    return parser


def _set_up_terminal(arguments: Arguments) -> None:
    arguments.config = getattr(arguments, "config", None)
    arguments.quiet = quiet = getattr(arguments, "quiet", False)
    verbose = getattr(arguments, "verbose", False)
    verbosity = -1 if quiet else 1 if verbose else 0
    style = getattr(arguments, "log_format", "text")
    shows_bar = sys.stderr.isatty() and style == "text" and not quiet and not verbose
    arguments.bar = Bar() if shows_bar else None
    if arguments.command == "demo" and verbosity == 0:
        verbosity = -1  # its own lines say enough
    set_up_logging(style=style, verbosity=verbosity, bar=arguments.bar, redactor=arguments.redactor)
    # A command that does not stop by itself ends at once; the long ones put their own handlers in place.
    signal.signal(signal.SIGTERM, _raise_signalled)
    signal.signal(signal.SIGINT, _raise_signalled)
