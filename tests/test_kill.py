"""kill -9 at any moment: nothing lost, nothing doubled, the next pass goes on (guarantee 1)."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator

import pytest

from etl import pipeline
from etl.database import Database
from etl.pipeline import Etl
from etl.simulator import Simulator, World
from tests.conftest import content, environment, rows
from tests.test_commands import start

KILLS = int(os.environ.get("CHECKLY_ETL_TEST_KILLS", "5"))  # of each command on each engine; more: the long form


@pytest.fixture
def slow_checkly(small_world: World) -> Iterator[Simulator]:
    """Checkly, a little slower, so that there is time to die in."""
    with Simulator(small_world, rate_limit=0) as simulator:
        simulator.add_fault(match="/v1/", kind="delay", seconds=0.02)
        yield simulator


@pytest.mark.parametrize("command", [("backfill", "--since", "3000d"), ("sync",)], ids=["backfill", "sync"])
def test_a_killed_export_that_is_run_again_equals_one_that_was_never_interrupted(
    command: tuple[str, ...],
    engine_name: str,
    new_warehouse: Callable[[str], str],
    slow_checkly: Simulator,
    make_etl_at: Callable[[str, str], Etl],
) -> None:
    # Its 429s, RUNNING polls and times of the queue are not compared: what is in the warehouse is.
    whole = make_etl_at(slow_checkly.url, new_warehouse(engine_name))
    assert pipeline.sync(whole).word == "ok"
    wanted = {table: found for table, found in content(whole.database).items() if table != "etl_queue"}
    running = _queued(whole.database)
    whole.database.close()

    env = environment(slow_checkly.url, new_warehouse(engine_name))
    moments = random.Random(len(command))
    for _ in range(KILLS):
        process = start(env, *command)
        time.sleep(moments.uniform(0.3, 1.6))
        process.kill()
        process.communicate()
    last = start(env, *command)
    _, err = last.communicate(timeout=120)
    assert last.returncode == 0, err

    survivor = Database(env["CHECKLY_ETL_WAREHOUSE_URL"])
    found = content(survivor)
    for table, expected in wanted.items():
        assert found[table] == expected, table
    assert _queued(survivor) == running, "what still runs is waited for, and nothing else"
    outcomes = {row["outcome"] for row in rows(survivor, "SELECT outcome FROM etl_runs")}
    assert outcomes <= {"ok", "interrupted"}, "a run that was killed does not seem to run for ever"
    survivor.close()


def _queued(database: Database) -> list[str]:
    found = rows(database, "SELECT test_session_id, state FROM etl_queue ORDER BY test_session_id")
    return [f"{row['test_session_id']} {row['state']}" for row in found]
