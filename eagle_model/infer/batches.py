"""Many requests as a batch: half the price at hosted models, answers within a day. OpenAI's /files and /batches.

    for name, reply in answered(endpoint, {"a": body, "b": endpoint.request("Is it?")}, name="my run"):
        ...                            # a Reply, or a text that says why the request is refused

After a kill nothing is paid for twice: a batch bears the name of its work in its metadata, and the answers of those
that the server has are read first, by the names of the requests; no two requests of one work may share a name. A
request that has no answer though it was not refused (its batch expired, or the account was empty) is sent again in
another batch, as long as each brings some.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from eagle_model.infer.endpoint import REFUSED, Endpoint, EndpointError, Reply, read_completion

POLL_SECONDS = 30.0
MAX_BATCH_BYTES = 90 << 20  # limit: of one batch's file; OpenAI takes 200 MB
MAX_BATCH_REQUESTS = 50_000  # limit: OpenAI's
MAX_PAGES = 50  # limit: of 100 batches each, of those that the server has: the newest come first
DISCOUNT = 0.5  # of the price
_TAG = "eagle_requests"  # of a batch's metadata: the name of its work
_OVER = {"completed", "failed", "expired", "cancelled"}


def answered(
    endpoint: Endpoint,
    bodies: Mapping[str, dict[str, Any]],
    *,
    name: str,
    read: set[str] | None = None,
    poll_seconds: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[str, Reply | str]]:
    """(name, reply) of each request, in any order, as its batch is over; a text in place of a reply says why it is
    refused.

    Args:    name: of the work, at most 512 characters: its batches are looked for.
             read: the ids of batches that need not be read, to which those that were read are added.
    Raises:  BudgetReached before anything is sent; EndpointError where the server has no batches, one failed, or one
             brought no answer.
    """
    read, left = set() if read is None else read, dict(bodies)
    price = DISCOUNT * sum(endpoint.price(body) for body in bodies.values())

    def wait() -> None:
        sleep(POLL_SECONDS if poll_seconds is None else poll_seconds)

    with endpoint.budget.hold(price, num_requests=len(bodies)) as spend:
        for batch in _earlier(endpoint, name, read):
            yield from _answers(endpoint, batch, left, spend, wait)
            read.add(batch["id"])
        while left:
            before, batch = len(left), _sent(endpoint, left, name)
            status, lacks = yield from _answers(endpoint, batch, left, spend, wait)
            read.add(batch["id"])
            if left and (len(left) == before or status == "cancelled"):
                raise EndpointError(
                    f"{endpoint.config.url}: batch {batch['id']} {status}, with no answer to {len(left)} of {before} "
                    f"requests: {lacks}. What was answered is kept; start again to ask for the rest."
                )


def _answers(
    endpoint: Endpoint,
    batch: dict[str, Any],
    left: dict[str, Any],
    spend: Callable[[float], None],
    wait: Callable[[], None],
) -> Generator[tuple[str, Reply | str], None, tuple[str, str]]:
    """The answers of a batch, when it is over, to what is left, which is then less. Returns how it ended, and why
    something has no answer."""
    while batch["status"] not in _OVER:
        wait()
        batch = endpoint.call("GET", f"batches/{batch['id']}")[0]
    lacks = str(batch.get("errors"))
    for field in ("output_file_id", "error_file_id"):
        if not batch.get(field):
            continue
        text = endpoint.call("GET", f"files/{batch[field]}/content", as_text=True)[0]
        for line in text.splitlines():
            name, reply, is_refused = _read(endpoint, line)
            if name in left and (is_refused or isinstance(reply, Reply)):
                del left[name]
                if isinstance(reply, Reply):
                    spend(reply.dollars)
                yield name, reply
            elif name in left:
                lacks = str(reply)
    with contextlib.suppress(EndpointError):  # space at the server is small, and some have no such call
        endpoint.call("DELETE", f"files/{batch['input_file_id']}")
    return batch["status"], lacks


def _earlier(endpoint: Endpoint, name: str, read: set[str]) -> list[dict[str, Any]]:
    """The batches of this work that the server has, and that may bring answers."""
    found, path = [], "batches?limit=100"
    for _ in range(MAX_PAGES):
        page = endpoint.call("GET", path)[0]
        for batch in page["data"]:
            brings = batch["status"] not in _OVER or batch.get("output_file_id")
            if (batch.get("metadata") or {}).get(_TAG) == name and batch["id"] not in read and brings:
                found.append(batch)
        if not page.get("has_more"):
            break
        path = f"batches?limit=100&after={page['data'][-1]['id']}"
    return found


def _sent(endpoint: Endpoint, bodies: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """A new batch of these requests."""
    lines = [
        {"custom_id": one, "method": "POST", "url": "/v1/chat/completions", "body": body}
        for one, body in bodies.items()
    ]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    files = {"file": ("requests.jsonl", content, "application/jsonl")}
    file = endpoint.call("POST", "files", files=files, data={"purpose": "batch"})[0]
    asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    data = json.dumps({**asked, "metadata": {_TAG: name}}).encode()
    return endpoint.call("POST", "batches", content=data, headers={"Content-Type": "application/json"})[0]


def _read(endpoint: Endpoint, line: str) -> tuple[str, Reply | str, bool]:
    """(name, reply or problem, whether it is refused) of a line of a batch's file."""
    try:
        record = json.loads(line)
        name, response = record["custom_id"], record.get("response") or {}
        status = response.get("status_code")
        if status != 200:
            words = json.dumps(record.get("error") or response.get("body"))[:300]
            return name, f"HTTP {status}: {words}", status in REFUSED
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EndpointError(f"{endpoint.config.url}: a line of a batch's file is {line[:100]!r}: {error!r}.") from None
    try:
        reply = read_completion(response["body"], endpoint.config)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return name, f"no chat completion: {error!r}: {json.dumps(response)[:200]}", True
    return name, replace(reply, dollars=DISCOUNT * reply.dollars), False
