"""Answers that follow a JSON schema, whatever the model would rather say."""

import json
import sys

import pytest

from eagle_model.infer.engine import Engine
from eagle_model.infer.sampling import Sampling
from tests.infer.small import ask, model, processor

pytest.importorskip("xgrammar")
SCHEMA = {
    "type": "object",
    "properties": {
        "seen": {"type": "boolean"},
        "kind": {"enum": ["cat", "dog"]},
        "at": {"type": "integer", "maximum": 9},
    },
    "required": ["seen", "kind", "at"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine():
    return Engine(model(), processor())


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_is_the_json_that_was_asked_for(engine, temperature):
    """Beside one that says what it likes; again with the same seed."""
    sampling = Sampling(json_schema=json.dumps(SCHEMA), temperature=temperature, seed=3, max_new_tokens=120)
    asked = [engine.submit(ask("Where?"), sampling) for _ in range(2)]
    free = engine.submit(ask("Where?"), Sampling(max_new_tokens=20)).result()
    one, two = (request.result() for request in asked)
    assert one.finish_reason == "stop"
    assert one.token_ids == two.token_ids
    found = json.loads(one.text)
    assert set(found) == {"seen", "kind", "at"}
    assert isinstance(found["seen"], bool)
    assert found["kind"] in ("cat", "dog")
    with pytest.raises(json.JSONDecodeError):
        json.loads(free.text)


def test_a_schema_that_is_none_is_an_error_at_once(engine):
    for schema in ('{"type": 3}', "no json"):
        with pytest.raises(ValueError, match="json_schema is no JSON schema that can be followed"):
            engine.submit(ask("Where?"), Sampling(json_schema=schema))


def test_a_schema_that_would_take_minutes_to_compile_is_an_error_at_once(engine):
    deep = '{"type": "array", "items": ' * 40 + '{"type": "string", "pattern": "[[{{"}' + "}" * 40
    for schema, what in ((deep, "nested 41 deep"), (json.dumps({"enum": ["x" * 70_000]}), "has 700")):
        with pytest.raises(ValueError, match=f"json_schema .*{what}.*needs at most 65536, nested 32 deep"):
            engine.submit(ask("Where?"), Sampling(json_schema=schema))
    brackets = '{"enum": ["' + "[{" * 50 + '\\"["]}'
    assert engine.submit(ask("Where?"), Sampling(json_schema=brackets, max_new_tokens=4)).result().text == '"[{['


def test_without_xgrammar_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(ImportError, match=r'pip install "eagle-kernels\[guided\]"'):
        Engine(model(), processor()).submit(ask("Where?"), Sampling(json_schema="{}"))
