"""The report in a real browser: its numbers are those of the views, and nothing in the data can harm a reader.

The page is compared with the views of the contract, never with its own v_report_ ones. They are read in the
transaction that wrote the page, so that both speak of the same moment. Each page must be quiet when its test ends.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote
from uuid import UUID

import pytest
from playwright.sync_api import Browser
from sqlalchemy import Connection, select, text

from etl import config, pipeline, report, rollups
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
from tests.browser import Opener, OpenPage, wait_until_ready
from tests.conftest import ACCOUNT
from tests.histories import id_

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
    page.page.wait_for_function("() => !document.querySelector('[data-old]')", timeout=10_000)


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


def counted(page: OpenPage, selector: str) -> int:
    return page.page.locator(selector).count()


def is_narrow_enough(page: OpenPage) -> bool:
    return bool(page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


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
        counts = cells.setdefault(row["check_key"], {}).setdefault(row["day"], [0, 0])
        counts[0] += row["failed"]
        counts[1] += row["decided"]

    def cell(day: date, counts: list[int] | None) -> str:
        return f"{day}: " + (f"{counts[0]:,} of {counts[1]:,} failed" if counts and counts[1] else "no data")

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


def test_on_postgresql_with_rollups_every_number_is_that_of_the_views(
    show: Show, world: Database, new_warehouse: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "WORTH_IT", 0)
    database = Database(new_warehouse("postgresql"))
    with world.reading() as source, database.writing() as target:
        for table in metadata.sorted_tables:
            if table in CUSTOMERS and (found := [dict(row) for row in source.execute(select(table)).mappings()]):
                target.execute(table.insert(), found)
    for step in database.read(rollups.steps):
        while database.run(step):
            pass
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
