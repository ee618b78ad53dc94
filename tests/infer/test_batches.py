"""infer/batches.py: requests as a batch, found again after a kill, paid for once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import httpx2
import pytest

from eagle_model.infer.batches import answered
from eagle_model.infer.endpoint import Budget, BudgetReached, Endpoint, EndpointConfig, EndpointError, Reply

CONFIG = EndpointConfig(
    url="http://server/v1", model="m", dollars_per_million_prompt_tokens=1.0, dollars_per_million_answer_tokens=10.0,
    max_retries=1,
)  # fmt: skip


class BatchServer:
    """OpenAI's files and batches: a batch is over when it was looked at `looks` times."""

    def __init__(
        self, says: Callable[[dict], str] = lambda body: "yes", *, looks: int = 2, ends: str = "completed"
    ) -> None:
        self.says, self.looks, self.ends = says, looks, ends
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict] = {}

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path, method = request.url.path.removeprefix("/v1/"), request.method
        if path == "files":
            name = f"file{len(self.files)}"
            (self.files[name],) = re.findall(r"\r\n\r\n(\{\"custom_id.*?)\r\n--", request.content.decode(), re.S)
            return httpx2.Response(200, json={"id": name})
        if path == "batches" and method == "POST":
            batch = {
                "id": f"b{len(self.batches)}",
                "status": "in_progress",
                "left": self.looks,
                **json.loads(request.content),
            }
            self.batches[batch["id"]] = batch
            return httpx2.Response(200, json=batch)
        if path == "batches":
            return httpx2.Response(200, json={"data": list(self.batches.values())})
        if path.startswith("batches/"):
            batch = self.batches[path.removeprefix("batches/")]
            batch["left"] -= 1
            if batch["left"] <= 0 and batch["status"] == "in_progress":
                batch |= {"status": self.ends, "output_file_id": f"out-{batch['input_file_id']}"}
            return httpx2.Response(200, json=batch)
        lines = self.files[path.split("/")[1].removeprefix("out-")].splitlines()
        return httpx2.Response(200, text="\n".join(self.answer(json.loads(line)) for line in reversed(lines)))

    def answer(self, line: dict) -> str:
        text = self.says(line["body"])
        if text == "bad":
            return json.dumps(
                {"custom_id": line["custom_id"], "response": {"status_code": 400, "body": {"error": "no"}}}
            )
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        body = {"choices": [{"message": {"content": text}}], "usage": usage}
        return json.dumps({"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}})


def endpoint(server: Callable, **options: object) -> Endpoint:
    return Endpoint(CONFIG, transport=httpx2.MockTransport(server), sleep=lambda s: None, **options)  # type: ignore[arg-type]


def test_every_request_has_its_own_answer_at_half_the_price() -> None:
    server = BatchServer(lambda body: body["messages"][0]["content"])
    one = endpoint(server)
    waits: list[float] = []
    found = dict(answered(one, {"a": one.request("x"), "b": one.request("bad")}, poll_seconds=5, sleep=waits.append))
    assert isinstance(found["a"], Reply) and found["a"].text == "x" and found["a"].dollars == pytest.approx(0.0001)
    assert found["b"] == 'HTTP 400: {"error": "no"}' and waits == [5, 5]
    assert one.budget.num_requests == 1 and one.budget.dollars == pytest.approx(0.0001)


def test_a_batch_is_found_again() -> None:
    server = BatchServer(looks=3)
    first = endpoint(server)
    bodies = {"a": first.request("x"), "b": first.request("y")}

    def killed(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(answered(first, bodies, sleep=killed))
    again = endpoint(server)
    assert {name for name, _ in answered(again, bodies, sleep=lambda s: None)} == {"a", "b"}
    assert len(server.batches) == 1
    list(answered(again, {"c": again.request("z")}, sleep=lambda s: None))
    assert len(server.batches) == 2


def test_a_budget_is_asked_before_anything_is_sent() -> None:
    server = BatchServer()
    one = endpoint(server, budget=Budget(max_requests=1))
    with pytest.raises(BudgetReached):
        list(answered(one, {"a": one.request("x"), "b": one.request("y")}))
    assert not server.files


def test_a_batch_that_failed_is_told() -> None:
    one = endpoint(BatchServer(ends="failed"))
    with pytest.raises(EndpointError, match="batch b0 failed"):
        list(answered(one, {"a": one.request("x")}, sleep=lambda s: None))


def test_a_server_without_batches_is_told() -> None:
    one = endpoint(lambda request: httpx2.Response(404, text="Not Found"))
    with pytest.raises(EndpointError, match="refuses: HTTP 404"):
        list(answered(one, {"a": one.request("x")}))
