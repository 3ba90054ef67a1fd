"""What is logged: one line an exported session, one a pass, every warning with the section that helps."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl import errors, terminal
from etl.errors import EtlError
from etl.redaction import Redactor
from etl.simulator import Simulator
from tests.conftest import ENGINES, Program

ROOT = Path(__file__).parent.parent
SECTIONS = {
    heading.lower().replace(" ", "-")
    for heading in re.findall(r"^## (.+)$", (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8"), re.MULTILINE)
}
LOUD = {"warning", "error", "critical", "exception"}
# What ends in a warning or error of the log, with the section as its last argument.
TELLERS = {"warn", "fail", "tell"}


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted((ROOT / "etl").rglob("*.py")):
        if "simulator" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def _kind_of_call(call: ast.Call) -> str:
    function = call.func
    assert isinstance(function, ast.Attribute)
    owner = ast.unparse(function.value)
    if function.attr in LOUD and ("logger" in owner or "getLogger" in owner):
        return "loud"
    if function.attr in TELLERS and re.search(r"(^|[._])(run|outcome)$", owner):
        return "teller"
    return ""


def test_every_warning_in_the_code_names_a_section_of_the_runbook() -> None:
    found = 0
    for where, call in _calls():
        match _kind_of_call(call):
            case "loud":
                extra = next((keyword.value for keyword in call.keywords if keyword.arg == "extra"), None)
                assert extra is not None, f"{where}: a warning without extra=runbook(...)"
                named = re.findall(r"runbook\(([^)]*)\)", ast.unparse(extra))
                assert len(named) == 1, f"{where}: which section of the runbook?"
                section = named[0]
            case "teller":
                assert len(call.args) == 2, f"{where}: a message and a section of the runbook"
                section = ast.unparse(call.args[1])
            case _:
                continue
        found += 1
        if section in ("section", "error.section"):
            continue  # passed through; the errors' own are below
        assert section.strip("'\"") in SECTIONS, f"{where}: {section} is no section of docs/runbook.md"
    assert found > 15


def _all_errors(root: type[EtlError]) -> Iterator[type[EtlError]]:
    yield root
    for child in root.__subclasses__():
        yield from _all_errors(child)


@pytest.mark.parametrize("error", sorted(_all_errors(EtlError), key=repr), ids=repr)
def test_every_error_names_a_section_of_the_runbook(error: type[EtlError]) -> None:
    assert error.section in SECTIONS


def test_no_section_of_the_runbook_is_never_named() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "etl").rglob("*.py"))
    alerts = (ROOT / "docs" / "alerts.yml").read_text(encoding="utf-8")
    unused = {s for s in SECTIONS if f'"{s}"' not in code and f"#{s}\n" not in alerts}
    assert not unused


# --- what a pass says -----------------------------------------------------------------------------------------------


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_a_pass_says_one_line_a_session_and_nothing_else_at_the_default_level(
    program: Program, simulator: Simulator
) -> None:
    run = program("sync", "--log-format", "json")
    lines = [json.loads(line) for line in _lines(run.err)]
    sessions = [line for line in lines if "test_session_id" in line]
    saved = int(lines[-1]["test_sessions_saved"])
    assert saved > 0
    assert len(sessions) == saved == len({line["test_session_id"] for line in sessions})
    assert len(lines) == saved + 1, "and one for the pass"
    assert lines[-1]["command"] == "sync"
    assert lines[-1]["outcome"] == "ok"
    assert {line["level"] for line in lines} == {"info"}

    again = program("sync", "--log-format", "json")
    assert len(_lines(again.err)) == 1, "nothing was exported: the pass alone"


def test_in_text_the_pass_is_the_result_on_stdout(program: Program) -> None:
    run = program("sync")
    assert len(_lines(run.out)) == 1
    assert run.out.startswith("sync ok: test sessions ")
    assert all(" info    exported test session " in line for line in _lines(run.err))
    quiet = program("sync", "-q")
    assert (quiet.out, quiet.err) == ("", "")


@pytest.mark.parametrize("engine_name", ENGINES[:1], indirect=True)
def test_verbose_tells_each_try_that_failed_and_what_was_claimed(program: Program, simulator: Simulator) -> None:
    simulator.add_fault(kind="status", status=503, headers={"Retry-After": "0.1"}, times=1)
    simulator.add_fault(kind="status", status=429, headers={"Retry-After": "0.1"}, times=1)
    run = program("sync", "-v")
    assert run.code == 0
    assert "debug   list of test sessions, page 1: the API answered 503; try 2 begins in 0.1 s\n" in run.err
    assert "debug   list of test sessions, page 1: answered 429, Retry-After 0.1\n" in run.err
    assert re.search(r"debug   account \S+: \d+ test sessions claimed\n", run.err)


@pytest.mark.parametrize("engine_name", ENGINES[:1], indirect=True)
def test_a_warning_leads_to_the_runbook_in_text_and_in_json(program: Program) -> None:
    program("enqueue", "11111111-1111-4111-8111-111111111111")
    text = program("sync", "-q")
    assert text.code == 1
    (line,) = [line for line in _lines(text.err) if "is a dead letter" in line]
    assert line.endswith("(docs/runbook.md#dead-letter)")

    program("enqueue", "22222222-2222-4222-8222-222222222222")
    run = program("sync", "-q", "--log-format", "json")
    (warning,) = [json.loads(line) for line in _lines(run.err) if line.startswith("{")]
    assert warning["runbook"] == "docs/runbook.md#dead-letter"
    assert warning["test_session_id"] == "22222222-2222-4222-8222-222222222222"
    assert warning["error_kind"] == "not_found"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_why_nothing_moves_stands_beside_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    bar = terminal.Bar()
    bar.note("no phase yet")
    bar.begin("exporting", 3)
    bar.note("waiting 12 s: the rate budget is spent")
    time.sleep(0.3)
    bar.end()
    bar.note("no phase any more")
    assert "exporting" in shown.getvalue()
    assert "waiting 12 s: the rate budget is spent" in shown.getvalue()


def test_libraries_that_warn_of_what_we_tell_ourselves_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.set_up_logging(style="text", verbosity=0, bar=None, redactor=Redactor())
    for name in ("pika.adapters.utils.connection_workflow", "apscheduler.scheduler", "urllib3.connectionpool"):
        logging.getLogger(name).warning("noise of %s", name)
    assert "noise" not in capsys.readouterr().err


def test_a_field_of_a_log_line_is_no_way_around_the_redactor() -> None:
    redactor = Redactor()
    redactor.learn(["cu_secret_of_the_test"])
    record = logging.makeLogRecord({"msg": "said", "levelname": "INFO", "status": "cu_secret_of_the_test"})
    for style in ("json", "text"):
        assert "cu_secret" not in terminal._Formatter(redactor, style).format(record)
    assert errors.runbook("bug") == {"runbook": "bug"}
