"""annotate/ask.py: answers of batches, which are found again; other answers: test_work.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx2
import pytest

from eagle_model.annotate import prompts
from eagle_model.annotate.ask import Ask, Postponed
from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.journal import Journal
from eagle_model.annotate.work import Run
from eagle_model.infer import batches
from eagle_model.infer.endpoint import Endpoint
from tests.infer.test_batches import BatchServer

CHOOSE = prompts.load("choose")
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def calls(ask: Ask, *texts: str) -> list[int]:
    one = partial(ask, CHOOSE, schema=SCHEMA, item="v")
    answers = ask.every(partial(one, [{"type": "text", "text": text}]) for text in texts)
    return [answer.value["n"] for answer in answers]


def test_requests_wait_for_a_batch_and_bad_answers_for_the_next(
    tmp_path: Path, make_config: Callable[..., AnnotateConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "POLL_SECONDS", 0.0)
    config = make_config("http://server/v1", "batch=true")

    def says(body: dict) -> str:
        text = body["messages"][0]["content"][0]["text"]
        return "no" if text == "b" and body["seed"] == 0 else json.dumps({"n": len(text)})

    server = BatchServer(says)
    endpoint = Endpoint(config.annotator, transport=httpx2.MockTransport(server), sleep=lambda s: None)
    said: list[str] = []
    run = Run(config, annotator=endpoint, reader=endpoint, say=said.append)
    with Journal(tmp_path / "j.jsonl") as journal:
        ask = run.ask(journal, batch=True)
        for num_waiting in (3, 1):  # the second time, the one whose answer was bad
            with pytest.raises(Postponed):
                calls(ask, "a", "b", "ccc")
            assert len(ask.waiting) == num_waiting
            ask.send_batches()
        assert calls(ask, "a", "b", "ccc") == [1, 1, 3] and not ask.waiting
    assert said == ["a batch of 3 requests is out", "a batch of 1 requests is out"]
    assert len(server.batches) == 2
