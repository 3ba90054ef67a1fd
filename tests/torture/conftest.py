"""Worlds with a fixed clock, and what a warehouse holds that exported them in peace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from etl import pipeline
from etl.simulator import Simulator, World
from tests.torture.harness import Content, everything
from tests.torture.servers import OwnPostgres


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
