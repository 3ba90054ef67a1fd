"""Results fold into executions as a person would count them, however Checkly lists them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl.normalize import ExecutionRow, ResultRow, normalize_executions, results_in_doubt
from tests.histories import executions_of, id_

Row = dict[str, Any]
Fold = Callable[..., list[ExecutionRow]]

START = datetime(2026, 11, 15, 12, tzinfo=UTC)
CHECK, OTHER = id_(0xC1), id_(0xC2)
SESSION: Row = {
    "test_session_id": id_(1),
    "is_final": True,
    "started_at": START,
    "account_id": id_(0xA1),
    "project_id": None,
    "environment": None,
    "branch_name": "main",
    "commit_id": None,
}


def result(
    number: int,
    type_: str | None = "FINAL",
    status: str = "PASSED",
    at: tuple[float, float] | None = None,
    place: str | None = "eu",
    check_id: str | None = CHECK,
    **more: Any,
) -> ResultRow:
    """A result of the check "login"; `at` are the seconds of its start and its end."""
    begin, end = (None, None) if at is None else (START + timedelta(seconds=seconds) for seconds in at)
    row = ResultRow(
        test_session_id=id_(1),
        test_session_result_id=id_(1000 + number),
        position=number,
        execution_no=None,
        check_id=check_id,
        check_type="PLAYWRIGHT",
        check_name="login.spec.ts",
        run_location=place,
        result_type=type_,
        status=status,
        has_errors=None,
        has_failures=None,
        is_degraded=None,
        is_aborted=None,
        response_time_ms=None,
        started_at=begin,
        stopped_at=end,
        link=None,
    )
    for name, value in more.items():
        setattr(row, name, value)
    return row


def fold(*rows: ResultRow, **session: Any) -> list[ExecutionRow]:
    """The executions of rows in the order of the document."""
    for position, row in enumerate(rows, 1):
        row.position = position
    return normalize_executions(rows, SESSION | session)


def counted(executions: Sequence[ExecutionRow]) -> list[tuple[Any, ...]]:
    """What a person counts: place, verdict, retries, whether it is retry-flaky."""
    return [(row.run_location, row.verdict, row.retries, row.is_retry_flaky) for row in executions]


# --- listings: as many as there are ways to tell the same story ---------------------------------------------

ATTEMPT, FINAL = ("ATTEMPT", "FAILED"), ("FINAL", "PASSED")


def test_a_final_that_is_listed_before_its_attempt_closes_it() -> None:
    executions = fold(result(1, *FINAL, (12, 15)), result(2, *ATTEMPT, (0, 10)))
    assert counted(executions) == [("eu", "PASSED", 1, True)]
    assert executions[0].started_at == START


def test_a_list_that_is_newest_first_is_the_same() -> None:
    newest_first = [
        result(1, *FINAL, (52, 55)),
        result(2, *ATTEMPT, (40, 50)),
        result(3, "FINAL", "FAILED", (22, 25)),
        result(4, *ATTEMPT, (12, 20)),
        result(5, *ATTEMPT, (0, 10)),
    ]
    assert counted(fold(*newest_first)) == [("eu", "PASSED", 1, True), ("eu", "FAILED", 2, False)]
    assert counted(fold(*reversed(newest_first))) == [("eu", "FAILED", 2, False), ("eu", "PASSED", 1, True)]


def test_a_retry_in_a_second_place_is_the_same_execution() -> None:
    executions = fold(result(1, *FINAL, (12, 15), "us"), result(2, *ATTEMPT, (0, 10), "eu"))
    assert counted(executions) == [("us", "PASSED", 1, True)]


def test_retries_in_a_second_and_a_third_place_are_one_chain() -> None:
    rows = [
        result(1, *ATTEMPT, (0, 10), "eu"),
        result(2, *ATTEMPT, (12, 20), "us"),
        result(3, *FINAL, (22, 25), "ap"),
    ]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]):
        assert counted(fold(*(rows[index] for index in order))) == [("ap", "PASSED", 2, True)]


def test_parallel_places_each_keep_their_own_retry() -> None:
    executions = fold(
        result(1, *FINAL, (12, 15), "us"),
        result(2, *FINAL, (12, 15), "eu"),
        result(3, *ATTEMPT, (0, 10), "eu"),
        result(4, *ATTEMPT, (0, 10), "us"),
    )
    assert counted(executions) == [("us", "PASSED", 1, True), ("eu", "PASSED", 1, True)]


def test_parallel_places_with_retries_elsewhere_share_nothing() -> None:
    executions = fold(
        result(1, *ATTEMPT, (0, 10), "eu"),
        result(2, *ATTEMPT, (0, 10), "us"),
        result(3, *FINAL, (12, 15), "ap"),
        result(4, "FINAL", "FAILED", (12, 15), "sa"),
    )
    assert sorted(counted(executions), key=str) == [("ap", "PASSED", 1, True), ("sa", "FAILED", 1, False)]


def test_the_same_check_twice_in_one_place_is_two_executions() -> None:
    executions = fold(
        result(1, *FINAL, (42, 45)),
        result(2, *FINAL, (12, 15)),
        result(3, *ATTEMPT, (0, 10)),
        result(4, *ATTEMPT, (30, 40)),
    )
    assert counted(executions) == [("eu", "PASSED", 1, True), ("eu", "PASSED", 1, True)]
    assert not any(row.is_ambiguous for row in executions)


def test_without_times_the_order_of_the_document_is_all_there_is() -> None:
    executions = fold(result(1, *ATTEMPT), result(2, *FINAL), result(3, *FINAL))
    assert counted(executions) == [("eu", "PASSED", 1, True), ("eu", "PASSED", 0, False)]
    one_time_is_missing = fold(result(1, *ATTEMPT), result(2, *FINAL, (0, 1)))
    assert counted(one_time_is_missing) == [("eu", "PASSED", 1, True)]


def test_without_types_each_result_of_an_ended_session_is_final() -> None:
    rows = [result(1, None, "PASSED", (0, 10)), result(2, None, "FAILED", (12, 15))]
    assert counted(fold(*rows)) == [("eu", "PASSED", 0, False), ("eu", "FAILED", 0, False)]
    assert counted(fold(*rows, is_final=False)) == [("eu", None, 0, False)]
    with_one_type = [*rows, result(3, "FINAL", "PASSED", (20, 21))]
    assert counted(fold(*with_one_type)) == [("eu", "PASSED", 0, False)]


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("PASSED", "PASSED"),
        ("DEGRADED", "PASSED"),
        ("FAILED", "FAILED"),
        ("TIMED_OUT", "FAILED"),
        ("CANCELLED", None),
        ("RUNNING", None),
        ("SOMETHING_NEW", None),
    ],
)
def test_the_verdict_is_that_of_the_final(status: str, verdict: str | None) -> None:
    (row,) = fold(result(1, "FINAL", status, (12, 15)), result(2, "ATTEMPT", "TIMED_OUT", (0, 10)))
    assert (row.verdict, row.status, row.retries) == (verdict, status, 1)
    assert row.is_retry_flaky == (verdict == "PASSED")
    assert row.is_degraded == (True if status == "DEGRADED" else None)


def test_a_cancelled_check_leaves_its_attempts_undecided() -> None:
    executions = fold(result(1, "FINAL", "CANCELLED", (12, 15)), result(2, *ATTEMPT, (0, 10)))
    assert counted(executions) == [("eu", None, 1, False)]
    assert counted(fold(result(1, *ATTEMPT, (0, 10)))) == [("eu", None, 1, False)]


@pytest.mark.parametrize(
    ("final", "is_joined"),
    [((10, 15), True), ((10.001, 15), True), ((9.999, 15), False), ((1, 2), False)],
)
def test_a_retry_elsewhere_begins_when_the_attempt_has_ended(final: tuple[float, float], is_joined: bool) -> None:
    executions = fold(result(1, *ATTEMPT, (0, 10), "eu"), result(2, *FINAL, final, "us"))
    assert (len(executions) == 1) == is_joined


def test_an_attempt_without_an_end_is_over_when_it_starts() -> None:
    attempt = result(1, *ATTEMPT, (5, 5), "eu")
    attempt.stopped_at = None
    assert counted(fold(attempt, result(2, *FINAL, (5, 6), "us"))) == [("us", "PASSED", 1, True)]


def test_what_is_open_and_no_attempt_joins_nothing() -> None:
    executions = fold(result(1, "PENDING", "RUNNING", (0, 10), "eu"), result(2, *FINAL, (12, 15), "us"))
    assert counted(executions) == [("eu", None, 0, False), ("us", "PASSED", 0, False)]


def test_a_retry_goes_on_in_the_earliest_execution_that_follows() -> None:
    executions = fold(
        result(1, *FINAL, (30, 35), "us"),
        result(2, *FINAL, (12, 15), "ap"),
        result(3, *ATTEMPT, (0, 10), "eu"),
    )
    assert counted(executions) == [("us", "PASSED", 0, False), ("ap", "PASSED", 1, True)]


def test_executions_are_numbered_by_their_least_position() -> None:
    executions = fold(
        result(1, *FINAL, (12, 15)),
        result(2, check_id=OTHER, at=(0, 1)),
        result(3, *ATTEMPT, (0, 10)),
    )
    assert [(row.execution_no, row.check_id) for row in executions] == [(1, CHECK), (2, OTHER)]


# --- twins --------------------------------------------------------------------------------------------------


def twins(**more: Any) -> list[ResultRow]:
    return [
        result(1, *FINAL, (0, 5), check_id=None, **more),
        result(2, *FINAL, (1, 6), check_id=None, **more),
    ]


def test_two_checks_of_one_name_without_an_id_are_ambiguous() -> None:
    executions = fold(*twins())
    assert [(row.check_key, row.is_ambiguous) for row in executions] == [("-:PLAYWRIGHT:login.spec.ts", True)] * 2
    assert len({row.history_key for row in executions}) == 1


def test_twins_with_a_file_each_are_two_checks() -> None:
    rows = twins()
    rows[0].file_path, rows[1].file_path = "a/login.spec.ts", "b/login.spec.ts"
    executions = fold(*rows)
    assert [(row.check_key, row.is_ambiguous) for row in executions] == [
        ("-:PLAYWRIGHT:login.spec.ts:a/login.spec.ts", False),
        ("-:PLAYWRIGHT:login.spec.ts:b/login.spec.ts", False),
    ]
    assert len({row.history_key for row in executions}) == 2


@pytest.mark.parametrize("paths", [("a.ts", None), ("a.ts", "a.ts"), ("", "a.ts"), (None, None)])
def test_twins_whose_files_do_not_differ_stay_ambiguous(paths: tuple[str | None, str | None]) -> None:
    rows = twins()
    rows[0].file_path, rows[1].file_path = paths
    assert [row.is_ambiguous for row in fold(*rows)] == [True, True]


def test_checks_with_an_id_or_in_two_places_are_no_twins() -> None:
    with_id = [result(1, *FINAL, (0, 5)), result(2, *FINAL, (6, 9))]
    in_two_places = [result(1, *FINAL, (0, 5), "eu", None), result(2, *FINAL, (0, 5), "us", None)]
    for rows in (with_id, in_two_places):
        assert not any(row.is_ambiguous for row in fold(*rows))


def test_in_doubt_are_all_results_of_checks_with_attempts_or_twins() -> None:
    rows = [
        result(1, *FINAL, (0, 5)),
        result(2, *FINAL, (12, 15), check_id=OTHER),
        result(3, *ATTEMPT, (0, 10), check_id=OTHER),
        result(4, *FINAL, (0, 5), "us", check_id=OTHER),
        *twins(check_name="home.spec.ts"),
        result(7, *FINAL, (0, 5), check_id=None),
    ]
    for number, row in enumerate(rows):
        row.test_session_result_id = id_(2000 + number)
    assert results_in_doubt(rows, fold(*rows)) == {id_(2000 + number) for number in (1, 2, 3, 4, 5)}


# --- laws ---------------------------------------------------------------------------------------------------

BEGINS = (*range(7), *range(7), None)
POOLS: dict[str, Sequence[Any]] = {
    "type_": ("ATTEMPT", "ATTEMPT", "FINAL", "FINAL", "PENDING", None, "NEW"),
    "status": ("PASSED", "FAILED", "DEGRADED", "TIMED_OUT", "CANCELLED"),
    "place": ("eu", "us", None, ""),
    "check_id": (CHECK, CHECK, None),
    "check_name": ("a", "b", None),
    "sequence_id": (None, id_(0x51), id_(0x52)),
    "file_path": (None, "a.ts", "b.ts"),
}


def spec_of(chosen: bytes) -> Row:
    """What a result is made of, a byte per choice: hypothesis draws bytes ten times as fast as values."""
    begin, length = BEGINS[chosen[0] % len(BEGINS)], (1, 0, 2, -1)[chosen[1] % 4]
    spec: Row = {name: pool[byte % len(pool)] for (name, pool), byte in zip(POOLS.items(), chosen[2:], strict=True)}
    return spec | {"at": None if begin is None else (begin, begin + length)}


ROWS = st.lists(st.binary(min_size=9, max_size=9).map(spec_of), max_size=12)


def rows_of(specs: Sequence[Row]) -> list[ResultRow]:
    return [result(number, **spec) for number, spec in enumerate(specs, 1)]


@pytest.mark.parametrize("is_simple", [True, False], ids=["times", "anything"])
def test_folding_says_what_its_calculation_says(is_simple: bool) -> None:
    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
    @given(specs=ROWS, is_final=st.booleans())
    def compare(specs: list[Row], is_final: bool) -> None:
        if is_simple:  # most checks meet here: one check, all with times, none with a sequence
            specs = [
                {**spec, "check_id": CHECK, "sequence_id": None, "at": spec["at"] or (3, 4), "type_": spec["type_"]}
                for spec in specs
            ]
        rows = rows_of(specs)
        calculated_rows = [dict(row) for row in rows]
        calculated = executions_of(calculated_rows, SESSION | {"is_final": is_final})
        assert [dict(row) for row in fold(*rows, is_final=is_final)] == calculated
        assert [row.execution_no for row in rows] == [row["execution_no"] for row in calculated_rows]

    compare()


def story(executions: Sequence[ExecutionRow]) -> list[Row]:
    """The executions without their numbers, in an order that does not depend on them."""
    rows = [dict(row) | {"execution_no": 0} for row in executions]
    return sorted(rows, key=lambda row: (row["check_key"], row["started_at"], row["test_session_result_id"]))


def test_shuffling_results_that_have_times_changes_only_numbers() -> None:
    """1,000 documents, each in another order. No two rows start together: then positions decide, and must."""

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(specs=ROWS, seed=st.integers(), is_final=st.booleans())
    def shuffle(specs: list[Row], seed: int, is_final: bool) -> None:
        chance = random.Random(seed)
        for spec, start in zip(specs, chance.sample(range(12), 12), strict=False):
            length = 1 if spec["at"] is None else spec["at"][1] - spec["at"][0]
            spec["at"] = (start, start + length)
        rows = rows_of(specs)
        expected = story(fold(*rows, is_final=is_final))
        chance.shuffle(rows)
        assert story(fold(*rows, is_final=is_final)) == expected

    shuffle()


@dataclass(frozen=True)
class Told:
    """An execution as a person tells of it: the outcome of each try, and where it was."""

    check: str
    tries: tuple[str, ...]  # statuses; the last one is the FINAL
    places: tuple[str, ...]  # one per try

    @property
    def counted(self) -> tuple[Any, ...]:
        verdict = {"PASSED": "PASSED", "DEGRADED": "PASSED", "FAILED": "FAILED", "TIMED_OUT": "FAILED"}[
            self.tries[-1]
        ]
        retries = len(self.tries) - 1
        return self.check, self.places[-1], verdict, retries, verdict == "PASSED" and retries > 0


PLACES = ("eu", "us", "ap", "sa")
STATUSES = st.sampled_from(["FAILED", "PASSED", "DEGRADED", "TIMED_OUT"])


@st.composite
def stories(draw: st.DrawFn) -> tuple[list[Told], list[ResultRow]]:
    """Executions, and their rows. A check either retries elsewhere, or runs in several places side by side."""
    told: list[Told] = []
    rows: list[ResultRow] = []

    def tell(check: str, at: float, places: Sequence[str]) -> float:
        tries = ["FAILED"] * (len(places) - 1) + [draw(STATUSES)]
        told.append(Told(check, tuple(tries), tuple(places)))
        for number, (status, place) in enumerate(zip(tries, places, strict=True), 1):
            type_ = "FINAL" if number == len(tries) else "ATTEMPT"
            rows.append(result(len(rows) + 1, type_, status, (at, at + 3), place, check))
            at += 4
        return at

    for check in draw(st.lists(st.sampled_from([CHECK, OTHER, id_(0xC3)]), unique=True, max_size=3)):
        at = float(draw(st.integers(0, 5)))
        if draw(st.booleans()):
            # Each try in another place, as `retryStrategy.sameRegion: false` has it.
            tell(check, at, draw(st.permutations(PLACES))[: draw(st.integers(1, 4))])
            continue
        for _ in range(draw(st.integers(1, 3))):
            side_by_side = draw(st.lists(st.sampled_from(PLACES), unique=True, min_size=1, max_size=4))
            at = max(tell(check, at, [place] * draw(st.integers(1, 3))) for place in side_by_side)
    draw(st.randoms()).shuffle(rows)
    return told, rows


def test_a_story_split_over_places_and_orders_is_counted_as_told() -> None:
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(both=stories())
    def count(both: tuple[list[Told], list[ResultRow]]) -> None:
        told, rows = both
        found = [
            (row.check_id, row.run_location, row.verdict, row.retries, row.is_retry_flaky) for row in fold(*rows)
        ]
        assert sorted(found, key=str) == sorted((one.counted for one in told), key=str)

    count()


def test_a_document_of_many_open_attempts_is_folded_in_seconds() -> None:
    """20,000 locations that each retry elsewhere: looking each up among all others would take an hour."""
    rows = []
    for number in range(20_000):
        rows.append(result(2 * number + 1, *ATTEMPT, (2 * number, 2 * number + 1), f"place {number}"))
    executions = fold(*rows)
    assert [row.retries for row in executions] == [20_000]
