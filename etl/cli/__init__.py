"""The command line: commands, exit codes, and the composition root.

    arguments     what may be typed
    output        what is printed
    composition   how the pieces are put together, and signals

A command is one function below; what it imports, it imports itself, so that `--help` costs nothing. Results go to
stdout, everything else to stderr.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from etl.cli.arguments import Arguments, ids_of, make_parser, range_of, texts_of, when
from etl.cli.composition import (
    Signalled,
    Signals,
    load_settings,
    open_database,
    open_etl,
    raise_signalled,
    secrets_of,
    user_agent,
)
from etl.cli.output import as_dict, dead_lines, done, end_run, fail, say, shown_lines, status_lines, to_stdout, utc
from etl.cli.version import version
from etl.errors import EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE, EXIT_WARNING, ConfigError, EtlError, runbook
from etl.redaction import Redactor
from etl.terminal import Bar, one_line, set_up_logging

if TYPE_CHECKING:
    from sqlalchemy import Connection


def run(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code. Errors of ours become a message on stderr, never a traceback."""
    redactor = Redactor(secrets_of(os.environ))
    wants_json = "--json" in argv
    try:
        arguments = make_parser().parse_args(argv)
        arguments.redactor = redactor
        _set_up_terminal(arguments)
        code: int = COMMANDS[arguments.command](arguments)
    except ConfigError as error:
        return fail(error.problems, error.exit_code, redactor, wants_json)
    except EtlError as error:
        return fail([str(error)], error.exit_code, redactor, wants_json)
    except Signalled as signalled:
        return fail([], 128 + signalled.number, redactor, wants_json, outcome="interrupted")
    except SystemExit:
        return EXIT_OK  # argparse has said what --help or --version asked for
    except Exception as error:
        logging.getLogger(__name__).critical(
            "a bug in checkly-etl, please report it", exc_info=error, extra=runbook("bug")
        )
        return fail([f"a bug in checkly-etl ({type(error).__name__})"], EXIT_WARNING, redactor, wants_json)
    return code


def _set_up_terminal(arguments: Arguments) -> None:
    arguments.config = getattr(arguments, "config", None)
    arguments.quiet = quiet = getattr(arguments, "quiet", False)
    verbose = getattr(arguments, "verbose", False)
    verbosity = -1 if quiet else 1 if verbose else 0
    style = getattr(arguments, "log_format", "text")
    # A daemon runs for months: its lines say what it does, also on a terminal.
    is_watched = sys.stderr.isatty() and arguments.command != "daemon"
    shows_bar = is_watched and style == "text" and not quiet and not verbose
    arguments.bar = Bar() if shows_bar else None
    if arguments.command == "demo" and verbosity == 0:
        verbosity = -1  # its own lines say enough
    set_up_logging(style=style, verbosity=verbosity, bar=arguments.bar, redactor=arguments.redactor)
    # A command that does not stop by itself ends at once; the long ones put their own handlers in place.
    signal.signal(signal.SIGTERM, raise_signalled)
    signal.signal(signal.SIGINT, raise_signalled)


# --- commands ---------------------------------------------------------------------------------------------------


def _migrate(arguments: Arguments) -> int:
    from etl import schema, warehouse

    settings = load_settings(arguments)
    with open_database(settings, create=True, check=False) as database:
        changed = schema.migrate(database)
        say(
            f"{'migrated' if changed else 'already current'}: {database.name}",
            *(f"now run checkly-etl replay: {reason}" for reason in database.read(warehouse.replay_due)),
        )
    return EXIT_OK


def _sync(arguments: Arguments) -> int:
    from etl import pipeline

    settings = load_settings(arguments)  # first: its secrets must be known when texts are quoted
    texts, problems = texts_of(arguments.wait or [], arguments.redactor.hide)
    if problems:
        raise ConfigError(problems)
    with open_etl(arguments, settings, max_time=arguments.max_time) as (etl, signalled):
        outcome = pipeline.sync_until_final(etl, texts) if texts else pipeline.sync(etl)
    return end_run(arguments, "sync", outcome, signalled)


