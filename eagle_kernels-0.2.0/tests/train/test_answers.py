"""Early answers: what is asked, what is logged beside it, and which questions are refused."""

import json

import pytest
import torch

from eagle_model.data.sample import DataError
from eagle_model.fields import ConfigError
from eagle_model.train.answers import MAX_PROMPTS, Answers
from eagle_model.train.start import new_model
from eagle_model.train.step_log import read_log
from tests.train.chats import config_of, write_chats

ASK = {"from": "human", "value": "<image>Which colour?"}


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return write_chats(tmp_path_factory.mktemp("chats"))


@pytest.fixture(scope="module")
def model_and_processor(chats):
    torch.manual_seed(0)
    return new_model(config_of(chats))


def answers_to(chats, rows, processor, folder, *settings):
    (chats / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(chats, f"answers.prompts={chats / 'asked.jsonl'}", "answers.max_new_tokens=6", *settings)
    return Answers(config, processor, folder, steps_done=0)


def test_questions_with_and_without_an_answer(chats, tmp_path, model_and_processor):
    model, processor = model_and_processor
    model.train()
    rows = [
        {"id": "a", "image": "red.png", "conversations": [ASK, {"from": "gpt", "value": "It is red."}]},
        {"id": "b", "conversations": [{"from": "human", "value": "Spell blue."}]},
    ]
    answers = answers_to(chats, rows, processor, tmp_path)
    before = torch.get_rng_state()
    texts = answers.answer(model, 5)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert answers.answer(model, 10) == texts  # greedy
    logged = read_log(tmp_path / "answers.jsonl")
    assert [(line["step"], line["id"]) for line in logged] == [(5, "a"), (5, "b"), (10, "a"), (10, "b")]
    assert [line["answer"] for line in logged[:2]] == texts and any(texts)
    assert [line["expected"] for line in logged[:2]] == ["It is red.", None]
    assert [line["asked"] for line in logged[:2]] == ["Which colour?", "Spell blue."]
    assert [answers.is_due(step, is_last=False) for step in (99, 100)] == [False, True]
    assert answers.is_due(99, is_last=True)


@pytest.mark.parametrize(
    ("rows", "settings", "error", "message"),
    [
        ([], [], DataError, "asked.jsonl"),
        ([{"conversations": [ASK]}], [], DataError, "image"),
        ([{"conversations": [{"from": "gpt", "value": "Hello"}]}], [], DataError, "alone; needs a question"),
        (
            [{"conversations": [{"from": "human", "value": "Hi"}]}] * (MAX_PROMPTS + 1),
            [],
            ConfigError,
            r"with more than 32 rows; needs a few, .* Larger sets are for validation\.recipe",
        ),
        (
            [{"conversations": [{"from": "human", "value": "Hi"}]}],
            ["answers.max_new_tokens=160"],
            ConfigError,
            r"answers\.max_new_tokens is 160; needs less than processor\.sampling\.context_tokens, 160",
        ),
        (
            [{"conversations": [{"from": "human", "value": "word " * 200}]}],
            [],
            DataError,
            "context_tokens",
        ),
    ],
    ids=["none", "no-image", "no-question", "too-many", "no-room", "too-long"],
)
def test_questions_that_cannot_be_asked(chats, tmp_path, model_and_processor, rows, settings, error, message):
    with pytest.raises((error, ConfigError), match=message):
        answers_to(chats, rows, model_and_processor[1], tmp_path, *settings)
