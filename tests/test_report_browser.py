"""The report in a real browser: its numbers are those of the views, and nothing in the data can harm a reader.

The page is compared with the views of the contract, never with its own v_report_ ones. They are read in the
transaction that wrote the page, so that both speak of the same moment. Each page must be quiet when its test ends.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote
from uuid import UUID

import pytest
from playwright.sync_api import Browser
from sqlalchemy import Connection, select, text

from etl import config, pipeline, report
from etl.database import Database, now
from etl.pipeline import Etl
from etl.simulator import Simulator, World
from etl.tables import (
    check_executions,
    error_groups,
    etl_accounts,
    etl_queue,
    metadata,
    test_session_error_groups,
    test_session_result_error_groups,
    test_session_results,
    test_sessions,
)
from tests.browser import Opener, OpenPage, axe, screenshot, wait_until_ready
from tests.conftest import ACCOUNT
from tests.histories import History, id_
from tests.test_histories import execution

Row = dict[str, Any]
Address = dict[str, str]  # what the filters are set to, as the page's address has it; "(none)" is null

OTHER_ACCOUNT = "44444444-4444-4444-8444-444444444444"
DAYS = 30
CONTRACT = (
    "v_checks",
    "v_check_daily",
    "v_execution_history",
    "v_failure_streaks",
    "v_flaky_checks",
    "v_commit_flakiness",
    "v_duration_regressions",
    "v_error_group_impact",
    "v_error_occurrences",
    "v_test_session_summary",
    "v_freshness",
)
CUSTOMERS = (error_groups, test_sessions, test_session_results, check_executions, test_session_error_groups,
             test_session_result_error_groups, etl_accounts, etl_queue)  # fmt: skip
_numbers = itertools.count(1)
DESK, PHONE = (1280, 800), (390, 844)


# --- warehouses and pages -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A page, and what the contract's views said in the transaction that wrote it."""

    path: Path
    views: dict[str, list[Row]]
    queue: list[Row]
    today: date
    moment: datetime

    @property
    def types(self) -> dict[tuple[Any, Any], Any]:
        """The type of each check, by account and key."""
        return {(row["account_id"], row["check_key"]): row["check_type"] for row in self.views["v_checks"]}


def written(database: Database, path: Path, *, days: int = DAYS, views: bool = True) -> Written:
    """Write the page of a warehouse, of the last `days` UTC days."""

    def work(connection: Connection) -> Written:
        made = report.make(
            connection,
            since=since,
            accounts=[],
            loss_warning_hours=24,
            version="0.0.test",
            hide=str,
        )
        assert made.days == days
        moment = now(connection)
        return Written(
            report.write(made, path),
            {name: _rows(connection, f"SELECT * FROM {name}") for name in CONTRACT} if views else {},
            _rows(connection, "SELECT q.account_id, q.state, q.error_kind, s.test_session_id FROM etl_queue q"
                  " LEFT JOIN test_sessions s ON s.test_session_id = q.test_session_id"),
            moment.date(),
            moment,
        )  # fmt: skip

    while True:
        since = database.read(now) - timedelta(days=days)
        page = database.read(work)
        if database.read(now).date() == page.today:  # else midnight passed, and the views moved on
            return page


def _rows(connection: Connection, query: str) -> list[Row]:
    """The same Python values from both engines; times are datetimes."""
    return [
        {name: _plain(name, value) for name, value in row.items()}
        for row in connection.execute(text(query)).mappings()
    ]


def _plain(name: str, value: Any) -> Any:
    is_time = name.endswith("_at") or name in ("first_seen", "last_seen")
    if isinstance(value, str) and is_time:
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    if isinstance(value, str) and name == "day":
        return date.fromisoformat(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def world(folder: Path, sqlite_template: Path) -> Iterator[Database]:
    """33 days of a simulated account, and 9 of another one, exported until now."""
    path = folder / "world.db"
    shutil.copy(sqlite_template, path)
    database = Database(f"sqlite:///{path}")
    moment = datetime.now(UTC)
    for account, name, seed, days in ((ACCOUNT, "web shop", 1, 33), (OTHER_ACCOUNT, "bank", 2, 9)):
        with Simulator(World(seed=seed, now=moment, days=days, account_id=account), rate_limit=0) as simulator:
            env = {
                "CHECKLY_API_URL": simulator.url,
                "CHECKLY_API_KEY": "key",
                "CHECKLY_ETL_CHECKLY__ACCOUNTS": f'[{{"id": "{account}", "name": "{name}"}}]',
                "CHECKLY_ETL_WAREHOUSE_URL": f"sqlite:///{path}",
                "CHECKLY_ETL_EXPORT__REQUESTS_PER_MINUTE": "0",
                "CHECKLY_ETL_EXPORT__KEEP_PAYLOADS": "false",
                "CHECKLY_ETL_CHECKLY__RETENTION": "180d",
            }
            etl = Etl(config.load(Path(os.devnull), env), database)
            assert not pipeline.backfill(etl, since=moment - timedelta(days=days), until=None).failures
    with database.writing() as connection:
        # What a warehouse may have and the simulator has not: work that waits, and some that nobody can do.
        add = etl_queue.insert()
        connection.execute(add, queued(0xD1, ACCOUNT, moment))
        failed = {"error_kind": "payload", "last_error": "<b>no JSON</b>", "last_error_at": moment}
        connection.execute(add, queued(0xD2, OTHER_ACCOUNT, moment, state="dead", **failed))
    yield database
    database.close()


def queued(number: int, account: str | None, moment: datetime, **more: Any) -> Row:
    """A row of the queue."""
    return {
        "test_session_id": id_(number),
        "account_id": account,
        "state": "queued",
        "priority": 0,
        "claim_order": 0.0,
        "source": "discovery",
        "attempts": 0,
        "available_at": moment,
        "enqueued_at": moment,
        "session_created_at": moment,
        **more,
    }


@pytest.fixture(scope="module")
def report_of_the_world(world: Database, folder: Path) -> Written:
    return written(world, folder / "world.html")


class Show(Protocol):
    def __call__(self, page: Written | Path, *, fragment: str = "", **options: Any) -> OpenPage: ...


@pytest.fixture
def show(open_page: Opener) -> Iterator[Show]:
    """Opens a page and waits until it is drawn. However the test goes on: no page may have made a noise."""
    opened: list[OpenPage] = []

    def one(page: Written | Path, *, fragment: str = "", **options: Any) -> OpenPage:
        found = open_page(page if isinstance(page, Path) else page.path, fragment=fragment, **options)
        found.page.set_default_timeout(30_000)
        opened.append(found)
        if options.get("java_script", True):
            wait_until_ready(found)
        return found

    yield one
    for found in opened:
        found.assert_quiet()


@contextmanager
def redrawn(page: OpenPage) -> Iterator[None]:
    """What is done in it makes the page draw itself anew; after it, that is done."""
    page.page.evaluate("document.getElementById('main').firstElementChild.dataset.old = ''")
    yield
    page.page.wait_for_function("() => !document.querySelector('[data-old]')", timeout=30_000)


def choose(page: OpenPage, **filters: str) -> None:
    for name, chosen in filters.items():
        with redrawn(page):
            page.page.select_option(f"#filter-{name}", value=chosen)


def go(page: OpenPage, fragment: str) -> None:
    """Somebody changes the address."""
    with redrawn(page):
        page.page.evaluate("(to) => { location.hash = to; }", fragment)


def afresh(page: OpenPage) -> None:
    """Every filter is gone, and no check is shown."""
    go(page, f"again={next(_numbers)}")


def said(page: OpenPage, selector: str = "main") -> str:
    """What a reader sees there."""
    return page.page.locator(selector).first.inner_text()


def open_details(page: OpenPage) -> None:
    """Whatever is folded up; also tables, which are made only then."""
    page.page.evaluate("() => { for (const one of document.querySelectorAll('main details')) one.open = true; }")
    page.page.wait_for_function("() => [...document.querySelectorAll('.numbers')].every((one) => one.children[1])")


def counted(page: OpenPage, selector: str) -> int:
    return page.page.locator(selector).count()


def is_narrow_enough(page: OpenPage) -> bool:
    is_it = bool(page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))
    if not is_it:  # pytest shows it
        print(page.page.evaluate(WIDEST))
    return is_it