def _daemon(arguments: Arguments) -> int:
    from etl import daemon

    # A signal is how a daemon ends: that is no failure.
    with open_etl(arguments, load_settings(arguments)) as (etl, signalled):
        daemon.run(etl, version=version(), stopped_by=lambda: signalled.name)
    return EXIT_OK


def _backfill(arguments: Arguments) -> int:
    from etl import pipeline
    from etl.database import now
    from etl.errors import Interrupted

    with open_etl(arguments, load_settings(arguments)) as (etl, signalled):
        since, until = range_of(arguments, etl.database.read(now))
        if arguments.plan:
            try:
                plan = pipeline.plan_backfill(etl, since=since, until=until, force=arguments.force)
            except Interrupted:
                raise Signalled(signalled.number or signal.SIGINT) from None
            with_details = etl.settings.export.result_details != "none"
            minutes = "no rate limit" if plan.minutes is None else f"about {plan.minutes:.0f} min at the rate budget"
            line = (
                f"{plan.listed:,} test sessions in the range, {plan.to_fetch:,} to fetch: {plan.calls:,} API calls "
                f"plus error groups{' and result details' if with_details else ''}, {minutes}"
            )
            return done(arguments, as_dict(plan), [line], [], EXIT_OK)
        outcome = pipeline.backfill(
            etl, since=since, until=until, newest_first=arguments.newest_first, force=arguments.force
        )
    return end_run(arguments, "backfill", outcome, signalled)


def _enqueue(arguments: Arguments) -> int:
    from etl import inbox, pipeline

    sources = arguments.ids or ([] if sys.stdin.isatty() else ["-"])
    if not sources:
        raise ConfigError("enqueue needs ids, links or files, or - to read them from stdin")
    settings = load_settings(arguments)
    texts, problems = texts_of(sources, arguments.redactor.hide)
    with open_database(settings) as database:
        enqueued = database.run(lambda c: pipeline.enqueue_texts(c, settings, texts, force=arguments.force))
    queued, refused, not_taken = len(enqueued.ids), enqueued.discarded, enqueued.not_taken
    code = EXIT_USAGE if problems else EXIT_WARNING if refused or not_taken else EXIT_OK
    problems += [f"{id_} was discarded and stays so; queue it all the same with --force" for id_ in refused]
    problems += inbox.lines_not_taken(not_taken, arguments.redactor.hide) + enqueued.advice
    result = {"queued": queued, "discarded": refused, "lines_not_taken": len(not_taken)}
    return done(arguments, result, [f"{queued} queued"], problems, code)


def _status(arguments: Arguments) -> int:
    from etl import accounts, details_due, inbox, session_queue, warehouse
    from etl.inbox import ledger

    settings = load_settings(arguments)
    inboxes = [inbox.name_of(source) for source in settings.inbox]
    with open_database(settings) as database:

        def read(connection: Connection) -> dict[str, Any]:
            queue = session_queue.count_states(connection)
            listed = {
                "dead": [as_dict(letter) for letter in session_queue.dead_letters(connection, limit=20)],
                "stale": warehouse.stale_test_sessions(connection),
                "inbox_rejects": ledger.rejects(connection),
                "drift": warehouse.drift(connection),
            }
            counts = {
                "dead": queue.get(session_queue.DEAD, 0),
                "stale": warehouse.count_stale(connection),
                "inbox_rejects": ledger.count_rejects(connection),
                "drift": warehouse.count_drift(connection),
            }
            return {
                "warehouse": database.name,
                "test_sessions": warehouse.count_test_sessions(connection),
                "replay_due": warehouse.replay_due(connection),
                "freshness": warehouse.freshness(connection),
                "paused": accounts.paused(connection),
                "queue": queue,
                "result_details_due": details_due.count(connection),
                "inboxes": ledger.states(connection, inboxes),
                "runs": warehouse.last_runs(connection),
                **listed,
                "not_listed": {name: max(0, counts[name] - len(rows)) for name, rows in listed.items()},
            }

        status = database.read(read)
    return done(arguments, status, list(status_lines(status)), [], EXIT_OK)


