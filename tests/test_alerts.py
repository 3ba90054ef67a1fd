"""The example alert rules of docs/alerts.yml: understood by Prometheus, made of our metrics, tested, and explained.

promtool judges them (Debian: in the package `prometheus`). Where it is missing its tests are skipped, unless
CHECKLY_ETL_TEST_REAL=1; the others read the YAML and need nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
RULES = ROOT / "docs" / "alerts.yml"
UNIT_TESTS = ROOT / "tests" / "alerts_test.yml"
RUNBOOK = "docs/runbook.md"
SEVERITIES = {"critical", "warning"}

# The families of the daemon's /metrics. tests/test_daemon.py holds /metrics to the same set.
METRICS = frozenset(
    {
        "checkly_etl_test_sessions_saved_total",
        "checkly_etl_test_sessions_unchanged_total",
        "checkly_etl_test_sessions_dead_total",
        "checkly_etl_results_saved_total",
        "checkly_etl_queue",
        "checkly_etl_oldest_due_timestamp_seconds",
        "checkly_etl_last_success_timestamp_seconds",
        "checkly_etl_hours_until_loss",
        "checkly_etl_api_calls_total",
        "checkly_etl_throttled_seconds_total",
        "checkly_etl_passes_total",
        "checkly_etl_pass_duration_seconds",
        "checkly_etl_inbox_up",
        "checkly_etl_inbox_messages_total",
        "checkly_etl_inbox_rejected_total",
        "checkly_etl_build_info",
    }
)


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


each_rule = pytest.mark.parametrize("rule", _rules(), ids=lambda rule: str(rule.get("alert")))


def _promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        reason = "promtool is not installed (Debian: prometheus)"
        if os.environ.get("CHECKLY_ETL_TEST_REAL") == "1":
            pytest.fail(f"CHECKLY_ETL_TEST_REAL=1 demands this test, but {reason}", pytrace=False)
        pytest.skip(reason)
    command = ["promtool", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_rules() -> None:
    _promtool("check", "rules", str(RULES))


def test_each_alert_fires_when_it_should_and_an_ordinary_week_is_silent() -> None:
    _promtool("test", "rules", str(UNIT_TESTS))


def test_prometheus_accepts_the_configuration_that_the_rules_begin_with(tmp_path: Path) -> None:
    lines = RULES.read_text(encoding="utf-8").splitlines()
    shown = "\n".join(line.removeprefix("#   ") for line in lines if line.startswith("#   "))
    names = set(re.findall(r"/etc/prometheus/([\w.-]+)", shown))
    assert names == {"checkly-etl-alerts.yml", "checkly-etl.token"}
    shutil.copy(RULES, tmp_path / "checkly-etl-alerts.yml")
    (tmp_path / "checkly-etl.token").write_text("token\n", encoding="utf-8")
    config = tmp_path / "prometheus.yml"
    config.write_text(shown.replace("/etc/prometheus", str(tmp_path)), encoding="utf-8")
    _promtool("check", "config", str(config))


@each_rule
def test_an_alert_says_what_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["alert"].startswith("ChecklyEtl")
    assert re.fullmatch(r"[1-9]\d*[mh]", rule["for"])
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in SEVERITIES
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    assert all(isinstance(text, str) and text.strip() for text in (rule["expr"], *rule["annotations"].values()))


@each_rule
def test_an_alert_asks_only_for_metrics_that_there_are(rule: dict[str, Any]) -> None:
    names = set(re.findall(r"checkly_etl_\w+", rule["expr"]))
    assert names <= METRICS
    assert names or "up{" in rule["expr"]


def test_the_unit_tests_feed_only_metrics_that_there_are() -> None:
    assert set(re.findall(r"checkly_etl_\w+", UNIT_TESTS.read_text(encoding="utf-8"))) <= METRICS


@each_rule
def test_an_alert_has_a_unit_test_in_which_it_fires(rule: dict[str, Any]) -> None:
    expected = {
        match[1]
        for group in yaml.safe_load(UNIT_TESTS.read_text(encoding="utf-8"))["tests"]
        for case in group["promql_expr_test"]
        for sample in case["exp_samples"]
        if (match := re.search(r'alertname="(\w+)"', sample.get("labels", "")))
    }
    assert rule["alert"] in expected


@each_rule
def test_an_alert_leads_to_a_section_of_the_runbook(rule: dict[str, Any]) -> None:
    document, _, section = rule["annotations"]["runbook"].partition("#")
    assert document == RUNBOOK
    headings = re.findall(r"^#+ +(.+?)\s*$", (ROOT / RUNBOOK).read_text(encoding="utf-8"), re.MULTILINE)
    assert section in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
