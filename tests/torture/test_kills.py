"""kill -9 at any moment: nothing lost, nothing doubled, the next pass goes on (guarantee 1)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest

from etl.database import Database
from etl.simulator import Simulator, World
from tests.conftest import rows
from tests.harness import TIMES, Content, everything, same_rows, workers


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
    peace: Callable[[str], Content],
) -> None:
    url = new_warehouse(engine_name)
    moments = random.Random(len(command))
    with workers(slow_checkly.url, url) as some:
        for _ in range(TIMES):
            worker = some.start(*command)
            time.sleep(moments.uniform(0.3, 1.6))
            worker.kill()
        assert some.run(*command).process.returncode == 0, some.started[-1].err

    survivor = Database(url)
    found, wanted = everything(survivor), peace(engine_name)
    if command[0] == "backfill":  # where a row came from is no part of what was exported
        found["etl_queue"], wanted = _without_source(found["etl_queue"]), dict(wanted)
        wanted["etl_queue"] = _without_source(wanted["etl_queue"])
    same_rows(wanted, found)
    outcomes = {row["outcome"] for row in rows(survivor, "SELECT outcome FROM etl_runs")}
    assert outcomes <= {"ok", "interrupted"}, "a run that was killed does not seem to run for ever"
    survivor.close()


def _without_source(queue: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return [(*row[:3], *row[5:]) for row in queue]
