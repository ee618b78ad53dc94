"""Many requests as a batch: half the price at hosted models, answers within a day. OpenAI's /files and /batches.

    for name, reply in answered(endpoint, {"a": body, "b": endpoint.request("Is it?")}):
        ...                            # a Reply, or a text that says why there is none

A batch is found again after a kill: it bears a hash of its requests in its metadata, and before one is made, those that
the server has are looked through. So no batch is paid for twice; the answers stay at the server till they are fetched.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from eagle_model.infer.endpoint import Endpoint, EndpointError, Reply, read_completion

POLL_SECONDS = 30.0
MAX_BATCH_BYTES = 90 << 20  # limit: of one batch's file; OpenAI takes 200 MB
MAX_BATCH_REQUESTS = 50_000  # limit: OpenAI's
DISCOUNT = 0.5  # of the price
_TAG = "eagle_requests"  # of a batch's metadata
_OVER = {"completed", "failed", "expired", "cancelled"}


def answered(
    endpoint: Endpoint,
    bodies: Mapping[str, dict[str, Any]],
    *,
    poll_seconds: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[str, Reply | str]]:
    """(name, reply) of each request, in any order, when the batch is over; a text in place of a reply says why not.

    Raises: BudgetReached before anything is sent; EndpointError where the server has no batches, or one failed.
    """
    price = DISCOUNT * sum(endpoint.price(body) for body in bodies.values())
    with endpoint.budget.hold(price, num_requests=len(bodies)) as spend:
        batch = _batch(endpoint, bodies)
        while batch["status"] not in _OVER:
            sleep(POLL_SECONDS if poll_seconds is None else poll_seconds)
            batch = endpoint.call("GET", f"batches/{batch['id']}")[0]
        if batch["status"] == "failed" or not (batch.get("output_file_id") or batch.get("error_file_id")):
            raise EndpointError(f"{endpoint.config.url}: batch {batch['id']} {batch['status']}: {batch.get('errors')}")
        left = set(bodies)
        for field in ("output_file_id", "error_file_id"):
            if batch.get(field):
                text = endpoint.call("GET", f"files/{batch[field]}/content", as_text=True)[0]
                for line in text.splitlines():
                    name, reply = _read(endpoint, line)
                    if name in left:
                        left.discard(name)
                        if isinstance(reply, Reply):
                            spend(reply.dollars)
                        yield name, reply
    for name in left:
        yield name, f"batch {batch['id']} {batch['status']} without it"


def _batch(endpoint: Endpoint, bodies: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The batch of these requests: one that the server has, else a new one."""
    tag = hashlib.sha256(json.dumps(sorted(bodies)).encode()).hexdigest()[:32]
    for batch in endpoint.call("GET", "batches?limit=100")[0]["data"]:
        if (batch.get("metadata") or {}).get(_TAG) == tag and batch["status"] not in ("failed", "cancelled", "expired"):
            return batch
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        for name, body in bodies.items()
    ]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    files = {"file": ("requests.jsonl", content, "application/jsonl")}
    file = endpoint.call("POST", "files", files=files, data={"purpose": "batch"})[0]
    asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    data = json.dumps({**asked, "metadata": {_TAG: tag}}).encode()
    return endpoint.call("POST", "batches", content=data, headers={"Content-Type": "application/json"})[0]


def _read(endpoint: Endpoint, line: str) -> tuple[str, Reply | str]:
    try:
        record = json.loads(line)
        name, response = record["custom_id"], record.get("response") or {}
        if response.get("status_code") != 200:
            return (
                name,
                f"HTTP {response.get('status_code')}: {json.dumps(record.get('error') or response.get('body'))[:300]}",
            )
        reply = read_completion(response["body"], endpoint.config)
        return name, replace(reply, dollars=DISCOUNT * reply.dollars)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointError(
            f"{endpoint.config.url}: a line of a batch's answers is {line[:100]!r}: {error!r}."
        ) from None
