"""The daemon's state in Prometheus' words. Hides prometheus_client; the names are a contract of docs/alerts.yml."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime

import prometheus_client
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from etl.checkly import CALL_OUTCOMES
from etl.daemon.state import State

PASS_OUTCOMES = ("ok", "partial", "failed", "interrupted")
QUEUE_STATES = ("due", "scheduled", "leased", "dead")
_BUCKETS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_COUNTED = {
    "test_sessions_saved": "Test sessions written.",
    "test_sessions_unchanged": "Test sessions fetched and found unchanged.",
    "test_sessions_dead": "Test sessions that became dead letters.",
    "results_saved": "Result rows written.",
}

Exposition = Callable[[str], tuple[bytes, str]]


def exposition(state: State, *, version: str, schema: str) -> Exposition:
    """A function from an Accept header to the metrics as text and its content type. Thread-safe."""
    # One more line for each, which nobody reads.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    prometheus_client.PlatformCollector(registry=registry)
    durations = Histogram(
        "checkly_etl_pass_duration_seconds", "Time that a pass took.", buckets=_BUCKETS, registry=registry
    )
    registry.register(_Collector(state, version=version, schema=schema))
    one_at_a_time = threading.Lock()

    def render(accept: str) -> tuple[bytes, str]:
        with one_at_a_time:
            for seconds in state.take_durations():
                durations.observe(seconds)
            encode, content_type = choose_encoder(accept)
            return encode(registry), content_type

    return render


class _Collector(Collector):
    def __init__(self, state: State, *, version: str, schema: str) -> None:
        self._state, self._version, self._schema = state, version, schema

    def describe(self) -> list[Metric]:
        return []  # or prometheus_client would collect once to find out

    def collect(self) -> Iterator[Metric]:
        now = self._state.snapshot()
        for name, help_ in _COUNTED.items():
            yield CounterMetricFamily(f"checkly_etl_{name}", help_, value=now.counters[name])
        throttled = now.counters["throttled_ms"] / 1000
        yield CounterMetricFamily(
            "checkly_etl_throttled_seconds", "Time spent waiting for the rate budget or a pause.", value=throttled
        )
        calls = CounterMetricFamily("checkly_etl_api_calls", "API calls by what became of them.", labels=["outcome"])
        for outcome in CALL_OUTCOMES:
            calls.add_metric([outcome], now.calls[outcome])
        yield calls
        passes = CounterMetricFamily("checkly_etl_passes", "Passes by how they ended.", labels=["outcome"])
        for outcome in PASS_OUTCOMES:
            passes.add_metric([outcome], now.passes[outcome])
        yield passes

        queue = GaugeMetricFamily(
            "checkly_etl_queue",
            "Test sessions in the queue at the end of the last pass.",
            labels=["account_id", "state"],
        )
        oldest = GaugeMetricFamily(
            "checkly_etl_oldest_due_timestamp_seconds", "Since when the oldest of them is due.", labels=["account_id"]
        )
        success = GaugeMetricFamily(
            "checkly_etl_last_success_timestamp_seconds", "End of the last successful pass.", labels=["account_id"]
        )
        loss = GaugeMetricFamily(
            "checkly_etl_hours_until_loss",
            "Until Checkly deletes the oldest test session that is known and not exported.",
            labels=["account_id"],
        )
        for row in now.freshness:
            account = [str(row["account_id"] or "")]
            for state in QUEUE_STATES:
                queue.add_metric([*account, state], row[state])
            _add_time(oldest, account, row["oldest_due_at"])
            _add_time(success, account, row["last_success_at"])
            if row["hours_until_loss"] is not None:
                loss.add_metric(account, row["hours_until_loss"] - now.hours_since)
        yield from (queue, oldest, success, loss)

        up = GaugeMetricFamily("checkly_etl_inbox_up", "Whether the inbox could be read last time.", labels=["inbox"])
        messages = CounterMetricFamily("checkly_etl_inbox_messages", "Messages received.", labels=["inbox"])
        rejected = CounterMetricFamily(
            "checkly_etl_inbox_rejected", "Messages without a test session id.", labels=["inbox"]
        )
        for name, count in sorted(now.inboxes.items()):
            up.add_metric([name], count.is_up)
            messages.add_metric([name], count.messages)
            rejected.add_metric([name], count.rejected)
        yield from (up, messages, rejected)
        build = GaugeMetricFamily("checkly_etl_build_info", "What runs here.", labels=["version", "schema"])
        build.add_metric([self._version, self._schema], 1)
        yield build


def _add_time(family: GaugeMetricFamily, labels: list[str], moment: datetime | None) -> None:
    if moment is not None:
        family.add_metric(labels, moment.timestamp())