# What reaches beyond the window's edge, and no box around it scrolls.
WIDEST = """() => [...document.querySelectorAll("body *")]
  .filter((one) => one.getBoundingClientRect().right > innerWidth && !one.closest(".scroll"))
  .map((one) => `${one.tagName}#${one.id}.${one.className} ${one.textContent.slice(0, 20)}`)"""


# --- what the page says -------------------------------------------------------------------------------------

# Every row is asked for first. Of a row: the key of its check (from its link), its numbers, rates and texts.
READ = r"""() => {
  const more = () => [...document.querySelectorAll("main button.more")].find((one) =>
    /^Show (all|[\d,]+ more)/.test(one.textContent));
  for (let button = more(); button; button = more()) button.click();
  const number = (one) => (one.dataset.value === "" ? null : Number(one.dataset.value));
  const named = (root) => Object.fromEntries([...root.querySelectorAll("[data-name]")].map((one) =>
    [one.dataset.name, number(one)]));
  const line = (row) => ({
    key: row.dataset.key ?? null,
    check: /[#&]check=([^&]*)/.exec(row.querySelector("a.check")?.getAttribute("href"))?.[1] ?? null,
    links: [...row.querySelectorAll("a[target]")].map((one) => one.getAttribute("href")),
    values: named(row),
    rates: Object.fromEntries([...row.cells].flatMap((cell) => [...cell.querySelectorAll("[data-hits]")].map((one) =>
      [cell.dataset.label, [Number(one.dataset.hits), Number(one.dataset.n), number(one)]]))),
    texts: Object.fromEntries([...row.cells].map((cell, i) => [cell.dataset.label ?? String(i), cell.textContent])),
    titles: [...row.cells].map((cell) => cell.title),
  });
  return {
    tiles: Object.fromEntries([...document.querySelectorAll("main section")].map((one) =>
      [one.id, Object.assign({}, ...[...one.querySelectorAll(".tiles")].map(named))])),
    tables: Object.fromEntries([...document.querySelectorAll("main table[id]")].map((table) =>
      [table.id, { rows: Number(table.dataset.rows), lines: [...table.tBodies[0].rows].map(line) }])),
  };
}"""


def read(page: OpenPage) -> Any:
    """All that the page says: `tiles` by section and name, `tables` by id."""
    found = page.page.evaluate(READ)
    for name, table in found["tables"].items():
        assert len(table["lines"]) == table["rows"], f"{name} shows {len(table['lines'])} rows of {table['rows']}"
        for line in table["lines"]:
            line["check"] = None if line["check"] is None else unquote(line["check"])
    return found


def lines_of(found: Any, name: str) -> list[Any]:
    """A table's rows; one that has none is not drawn."""
    table = found["tables"].get(name)
    return table["lines"] if table else []


def seen(found: Any) -> dict[str, Any]:
    """What the page says, section by section, in the shape of `expected`."""
    verdicts, fixes = found["tiles"]["verdicts"], found["tiles"]["fixes"]

    def place(line: Any, *labels: str) -> tuple[Any, ...]:
        return (line["check"], *(line["texts"][label] for label in labels))

    everywhere = ("Branch", "Environment", "Location")
    longest: dict[Any, list[Any]] = {}
    for line in sorted(lines_of(found, "fixes-longest"), key=lambda line: line["values"]["first_failed_at"]):
        longest.setdefault(place(line, *everywhere), []).append(line["values"])
    return {
        "trust": {line["key"]: line["values"] for line in lines_of(found, "trust-accounts")},
        "verdicts": verdicts,
        "failing": {
            place(line, *everywhere): {**line["values"], "links": line["links"]}
            for line in lines_of(found, "failing-now")
        },
        **{
            name: {line["key"]: line["rates"]["Rate"] for line in lines_of(found, name)}
            for name in ("flaky-retry", "flaky-commit", "flaky-flip")
        },
        "slower": {
            place(line, "Environment", "Location"): {**line["values"], "sample": line["texts"]["Sample"]}
            for line in lines_of(found, "slower-checks")
        },
        "errors": {line["key"]: line["values"] for line in lines_of(found, "errors-groups")},
        "fixes": fixes,
        "longest": longest,
        "heat": {line["key"]: line["titles"][1:] for line in lines_of(found, "heat-strip")},
        "places": {
            line["texts"]["Branch"]: {
                "executions": line["values"]["executions"],
                **{label: rate[:2] for label, rate in line["rates"].items()},
            }
            for line in lines_of(found, "places-rates")
        },
    }


# --- what the views say -------------------------------------------------------------------------------------


def moment(value: datetime | None) -> Any:
    """Seconds since 1970; the page knows whole ones."""
    return None if value is None else pytest.approx(value.timestamp(), abs=1)


