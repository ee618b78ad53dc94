"""infer/json_answers.py: what keeps a schema, and what is said of the rest."""

import pytest

from eagle_model.infer.json_answers import JsonAnswerError, read_json_answer, schema_problem

SCHEMA = {
    "type": "object",
    "properties": {
        "brief": {"type": "string", "minLength": 2, "maxLength": 9},
        "count": {"type": "integer", "minimum": 0, "maximum": 5},
        "options": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
        "kind": {"enum": ["a", "b"]},
        "maybe": {"type": ["string", "null"]},
    },
    "required": ["brief"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "text",
    [
        '{"brief": "ok"}',
        '```json\n{"brief": "ok"}\n```',
        '```\n{"brief": "ok"}```\n',
        ' {"brief": "ok"}\n',
        'Here it is:\n\n```json\n{"brief": "ok"}\n```\nIs there more?',
    ],
)
def test_json_is_read_with_and_without_a_fence(text: str) -> None:
    assert read_json_answer(text, SCHEMA) == {"brief": "ok"}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"brief": "ok", "count": 5, "options": ["x"], "kind": "a", "maybe": None}, None),
        ([], r"answer is \[\]; needs object"),
        ({}, "answer lacks 'brief'"),
        ({"brief": 3}, "answer.brief is 3; needs string"),
        ({"brief": "a"}, "answer.brief has 1 characters; needs 2 to 9"),
        ({"brief": "a" * 10}, "answer.brief has 10 characters"),
        ({"brief": "ok", "count": 6}, "answer.count is 6; needs 0 to 5"),
        ({"brief": "ok", "count": True}, "answer.count is true; needs integer"),
        ({"brief": "ok", "count": 1.5}, "answer.count is 1.5; needs integer"),
        ({"brief": "ok", "options": []}, "answer.options has 0 items"),
        ({"brief": "ok", "options": ["x", 1]}, r"answer.options\[1\] is 1; needs string"),
        ({"brief": "ok", "kind": "c"}, 'answer.kind is "c"; needs one of'),
        ({"brief": "ok", "maybe": 1}, "answer.maybe is 1; needs string or null"),
        ({"brief": "ok", "more": 1}, "answer has 'more', which is not asked for"),
    ],
    ids=range(14),
)
def test_a_broken_schema_is_told_by_its_place(value: object, problem: str | None) -> None:
    import re

    said = schema_problem(value, SCHEMA)
    assert said is None if problem is None else re.match(problem, said or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "Sure! Here it is.",
        '{"brief": "ok"} and more',
        '{"brief": "ok"}\n{"brief": "no"}',
        '```\n{"brief": "ok"}\n```\n```\n{"brief": "no"}\n```',
        "[" * 100_000,
    ],
    ids=range(7),
)
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(JsonAnswerError, match="not JSON"):
        read_json_answer(text, SCHEMA)


def test_a_keyword_that_would_not_be_checked_is_refused() -> None:
    with pytest.raises(ValueError, match="'pattern', which is not checked"):
        schema_problem("a", {"type": "string", "pattern": "b"})


def test_half_a_character_is_refused() -> None:
    assert read_json_answer(r'{"brief": "a\ud83d\ude00"}', SCHEMA) == {"brief": "a\U0001f600"}
    with pytest.raises(JsonAnswerError, match="half of a character"):
        read_json_answer(r'{"brief": "a\ud83d"}', SCHEMA)
