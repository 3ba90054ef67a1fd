"""Full disks, files that cannot be written, are locked, deleted or replaced: exit 3, a clear word, no loss."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from etl.database import Database
from etl.simulator import Simulator, World
from tests.conftest import scalar
from tests.documents import uuid
from tests.harness import (
    SECRETS,
    TIMES,
    Content,
    Worker,
    Workers,
    everything,
    rows_that_hold,
    same_rows,
    wait_until,
    workers,
)

BACKFILL = ("backfill", "--since", "3000d")
CHECKOUT = Path(__file__).parents[2]
AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
ROOM = 64 << 20


@pytest.fixture
def slow_checkly(small_world: World) -> Iterator[Simulator]:
    """Checkly, a little slower, so that something can happen in the middle."""
    with Simulator(small_world, rate_limit=0) as simulator:
        simulator.add_fault(match="/v1/", kind="delay", seconds=0.03)
        yield simulator


@pytest.fixture
def url(new_warehouse: Callable[[str], str]) -> str:
    """A migrated, empty SQLite file."""
    return new_warehouse("sqlite")


# --- full -----------------------------------------------------------------------------------------------------------


class Disk:
    """A small disk of its own. Where mounting is denied, a limit on the size of every file that a worker writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.is_mounted = not self._mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
        self._limit = 1 << 20

    def resize(self, size: int) -> None:
        """Make room, or take it; never less than is used."""
        if self.is_mounted:
            assert self._mount("-o", f"remount,size={size}", str(self.folder)) == 0
        self._limit = size

    def start(self, some: Workers, *arguments: str) -> Worker:
        """A worker that has no more room than there is on the disk."""
        return (
            some.start(*arguments)
            if self.is_mounted
            else _behind(some, ("prlimit", f"--fsize={self._limit}"), *arguments)
        )

    @property
    def words(self) -> tuple[str, ...]:
        """What may be said: of a limit SQLite knows only that it could not write."""
        return ("full",) if self.is_mounted else ("full", "disk I/O error")

    def remove(self) -> None:
        """Give the memory back."""
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)

    @staticmethod
    def _mount(*arguments: str) -> int:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Of one megabyte."""
    made = Disk(tmp_path / "disk")
    yield made
    made.remove()


def test_a_disk_that_fills_up_in_the_middle_is_exit_3_and_nothing_is_lost(
    disk: Disk, url: str, simulator: Simulator, peace: Callable[[str], Content]
) -> None:
    """However much room there is left: in the first pass nothing, in the last but one nearly all of it."""
    empty = _path(url).stat().st_size
    wanted = peace("sqlite")
    for number in range(TIMES):
        path = disk.folder / f"warehouse-{number}.db"
        disk.resize(ROOM)
        shutil.copy(_path(url), path)
        with workers(simulator.url, f"sqlite:///{path}") as some:
            disk.resize(empty + 64_000 + (number + 1) * 900_000 // TIMES)
            full = disk.start(some, "sync")
            assert full.wait() == 3, (full.out, full.err[-2000:])
            _tells(full, path, *disk.words)
            others = () if number else (("enqueue", *(uuid(id_) for id_ in range(3000))), ("replay",))
            for command in others:
                other = disk.start(some, *command)
                assert other.wait() in (0, 3), (other.out, other.err[-2000:])
                if other.process.returncode:
                    _tells(other, path, *disk.words, "disk I/O error")
            seeing = disk.start(some, "status")
            assert seeing.wait() == 0, "who only reads needs no room: " + seeing.err
            disk.resize(ROOM)
            with closing(Database(f"sqlite:///{path}")) as database, database.writing() as connection:
                connection.exec_driver_sql("DELETE FROM etl_queue WHERE source = 'enqueue'")
            last = disk.start(some, "sync")
            assert last.wait() == 0, last.err[-2000:]
        _equals_peace(f"sqlite:///{path}", wanted)
        path.unlink()


def test_a_disk_that_is_full_for_the_schema_is_exit_3_and_the_next_migrate_makes_it(
    disk: Disk, simulator: Simulator, peace: Callable[[str], Content]
) -> None:
    for size in (0, 20_000, 60_000, 150_000) if TIMES >= 10 else (0, 60_000):
        path = disk.folder / f"{size}.db"
        disk.resize(ROOM)
        filler = disk.folder / "filler"
        with workers(simulator.url, f"sqlite:///{path}") as some:
            disk.resize(size or 4096)
            if size == 0 and disk.is_mounted:
                filler.write_bytes(b"x" * 4096)  # not a byte is free, not even for an empty file's first page
            full = disk.start(some, "migrate")
            assert full.wait() == 3, (size, full.out, full.err)
            _tells(full, path, *disk.words, "disk I/O error", "unable to open")
            disk.resize(ROOM)
            filler.unlink(missing_ok=True)
            assert disk.start(some, "migrate").wait() == 0
            assert disk.start(some, "sync").wait() == 0
        _equals_peace(f"sqlite:///{path}", peace("sqlite"))
        for left in disk.folder.iterdir():
            left.unlink()


# --- not to be written ----------------------------------------------------------------------------------------------


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that every user of the machine may look into, but only its owner may write to."""
    with tempfile.TemporaryDirectory(prefix="etl-shared-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def nobody(request: pytest.FixtureRequest) -> None:
    """The test runs its workers as another user."""
    probe = [*AS_NOBODY, sys.executable, "-c", "import etl.cli, etl.schema"]
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user")
    if subprocess.run(probe, cwd=CHECKOUT, capture_output=True, check=False).returncode != 0:
        pytest.skip("another user cannot read this checkout")


WRITING = (("sync",), BACKFILL, ("enqueue", uuid(1)), ("dead", "retry", "--all"), ("replay",))


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("mode", [0o644, 0o666], ids=["file", "folder"])
def test_a_file_or_folder_that_cannot_be_written_is_exit_3_for_every_command_that_writes(
    mode: int, shared_folder: Path, url: str, simulator: Simulator, peace: Callable[[str], Content]
) -> None:
    """A file of another user, or one's own in a folder that takes no -wal beside it."""
    path = shared_folder / "warehouse.db"
    shutil.copy(_path(url), path)
    path.chmod(mode)
    with workers(simulator.url, f"sqlite:///{path}") as some:
        crowd = [_behind(some, AS_NOBODY, *command) for command in WRITING]
        for worker in crowd:
            assert worker.wait() == 3, (worker.arguments, worker.out, worker.err)
            _tells(worker, path, "readonly", "read-only", "cannot be written")
            assert worker.out == ""
        assert simulator.requests == [], "nothing can be saved, so nothing is asked"
        path.chmod(0o666)
        shared_folder.chmod(0o777)
        last = _behind(some, AS_NOBODY, "sync")
        assert last.wait() == 0, last.err
    _equals_peace(f"sqlite:///{path}", peace("sqlite"))


@pytest.mark.usefixtures("nobody")
def test_status_reads_a_file_that_it_cannot_write_while_its_writer_is_there(
    shared_folder: Path, url: str, simulator: Simulator
) -> None:
    """With the writer's -wal and -shm beside it a reader needs no right to write; the writer's rows are seen."""
    path = shared_folder / "warehouse.db"
    shutil.copy(_path(url), path)
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as writer,
        workers(simulator.url, f"sqlite:///{path}") as some,
    ):
        writer.execute("UPDATE etl_accounts SET pauses = pauses")
        assert Path(f"{path}-wal").exists()
        for reading in (("status",), ("dead", "list"), ("migrate",)):
            worker = _behind(some, AS_NOBODY, *reading)
            assert worker.wait() == 0, (reading, worker.err)
        for command in (("sync",), ("enqueue", uuid(1))):
            worker = _behind(some, AS_NOBODY, *command)
            assert worker.wait() == 3, (command, worker.out, worker.err)
            _tells(worker, path, "readonly", "read-only", "cannot be written")