def nearest_rank(values: Iterable[Any], p: int) -> Any:
    """Of n values, ascending, the one at rank (p·n + 99) / 100 in integer division."""
    ordered = sorted(values)
    return ordered[(p * len(ordered) + 99) // 100 - 1] if ordered else None


def rate(hits: int, n: int) -> list[Any]:
    return [hits, n, hits / n]


class Views:
    """The rows of the contract's views, as far as the filters let them through."""

    def __init__(self, page: Written, address: Address) -> None:
        self._page, self._address = page, address
        self._types = page.types
        self.days = int(address.get("period", DAYS))
        self.first = page.today - timedelta(days=self.days - 1)
        self.since = datetime.combine(self.first, time(), UTC)

    def of(self, view: str, *, but: Iterable[str] = ()) -> list[Row]:
        """`but`: filters that do not concern it."""
        columns = {"account": "account_id", "environment": "environment", "branch": "branch_name"}
        wanted = {name: None if one == "(none)" else one for name, one in self._address.items() if name not in but}
        return [
            row
            for row in self._page.views[view]
            if all(row[column] == wanted[name] for name, column in columns.items() if name in wanted)
            and ("type" not in wanted or self._types.get((row["account_id"], row["check_key"])) == wanted["type"])
        ]

    def daily(self) -> list[Row]:
        return [row for row in self.of("v_check_daily") if self.first <= row["day"] <= self._page.today]


def expected(page: Written, address: Address) -> dict[str, Any]:
    """What the page has to say under these filters, by the contract's views alone."""
    views = Views(page, address)
    daily = views.daily()

    def total(name: str, rows: list[Row] = daily) -> Any:
        return sum(row[name] for row in rows)

    sessions = [row for row in views.of("v_test_session_summary", but=("type",)) if row["started_at"] >= views.since]
    streaks = views.of("v_failure_streaks")
    open_ = [row for row in streaks if row["recovered_at"] is None and row["last_failed_at"] >= views.since]
    fixed = [row for row in streaks if row["recovered_at"] is not None and row["recovered_at"] >= views.since]
    times = [row["time_to_fix_ms"] for row in fixed]

    def place(row: Row, *but: str) -> tuple[Any, ...]:
        nothing = {"branch_name": "no branch", "environment": "no environment", "run_location": "no location"}
        return (row["check_key"], *(row[name] or none for name, none in nothing.items() if name not in but))

    verdicts = {
        "pass_rate": total("passed") / total("decided") if total("decided") else None,
        "executions": total("executions"),
        "failed": total("failed"),
        "failing_now": len(open_),
        "retry_flaky": total("retry_flaky"),
        "retry_cost_ms": total("retry_cost_ms"),
    }
    if "type" not in address:
        verdicts["test_sessions"] = len(sessions)
    longest: dict[Any, list[Any]] = {}
    for row in sorted(fixed, key=lambda row: row["first_failed_at"]):
        longest.setdefault(place(row), []).append(
            {
                "time_to_fix_ms": row["time_to_fix_ms"],
                "failures": row["failures"],
                "first_failed_at": moment(row["first_failed_at"]),
                "recovered_at": moment(row["recovered_at"]),
            }
        )
    return {
        "trust": {row["account_id"]: trusted(page, row) for row in views.of("v_freshness", but=BUT_ACCOUNT)},
        "verdicts": verdicts,
        "failing": {
            place(row): {
                "first_failed_at": moment(row["first_failed_at"]),
                "failures": row["failures"],
                "links": [row["link"]],
            }
            for row in open_
        },
        **flakiest(views, daily),
        "slower": {
            place(row, "branch_name"): {
                "ratio": row["ratio"],
                "recent_p95_duration_ms": pytest.approx(row["recent_p95_duration_ms"], abs=0.5),
                "baseline_p95_duration_ms": pytest.approx(row["baseline_p95_duration_ms"], abs=0.5),
                "sample": f"{row['recent_n']:,} / {row['baseline_n']:,} on {row['baseline_days']} day"
                + ("s" if row["baseline_days"] != 1 else ""),
            }
            for row in views.of("v_duration_regressions", but=("branch",))
            if row["ratio"] is not None and row["ratio"] > 1
        },
        "errors": errors(page, views),
        "fixes": {
            "fixed": len(fixed),
            "median_time_to_fix_ms": nearest_rank(times, 50),
            "p90_time_to_fix_ms": nearest_rank(times, 90),
            "failures_until_fixed": nearest_rank((row["failures"] for row in fixed), 50),
        }
        if fixed
        else {},
        "longest": longest,
        "heat": heat(views, daily),
        "places": places(daily),
    }


BUT_ACCOUNT = ("environment", "branch", "type", "period")


def trusted(page: Written, row: Row) -> Row:
    sessions = [one for one in page.views["v_test_session_summary"] if one["account_id"] == row["account_id"]]
    waiting = [
        one
        for one in page.queue
        if one["account_id"] == row["account_id"] and one["test_session_id"] is None and one["state"] != "discarded"
    ]
    hours = row["hours_until_loss"]
    return {
        "last_success_at": moment(row["last_success_at"]),
        "newest_started_at": moment(row["newest_started_at"]),
        "test_sessions": len(sessions),
        "coverage": len(sessions) / (len(sessions) + len(waiting)),
        **{name: row[name] for name in ("due", "scheduled", "leased", "dead")},
        "hours_until_loss": None if hours is None else pytest.approx(hours, abs=0.1),
    }


def flakiest(views: Views, daily: list[Row]) -> dict[str, Any]:
    retried: Counter[str] = Counter()
    decided: Counter[str] = Counter()
    for row in daily:
        retried[row["check_key"]] += row["retry_flaky"]
        decided[row["check_key"]] += row["decided"]
    history = [row for row in views.of("v_execution_history") if views.first <= row["started_at"].date()]
    comparable = Counter(row["check_key"] for row in history if row["previous_status"] is not None)
    flips = Counter(row["check_key"] for row in history if row["is_flip"])
    return {
        "flaky-retry": {key: rate(hits, decided[key]) for key, hits in retried.items() if hits},
        "flaky-commit": {key: rate(hits, n) for key, (hits, n) in commits(views).items() if hits},
        "flaky-flip": {key: rate(hits, comparable[key]) for key, hits in flips.items()},
    }


def commits(views: Views) -> dict[str, tuple[int, int]]:
    """Of each check: commits that passed and failed in one place, and those that had the chance, of 30 days."""
    month = views._page.today - timedelta(days=29)
    verdicts: dict[tuple[Any, ...], list[str]] = {}
    for row in views.of("v_execution_history", but=("branch",)):
        if row["commit_id"] is not None and row["started_at"].date() >= month:
            place = (row["check_key"], row["commit_id"], row["environment"], row["run_location"])
            verdicts.setdefault(place, []).append(row["verdict"])
    chances: dict[str, set[str]] = {}
    flaky: dict[str, set[str]] = {}
    for (key, commit, *_), found in verdicts.items():
        if len(found) >= 2:
            chances.setdefault(key, set()).add(commit)
        if len(set(found)) == 2:
            flaky.setdefault(key, set()).add(commit)
    return {key: (len(flaky.get(key, ())), len(found)) for key, found in chances.items()}


def errors(page: Written, views: Views) -> dict[str, Row]:
    here = Counter(
        row["error_group_id"] for row in views.of("v_error_occurrences") if row["started_at"] >= views.since
    )
    groups = {row["error_group_id"]: row for row in page.views["v_error_group_impact"]}
    return {
        group: {
            "here": count,
            "occurrences": groups[group]["occurrences"],
            "test_sessions": groups[group]["test_sessions"],
            "first_seen": moment(groups[group]["first_seen"]),
            "last_seen": moment(groups[group]["last_seen"]),
        }
        for group, count in here.items()
    }


def heat(views: Views, daily: list[Row]) -> dict[str, list[str]]:
    days = [views.first + timedelta(days=number) for number in range(views.days)]
    cells: dict[str, dict[date, list[int]]] = {}
    for row in daily:
        counts = cells.setdefault(row["check_key"], {}).setdefault(row["day"], [0, 0, 0])
        for i, name in enumerate(("failed", "decided", "executions")):
            counts[i] += row[name]

    def cell(day: date, counts: list[int] | None) -> str:
        if counts is None:
            return f"{day}: no data"
        failed, decided, executions = counts
        return f"{day}: " + (f"{failed:,} of {decided:,} failed" if decided else f"{executions:,} undecided")

    return {key: [cell(day, found.get(day)) for day in days] for key, found in cells.items()}


def places(daily: list[Row]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    environments = {row["environment"] for row in daily}
    for row in daily:
        place = found.setdefault(row["branch_name"] or "no branch", {"executions": 0})
        place["executions"] += row["executions"]
        if row["decided"]:
            for name in (row["environment"] or "no environment", "All environments"):
                if name != "All environments" or len(environments) > 1:
                    hits, n = place.get(name, [0, 0])
                    place[name] = [hits + row["passed"], n + row["decided"]]
    return found


def assert_equal(found: Any, shown: Written, address: Address) -> None:
    """The whole page says what the views say."""
    of_page, of_views = seen(found), expected(shown, address)
    assert of_page.keys() == of_views.keys()
    for name, found in of_page.items():
        assert found == of_views[name], name


# --- numbers ------------------------------------------------------------------------------------------------


def busiest(page: Written, column: str) -> str:
    """What most executions have there, `main` aside."""
    counts: Counter[str] = Counter()
    for row in page.views["v_check_daily"]:
        if row[column] not in (None, "main"):
            counts[row[column]] += row["executions"]
    return counts.most_common(1)[0][0]


@pytest.fixture(scope="module")
def opened(chromium: Browser, report_of_the_world: Written) -> Iterator[OpenPage]:
    """The page of the world, for tests that begin with its address."""
    opener = Opener(chromium)
    page = opener(report_of_the_world.path)
    wait_until_ready(page)
    yield page
    page.assert_quiet()
    opener.close()


@pytest.fixture(scope="module")
def unfiltered(opened: OpenPage) -> Any:
    """All that the page says at first, with the numbers of the first charts."""
    afresh(opened)
    for summary in opened.page.locator("#verdicts details.numbers summary").all():
        summary.click()
    return read(opened)


def test_every_number_is_that_of_the_views(unfiltered: Any, report_of_the_world: Written) -> None:
    assert_equal(unfiltered, report_of_the_world, {})


@pytest.mark.parametrize(
    "address",
    [
        {"environment": "production"},
        {"environment": "(none)"},
        {"branch": "main"},
        {"branch": "(busiest)"},
        {"branch": "(none)"},
        {"type": "BROWSER"},
        {"period": "7"},
        {"period": "1"},
        {"account": ACCOUNT},
        {"account": OTHER_ACCOUNT},
        {"account": ACCOUNT, "environment": "staging", "branch": "main", "type": "API", "period": "14"},
    ],
    ids=lambda address: "&".join(f"{name}={one}" for name, one in address.items()),
)
def test_under_a_filter_every_number_is_that_of_the_views(
    opened: OpenPage, report_of_the_world: Written, address: Address
) -> None:
    if address.get("branch") == "(busiest)":
        address = {"branch": busiest(report_of_the_world, "branch_name")}
    afresh(opened)
    choose(opened, **address)
    assert_equal(read(opened), report_of_the_world, address)
    chosen = dict(part.split("=") for part in opened.page.url.partition("#")[2].split("&"))
    assert {name: unquote(one) for name, one in chosen.items() if name != "again"} == address


def test_on_postgresql_every_number_is_that_of_the_views(
    show: Show, world: Database, new_warehouse: Callable[[str], str], tmp_path: Path
) -> None:
    database = Database(new_warehouse("postgresql"))
    with world.reading() as source, database.writing() as target:
        for table in metadata.sorted_tables:
            if table in CUSTOMERS and (found := [dict(row) for row in source.execute(select(table)).mappings()]):
                target.execute(table.insert(), found)
    shown = written(database, tmp_path / "report.html")
    database.close()
    page = show(shown)
    assert_equal(read(page), shown, {})
    choose(page, environment="production", period="7")
    assert_equal(read(page), shown, {"environment": "production", "period": "7"})


def test_of_thirty_days_the_flaky_lists_are_those_of_v_flaky_checks(
    unfiltered: Any, report_of_the_world: Written
) -> None:
    found = seen(unfiltered)
    rows = report_of_the_world.views["v_flaky_checks"]
    for name, hits, n in (
        ("flaky-retry", "retry_flaky", "decided"),
        ("flaky-commit", "commit_flaky", "commits"),
        ("flaky-flip", "flips", "comparable"),
    ):
        assert found[name] == {row["check_key"]: rate(row[hits], row[n]) for row in rows if row[hits]}, name
        assert len(found[name]) > 3, name


def test_what_is_worst_stands_first(unfiltered: Any) -> None:
    for name, column in (
        ("failing-now", "first_failed_at"),
        ("slower-checks", "ratio"),
        ("errors-groups", "here"),
        ("fixes-longest", "time_to_fix_ms"),
        ("places-rates", "executions"),
    ):
        values = [line["values"][column] for line in lines_of(unfiltered, name)]
        assert values == sorted(values, reverse=True), name
        assert len(values) > 3, name
    failed = [
        sum(int(title.split(": ")[1].split(" of ")[0]) for title in line["titles"][1:] if " of " in title)
        for line in lines_of(unfiltered, "heat-strip")
    ]
    assert failed == sorted(failed, reverse=True)


def test_the_numbers_that_are_read_are_those_that_are_meant(unfiltered: Any) -> None:
    """What stands in `data-value` is what the reader sees."""
    for line in lines_of(unfiltered, "places-rates"):
        assert line["texts"]["Executions"] == f"{line['values']['executions']:,}"
        for label, (hits, n, value) in line["rates"].items():
            assert value == hits / n
            assert f"{hits:,} of {n:,}" in line["texts"][label]
            shown = line["texts"][label].split("%")[0]
            assert shown in ("<0.1", ">99.9") or float(shown) == pytest.approx(100 * value, abs=0.0501)
            assert (shown == "100") == (value == 1)
            assert (shown == "0") == (value == 0)
    for line in lines_of(unfiltered, "failing-now"):
        at = datetime.fromtimestamp(line["values"]["first_failed_at"], UTC)
        assert f"{at:%Y-%m-%d %H:%M} UTC" in line["texts"]["Failing since"]
        assert line["texts"]["In a row"] == f"{line['values']['failures']:,}"
    for line in lines_of(unfiltered, "fixes-longest"):
        assert _milliseconds(line["texts"]["Took"]) == pytest.approx(
            line["values"]["time_to_fix_ms"], rel=0.03, abs=51
        )


def _milliseconds(shown: str) -> float:
    units = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
    return sum(
        float(one.replace(",", "")) * units[unit] for one, unit in re.findall(r"([\d,.]+) (ms|s|min|h|d)", shown)
    )


def test_the_numbers_of_a_chart_are_those_of_the_views(unfiltered: Any, report_of_the_world: Written) -> None:
    daily = Views(report_of_the_world, {}).daily()
    of_views: dict[str, Counter[str]] = {}
    for row in daily:
        day = of_views.setdefault(str(row["day"]), Counter())
        for name in ("passed", "failed"):
            day[name] += row[name]
        day["undecided"] += row["executions"] - row["decided"]
    lines = lines_of(unfiltered, "verdicts-chart-numbers")
    assert len(lines) == DAYS
    assert {line["key"]: line["values"] for line in lines} == {day: dict(one) for day, one in of_views.items()}
    for line in lines_of(unfiltered, "pass-rate-chart-numbers"):
        day = of_views[line["key"]]
        assert line["values"]["pass_rate"] == day["passed"] / (day["passed"] + day["failed"])


# --- filters and the address --------------------------------------------------------------------------------

FILTERS = ("account", "environment", "branch", "type", "period")


def chosen(page: OpenPage) -> list[str]:
    return [page.page.locator(f"#filter-{name}").input_value() for name in FILTERS]


def test_some_lists_know_no_branch_and_no_period(opened: OpenPage, unfiltered: Any) -> None:
    afresh(opened)
    choose(opened, branch="main", period="1")
    found = read(opened)
    for name in ("flaky-commit", "slower-checks"):
        assert lines_of(found, name) == lines_of(unfiltered, name) != [], name
    assert "all branches" in said(opened, "#flaky")
    assert lines_of(found, "trust-accounts") == lines_of(unfiltered, "trust-accounts")


def test_reset_takes_every_filter_back(opened: OpenPage, unfiltered: Any) -> None:
    afresh(opened)
    assert opened.page.locator("#reset").is_disabled()
    choose(opened, account=ACCOUNT, environment="production", branch="main", type="API", period="7")
    with redrawn(opened):
        opened.page.click("#reset")
    assert chosen(opened) == ["", "", "", "", "30"]
    assert seen(read(opened)) == seen(unfiltered)
    assert opened.page.url.partition("#")[2] == ""


def test_the_address_holds_what_was_chosen_and_back_and_forward_walk_through_it(
    opened: OpenPage, show: Show, report_of_the_world: Written
) -> None:
    afresh(opened)
    choose(opened, environment="staging")
    staging = seen(read(opened))
    choose(opened, period="14")
    both = seen(read(opened))
    assert both != staging
    with redrawn(opened):
        opened.page.go_back()
    assert chosen(opened) == ["", "staging", "", "", "30"]
    assert seen(read(opened)) == staging
    with redrawn(opened):
        opened.page.go_forward()
    assert chosen(opened) == ["", "staging", "", "", "14"]
    assert seen(read(opened)) == both
    elsewhere = show(report_of_the_world, fragment=opened.page.url.partition("#")[2])
    assert seen(read(elsewhere)) == both


def test_what_the_page_does_not_know_filters_nothing(opened: OpenPage, unfiltered: Any) -> None:
    for fragment in (
        "branch=gone&environment=gone&type=gone&account=gone&period=8",
        "branch=%zz&period=-1&section=gone",
        "&&==&=x&branch",
        "__proto__=1&constructor=2&period=Infinity",
    ):
        afresh(opened)
        go(opened, fragment)
        assert chosen(opened) == ["", "", "", "", "30"]
        executions = opened.page.get_attribute("#verdicts [data-name=executions]", "data-value")
        assert int(executions or 0) == unfiltered["tiles"]["verdicts"]["executions"]
    assert seen(read(opened)) == seen(unfiltered)


def test_a_filter_keeps_the_focus_where_it_is(opened: OpenPage) -> None:
    afresh(opened)
    opened.page.focus("#filter-branch")
    choose(opened, branch="main")
    assert opened.page.evaluate("document.activeElement.id") == "filter-branch"


def test_a_section_can_be_linked_to(show: Show, report_of_the_world: Written) -> None:
    page = show(report_of_the_world, fragment="section=errors&period=7")
    assert chosen(page)[-1] == "7"
    assert page.page.evaluate("document.activeElement.id") == "errors-title"
    assert page.page.locator("#errors-title").evaluate("(one) => one.getBoundingClientRect().top < innerHeight")
    with redrawn(page):
        page.page.click("#contents a >> text=Time to fix")
    assert page.page.url.endswith("#section=fixes&period=7")
    assert page.page.evaluate("document.activeElement.id") == "fixes-title"


# --- sorting ------------------------------------------------------------------------------------------------


def shown_values(page: OpenPage, table: str, name: str) -> list[float | None]:
    return [
        float(one) if one else None
        for one in page.page.locator(f"#{table} [data-name={name}]").evaluate_all(
            "(all) => all.map((one) => one.dataset.value)"
        )
    ]


def pressed(page: OpenPage, table: str) -> dict[str, str | None]:
    """Of each head that sorts: aria-sort."""
    return dict(
        page.page.locator(f"#{table} th button[data-sort]").evaluate_all(
            "(all) => all.map((one) => [one.dataset.sort, one.parentElement.getAttribute('aria-sort')])"
        )
    )


def test_a_press_sorts_by_that_column_and_another_press_the_other_way(
    show: Show, report_of_the_world: Written
) -> None:
    page = show(report_of_the_world)
    read(page)  # all rows
    page.page.click("#fixes-longest button[data-sort=failures]")
    values = shown_values(page, "fixes-longest", "failures")
    assert values == sorted(values, key=float, reverse=True)  # type: ignore[arg-type]
    assert len(set(values)) > 2
    assert pressed(page, "fixes-longest").pop("failures") == "descending"
    page.page.click("#fixes-longest button[data-sort=failures]")
    values = shown_values(page, "fixes-longest", "failures")
    assert values == sorted(values, key=float)  # type: ignore[arg-type]
    assert pressed(page, "fixes-longest").pop("failures") == "ascending"
    assert sum(one is not None for one in pressed(page, "fixes-longest").values()) == 1
    assert page.page.evaluate("document.activeElement.dataset.sort") == "failures"
    assert "Sorted by Failures, ascending" in str(page.page.text_content("#announcer"))
    # A filter leaves it sorted.
    choose(page, environment="production")
    assert pressed(page, "fixes-longest")["failures"] == "ascending"


def test_a_keyboard_sorts_too_and_texts_by_the_alphabet(show: Show, report_of_the_world: Written) -> None:
    page = show(report_of_the_world)
    read(page)
    page.page.focus("#places-rates button[data-sort=branch]")
    orders = []
    for key, state in (("Enter", "ascending"), ("Space", "descending")):
        page.page.keyboard.press(key)
        assert pressed(page, "places-rates")["branch"] == state
        assert page.page.evaluate("document.activeElement.dataset.sort") == "branch"
        orders.append(page.page.locator("#places-rates tbody th").all_inner_texts())
    up, down = orders
    # What has no branch stands last, both ways.
    assert up[-1] == down[-1] == "no branch"
    assert up[:-1] == down[:-1][::-1]
    assert [one.lower() for one in up[:-1]] == sorted(one.lower() for one in up[:-1])


def test_what_has_no_data_comes_last_whichever_way(show: Show, report_of_the_world: Written) -> None:
    page = show(report_of_the_world)
    read(page)
    told: list[tuple[int, int]] = []  # of each environment: branches with a rate, and all
    heads = [text.strip() for text in page.page.locator("#places-rates thead button").all_inner_texts()]
    for environment in heads[heads.index("All environments") + 1 :]:
        head = page.page.locator(f"#places-rates thead button >> text={environment}")
        for direction in (1, -1):
            head.click()
            rates = page.page.evaluate(
                """(label) => [...document.querySelectorAll("#places-rates tbody tr")].map((row) =>
                     [...row.cells].find((cell) => cell.dataset.label === label).querySelector("[data-hits]"))
                     .map((one) => one && Number(one.dataset.value))""",
                environment,
            )
            known = [one for one in rates if one is not None]
            assert known == sorted(known, key=lambda one: direction * one)
            assert rates[len(known) :] == [None] * (len(rates) - len(known))
            if len(known) < len(rates):
                assert "no data" in page.page.locator("#places-rates tbody tr").last.inner_text()
            told.append((len(known), len(rates)))
    # Which one it is depends on the day on which the world is looked at.
    assert any(1 < known < rates for known, rates in told)


def test_more_rows_come_when_asked_for_and_go_again(show: Show, report_of_the_world: Written) -> None:
    page = show(report_of_the_world)
    rows = "#fixes-longest tbody tr"
    assert counted(page, rows) == 6
    whole = int(str(page.page.get_attribute("#fixes-longest", "data-rows")))
    button = page.page.locator("#fixes .table button.more").first
    assert re.fullmatch(r"Show (all|100 more).*", button.inner_text())
    button.focus()
    page.page.keyboard.press("Enter")
    assert counted(page, rows) == min(whole, 106)
    assert page.page.evaluate("document.activeElement.className") == "more"
    assert f"{min(whole, 106)} of {whole} rows shown" in str(page.page.text_content("#announcer"))
    page.page.click("#fixes button.more >> text=Show 6 only")
    assert counted(page, rows) == 6


# --- a check's own section ----------------------------------------------------------------------------------


def test_a_check_has_a_section_of_its_own_with_the_numbers_of_the_views(
    show: Show, report_of_the_world: Written
) -> None:
    views = report_of_the_world.views
    failures = [row for row in views["v_execution_history"] if row["verdict"] == "FAILED"]
    ((_, key), _) = Counter((row["account_id"], row["check_key"]) for row in failures).most_common(1)[0]
    page = show(report_of_the_world, fragment=f"check={quote(key, safe='')}&period=14")
    screenshot(page, "report-check")
    (check,) = [row for row in views["v_checks"] if row["check_key"] == key]
    assert page.page.title() == f"{check['check_name']} · Checkly test report"
    assert said(page, "#check-title") == check["check_name"]
    assert page.page.evaluate("document.activeElement.id") == "check-title"
    assert f"last verdict {check['last_verdict']}" in said(page, "#check .facts")

    of = Views(report_of_the_world, {"period": "14"})
    daily = [row for row in of.daily() if row["check_key"] == key]
    history = [
        row for row in of.of("v_execution_history") if row["check_key"] == key and row["started_at"] >= of.since
    ]
    (flaky,) = [row for row in views["v_flaky_checks"] if row["check_key"] == key]
    fixed = [
        row["time_to_fix_ms"]
        for row in views["v_failure_streaks"]
        if row["check_key"] == key and row["recovered_at"] and row["recovered_at"] >= of.since
    ]
    found = read(page)
    passed, decided = (sum(row[name] for row in daily) for name in ("passed", "decided"))
    assert found["tiles"]["check"] == {
        "pass_rate": passed / decided,
        "executions": sum(row["executions"] for row in daily),
        "retry_flaky_rate": sum(row["retry_flaky"] for row in daily) / decided,
        "commit_flaky_rate": flaky["commit_flaky_rate"],
        "flip_rate": sum(bool(row["is_flip"]) for row in history)
        / sum(row["previous_status"] is not None for row in history),
        "median_time_to_fix_ms": nearest_rank(fixed, 50),
    }
    # The newest ten failures, and the last one of each place; each leads to its own page at Checkly.
    order = sorted(
        (row for row in history if row["verdict"] == "FAILED"),
        key=lambda row: (row["started_at"], row["test_session_id"], row["execution_no"]),
        reverse=True,
    )
    newest = order[:10] + [
        row
        for i, row in enumerate(order)
        if i >= 10 and row["history_key"] not in {o["history_key"] for o in order[:i]}
    ]
    lines = lines_of(found, "check-failures")
    assert [line["links"] for line in lines] == [[row["link"]] for row in newest]
    messages: dict[Any, list[str]] = {}
    for row in views["v_error_occurrences"]:
        messages.setdefault(row["test_session_result_id"], []).append(row["cleaned_error_message"])
    for line, row in zip(lines, newest, strict=True):
        assert f"{row['started_at']:%Y-%m-%d %H:%M} UTC" in line["texts"]["Started"]
        assert ("after a pass" in line["texts"]["Started"]) == bool(row["is_new_failure"])
        assert line["values"]["retries"] == row["retries"]
        if row["test_session_result_id"] in messages:
            assert any(one[:50] in line["texts"]["Error"] for one in messages[row["test_session_result_id"]])
        else:
            assert "no error group" in line["texts"]["Error"]
    link = page.page.locator("#check-failures a[target]").first
    assert str(link.get_attribute("href")).startswith("https://")
    assert link.get_attribute("rel") == "noopener noreferrer"
    # And back to where one came from.
    with redrawn(page):
        page.page.click("#check a.back")
    assert page.page.url.endswith("#period=14")
    assert counted(page, "#trust") == 1
    assert counted(page, "#check") == 0
    assert page.page.title() == "Checkly test report"


def test_a_click_on_a_check_opens_its_section_and_keeps_the_filters(show: Show, report_of_the_world: Written) -> None:
    page = show(report_of_the_world, fragment="environment=production")
    link = page.page.locator("#failing-now a.check").first
    name = link.locator("bdi").inner_text()
    with redrawn(page):
        link.click()
    assert said(page, "#check-title") == name
    assert chosen(page)[1] == "production"
    with redrawn(page):
        page.page.go_back()
    assert page.page.url.endswith("#environment=production")


def test_a_check_that_the_page_does_not_know_is_said_so(show: Show, report_of_the_world: Written) -> None:
    page = show(report_of_the_world, fragment="check=<b>gone</b>")
    assert "<b>gone</b>" in said(page, "#main [role=alert]")
    assert "did not run" in said(page, "#main [role=alert]")
    assert counted(page, "#trust") == 1


# --- what data can be ---------------------------------------------------------------------------------------

MARKUP = "<img src=x onerror=alert(1)></script><script>alert(2)</script><!--<script>&lt;b>"
AWKWARD = "a&b=c#d%20 é/“?+%zz=\\'\"🎉"
LONG = "Checkout" + "W" * 292
CJK = "結帳流程與購物車測試" * 30
RTL = "تسجيل الدخول إلى الحساب " * 13
EVERY = {"markup": MARKUP, "awkward": AWKWARD, "long": LONG, "cjk": CJK, "rtl": RTL}


def ran(
    number: int, verdict: str | None = "PASSED", *, at: datetime, message: str | None = None, **more: Any
) -> History:
    """A test session of one execution, with an error group if it has a message."""
    link = more.setdefault("link", f"https://app.checklyhq.com/results/{number}")
    one = execution(number, 1, verdict, started_at=at, **more)
    result = {
        "test_session_id": id_(number),
        "test_session_result_id": one["test_session_result_id"],
        "position": 1,
        "execution_no": 1,
        "check_name": one["check_name"],
        "run_location": one["run_location"],
        "result_type": "FINAL",
        "status": one["status"],
        "started_at": at,
        "link": link,
    }
    place = {name: one[name] for name in ("account_id", "environment", "branch_name", "commit_id")}
    history = History(
        test_sessions=[
            {
                "test_session_id": id_(number),
                "status": one["status"],
                "is_final": True,
                "started_at": at,
                "first_exported_at": at,
                "exported_at": at,
                "payload_sha256": "",
                **place,
            }
        ],
        test_session_results=[result],
        check_executions=[one],
    )
    if message is not None:
        group = id_(0xE000_0000 + number)
        history.error_groups.append(
            {"error_group_id": group, "account_id": one["account_id"], "cleaned_error_message": message}
        )
        names = ("test_session_id", "test_session_result_id")
        history.test_session_result_error_groups.append(
            {**{name: result[name] for name in names}, "error_group_id": group}
        )
    return history


def made(database: Database, *histories: History) -> None:
    whole = History()
    for one in histories:
        whole = whole.and_also(one)
    with database.writing() as connection:
        whole.insert(connection)


@pytest.fixture(scope="module")
def new_sqlite(folder: Path, sqlite_template: Path) -> Iterator[Callable[[], Database]]:
    """Makes migrated, empty warehouses."""
    opened: list[Database] = []

    def make() -> Database:
        path = folder / f"{next(_numbers)}.db"
        shutil.copy(sqlite_template, path)
        opened.append(Database(f"sqlite:///{path}"))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def extremes(new_sqlite: Callable[[], Database], folder: Path) -> Written:
    """Every text that somebody else chooses, chosen by somebody evil, or long of breath, or far away."""
    database = new_sqlite()
    moment = database.read(now)
    histories = []
    number = itertools.count(0x100)
    for i, said in enumerate(EVERY.values()):
        about = {
            "check_key": said,
            "check_name": said,
            "branch_name": said,
            "environment": said,
            "run_location": said,
            "commit_id": said,
            "check_type": said if i < 3 else "API",
            "duration_ms": 1000.0,
        }
        days = ((9, "PASSED"), (4, "FAILED"), (3, "PASSED"), (2, "PASSED"), (0, "FAILED"))
        for ago, verdict in days:
            at = moment - timedelta(days=ago)
            how = dict(about)
            if verdict == "PASSED" and ago < 7:
                how |= {"duration_ms": 2000.0, "retries": 1, "is_retry_flaky": True, "retry_cost_ms": 900.0}
            if said == MARKUP:
                how["link"] = (
                    "javascript:alert(3)",
                    " javascript:alert(3)",
                    "data:text/html,<script>alert(3)</script>",
                )[ago % 3]
            message = None if verdict == "PASSED" else f"{said} {ago}\n{said * 3}"
            histories.append(ran(next(number), verdict, at=at, message=message, **how))
    # The same check in two accounts; one that was never decided; one that knows nothing of itself.
    for account in (ACCOUNT, OTHER_ACCOUNT):
        twin = {"check_key": "twin", "check_name": "A twin", "branch_name": "main", "account_id": account}
        for _ in range(1 if account == ACCOUNT else 2):
            histories.append(ran(next(number), "FAILED", at=moment - timedelta(hours=2), message="twins", **twin))
    histories.append(ran(next(number), None, at=moment, check_key="undecided", check_name="Undecided"))
    histories.append(ran(next(number), "FAILED", at=moment, message="", check_name=None, check_type=None))
    made(database, *histories)
    with database.writing() as connection:
        for account, name in ((ACCOUNT, MARKUP), (OTHER_ACCOUNT, LONG)):
            connection.execute(etl_accounts.insert(), {"account_id": account, "name": name, "pauses": 0})
        dead = {"state": "dead", "error_kind": MARKUP, "last_error": MARKUP + LONG, "last_error_at": moment}
        connection.execute(etl_queue.insert(), queued(0xD3, ACCOUNT, moment, **dead))
    return written(database, folder / "extremes.html")


def test_an_ambiguous_check_is_marked_and_its_section_says_why(
    show: Show, new_sqlite: Callable[[], Database], folder: Path
) -> None:
    database = new_sqlite()
    moment = database.read(now)
    twins: Row = {"check_key": "-:PLAYWRIGHT:login.spec.ts", "check_name": "login.spec.ts", "is_ambiguous": True}
    histories = [ran(n, "PASSED", at=moment, is_retry_flaky=True, retries=1, **twins) for n in (1, 2)]
    histories.append(ran(3, "FAILED", at=moment, check_key="own", check_name="Its own name"))
    made(database, *histories)
    file = written(database, folder / "ambiguous.html")
    page = show(file)
    assert counted(page, "#flaky a.check .badge") == 1
    assert said(page, "#flaky a.check .badge") == "ambiguous"
    page = show(file, fragment="check=-:PLAYWRIGHT:login.spec.ts")
    why = said(page, "#check [data-name=ambiguous]")
    assert "2 executions may be of another check of this name" in why
    assert "export.result_details" in why
    assert "0 of 0 comparable" in said(page, "#check")
    assert counted(show(file, fragment="check=own"), "#check [data-name=ambiguous]") == 0


def elements(page: OpenPage) -> list[str]:
    """What only markup could have brought there."""
    return list(
        page.page.evaluate(
            """() => [...document.querySelectorAll("img, iframe, object, embed, [onerror], [style*=url], "
                 + "main script, header script, main b b")].map((one) => one.outerHTML)"""
        )
    )


def test_markup_stays_text_wherever_it_comes_from(show: Show, extremes: Written) -> None:
    page = show(extremes)
    open_details(page)
    found = read(page)
    for section in ("trust", "failing", "flaky", "slower", "errors", "fixes", "heat", "places"):
        assert MARKUP in said(page, f"#{section}"), section
    assert elements(page) == []
    assert page.page.locator("#filter-branch option").filter(has_text=MARKUP).count() == 1
    # And no link is anything but a page of the web.
    links = page.page.locator("main a[target]").evaluate_all("(all) => all.map((one) => one.href)")
    assert links
    assert all(link.startswith("https://") for link in links)
    (line,) = [line for line in lines_of(found, "failing-now") if line["check"] == MARKUP]
    assert line["links"] == []
    assert "no data" in line["texts"]["Last failure"]
    go(page, f"check={quote(MARKUP, safe='')}")
    assert said(page, "#check-title") == MARKUP
    assert page.page.title() == f"{MARKUP} · Checkly test report"
    assert counted(page, "#check-failures tbody tr") == 2
    assert counted(page, "#check a[target]") == 0
    assert elements(page) == []


def test_every_number_of_awkward_names_is_that_of_the_views(show: Show, extremes: Written) -> None:
    page = show(extremes)
    for said in EVERY.values():
        choose(page, branch=said)
        assert chosen(page)[2] == said
        found, wanted = seen(read(page)), expected(extremes, {"branch": said})
        for name in ("verdicts", "flaky-retry", "flaky-flip", "fixes"):
            assert found[name] == wanted[name], name
        with redrawn(page):
            page.page.click("#reset")


def test_a_key_of_any_characters_leads_to_its_check(show: Show, extremes: Written) -> None:
    page = show(extremes)
    for said_ in (MARKUP, AWKWARD):
        with redrawn(page):
            page.page.locator("#failing-now a.check").filter(has_text=said_).click()
        assert page.page.get_attribute("#check", "data-key") == said_
        fragment = page.page.url.partition("#")[2]
        with redrawn(page):
            page.page.click("#check a.back")
        again = show(extremes, fragment=fragment)
        assert again.page.get_attribute("#check", "data-key") == said_


def test_a_check_of_two_accounts_is_two_checks(show: Show, extremes: Written) -> None:
    page = show(extremes)
    for account, failures in ((ACCOUNT, 1), (OTHER_ACCOUNT, 2)):
        with redrawn(page):
            page.page.locator(f'#failing-now a.check[href*="{account}"]').click()
        assert counted(page, "#check-failures tbody tr") == failures
        assert page.page.locator("#check [data-name=executions]").first.get_attribute("data-value") == str(failures)
        with redrawn(page):
            page.page.go_back()


def test_the_way_back_from_a_check_of_two_accounts_leads_to_the_filters_that_one_had(
    show: Show, extremes: Written
) -> None:
    page = show(extremes)
    with redrawn(page):
        page.page.locator(f'#failing-now a.check[href*="{ACCOUNT}"]').click()
    with redrawn(page):
        page.page.click("#check a.back")
    assert chosen(page) == ["", "", "", "", "30"]


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_long_names_of_any_script_do_not_widen_the_page(
    show: Show, extremes: Written, viewport: tuple[int, int]
) -> None:
    page = show(extremes, viewport=viewport)
    assert is_narrow_enough(page)
    open_details(page)
    read(page)
    assert is_narrow_enough(page)
    screenshot(page, f"report-extremes-{viewport[0]}")
    for said_ in EVERY.values():
        go(page, f"check={quote(said_, safe='')}")
        assert is_narrow_enough(page), said_[:20]
    go(page, f"branch={quote(LONG, safe='')}&environment={quote(LONG, safe='')}&check=gone")
    assert is_narrow_enough(page)


def test_an_error_outside_of_any_execution_counts_for_its_account(
    show: Show, new_sqlite: Callable[[], Database], folder: Path
) -> None:
    database = new_sqlite()
    moment = database.read(now)
    outside = ran(1, "FAILED", at=moment, message="it broke", account_id=ACCOUNT)
    outside.test_session_results[0]["execution_no"] = None
    made(database, outside, ran(2, at=moment, account_id=OTHER_ACCOUNT))
    shown = written(database, folder / "outside.html")
    page = show(shown)
    assert seen(read(page))["errors"] == expected(shown, {})["errors"] != {}
    for account in (ACCOUNT, OTHER_ACCOUNT):
        choose(page, account=account)
        assert seen(read(page))["errors"] == expected(shown, {"account": account})["errors"]


def test_a_moment_before_midnight_is_still_of_its_day(
    show: Show, new_sqlite: Callable[[], Database], folder: Path
) -> None:
    database = new_sqlite()
    # Between this and the first day of the last seven lies less than a second.
    today = datetime.combine(database.read(now).date(), time(), UTC)
    late = today - timedelta(days=6, milliseconds=300)
    made(
        database,
        ran(1, "FAILED", at=late, check_key="open", message="late"),
        ran(2, "FAILED", at=late - timedelta(hours=1), check_key="fixed"),
        ran(3, "PASSED", at=late, check_key="fixed"),
    )
    shown = written(database, folder / "midnight.html")
    page = show(shown)
    assert_equal(read(page), shown, {})
    choose(page, period="7")
    found = seen(read(page))
    for name, wanted in expected(shown, {"period": "7"}).items():
        assert found[name] == wanted, name


def test_two_names_for_nothing_are_two_filters(show: Show, new_sqlite: Callable[[], Database], folder: Path) -> None:
    database = new_sqlite()
    moment = database.read(now)
    branches = (None, "", "(none)", "main")
    made(database, *(ran(i + 1, at=moment, branch_name=name, check_key=str(i)) for i, name in enumerate(branches)))
    page = show(written(database, folder / "nothing.html"))
    options = page.page.locator("#filter-branch option")
    keys = []
    for i in range(1, options.count()):
        with redrawn(page):
            page.page.select_option("#filter-branch", index=i)
        keys.append([line["key"] for line in lines_of(read(page), "heat-strip")])
    assert sorted(keys) == [["0"], ["1"], ["2"], ["3"]]


# --- little, nothing, much ----------------------------------------------------------------------------------


def test_an_empty_warehouse_says_what_to_do_next(
    show: Show, new_sqlite: Callable[[], Database], folder: Path
) -> None:
    page = show(written(new_sqlite(), folder / "empty.html"))
    screenshot(page, "report-empty")
    for command in ("checkly-etl doctor", "checkly-etl backfill", "checkly-etl sync", "checkly-etl report"):
        assert command in said(page)
    assert re.search(r"\d%|NaN|undefined|null|Infinity", said(page)) is None
    assert_axe_finds_nothing(page)


def test_a_warehouse_that_only_knows_what_to_do_says_what_waits(
    show: Show, new_sqlite: Callable[[], Database], folder: Path
) -> None:
    database = new_sqlite()
    with database.writing() as connection:
        connection.execute(etl_queue.insert(), queued(0xD4, None, now(connection)))
    page = show(written(database, folder / "waiting.html"))
    assert "checkly-etl sync" in said(page)
    assert "1 id not assigned to an account yet" in said(page, "#trust")


def test_one_test_session_is_enough(show: Show, new_sqlite: Callable[[], Database], folder: Path) -> None:
    database = new_sqlite()
    made(database, ran(1, at=database.read(now), duration_ms=1500.0))
    shown = written(database, folder / "one.html")
    page = show(shown)
    assert_equal(read(page), shown, {})
    assert "100%" in said(page, "#verdicts")
    assert "Nothing is failing here" in said(page, "#failing")
    assert "No data: nothing here had the chance" in said(page, "#flaky")
    assert "No data: nothing passed in both weeks" in said(page, "#slower")
    assert "No errors here" in said(page, "#errors")
    assert re.search(r"NaN|undefined|Infinity", said(page)) is None


def test_what_was_never_decided_has_no_rate(show: Show, new_sqlite: Callable[[], Database], folder: Path) -> None:
    database = new_sqlite()
    made(database, *(ran(i, None, at=database.read(now), environment=f"e{i % 2}") for i in range(1, 4)))
    shown = written(database, folder / "undecided.html")
    page = show(shown)
    assert_equal(read(page), shown, {})
    assert page.page.get_attribute("#verdicts [data-name=pass_rate]", "data-value") == ""
    assert said(page, "#verdicts [data-name=pass_rate]") == "no data"
    assert counted(page, "#heat td.cell.none") == DAYS - 1
    assert counted(page, "#heat td.cell.undecided") == 1
    assert counted(page, "#places-rates [data-hits]") == 0
    assert "no data" in said(page, "#places-rates")
    for section in ("verdicts", "flaky", "heat", "places"):
        assert not re.search(r"\d%", said(page, f"#{section}")), section
    go(page, "check=key")
    assert "%" not in said(page)
    assert [said(page, f"#check [data-name={name}]") for name in ("pass_rate", "flip_rate", "commit_flaky_rate")] == [
        "no data"
    ] * 3


def test_where_nothing_ran_the_page_says_so(show: Show, new_sqlite: Callable[[], Database], folder: Path) -> None:
    database = new_sqlite()
    moment = database.read(now)
    made(database, ran(1, at=moment - timedelta(days=60)))
    page = show(written(database, folder / "long_ago.html"))
    assert "Nothing ran in these days" in said(page)
    assert f"{moment - timedelta(days=60):%Y-%m-%d %H:%M} UTC" in said(page)
    assert "--since" in said(page)
    assert re.search(r"\d%|NaN|undefined|Infinity", said(page, "#empty")) is None
    made(database, ran(2, "FAILED", at=moment - timedelta(days=5)))
    shown = written(database, folder / "not_today.html")
    page = show(shown, fragment="period=1")
    assert_equal(read(page), shown, {"period": "1"})
    assert said(page, "#verdicts [data-name=pass_rate]") == "no data"
    assert "No executions here" in said(page, "#heat")


@pytest.fixture(scope="module")
def many(new_sqlite: Callable[[], Database], folder: Path) -> Written:
    """2,000 checks, half of them broken."""
    database = new_sqlite()
    moment = database.read(now)
    made_of = [
        execution(
            number,
            1 + check,
            "FAILED" if number == 3 and check % 2 else "PASSED",
            started_at=moment - timedelta(days=3 - number, hours=1),
            check_key=f"check {check:04}",
            check_name=f"{check:04} of the many things that a customer can do",
            branch_name="main",
            test_session_result_id=id_(check * 4 + number),
            account_id=ACCOUNT,
        )
        for number in (1, 2, 3)
        for check in range(2_000)
    ]
    history = ran(1, at=moment)
    sessions = [
        history.test_sessions[0] | {"test_session_id": id_(number), "branch_name": "main"} for number in (1, 2, 3)
    ]
    made(database, History(test_sessions=sessions, check_executions=made_of))
    return written(database, folder / "many.html")


def test_two_thousand_checks_are_drawn_page_by_page(show: Show, many: Written) -> None:
    page = show(many)
    drawn = int(str(page.page.get_attribute("html", "data-drawn")))
    assert drawn < 10_000
    rows = "#heat-strip tbody tr"
    assert page.page.get_attribute("#heat-strip", "data-rows") == "2000"
    assert counted(page, rows) == 30
    page.page.click("#heat button.more >> text=Show 100 more")
    assert counted(page, rows) == 130
    assert page.page.evaluate("document.activeElement.textContent") == "Show 100 more"
    assert page.page.get_attribute("#failing-now", "data-rows") == "1000"
    assert counted(page, "#failing-now tbody tr") == 12
    assert said(page, "#verdicts [data-name=failing_now]") == "1,000"
    assert is_narrow_enough(page)
    assert page.page.evaluate("document.querySelectorAll('*').length") < 12_000
    choose(page, period="1")
    go(page, "check=check%201999")
    assert said(page, "#check-title").startswith("1999 of")


# --- accessibility ------------------------------------------------------------------------------------------


def assert_axe_finds_nothing(page: OpenPage) -> None:
    found = [f"{one.impact} {one.id}: {one.help}\n    " + "\n    ".join(one.nodes[:4]) for one in axe(page)]
    assert not found, "\n".join(found)


@pytest.fixture(scope="module")
def few_days(world: Database, folder: Path) -> Written:
    """The world of fewer days: axe looks at every cell."""
    return written(world, folder / "few_days.html", days=4, views=False)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", {}),
        ("dark", {"color_scheme": "dark"}),
        ("phone", {"viewport": PHONE}),
    ],
)
def test_axe_finds_nothing(show: Show, few_days: Written, name: str, options: dict[str, Any]) -> None:
    page = show(few_days, **options)
    screenshot(page, f"report-axe-{name}")
    assert_axe_finds_nothing(page)
    if name != "light":
        return
    key = page.page.get_attribute("#heat-strip tbody tr", "data-key")
    go(page, f"check={key}")
    assert_axe_finds_nothing(page)


