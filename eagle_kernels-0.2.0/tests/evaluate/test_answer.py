"""The three who answer: a model here says what it says to one question alone; one film is encoded once."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from eagle_model.data.packing import pack_row
from eagle_model.data.sample import DataError
from eagle_model.evaluate.answer import (
    most_frames,
    of_endpoint,
    of_engine,
    plan_of,
    seen_by_model,
    seen_by_server,
    share,
    together,
)
from eagle_model.evaluate.read import read
from eagle_model.evaluate.task import Question
from eagle_model.evaluate.tasks import TASKS
from eagle_model.infer.endpoint import Endpoint, EndpointConfig
from eagle_model.infer.engine import Engine
from tests.evaluate.official import SETS


@pytest.fixture
def asked(tmp_path: Path, film: Path) -> list[Question]:
    """Video-MME's fixture: three questions of a film, one of another."""
    SETS["videomme"].write(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("v1", "v2"):
        shutil.copy(film, tmp_path / f"data/{name}.mp4")
    return list(read(TASKS["videomme"], tmp_path))


def alone(engine: Engine, question: Question, folder: Path) -> str:
    """The answer by `Eagle.generate`, of the one prompt."""
    processor = engine.processor
    plan = plan_of(processor, question, folder)
    loaded = processor.load_sample(plan)
    batch = pack_row([loaded.tokens], loaded.patches_IPK.float())
    stop = processor.encoder.stop_token_ids
    (ids,) = engine.model.generate(batch, max_new_tokens=question.task.max_new_tokens, stop_token_ids=stop)
    return processor.tokenizer.decode(processor.encoder.spoken_ids(ids), skip_special_tokens=False).strip()


def test_together_they_say_what_each_does_alone(asked: list[Question], engine: Engine, tmp_path: Path) -> None:
    replies = list(of_engine(engine, tmp_path)(asked))
    assert [r.id for r in replies] == [q.id for q in asked]
    assert [r.text for r in replies] == [alone(engine, q, tmp_path) for q in asked]
    assert {(r.num_frames, r.num_tiles, r.error) for r in replies} == {(8, 8, None)}
    assert [r.num_prompt_tokens for r in replies] == [plan_of(engine.processor, q, tmp_path).num_tokens for q in asked]
    assert all(0 < r.num_new_tokens <= 16 and r.is_cut == (r.num_new_tokens == 16) for r in replies)


def test_a_film_is_encoded_and_read_once(asked: list[Question], engine: Engine, tmp_path: Path) -> None:
    """Of two films of eight frames, four questions: sixteen tiles, not 32; and their keys are found again."""
    replies = list(of_engine(engine, tmp_path)(asked))
    stats = engine.stats()
    assert stats.tiles_encoded in (8, 16)  # the two films here have the same frames
    assert stats.prompt_tokens < 0.7 * sum(r.num_prompt_tokens for r in replies)


def test_so_many_are_on_their_way(
    asked: list[Question], engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = 0
    submit = engine.submit

    def counted(*words: Any, **options: Any) -> Any:
        nonlocal submitted
        submitted += 1
        return submit(*words, **options)

    monkeypatch.setattr(engine, "submit", counted)
    for number, _ in enumerate(of_engine(engine, tmp_path, num_ahead=2)(asked), start=1):
        assert submitted <= number + 1


def test_what_cannot_be_shown_is_a_reply(asked: list[Question], engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "data/v1.mp4").unlink()
    replies = list(of_engine(engine, tmp_path)(asked))
    assert [bool(r.error) for r in replies] == [True, True, True, False]
    assert "data/v1.mp4 does not exist" in str(replies[0].error)


def test_a_text_takes_no_frames_away(asked: list[Question], engine: Engine, tmp_path: Path) -> None:
    """Frames are of the film and the task, not of a question's length, while the text is no more than its room."""
    longer = replace(asked[0], text=asked[0].text + " Is it red?" * 8)
    plans = [plan_of(engine.processor, q, tmp_path) for q in (asked[0], longer)]
    assert plans[0].seen == plans[1].seen and plans[0].num_tokens < plans[1].num_tokens
    assert most_frames(engine.processor) == (1024 - 256) // (4 + 24)


def test_a_server_is_asked_side_by_side(asked: list[Question], tmp_path: Path) -> None:
    bodies: list[dict] = []
    both = threading.Barrier(2, timeout=20)  # passes only where two requests are on their way at once

    def handler(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        both.wait()
        choice = {"message": {"content": "The answer is C."}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 6}
        return httpx2.Response(200, json={"choices": [choice], "usage": usage})

    config = EndpointConfig(url="http://x/v1", model="m", max_concurrent=2, max_frames=4)
    endpoint = Endpoint(config, root=tmp_path, transport=httpx2.MockTransport(handler))
    replies = list(of_endpoint(endpoint, tmp_path)(asked))
    assert {r.id for r in replies} == {q.id for q in asked} and {r.text for r in replies} == {"The answer is C."}
    assert {r.num_frames for r in replies} == {4}
    sent = bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in sent].count("image_url") == 4 and bodies[0]["temperature"] == 0
    frames = [part["image_url"] for part in sent if part["type"] == "image_url"]
    assert {frame["detail"] for frame in frames} == {"low"}, "a frame is one tile, at a server as here"


def test_what_a_server_refuses_is_a_reply(asked: list[Question], tmp_path: Path) -> None:
    too_long = httpx2.MockTransport(lambda request: httpx2.Response(400, text="context_tokens is 992"))
    endpoint = Endpoint(EndpointConfig(url="http://x/v1", model="m"), root=tmp_path, transport=too_long)
    (reply,) = of_endpoint(endpoint, tmp_path)(asked[:1])
    assert "question 001-1 of videomme" in str(reply.error) and "context_tokens is 992" in str(reply.error)


def test_films_go_round_over_processes_and_questions_of_one_come_together() -> None:
    task = TASKS["videomme"]
    questions = [Question(id=str(i), task=task, text="", video=f"v{i % 3}") for i in range(9)]
    shares = [[q.id for q in share(questions, rank, 2)] for rank in (0, 1)]
    assert shares == [["0", "2", "3", "5", "6", "8"], ["1", "4", "7"]]
    assert [q.id for q in together(questions)] == list("036147258")
    shown = [Question(id=str(i), task=task, text="", images=(b"x",)) for i in range(3)]
    assert [q.id for q in together(shown)] == list("012")


def test_pictures_for_the_page(asked: list[Question], engine: Engine, tmp_path: Path) -> None:
    seen = seen_by_model(engine.processor, tmp_path)(asked[0])
    assert [s.caption for s in seen][:2] == ["0.00 s", "0.40 s"] and seen[0].image.size == (28, 28)
    assert len(seen_by_server(4, tmp_path)(asked[0])) == 4


def test_an_error_in_reading_reaches_the_caller(engine: Engine, tmp_path: Path) -> None:
    def broken() -> Iterator[Question]:
        raise DataError("line 3 is no question")
        yield

    with pytest.raises(DataError, match="line 3"):
        list(of_engine(engine, tmp_path)(broken()))
