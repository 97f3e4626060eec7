"""What a host's server counts, for Prometheus: calls, groups, bytes, and what the store holds.

The registry belongs to one host, so several in one process stay apart. Labels are names from our own
lists; node ids and addresses never become labels, because strangers could make up any number. Names
of datasets are a stranger's too, but only those of groups in the store are shown.
"""

from __future__ import annotations

import wsgiref.simple_server
from collections.abc import Callable, Iterable, Iterator
from threading import Thread

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import Collector

from sapo_jax.swarm.store.group_store import StoreStats
from sapo_jax.swarm.store.retention import GroupState
from sapo_jax.swarm.wire.addresses import is_loopback
from sapo_jax.swarm.wire.requests import PublishResult

_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0)


class MetricsAddressError(ValueError):
    """The metrics page cannot be served there; one line for the operator."""


class ServerMetrics:
    """Owns one registry. Counting is thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "sapo_exchange_calls", "Calls answered, by RPC and status code.", ("rpc", "code"), registry=self.registry
        )
        self._call_s = Histogram(
            "sapo_exchange_call_seconds",
            "From the arrival of a call to its answer.",
            ("rpc",),
            registry=self.registry,
            buckets=_LATENCY_BUCKETS_S,
        )
        self._groups = Counter(
            "sapo_exchange_published_groups",
            "Groups that callers handed over, by outcome and reason.",
            ("outcome", "reason"),
            registry=self.registry,
        )
        self._bytes = Counter(
            "sapo_exchange_bytes", "Message bytes by direction (in, out).", ("direction",), registry=self.registry
        )
        self._in_progress = Gauge(
            "sapo_exchange_calls_in_progress", "Calls that occupy a place.", registry=self.registry
        )
        # Looking a label up costs more than counting, and these are needed for every call.
        self._received, self._sent = self._bytes.labels("in"), self._bytes.labels("out")
        self._of_call: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def count_call(self, rpc: str, code: str, seconds: float) -> None:
        """Counts one call; `rpc` and `code` are from our own lists."""
        found = self._of_call.get((rpc, code))
        if found is None:
            found = self._of_call[rpc, code] = self._calls.labels(rpc, code), self._call_s.labels(rpc)
        found[0].inc()
        found[1].observe(seconds)

    def count_bytes(self, *, received: int = 0, sent: int = 0) -> None:
        """Counts message bytes."""
        self._received.inc(received)
        self._sent.inc(sent)

    def count_results(self, results: Iterable[PublishResult]) -> None:
        """Counts what became of published groups."""
        for result in results:
            reason = "" if result.reason is None else result.reason.value
            self._groups.labels(result.outcome.value, reason).inc()

    def watch_calls(self, in_progress: Callable[[], int]) -> None:
        """Shows how many calls occupy a place; `in_progress` is called whenever the metrics are read."""
        self._in_progress.set_function(in_progress)

    def watch_store(self, stats: Callable[[], StoreStats]) -> None:
        """Shows what the store holds; `stats` is called whenever the metrics are read."""
        self.registry.register(_StoreCollector(stats))

    def serve(self, host: str, port: int) -> MetricsPage:
        """Serves the metrics as an HTTP page, on this machine only; port 0 takes a free one.

        Raises:
            MetricsAddressError: the host is not a loopback address, or the port cannot be had.
        """
        if not is_loopback(host):
            raise MetricsAddressError(
                f"metrics address {host} must be a loopback address: the page has no access control"
            )
        try:
            server, thread = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise MetricsAddressError(f"metrics address {host}:{port}: {error.strerror or error}") from error
        return MetricsPage(server, thread)


class MetricsPage:
    """Owns the HTTP server of the metrics page."""

    def __init__(self, server: wsgiref.simple_server.WSGIServer, thread: Thread) -> None:
        """Takes over a running server; use `ServerMetrics.serve`."""
        self._server = server
        self._thread = thread
        self.port = server.server_port

    def close(self) -> None:
        """Stops the page."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _StoreCollector(Collector):
    def __init__(self, stats: Callable[[], StoreStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        return ()  # registering must not open the store

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, text, value in (
            ("bytes", "Bytes of the stored groups.", stats.size_bytes),
            ("publishers", "Different publishers among them.", stats.publishers),
            ("oldest_seconds", "Age of the oldest group.", stats.oldest_age_s),
            ("outbox_groups", "Own groups that still need holders.", stats.pending),
            ("damaged_groups", "Rows lost to a failed checksum since the start.", stats.damaged),
        ):
            yield GaugeMetricFamily(f"sapo_store_{name}", text, value=value)
        by_state = GaugeMetricFamily("sapo_store_groups", "Stored groups by state.", labels=("state",))
        for state in GroupState:
            by_state.add_metric((state.value,), stats.by_state.get(state, 0))
        yield by_state
        by_dataset = GaugeMetricFamily("sapo_store_dataset_groups", "Stored groups by dataset.", labels=("dataset",))
        for dataset, count in sorted(stats.by_dataset.items()):
            by_dataset.add_metric((dataset,), count)
        yield by_dataset
        evicted = GaugeMetricFamily("sapo_store_evicted_groups", "Groups that left, by reason.", labels=("reason",))
        for reason, count in stats.evicted.items():
            evicted.add_metric((reason.value,), count)
        yield evicted
