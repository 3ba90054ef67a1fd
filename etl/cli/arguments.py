"""What may be typed: commands, options, and what an argument means. Hides argparse; runs nothing."""

from __future__ import annotations

import argparse
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from etl.cli.version import version
from etl.errors import ConfigError

Arguments = argparse.Namespace


def texts_of(sources: Sequence[str], hide: Callable[[str], str]) -> tuple[list[str], list[str]]:
    """The texts of ids, links and files (`-`: stdin) that hold an id, and what is wrong with the others.

    `hide` takes secrets out of what is quoted.
    """
    from etl import inbox

    texts: list[str] = []
    problems: list[str] = []
    for source in sources:
        try:
            text = inbox.decode(_stdin()) if source == "-" else inbox.read_argument(source)
        except ValueError as error:
            problems.append(str(error))
            continue
        found = inbox.find(text)
        if found.ids:
            texts.append(text)
            continue
        shown = "stdin" if source == "-" else repr(hide(source)[:100])
        problem = f"{shown} holds no test session id" + ("" if source == "-" else " (nor is it a file that does)")
        not_taken = [] if text == source else inbox.lines_not_taken(found.not_taken, hide)
        problems.append("; ".join([problem, *not_taken]))
        problems += found.advice
    return texts, problems


def _stdin() -> bytes:
    """All that comes. A signal just before a read would not end it, so none is begun until there is something."""
    descriptor = sys.stdin.fileno()
    parts: list[bytes] = []
    while not parts or parts[-1]:
        if select.select([descriptor], [], [], 1)[0]:
            parts.append(os.read(descriptor, 1 << 16))
    return b"".join(parts)


def ids_of(arguments: Sequence[str], hide: Callable[[str], str]) -> list[str]:
    from etl import inbox

    ids: list[str] = []
    problems: list[str] = []
    for argument in arguments:
        found = inbox.find_ids(argument)
        ids += found
        if not found:
            problems.append(f"{hide(argument)[:100]!r} is no test session id")
    if problems:
        raise ConfigError(problems)
    return ids


def range_of(arguments: Arguments, moment: datetime) -> tuple[datetime, datetime | None]:
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


def when(name: str, text: str, moment: datetime) -> datetime:
    """A time in the past. Raises ConfigError for one that is none, or still to come."""
    from etl.config import parse_when

    try:
        found = parse_when(text, moment)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    if found > moment:
        raise ConfigError(f"{name} {found:%Y-%m-%d %H:%M} UTC is still to come: give a time that has passed")
    return found


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


