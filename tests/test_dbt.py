"""The dbt project for analysts: it knows every table, view and column of the contract, and a real dbt builds it.

dbt stands in a virtual environment of its own, because its libraries are not ours. CHECKLY_ETL_TEST_DBT names its
executable; without it the tests that run dbt are skipped, the others need nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from etl import schema
from etl.database import Database
from etl.schema import public_views
from etl.simulator import Simulator, World
from etl.tables import metadata
from tests.conftest import Program

ROOT = Path(__file__).parent.parent
PROJECT = ROOT / "dbt"
TABLES = {name for name in metadata.tables if not name.startswith("etl_")}

on_postgresql = pytest.mark.parametrize("engine_name", ["postgresql"], indirect=True)


# --- the files ----------------------------------------------------------------------------------------------------


def _sources() -> dict[str, Any]:
    (source,) = yaml.safe_load((PROJECT / "models" / "sources.yml").read_text(encoding="utf-8"))["sources"]
    return {relation["name"]: relation for relation in source["tables"]}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/generate_dbt.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("generate_dbt", ROOT / "docs" / "generate_dbt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


def test_the_sources_are_those_of_the_comments(generator: ModuleType) -> None:
    assert (PROJECT / "models" / "sources.yml").read_text(encoding="utf-8") == generator.text(), "run: make docs"


def test_every_table_view_and_column_is_described_and_has_a_key_that_is_tested(generator: ModuleType) -> None:
    columns = {name: list(metadata.tables[name].columns.keys()) for name in TABLES} | generator.view_columns()
    sources = _sources()
    assert sources.keys() == columns.keys() == TABLES | public_views().keys()
    for name, relation in sources.items():
        assert [column["name"] for column in relation["columns"]] == columns[name]
        assert all(described["description"] for described in [relation, *relation["columns"]])
        tests = [*relation.get("data_tests", []), *(t for c in relation["columns"] for t in c.get("data_tests", []))]
        assert "unique" in tests or any("unique_together" in test for test in tests), name


def test_nothing_is_said_of_columns_that_are_gone(generator: ModuleType) -> None:
    columns = generator.view_columns()
    assert generator.VIEWS.keys() == columns.keys()
    assert generator.WORDS.keys() <= {column for names in columns.values() for column in names}
    for name, view in generator.VIEWS.items():
        assert {*view.key.split(), *view.never_null.split(), *view.words} <= set(columns[name]), name


def test_a_model_describes_a_column_as_its_source_does() -> None:
    words: dict[str, set[str]] = {}
    for relation in _sources().values():
        for column in relation["columns"]:
            words.setdefault(column["name"], set()).add(column["description"])
    for model in yaml.safe_load((PROJECT / "models" / "schema.yml").read_text(encoding="utf-8"))["models"]:
        for column in model["columns"]:
            assert column["description"] in words.get(column["name"], {column["description"]}), column["name"]


def test_models_and_tests_name_sources_that_are_there() -> None:
    for file in PROJECT.rglob("*.sql"):
        named = re.findall(r"source\('checkly', '(\w+)'\)", file.read_text(encoding="utf-8"))
        assert set(named) <= TABLES | public_views().keys(), file.name


# --- a real dbt ---------------------------------------------------------------------------------------------------


@pytest.fixture
def executable() -> str:
    """Asked for first: nothing else is made where there is no dbt."""
    path = os.environ.get("CHECKLY_ETL_TEST_DBT")
    if not path:
        pytest.skip("CHECKLY_ETL_TEST_DBT names no dbt")
    return path


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """Three weeks until today: some views look at the last days only."""
    with Simulator(World(seed=1, days=21), rate_limit=0) as running:
        yield running


@dataclass(frozen=True)
class Dbt:
    """dbt in our project, on a warehouse of the test's own."""

    executable: str
    url: str
    home: Path

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        names = {
            "host": "PGHOST",
            "port": "PGPORT",
            "user": "PGUSER",
            "password": "PGPASSWORD",
            "dbname": "PGDATABASE",
        }
        connection = {names[key]: str(value) for key, value in conninfo_to_dict(self.url).items() if key in names}
        folders = {"DBT_TARGET_PATH": f"{self.home}/target", "DBT_LOG_PATH": f"{self.home}/logs"}
        # A deprecation is an error, too.
        command = [self.executable, "--no-use-colors", "--warn-error", *arguments]
        env = {**os.environ, **connection, **folders}
        return subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=300)

    def succeed(self, *arguments: str) -> None:
        done = self(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def outcomes(self) -> dict[str, str]:
        """What became of each model and test of the last build."""
        results = json.loads((self.home / "target" / "run_results.json").read_text(encoding="utf-8"))["results"]
        return {result["unique_id"].split(".")[2]: result["status"] for result in results}

    def query(self, sql: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql.encode()).fetchall()

    def change(self, *statements: str) -> None:
        with psycopg.connect(self.url) as connection:
            for statement in statements:
                connection.execute(statement.encode())


@pytest.fixture
def dbt(executable: str, program: Program, tmp_path: Path) -> Dbt:
    """On a warehouse with data."""
    assert program("backfill", "--since", "2000-01-01").code == 0
    return Dbt(executable, program.env["CHECKLY_ETL_WAREHOUSE_URL"], tmp_path)


@on_postgresql
def test_the_project_builds_on_a_warehouse_with_data(dbt: Dbt) -> None:
    dbt.succeed("build")
    assert set(dbt.outcomes().values()) == {"success", "pass"}
    (count,) = dbt.query("SELECT COUNT(*) FROM test_sessions")
    assert dbt.query("SELECT COUNT(*) FROM checkly_analytics.retry_costs") == [count]
    assert dbt.query("SELECT DISTINCT meaning FROM checkly_analytics.flaky_leaderboard ORDER BY 1") == [
        ("commit",),
        ("flip",),
        ("retry",),
    ]
    dbt.succeed("source", "freshness")
    dbt.succeed("docs", "generate")
    # No model may keep `migrate` from dropping our views.
    with closing(Database(dbt.url)) as database, database.writing() as connection:
        schema.drop_views(connection)
        connection.rollback()


@on_postgresql
def test_only_what_was_exported_again_is_loaded_again(dbt: Dbt, program: Program) -> None:
    costs = "SELECT * FROM checkly_analytics.retry_costs ORDER BY started_at, test_session_id"
    dbt.change("UPDATE test_sessions SET exported_at = started_at")  # not all in this minute
    dbt.succeed("build", "--select", "retry_costs")
    oldest, emptied, deleted = (row[0] for row in dbt.query(costs)[:3])
    dbt.change(
        f"UPDATE checkly_analytics.retry_costs SET executions = -1 WHERE test_session_id = '{oldest}'",
        f"DELETE FROM check_executions WHERE test_session_id = '{emptied}'",
        f"UPDATE test_sessions SET exported_at = now() WHERE test_session_id = '{emptied}'",
    )
    assert program("forget", "test-session", str(deleted)).code == 0
    dbt.succeed("run", "--select", "retry_costs")
    reloaded = dbt.query(costs)
    assert {row[0]: row[7] for row in reloaded if row[7] <= 0} == {oldest: -1, emptied: 0}
    dbt.succeed("run", "--select", "retry_costs", "--full-refresh")
    loaded = dbt.query(costs)
    assert [row for row in loaded if row[0] != oldest] == [row for row in reloaded if row[0] != oldest]


@on_postgresql
def test_broken_rows_fail_the_build_and_reach_no_model(dbt: Dbt) -> None:
    dbt.change(
        "UPDATE check_executions SET verdict = 'MAYBE'"
        " WHERE ctid = (SELECT ctid FROM check_executions WHERE verdict = 'PASSED' LIMIT 1)",
        "UPDATE check_executions SET retries = retries + 1 WHERE execution_no = 1",
        "ALTER TABLE test_session_error_groups DROP CONSTRAINT pk_test_session_error_groups",
        "INSERT INTO test_session_error_groups SELECT * FROM test_session_error_groups LIMIT 1",
    )
    assert dbt("build").returncode == 1
    outcomes = dbt.outcomes()
    failed = {name for name, outcome in outcomes.items() if outcome == "fail"}
    assert failed >= {
        "an_execution_folds_its_results",
        "source_accepted_values_checkly_check_executions_verdict__PASSED__FAILED",
        "source_unique_together_checkly_test_session_error_groups_test_session_id__error_group_id",
    }
    assert outcomes["retry_costs"] == "skipped"
    # A relation more than a warehouse has: the fixtures drop this database, whose key is gone.
    assert outcomes["flaky_leaderboard"] == "success"
