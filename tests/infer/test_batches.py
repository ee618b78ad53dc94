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


TROUBLE = {  # what stands in a line in place of an answer
    "bad": {"response": {"status_code": 400, "body": {"error": "no"}}},
    "nothing": {"response": {"status_code": 200, "body": {"choices": []}}},
    "busy": {"response": {"status_code": 429, "body": {"error": "no credit"}}},
    "expired": {"response": None, "error": {"code": "batch_expired"}},
}


class BatchServer:
    """OpenAI's files and batches: a batch is over when it was looked at `looks` times."""

    def __init__(
        self, says: Callable[[dict], str] = lambda body: "yes", *, looks: int = 2, ends: str = "completed"
    ) -> None:
        self.says, self.looks, self.ends = says, looks, ends
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict] = {}
        self.deleted: list[str] = []

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
        if path == "batches":  # two a page, the newest first
            ids = [*reversed(self.batches)]
            after = request.url.params.get("after")
            ids = ids[ids.index(after) + 1 :] if after else ids
            return httpx2.Response(200, json={"data": [self.batches[i] for i in ids[:2]], "has_more": len(ids) > 2})
        if method == "DELETE":
            self.deleted.append(path.removeprefix("files/"))
            return httpx2.Response(200, json={"deleted": True})
        if path.startswith("batches/"):
            batch = self.batches[path.removeprefix("batches/")]
            batch["left"] -= 1
            if batch["left"] <= 0 and batch["status"] == "in_progress":
                batch |= {"status": self.ends, "error_file_id": ""}  # as some write that there is none
                batch |= {"output_file_id": f"out-{batch['input_file_id']}"} if self.ends != "failed" else {}
            return httpx2.Response(200, json=batch)
        lines = self.files[path.split("/")[1].removeprefix("out-")].splitlines()
        return httpx2.Response(200, text="\n".join(self.answer(json.loads(line)) for line in reversed(lines)))

    def answer(self, line: dict) -> str:
        text = self.says(line["body"])
        if text in TROUBLE:
            return json.dumps({"custom_id": line["custom_id"], **TROUBLE[text]})
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        body = {"choices": [{"message": {"content": text}}], "usage": usage}
        return json.dumps({"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}})


def endpoint(server: Callable, **options: object) -> Endpoint:
    return Endpoint(CONFIG, transport=httpx2.MockTransport(server), sleep=lambda s: None, **options)  # type: ignore[arg-type]


def ask(one: Endpoint, bodies: dict, name: str = "work", **options: object) -> dict[str, Reply | str]:
    return dict(answered(one, bodies, name=name, sleep=lambda s: None, **options))  # type: ignore[arg-type]


def test_every_request_has_its_own_answer_at_half_the_price() -> None:
    server = BatchServer(lambda body: body["messages"][0]["content"])
    one = endpoint(server)
    waits: list[float] = []
    bodies = {"a": one.request("x"), "b": one.request("bad"), "c": one.request("nothing")}
    found = dict(answered(one, bodies, name="work", poll_seconds=5, sleep=waits.append))
    assert isinstance(found["a"], Reply) and found["a"].text == "x" and found["a"].dollars == pytest.approx(0.0001)
    assert found["b"] == 'HTTP 400: {"error": "no"}' and waits == [5, 5]
    assert str(found["c"]).startswith("no chat completion: IndexError")  # which a filter lets none of pass
    assert one.budget.num_requests == 1 and one.budget.dollars == pytest.approx(0.0001)
    assert server.deleted == ["file0"]


def test_a_batch_is_found_again() -> None:
    server = BatchServer(looks=3)
    first = endpoint(server)
    bodies = {"a": first.request("x"), "b": first.request("y")}

    def killed(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(answered(first, bodies, name="work", sleep=killed))
    for number in range(3):  # newer ones of others, on a page before it
        ask(first, {"a": first.request("z")}, name=f"other {number}")
    again = endpoint(server)
    assert set(ask(again, bodies)) == {"a", "b"} and len(server.batches) == 4
    ask(again, {"c": again.request("z")})
    assert len(server.batches) == 5


def test_a_batch_whose_answers_were_half_read_is_not_paid_for_again() -> None:
    """What a process that was killed while it read them had kept, the next does not ask for: curator's issue 226."""
    server = BatchServer()
    first = endpoint(server)
    bodies = {name: first.request(name) for name in "abc"}
    kept, _ = next(answered(first, bodies, name="work", sleep=lambda s: None))
    again, read = endpoint(server), set()
    rest = {name: body for name, body in bodies.items() if name != kept}
    assert set(ask(again, {**rest, "d": again.request("d")}, read=read)) == {*rest, "d"}
    assert [len(text.splitlines()) for text in server.files.values()] == [3, 1]  # d alone was new
    assert read == {"b0", "b1"} and again.budget.num_requests == 3


@pytest.mark.parametrize("trouble", ["busy", "expired"])
def test_what_has_no_answer_is_sent_again(trouble: str) -> None:
    """A batch that expired half done, or an account that was empty for a while, is no answer to the request."""
    said = iter([trouble, "y", "y"])
    server = BatchServer(lambda body: next(said), ends="expired")
    one = endpoint(server)
    found = ask(one, {"a": one.request("x"), "b": one.request("y")})
    assert {name: reply.text for name, reply in found.items()} == {"a": "y", "b": "y"}  # type: ignore[union-attr]
    assert [len(text.splitlines()) for text in server.files.values()] == [2, 1]


def test_a_batch_without_any_answer_ends_it() -> None:
    one = endpoint(BatchServer(lambda body: "busy"))
    with pytest.raises(EndpointError, match=r"batch b0 completed, with no answer to 2 of 2 .*: HTTP 429.*no credit"):
        ask(one, {"a": one.request("x"), "b": one.request("y")})


def test_a_batch_that_somebody_cancels_is_not_sent_again() -> None:
    said = iter(["x", "expired"])
    server = BatchServer(lambda body: next(said), ends="cancelled")
    one = endpoint(server)
    with pytest.raises(EndpointError, match="batch b0 cancelled, with no answer to 1 of 2"):
        ask(one, {"a": one.request("x"), "b": one.request("y")})
    assert len(server.batches) == 1


def test_a_budget_is_asked_before_anything_is_sent() -> None:
    server = BatchServer()
    one = endpoint(server, budget=Budget(max_requests=1))
    with pytest.raises(BudgetReached):
        ask(one, {"a": one.request("x"), "b": one.request("y")})
    assert not server.files


def test_a_batch_that_failed_is_told() -> None:
    one = endpoint(BatchServer(ends="failed"))
    with pytest.raises(EndpointError, match="batch b0 failed"):
        ask(one, {"a": one.request("x")})


def test_a_server_without_batches_is_told() -> None:
    one = endpoint(lambda request: httpx2.Response(404, text="Not Found"))
    with pytest.raises(EndpointError, match="refuses: HTTP 404"):
        ask(one, {"a": one.request("x")})