@pytest.mark.usefixtures("nobody")
def test_status_of_a_file_that_cannot_be_written_says_what_it_lacks(
    shared_folder: Path, url: str, simulator: Simulator
) -> None:
    """Nobody has it open, so SQLite must make -wal and -shm even to read. It does not sound like that: we say it."""
    path = shared_folder / "warehouse.db"
    shutil.copy(_path(url), path)
    with workers(simulator.url, f"sqlite:///{path}") as some:
        worker = _behind(some, AS_NOBODY, "status")
        code = worker.wait()
        assert code in (0, 3), worker.err
        if code == 3:
            _tells(worker, path, "must be writable", "cannot be written")


@pytest.mark.usefixtures("nobody")
def test_a_file_that_cannot_even_be_read_or_made_is_exit_3(
    shared_folder: Path, url: str, simulator: Simulator
) -> None:
    path = shared_folder / "warehouse.db"
    shutil.copy(_path(url), path)
    path.chmod(0o600)
    with workers(simulator.url, f"sqlite:///{path}") as some:
        for command in (("sync",), ("status",), ("migrate",), ("enqueue", uuid(1))):
            worker = _behind(some, AS_NOBODY, *command)
            assert worker.wait() == 3, (command, worker.err)
            _tells(worker, path, "unable to open", "cannot be")
    new = shared_folder / "new.db"
    with workers(simulator.url, f"sqlite:///{new}") as some:
        worker = _behind(some, AS_NOBODY, "migrate")
        assert worker.wait() == 3, worker.err
        _tells(worker, new, "unable to open", "cannot be")
        assert not new.exists()
        worker = _behind(some, AS_NOBODY, "sync")
        assert worker.wait() == 2, "there is nothing yet: migrate first"


