"""The lines of docs/ci.md for a plain shell, run as they stand there, with the programs that a CI job has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from etl.database import Database
from etl.simulator import Simulator, World
from tests.brokers import amqp_declare
from tests.conftest import Program, environment, rows
from tests.documents import detail, uuid

ROOT = Path(__file__).parent.parent
(BLOCK,) = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "ci.md").read_text(encoding="utf-8"), re.M | re.S)
LINES = [line for line in BLOCK.splitlines() if not line.startswith("npx ")]
CLI_OUTPUT = f"""Running 2 checks in eu-central-1.
Test session ID: {uuid(1)}
Detailed session summary at: https://app.checklyhq.com/test-sessions/{uuid(1)}
trace {uuid(0x7ACE)}
"""


@pytest.fixture
def checkly() -> Iterator[Simulator]:
    """Checkly with one session that no list tells."""
    with Simulator(World(seed=1, now=datetime(2000, 1, 1, tzinfo=UTC), days=1), rate_limit=0) as serving:
        serving.put_test_session(detail(1))
        yield serving


@pytest.mark.parametrize("engine_name", ["sqlite"], indirect=True)
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split(" < ")[0][:60])
def test_a_line_of_the_recipes_exports_the_session_of_the_output(
    line: str,
    program: Program,
    checkly: Simulator,
    warehouse_url: str,
    database: Database,
    redis_url: str,
    redis_queue: str,
    amqp_url: str,
    amqp_queue: str,
    tmp_path: Path,
) -> None:
    if shutil.which(line.split()[0]) is None and not line.startswith("checkly-etl"):
        pytest.skip(f"{line.split()[0]} is not installed")
    queue = amqp_queue if line.startswith("amqp-") else redis_queue
    if line.startswith("amqp-"):
        amqp_declare(amqp_url, queue)  # the daemon was started before
    program.env = environment(checkly.url, warehouse_url)
    (tmp_path / "out.txt").write_text(CLI_OUTPUT)
    source = {"cat": "  - file: ids.txt\n"}.get(line.split()[0], "")
    if "REDIS_URL" in line or "AMQP_URL" in line:
        url = redis_url if "REDIS_URL" in line else "amqp://guest:${AMQP_PASSWORD}@" + amqp_url.partition("@")[2]
        source = f"  - url: {url}\n    queue: {queue}\n"
    (tmp_path / "config.yaml").write_text(f"inbox:\n{source}" if source else "")

    command = line.replace("checkly-test-sessions", queue).replace("/var/spool/checkly/ids.txt", "ids.txt")
    command = command.replace("checkly-etl", f"{sys.executable} -m etl")
    env = {**os.environ, **program.env, "REDIS_URL": redis_url, "AMQP_URL": amqp_url.removesuffix("/")}
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert program("sync", CHECKLY_ETL_EXPORT__DISCOVER="false", AMQP_PASSWORD="guest").code == 0
    assert [str(row["test_session_id"]) for row in rows(database, "SELECT * FROM test_sessions")] == [uuid(1)]
    assert rows(database, "SELECT * FROM etl_inbox_rejects") == []


def test_the_recipes_are_all_there() -> None:
    assert [line.split()[0] for line in LINES] == [
        "redis-cli",
        "redis-cli",
        "amqp-publish",
        "cat",
        "checkly-etl",
        "checkly-etl",
    ]