def test_axe_finds_nothing_in_what_was_opened_and_sorted(show: Show, extremes: Written) -> None:
    page = show(extremes)
    read(page)
    open_details(page)
    page.page.click("#failing-now button[data-sort=failures]")
    assert_axe_finds_nothing(page)


def test_a_keyboard_reaches_every_part_in_the_order_of_the_page(show: Show, few_days: Written) -> None:
    page = show(few_days)
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.page.keyboard.press("Enter")
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.closest('#main') !== null")


# --- wherever it is opened ----------------------------------------------------------------------------------


def test_the_policy_lets_nothing_in(report_of_the_world: Written, extremes: Written) -> None:
    for shown in (report_of_the_world, extremes):
        source = shown.path.read_text(encoding="utf-8")
        policies = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', source)
        assert len(policies) == 1
        assert policies[0].startswith("default-src 'none';")
        assert "unsafe" not in policies[0]
        assert "http" not in policies[0]
        assert source.count("<script") == source.count("</script>") == 3
        # Before anything that it is to hold.
        assert source.index("Content-Security-Policy") < min(
            source.index(one) for one in ("<script", "<style", "<link")
        )


EVERYTHING_DRAWN = """() => [document.body.innerText,
  ...[...document.querySelectorAll("canvas")].map((one) => one.toDataURL()),
  ...[...document.querySelectorAll("[title]")].map((one) => one.title)]"""


