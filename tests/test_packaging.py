"""The wheel: what is in it, and that it works where there is no checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = PYPROJECT["project"]["version"]


def _run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-cache-dir")
    _run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@dataclass(frozen=True)
class Installed:
    """The wheel in a virtual environment of its own, with the libraries of this one but not its checkout."""

    python: Path
    home: Path

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _run(self.python.with_name("checkly-etl"), *arguments, cwd=self.home, env=self._environment())

    def run_python(self, code: str) -> str:
        return _run(self.python, "-c", code, cwd=self.home, env=self._environment()).stdout.strip()

    def _environment(self) -> dict[str, str]:
        dropped = ("CHECKLY_", "PYTHON", "COV_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return env | {"CHECKLY_ETL_WAREHOUSE_URL": "sqlite:///warehouse.db"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed here")  # with a space, as people have them
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    _run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    # A plain path in a .pth file: the libraries are found there, but its own .pth files (our checkout) are not read.
    site = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip()
    Path(site, "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    home = folder / "home"
    home.mkdir()
    return Installed(python, home)


def test_the_wheel_holds_the_views_the_triggers_and_the_migrations_inside_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("views", "triggers"):
        for file in (ROOT / "etl" / kind).glob("*.sql"):
            assert f"etl/{kind}/{file.name}" in names
    for migration in (ROOT / "migrations" / "versions").glob("*.py"):
        assert f"etl/migrations/versions/{migration.name}" in names
    for file in [*(ROOT / "etl" / "report" / "page").iterdir(), *(ROOT / "etl" / "report" / "uplot").iterdir()]:
        assert file.relative_to(ROOT).as_posix() in names
    assert {"etl/migrations/env.py", "etl/migrations/script.py.mako"} <= names
    for module in (ROOT / "etl").rglob("*.py"):
        assert module.relative_to(ROOT).as_posix() in names


def test_the_wheel_puts_nothing_but_the_package_into_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"etl", f"checkly_etl-{VERSION}.dist-info"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_makes_a_warehouse_without_the_checkout(installed: Installed) -> None:
    assert installed("--version").stdout == f"checkly-etl {VERSION}\n"
    assert str(ROOT) not in installed.run_python("import etl; print(etl.__file__)")
    assert installed.run_python("import importlib.util as u; print(u.find_spec('migrations'))") == "None"
    assert "migrated" in installed("migrate").stdout
    assert (installed.home / "warehouse.db").is_file()
    assert "already current" in installed("migrate").stdout
    assert "test sessions  0" in installed("status").stdout
    assert "report.html" in installed("report").stdout
    assert "uPlot" in (installed.home / "report.html").read_text(encoding="utf-8")


def test_help_is_told_without_the_heavy_libraries(installed: Installed) -> None:
    heavy = {"alembic", "apscheduler", "msgspec", "psycopg", "requests", "rich", "sqlalchemy", "yaml"}
    loaded = installed.run_python(
        "import sys, io, contextlib\n"
        "from etl.cli import run\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "    run(['--help'])\n"
        "assert 'COMMAND' in out.getvalue()\n"
        "print(*sys.modules)"
    )
    assert heavy & set(loaded.split()) == set()


# --- locks ----------------------------------------------------------------------------------------------------


def _locked(name: str) -> dict[str, str]:
    """Names and versions that a lock pins."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+) \\$", text, re.MULTILINE))
    assert pins
    return {canonicalize_name(pin): version for pin, version in pins.items()}


def _asked(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _wanted(lock: str) -> list[Requirement]:
    run = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
    return {
        "run.txt": run,
        "build.txt": _asked("build.in"),
        "dbt.txt": _asked("dbt.in"),
        "dev.txt": [*run, *_asked("build.in"), *_asked("dev.in")],
    }[lock]


@pytest.mark.parametrize("lock", ["run.txt", "build.txt", "dbt.txt", "dev.txt"])
def test_a_lock_holds_what_is_asked_for(lock: str) -> None:
    pins = _locked(lock)
    for requirement in _wanted(lock):
        assert canonicalize_name(requirement.name) in pins, f"{requirement.name} is not in {lock}: make lock"
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), f"{requirement}: make lock"


def test_what_is_tested_is_what_runs() -> None:
    tested = _locked("dev.txt")
    for lock in ("run.txt", "build.txt"):
        for name, version in _locked(lock).items():
            assert tested[name] == version


def test_what_builds_the_wheel_is_locked() -> None:
    pins = _locked("build.txt")
    for line in PYPROJECT["build-system"]["requires"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
