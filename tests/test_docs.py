"""What the documents say is so: commands, settings, make targets, links and queries are tried, not believed."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl import config
from etl.cli.arguments import make_parser
from etl.errors import ConfigError
from etl.schema import VERSION_TABLE, view_texts
from etl.tables import metadata
from tests.conftest import Program, rows

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("dbt/*.md")])
# Names of variables that are no settings: only tests read them.
VARIABLES_OF_THE_CLI = {"CHECKLY_REPO_BRANCH"}
TEST_VARIABLES = {
    "CHECKLY_ETL_HISTORIES",
    "CHECKLY_ETL_SCREENSHOTS",
    "CHECKLY_ETL_TEST_BROWSER",
    "CHECKLY_ETL_TEST_DBT",
    "CHECKLY_ETL_TEST_REAL",
    "CHECKLY_ETL_TORTURE",
}
FILE_ENDINGS = (".py", ".md", ".db", ".sql", ".txt", ".yaml", ".json")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def _text(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def _fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _code(text: str) -> Iterator[str]:
    """Every line of code: fenced, indented by four spaces, or between backticks in a sentence or a table."""
    blocks = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for block in blocks.findall(text):
        yield from block.splitlines()
    for line in blocks.sub("", text).splitlines():
        if line.startswith("    "):
            yield line.strip()
        yield from (span.replace("\\|", "|") for span in re.findall(r"`([^`]+)`", line))


def _commands(text: str) -> list[str]:
    """What stands behind `checkly-etl` in a line of code, up to the end of that command."""
    found = []
    for line in _code(text):
        for match in re.finditer(r"(?:^|[\s|&;])checkly-etl((?: [^\n|&;>#]*)?)(?=$|[|&;>#])", line):
            if match[1].strip():
                found.append(match[1].strip())
    return found


@each_document
def test_every_command_line_is_understood(document: Path) -> None:
    for command in _commands(_text(document)):
        try:
            make_parser().parse_args(shlex.split(command.replace("...", "x")))
        except ConfigError as error:
            pytest.fail(f"checkly-etl {command}: {error}")
        except SystemExit:  # --help and --version, understood and done
            continue


def test_the_readme_names_every_command() -> None:
    (commands,) = [action.choices for action in make_parser()._actions if isinstance(action.choices, dict)]
    shown = {command.split()[0] for command in _commands(_text(ROOT / "README.md"))}
    assert commands
    assert shown >= set(commands)


@each_document
def test_every_setting_exists(document: Path) -> None:
    known = {setting.name for setting in config.SETTINGS} | {s.name.split("[")[0] for s in config.SETTINGS}
    for code in _code(_text(document)):
        for name in re.findall(r"^(?:checkly|warehouse|export|schedule|inbox|observe)\.[a-z_]+\S*$", code):
            if not name.endswith(FILE_ENDINGS):
                assert name in known, f"{name} is no setting"


@each_document
def test_every_environment_variable_exists(document: Path) -> None:
    known = {s.variable for s in config.SETTINGS} | {f"{s.variable}_FILE" for s in config.SETTINGS if s.secret}
    for name in re.findall(r"\bCHECKLY_[A-Z_]*[A-Z]\b(?!_)", _text(document)):
        assert name in known | TEST_VARIABLES | VARIABLES_OF_THE_CLI, f"{name} is no variable of ours"


@each_document
def test_every_make_target_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", _text(ROOT / "Makefile"), re.MULTILINE))
    assert {"help", "demo", "test", "check", "lock", "clean"} <= targets
    for code in _code(_text(document)):
        for name in re.findall(r"(?:^|[&;] *)make ([a-z]+)", code):
            assert name in targets, f"make {name} does not exist"


@each_document
def test_every_table_and_view_exists(document: Path) -> None:
    known = {*metadata.tables, *view_texts(), VERSION_TABLE}
    for code in _code(_text(document)):
        for name in re.findall(r"\bv_[a-z_]+\b", code):
            assert name in known, f"there is no view {name}"
        for name in re.findall(r"^(?:etl|test_sessions?|error_groups?|check)_[a-z_]+$", code):
            is_column = any(name in table.columns for table in metadata.tables.values())
            assert name in known or is_column, f"there is no table {name}"


def test_crons_line_hands_on_what_a_file_for_systemd_sets(tmp_path: Path) -> None:
    (line,) = re.findall(r"^    \*/15 \* \* \* \*  (.+)$", _text(ROOT / "README.md"), re.MULTILINE)
    (tmp_path / "env").write_text("# a comment\nCHECKLY_API_KEY='cu_1&2'\nCHECKLY_ACCOUNT_ID=3\n", encoding="utf-8")
    program = tmp_path / "checkly-etl"
    program.write_text('#!/bin/sh\necho "$CHECKLY_API_KEY $CHECKLY_ACCOUNT_ID $@"\n', encoding="utf-8")
    program.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", line.replace("/srv/checkly", str(tmp_path))],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "cu_1&2 3 sync -q --max-time 10m\n"


def test_the_readme_names_every_table_for_analysts() -> None:
    text = _text(ROOT / "README.md")
    missing = [name for name in metadata.tables if not name.startswith("etl_") and f"`{name}`" not in text]
    assert not missing


@each_document
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", _text(document), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", _text(linked), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}: there is no such heading"


def test_the_queries_of_the_readme_run_on_both_databases(program: Program) -> None:
    queries = _fenced(_text(ROOT / "README.md"), "sql")
    assert len(queries) == 3
    assert program("backfill", "--since", "2000-01-01").code == 0
    from etl.database import Database

    database = Database(program.env["CHECKLY_ETL_WAREHOUSE_URL"])
    try:
        for query in queries:
            found = rows(database, query)
            assert found
            assert all(value is not None for name, value in found[0].items() if name != "branch_name")
    finally:
        database.close()


def test_the_architecture_names_every_module_floor_by_floor() -> None:
    (contract,) = tomllib.loads(_text(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    floors = [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]
    told = re.findall(r"^\| \d \| ([^|]+) \|", _text(ROOT / "docs" / "architecture.md"), re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", modules)) for modules in told] == floors


def test_decisions_are_numbered_without_a_gap() -> None:
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    for number, file in enumerate(files, 1):
        assert file.name.startswith(f"{number:04d}-")
        assert _text(file).startswith(f"# {number}. "), file.name


def test_no_file_names_a_registry_or_a_path_of_a_machine() -> None:
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("this is no git checkout: what belongs to it is not known")
    # The words are broken up, so that this line is not found itself.
    found = re.compile(
        r'(index-url|find-links|trusted-host)[ =]+http|"resolved": *"http|[" =(]/(w[o]rk|f[a]rm|r[o]ot)/'
    )
    problems = []
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if not name or not path.is_file():
            continue
        for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), 1):
            if found.search(line):
                problems.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not problems


def test_the_description_of_the_warehouse_is_that_of_its_comments() -> None:
    spec = importlib.util.spec_from_file_location("generate_warehouse", ROOT / "docs" / "generate_warehouse.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert _text(ROOT / "docs" / "warehouse.md") == module.text(), "run: make docs"
