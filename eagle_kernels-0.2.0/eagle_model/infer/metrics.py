"""What a server counts, as Prometheus reads it from /metrics.

metrics = ServerMetrics(engine.stats, store_bytes=lambda: 0)
metrics.first_token.observe(0.2)
metrics.text()                          # b"# HELP eagle_time_to_first_token_seconds ..."
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)  # an hour's film may take minutes to its first token
_TOKEN_SECONDS = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 3)


class ServerMetrics:
    """Of one server; nothing is kept in the library's global registry, so that tests and programs may have several."""

    def __init__(self, stats: Callable[[], Any], store_bytes: Callable[[], int]) -> None:
        """stats: the engine's numbers, a dataclass."""
        self.registry = CollectorRegistry()

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"eagle_{name}", about, buckets=buckets, registry=self.registry)

        def counter(name: str, about: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"eagle_{name}", about, labels, registry=self.registry)

        self.first_token = histogram("time_to_first_token_seconds", "From a chat request's arrival.", _SECONDS)
        self.between_tokens = histogram("time_per_token_seconds", "From one token to the next.", _TOKEN_SECONDS)
        self.whole = histogram("chat_seconds", "From a chat request's arrival to its answer's end.", _SECONDS)
        self.responses = counter("responses_total", "By path and status.", ("path", "status"))
        self.finished = counter("answers_total", "By what ended them.", ("finish_reason",))
        self.prompt_tokens = counter("prompt_tokens_total", "Of answered requests.")
        self.cached_tokens = counter("cached_tokens_total", "Of the prompts' tokens, those that were in the cache.")
        self.completion_tokens = counter("completion_tokens_total", "Of answers.")
        self.open = Gauge("eagle_open_answers", "Waiting, computed or sent just now.", registry=self.registry)
        store = Gauge("eagle_store_bytes", "Of files of clients that are kept.", registry=self.registry)
        store.set_function(store_bytes)
        self.registry.register(_EngineStats(stats))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineStats:
    """The engine's own numbers, read when they are asked for."""

    def __init__(self, stats: Callable[[], Any]) -> None:
        self.stats = stats

    def collect(self) -> Iterator[Metric]:
        for name, value in asdict(self.stats()).items():
            if isinstance(value, (int, float)):
                yield GaugeMetricFamily(f"eagle_engine_{name}", f"{name} of the engine's stats().", value=value)
