"""What /metrics says."""

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from eagle_model.infer.metrics import ServerMetrics


@dataclass(frozen=True)
class Stats:
    running: int
    name: str = "not a number"


def test_numbers_are_read_when_they_are_asked_for():
    running = [0]
    metrics, other = (ServerMetrics(lambda: Stats(running[0]), lambda: 7) for _ in range(2))
    metrics.first_token.observe(0.2)
    metrics.responses.labels("/v1/models", "200").inc()
    running[0] = 3
    families = {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}
    buckets = {
        s.labels["le"]: s.value for s in families["eagle_time_to_first_token_seconds"].samples if "le" in s.labels
    }
    assert (buckets["0.1"], buckets["0.3"], buckets["+Inf"]) == (0, 1, 1)
    assert families["eagle_engine_running"].samples[0].value == 3
    assert families["eagle_store_bytes"].samples[0].value == 7
    assert families["eagle_responses"].samples[0].labels == {"path": "/v1/models", "status": "200"}
    assert b'path="/v1/models"' not in other.text()  # two servers do not share their numbers