def _dead(arguments: Arguments) -> int:
    from etl import session_queue

    action = arguments.action
    ids = ids_of(arguments.ids, arguments.redactor.hide)
    if action in ("retry", "discard") and not ids and not arguments.all:
        raise ConfigError(f"dead {action} needs ids, or --all")
    if action in ("retry", "discard") and ids and arguments.all:
        raise ConfigError(f"dead {action} takes ids or --all, not both")
    if action == "show" and not ids:
        raise ConfigError("dead show needs an id; see: checkly-etl dead list")
    settings = load_settings(arguments)
    with open_database(settings) as database:

        def work(connection: Connection) -> tuple[list[session_queue.DeadLetter], set[str], int]:
            letters = session_queue.dead_letters(connection, ids=ids or None)
            given_up = session_queue.discarded(connection, ids)
            count = 0
            if action == "retry":
                count = session_queue.revive(connection, ids or None)
            elif action == "discard":
                count = session_queue.discard(connection, ids or None)
            return letters, given_up, count

        letters, given_up, count = database.run(work)
    missing = sorted(set(ids) - {letter.test_session_id for letter in letters})
    problems = [
        f"{id_} was discarded; checkly-etl enqueue --force {id_} brings it back"
        if id_ in given_up
        else f"{id_} is no dead letter; see: checkly-etl dead list"
        for id_ in missing
    ]
    code = EXIT_USAGE if missing else EXIT_OK
    if action in ("list", "show"):
        value: dict[str, Any] = {"dead": [as_dict(letter) for letter in letters]}
        lines = list(dead_lines(letters) if action == "list" else shown_lines(letters))
    else:
        value = {"retried" if action == "retry" else "discarded": count}
        lines = [f"{count} {'queued again' if action == 'retry' else 'discarded'}"]
    return done(arguments, value, lines, problems, code)


def _prune(arguments: Arguments) -> int:
    from etl import upkeep
    from etl.database import now

    settings = load_settings(arguments)
    stop = threading.Event()
    counts: dict[str, int] = {}
    with Signals(stop, settings.schedule.grace.total_seconds()) as signals, open_database(settings) as database:
        before = when("--before", arguments.before, database.read(now))
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
    lines = [f"from before {utc(before)}: {told} {verb}; the rows of test sessions stay"]
    code = EXIT_OK if signals.number is None else 128 + signals.number
    problems = [] if code == EXIT_OK else ["stopped before the end; run it again to go on"]
    return done(arguments, {"before": before, "plan": arguments.plan, **counts}, lines, problems, code)


def _forget(arguments: Arguments) -> int:
    from etl import rollups, session_queue, upkeep

    ids = ids_of(arguments.ids, arguments.redactor.hide)
    settings = load_settings(arguments)

    def work(connection: Connection, id_: str) -> upkeep.Forgotten:
        session_queue.shut_out(connection, id_)
        forgotten = upkeep.forget_test_session(connection, id_)
        rollups.sweep(connection)
        return forgotten

    with open_database(settings) as database:
        forgotten = {id_: database.run(partial(work, id_=id_)) for id_ in ids}
    lines = [
        f"{id_}: {'forgotten' if gone.test_sessions else 'nothing was held of it'}, {gone.payloads} payloads and "
        f"{len(gone.error_groups)} error groups deleted; it will not be exported again"
        for id_, gone in forgotten.items()
    ]
    value = {"forgotten": [{"test_session_id": id_, **as_dict(gone)} for id_, gone in forgotten.items()]}
    return done(arguments, value, lines, [], EXIT_OK)


def _replay(arguments: Arguments) -> int:
    from etl import pipeline

    with open_etl(arguments, load_settings(arguments)) as (etl, signalled):
        outcome = pipeline.replay(etl)
    return end_run(arguments, "replay", outcome, signalled)