def test_the_page_is_the_same_in_every_time_zone_and_language(show: Show, few_days: Written) -> None:
    here = show(few_days).page.evaluate(EVERYTHING_DRAWN)
    for time_zone, locale in (("America/Los_Angeles", "de-DE"), ("Pacific/Kiritimati", "ar-EG")):
        there = show(few_days, time_zone=time_zone, locale=locale).page.evaluate(EVERYTHING_DRAWN)
        assert there[0] == here[0]
        assert there == here


def test_without_javascript_the_page_says_that_it_needs_it(show: Show, report_of_the_world: Written) -> None:
    page = show(report_of_the_world, java_script=False)
    assert "JavaScript is off" in said(page)


# A colour of the charts, as each scheme has it: that of what passed.
LIGHT, DARK = (0x2E, 0x9A, 0x5B), (0x3F, 0xB8, 0x71)
PIXELS = """() => [...document.querySelectorAll("#verdicts-chart canvas")].flatMap((one) => {
  const copy = Object.assign(document.createElement("canvas"), {width: one.width, height: one.height})
    .getContext("2d", {willReadFrequently: true});
  copy.drawImage(one, 0, 0);
  const {data} = copy.getImageData(0, 0, one.width, one.height);
  const found = new Set();
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] === 255) found.add(`${data[i]},${data[i + 1]},${data[i + 2]}`);
  }
  return [...found];
})"""


