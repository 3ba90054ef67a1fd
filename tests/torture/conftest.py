"""Worlds with a fixed clock, and what a warehouse holds that exported them in peace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from etl import pipeline
from etl.simulator import Simulator, World
from tests.harness import IS_AT_LENGTH, TIMES, Content, everything
from tests.servers import OwnPostgres

# What `make test` and `.ci/run` take of all this, in a minute or two; `make torture` takes the whole.
IN_SHORT = (
    "test_a_killed_export_that_is_run_again",
    "test_workers_of_all_kinds_share_the_work",
    "test_the_first_test_sessions_decoded_by_eight_threads",
    "test_a_commit_whose_answer_is_cut_off_neither_doubles_nor_loses_anything[backfill-done]",
    "test_a_network_that_cuts_connections_to_postgresql",
    "test_a_disk_that_fills_up",
    "test_everything_arrives_though_40_percent",
    "test_a_refusal_reaches_as_far",
    "test_each_fuzzed_document_ends",
    "test_the_first_burst_of_three_processes",
    "test_a_429_pauses_every_process",
    "test_a_week_of_passes",
    "test_a_clock_that_was_ahead",
    "test_each_account_has_its_key",
    "test_a_link_that_names_another_configured_account",
    "test_the_retention_guard_counts",
    "test_a_signal_at_any_moment",
    "test_max_time_ends_a_pass_that_waits",
    "test_settings_that_are_wrong_tell_no_secret",
    "test_an_api_that_repeats_the_key",
    "test_a_daemon_under_a_changing_world",
    "test_a_daemon_outlives_an_api",
    "test_a_signal_in_the_middle_of_a_daemons_pass_gives_the_claims_back_and_is_exit_0[postgresql",
    "test_a_second_signal_ends_a_daemon",
)
# The same on both databases, as far as anybody can tell: once is enough but for `make torture`.
ON_ONE_ENGINE = (
    "test_an_account_in_trouble_does_not_stop_the_others",
    "test_an_outage_of_any_kind_ends_the_pass_soon",
    "test_429s_without_retry_after_pause",
    "test_a_429_pauses_every_process",
    "test_retries_are_paid",
    "test_the_pause_of_one_429",
    "test_a_pause_beyond_five_minutes",
    "test_a_pause_of_one_account",
    "test_all_three_in_trouble",
    "test_a_budget_that_is_spent",
    "test_checkly_that_refuses_connections",
    "test_checkly_behind_a_network",
    "test_a_link_",
    "test_the_retention_guard_counts",
    "test_a_signal_in_the_middle",
    "test_max_time_ends_a_pass",
    "test_a_refusal_reaches_as_far",
    "test_one_account_in_trouble",
    "test_a_second_signal_ends_a_daemon",
    "test_a_daemon_outlives_an_api",
    "test_many_passes_leave_a_daemon",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what this run is too short for."""
    for item in items:
        if "tests/torture" not in item.path.as_posix() or IS_AT_LENGTH:
            continue
        if TIMES < 10 and not item.name.startswith(IN_SHORT):
            item.add_marker(pytest.mark.skip(reason="in make torture"))
        elif item.name.startswith(ON_ONE_ENGINE) and "sqlite" in item.name:
            item.add_marker(pytest.mark.skip(reason="on SQLite as well in make torture"))


@pytest.fixture(scope="session")
def _references() -> dict[str, Content]:
    return {}


@pytest.fixture
def peace(
    small_world: World,
    new_warehouse: Callable[[str], str],
    make_etl_at: Callable[[str, str], pipeline.Etl],
    _references: dict[str, Content],
) -> Callable[[str], Content]:
    """Engine name -> every row of a warehouse that exported the small world without any trouble."""

    def of(engine: str) -> Content:
        if engine not in _references:
            with Simulator(small_world, rate_limit=0) as simulator:
                etl = make_etl_at(simulator.url, new_warehouse(engine))
                assert pipeline.sync(etl).word == "ok"
                _references[engine] = everything(etl.database)
                etl.database.close()
        return _references[engine]

    return of


@pytest.fixture
def own_postgres() -> Iterator[OwnPostgres]:
    """A PostgreSQL of the test's own, to be treated badly; with a migrated warehouse."""
    with OwnPostgres() as server:
        yield server