def _report(arguments: Arguments) -> int:
    import webbrowser

    from etl import report
    from etl.database import now

    is_piped = str(arguments.output) == "-"
    if is_piped and (arguments.json or arguments.open):
        raise ConfigError("-o - writes the page to stdout: --json and --open need a file")
    settings = load_settings(arguments)
    with open_database(settings) as database:
        since = when("--since", arguments.since, database.read(now))
        made = database.read(
            lambda connection: report.make(
                connection,
                since=since,
                accounts=arguments.account or [],
                loss_warning_hours=settings.observe.loss_warning_hours,
                version=version(),
                hide=arguments.redactor.hide,
            )
        )
    if is_piped:
        with to_stdout("the report"):
            sys.stdout.buffer.write(made.html.encode())
        return EXIT_OK
    path = report.write(made, arguments.output)
    size = len(made.html.encode())
    counts = {"days": made.days, "test_sessions": made.test_sessions, "executions": made.executions}
    days = f"{made.days} day{'s' * (made.days > 1)}"
    lines = [f"{arguments.output}: {made.executions:,} executions of {days}, {size / 1e6:.2f} MB"]
    if made.is_empty:
        lines.append("nothing is exported yet; the page says what to do next")
    problems = []
    if arguments.open and not webbrowser.open(path.as_uri()):
        problems.append(f"no browser can be opened from here; open {path} in one")
    return done(arguments, {"path": str(path), "bytes": size, **counts}, lines, problems, EXIT_OK)


def _doctor(arguments: Arguments) -> int:
    from etl import config, doctor

    settings = load_settings(arguments)
    found: list[doctor.Finding] = []

    def tell(finding: doctor.Finding) -> None:
        found.append(finding)
        if not arguments.json:  # each at once: the next one may take its time
            mark = finding.status.replace("failed", "FAILED")
            say(arguments.redactor.hide(one_line(f"{mark:8} {finding.what}: {finding.text}")))

    source = arguments.config or (config.DEFAULT_FILE if config.has_default_file() else "the environment alone")
    tell(doctor.Finding("settings", EXIT_OK, f"read from {source}"))
    for finding in doctor.examine(settings, user_agent()):
        tell(finding)
    codes = {finding.exit_code for finding in found}
    code = next(code for code in (EXIT_USAGE, EXIT_UNREACHABLE, EXIT_WARNING, EXIT_OK) if code in codes)
    if not arguments.json:
        return code
    checks = [{"check": f.what, "status": f.status, "exit_code": f.exit_code, "text": f.text} for f in found]
    return done(arguments, {"checks": checks}, [], [f"{f.what}: {f.text}" for f in found if f.exit_code], code)


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
    key = "the key that --api-key gave" if arguments.api_key else "anything"
    say(
        f"A simulated Checkly API answers at {simulator.url}",
        f"  export CHECKLY_API_URL={simulator.url} CHECKLY_ACCOUNT_ID={simulator.account_id}",
        f"  export CHECKLY_API_KEY=...   ({key})",
    )
    simulator.serve_forever()
    return EXIT_OK


def _demo(arguments: Arguments) -> int:
    from etl import demo, pipeline

    stop = threading.Event()
    with Signals(stop, grace=5.0) as signals:
        outcome = demo.run(say, arguments.bar or pipeline.Silent(), user_agent(), stop)
    return 128 + signals.number if signals.number is not None else outcome.exit_code


COMMANDS: Mapping[str, Callable[[Arguments], int]] = {
    "migrate": _migrate,
    "sync": _sync,
    "daemon": _daemon,
    "backfill": _backfill,
    "enqueue": _enqueue,
    "status": _status,
    "dead": _dead,
    "prune": _prune,
    "forget": _forget,
    "replay": _replay,
    "report": _report,
    "doctor": _doctor,
    "simulate": _simulate,
    "demo": _demo,
}