# --- deleted, replaced, broken, locked ------------------------------------------------------------------------------


def test_a_file_that_is_deleted_while_a_sync_runs_is_not_called_a_success(
    url: str, slow_checkly: Simulator, peace: Callable[[str], Content], tmp_path: Path
) -> None:
    """What was written into the deleted file is gone; whoever reads the exit code must know."""
    empty = tmp_path / "empty.db"
    shutil.copy(_path(url), empty)
    chance = random.Random(4)
    for _ in range(min(TIMES, 4)):
        for path in _files(url):
            path.unlink(missing_ok=True)
        shutil.copy(empty, _path(url))
        slow_checkly.clear_requests()
        with workers(slow_checkly.url, url) as some:
            worker = some.start("sync")
            wait_until(lambda: len(slow_checkly.requests) > chance.randint(2, 20))
            for path in _files(url):
                path.unlink(missing_ok=True)
            assert worker.wait() in (2, 3), (worker.out, worker.err[-2000:])
            again = some.run("sync")
            assert again.process.returncode == 2, again.err
            assert "checkly-etl migrate" in again.err
            assert not _path(url).exists(), "only migrate makes a file"
            assert some.run("migrate").process.returncode == 0
            last = some.run("sync")
            assert last.process.returncode == 0, last.err[-2000:]
        _equals_peace(url, peace("sqlite"))