def colours(page: OpenPage) -> set[tuple[int, ...]]:
    return {tuple(map(int, one.split(","))) for one in page.page.evaluate(PIXELS)}


def test_charts_have_the_colours_of_the_scheme_and_paper_is_always_light(show: Show, few_days: Written) -> None:
    page = show(few_days, color_scheme="dark")
    assert DARK in colours(page)
    assert LIGHT not in colours(page)
    for media, after, before in (
        ({"media": "print"}, LIGHT, DARK),
        ({"media": "screen"}, DARK, LIGHT),
        ({"color_scheme": "light"}, LIGHT, DARK),
    ):
        page.page.emulate_media(**media)  # type: ignore[arg-type]
        for _ in range(100):
            if after in colours(page):
                break
            page.page.wait_for_timeout(100)
        assert after in colours(page)
        assert before not in colours(page)


def as_pdf(colour: tuple[int, ...]) -> bytes:
    """The colour as a page of PDF fills with it."""
    return " ".join(f"{round(one / 255, 4):g}".removeprefix("0") for one in colour).encode() + b" rg"


def test_a_dark_page_is_printed_light(show: Show, few_days: Written) -> None:
    page = show(few_days, color_scheme="dark")
    drawn = b""
    page.page.emulate_media(media="null")  # paper is paper, whatever the harness had set
    pdf = page.page.pdf()
    for stream in re.finditer(rb"stream\r?\n", pdf):
        try:
            drawn += zlib.decompressobj().decompress(pdf[stream.end() :])
        except zlib.error:
            continue
    # Chromium prints a canvas as what was drawn in it.
    assert as_pdf(LIGHT) in drawn
    assert as_pdf(DARK) not in drawn
    assert DARK in colours(page)  # and the screen has its own again


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dark", {"color_scheme": "dark"}),
        ("phone", {"viewport": PHONE}),
        ("phone-dark", {"viewport": PHONE, "color_scheme": "dark"}),
        ("print", {"media": "print", "color_scheme": "dark"}),
    ],
)
def test_pictures(show: Show, report_of_the_world: Written, name: str, options: dict[str, Any]) -> None:
    page = show(report_of_the_world, **options)
    screenshot(page, f"report-{name}")
    assert name == "print" or is_narrow_enough(page)