def _file(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("is empty: name a file, or leave it out")
    return Path(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError("must be a whole number, 0 or more")
    return int(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}{self._did_you_mean(message)}; see: {self.prog} --help")

    def _did_you_mean(self, message: str) -> str:
        """Name the nearest command or option that there is, for one that there is not."""
        import difflib

        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        options = re.search(r"unrecognized arguments: (--[^ =]+)", message)
        if choice:
            wrong, known = choice[1], re.findall(r"[\w-]+", choice[2])
        elif options:
            wrong, known = options[1], re.findall(r"--[a-z][a-z-]*", self.format_help())
        else:
            return ""
        close = difflib.get_close_matches(wrong, known, n=1)
        return f"; did you mean {close[0]}?" if close else ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """A command knows all of its arguments: argparse would leave it to the program to refuse the others."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def make_parser() -> argparse.ArgumentParser:
    """The whole command line. `parse_args` of it raises ConfigError for what it does not understand."""
    # Global options stand before or after the command; SUPPRESS keeps the second parser from undoing the first.
    common = _Parser(add_help=False)
    group = common.add_argument_group("global options, before or after the command")
    group.add_argument(
        "--config", metavar="FILE", type=_file, default=argparse.SUPPRESS, help="settings (config.yaml)"
    )
    group.add_argument(
        "--log-format", choices=("text", "json"), default=argparse.SUPPRESS, help="format of the log on stderr"
    )
    group.add_argument(
        "-q", "--quiet", dest="quiet", action="store_true", default=argparse.SUPPRESS, help="warnings only"
    )
    group.add_argument(
        "-v", "--verbose", dest="verbose", action="store_true", default=argparse.SUPPRESS, help="say more"
    )

    parser = _Parser(
        prog="checkly-etl",
        description="Export Checkly test sessions into your own SQL warehouse, before they are deleted.",
        epilog="Two variables are enough: CHECKLY_API_KEY and CHECKLY_ACCOUNT_ID. First: checkly-etl migrate, "
        "then: checkly-etl sync. Exit codes: 0 done, 1 look at it, 2 usage or settings, 3 unreachable or refused.",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"checkly-etl {version()}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )

    def add(name: str, help_: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help_, description=help_, parents=[common])

    def add_json(command: argparse.ArgumentParser) -> None:
        command.add_argument("--json", action="store_true", help="print one JSON object on stdout")

    def add_account(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--account",
            action="append",
            metavar="ID",
            help="only this account of the settings, by its id or name; again for more",
        )

    add("migrate", "create or upgrade the warehouse's schema")

    sync = add("sync", "one pass: discover what is new, export what is due (for cron)")
    sync.add_argument("--max-time", type=_duration, metavar="10m", help="stop after this time, give the rest back")
    sync.add_argument(
        "--wait",
        action="append",
        metavar="ID",
        help="only this test session (or those of a file), until it is final; exit 0 if it is stored then",
    )
    add_account(sync)
    add_json(sync)

    backfill = add("backfill", "export every test session created in a past range, oldest first")
    add_account(backfill)
    backfill.add_argument("--since", required=True, metavar="T", help="ISO date or time, or an age such as 90d")
    backfill.add_argument("--until", metavar="T", help="exclusive; until now without it")
    backfill.add_argument("--newest-first", action="store_true", help="newest first")
    backfill.add_argument("--force", action="store_true", help="fetch what we hold, too")
    backfill.add_argument("--plan", action="store_true", help="only say what it would cost; nothing is queued")
    add_json(backfill)

    enqueue = add("enqueue", "queue ids, links, files or pasted CI output")
    enqueue.add_argument("ids", nargs="*", metavar="X", help="an id, a link or a file; - reads stdin")
    enqueue.add_argument("--force", action="store_true", help="discarded and leased ones, too")
    add_json(enqueue)

    add(
        "daemon",
        "sync on a schedule (schedule.cron or schedule.interval) until SIGTERM; /livez /healthz /metrics",
    )

    add_json(add("status", "freshness, queue, dead and stale sessions, last runs, drift"))

    # Each action is a command of its own to argparse: it would take no id behind an option otherwise.
    dead = add("dead", "what could not be exported, and why")
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

    add_json(add("replay", "rebuild all rows from the stored payloads, without the API"))

    report = add("report", "the views in pictures: one HTML file that needs no network")
    report.add_argument(
        "-o",
        "--output",
        dest="output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="report.html without it; - is stdout",
    )
    report.add_argument(
        "--since", default="30d", metavar="T", help="ISO date or time, or an age: whole UTC days (default 30d)"
    )
    report.add_argument(
        "--account", action="append", metavar="A", help="only this account: its id, or its name in the settings"
    )
    report.add_argument("--open", action="store_true", help="open it in a browser")
    add_json(report)

    add_json(add("doctor", "check settings, API, account and warehouse, and say what to do"))

    prune = add("prune", "delete old payloads, runs and rejected messages; the rows of test sessions stay")
    prune.add_argument("--before", required=True, metavar="T", help="ISO date or time, or an age such as 400d")
    prune.add_argument("--plan", action="store_true", help="only count; nothing is deleted")
    add_json(prune)

    forget = add("forget", "delete all that is held of a test session, for good")
    forget.add_argument("what", choices=("test-session",), metavar="test-session")
    forget.add_argument("ids", nargs="+", metavar="ID")
    add_json(forget)

    simulate = add("simulate", "serve a simulated Checkly API")
    simulate.add_argument("--host", default="127.0.0.1")
    simulate.add_argument("--port", type=_count, default=4010)
    simulate.add_argument("--api-key", help="the one key that is let in (any without it)")
    simulate.add_argument("--seed", type=_count, default=1, help="another seed, another world")
    simulate.add_argument("--now", type=_moment, metavar="T", help="fix the world's clock")
    simulate.add_argument("--rate-limit", type=_count, default=600, metavar="N", help="calls per 60 s, 0 for none")

    add("demo", "simulated history in ./demo, in a minute")
    return parser