def test_a_file_that_is_replaced_while_a_sync_runs_gets_everything_by_the_next_one(
    url: str, slow_checkly: Simulator, peace: Callable[[str], Content], tmp_path: Path
) -> None:
    """Somebody restores a backup: the new file is whole, and stays so."""
    backup = tmp_path / "backup.db"
    shutil.copy(_path(url), backup)
    chance = random.Random(8)
    for _ in range(min(TIMES, 4)):
        slow_checkly.clear_requests()
        with workers(slow_checkly.url, url) as some:
            worker = some.start("sync")
            wait_until(lambda: len(slow_checkly.requests) > chance.randint(2, 20))
            for path in _files(url)[1:]:
                path.unlink(missing_ok=True)
            shutil.copy(backup, tmp_path / "restored.db")
            (tmp_path / "restored.db").replace(_path(url))
            assert worker.wait() in (0, 2, 3), (worker.out, worker.err[-2000:])
            last = some.run("sync")
            assert last.process.returncode == 0, last.err[-2000:]
        with closing(sqlite3.connect(_path(url))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        _equals_peace(url, peace("sqlite"))
        for path in _files(url):
            path.unlink(missing_ok=True)
        shutil.copy(backup, _path(url))


def test_a_file_that_is_no_database_or_a_broken_one_is_exit_3(url: str, simulator: Simulator) -> None:
    whole = _path(url).read_bytes()
    chance = random.Random(2)
    rubbish = [
        b"no database at all\n" * 1000,
        whole[:5000],
        chance.randbytes(50_000),
        whole[:4096] + b"\0" * len(whole),
    ]
    with workers(simulator.url, url) as some:
        for content in rubbish:
            for path in _files(url)[1:]:
                path.unlink(missing_ok=True)
            _path(url).write_bytes(content)
            crowd = [some.start(*command) for command in (("sync",), ("status",), ("migrate",))]
            for worker in crowd:
                assert worker.wait() == 3, (worker.arguments, content[:20], worker.out, worker.err)
                assert str(_path(url)) in worker.err, worker.err


@pytest.mark.skipif(TIMES < 10, reason="takes longer than the 30 s for which SQLite waits; in the long form only")
def test_a_file_that_somebody_keeps_locked_is_exit_3_and_the_next_sync_does_it_all(
    url: str, simulator: Simulator, peace: Callable[[str], Content]
) -> None:
    with workers(simulator.url, url) as some:
        with closing(sqlite3.connect(_path(url), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            crowd = [some.start("sync"), some.start("enqueue", uuid(1))]
            for reader in (some.run("status"), some.run("migrate")):
                assert reader.process.returncode == 0, "reading needs no lock: " + reader.err
            assert time.monotonic() - began < 20
            for worker in crowd:
                assert worker.wait() == 3, (worker.arguments, worker.out, worker.err)
                _tells(worker, _path(url), "locked")
            assert 29 < time.monotonic() - began < 60
            other.execute("ROLLBACK")
        last = some.run("sync")
        assert last.process.returncode == 0, last.err
    _equals_peace(url, peace("sqlite"))


def test_a_file_that_is_locked_for_a_while_only_takes_time(
    url: str, slow_checkly: Simulator, peace: Callable[[str], Content]
) -> None:
    """A backup, a report, an analyst with an open transaction: five seconds in the middle of two workers."""
    with workers(slow_checkly.url, url) as some:
        crowd = [some.start("sync"), some.start(*BACKFILL)]
        wait_until(lambda: len(slow_checkly.requests) > 4)
        with closing(sqlite3.connect(_path(url), isolation_level=None, timeout=30)) as other:
            other.execute("BEGIN IMMEDIATE")
            for worker in crowd:  # they do not end while it is locked
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(2.5)
            other.execute("ROLLBACK")
        for worker in crowd:
            assert worker.wait() == 0, worker.err[-2000:]
    _equals_peace(url, peace("sqlite"))


# --- helpers ------------------------------------------------------------------------------------------------------


def _behind(some: Workers, prefix: tuple[str, ...], *arguments: str) -> Worker:
    """A worker that another program starts: as another user, or under a limit."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHECKLY_")}
    streams = (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115 - closed by `close`
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "etl", *arguments],
        env={**inherited, **some.env},
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=streams[0],
        stderr=streams[1],
    )
    some.started.append(Worker(arguments, process, streams, some.secrets))
    return some.started[-1]


def _tells(worker: Worker, path: Path, *words: str) -> None:
    """One complaint that names the file and says what is wrong with it."""
    complaints = [line for line in worker.err.splitlines() if str(path) in line]
    assert complaints, worker.err[-2000:]
    assert any(word in line for line in complaints for word in words), complaints


def _path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def _files(url: str) -> list[Path]:
    return [Path(f"{_path(url)}{ending}") for ending in ("", "-wal", "-shm")]


def _equals_peace(url: str, wanted: Content) -> None:
    with closing(Database(url)) as database:
        found = everything(database)
        for secret in SECRETS:
            assert rows_that_hold(database, secret) == []
        assert scalar(database, "PRAGMA integrity_check") == "ok"
        assert scalar(database, "SELECT count(*) FROM etl_runs WHERE outcome IS NULL") == 0
    # Where a row of the queue came from depends on who was first.
    same_rows(*({**c, "etl_queue": [(*row[:3], *row[5:]) for row in c["etl_queue"]]} for c in (wanted, found)))
