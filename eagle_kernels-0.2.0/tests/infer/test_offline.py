"""Rows of a file and their answers: each once, whatever happened before."""

import json

import pytest

from eagle_model.data.sample import DataError
from eagle_model.infer.engine import Engine
from eagle_model.infer.offline import answer_all, answer_file
from eagle_model.infer.sampling import Sampling
from tests.infer.small import alone, ask, model, noise, processor, prompt_of

SAMPLING = Sampling(max_new_tokens=4)


@pytest.fixture
def rows(tmp_path):
    """Six rows of both forms, two of which cannot be answered."""
    noise(1).save(tmp_path / "page.png")
    said = [{"from": "human", "value": "<image>Where?"}, {"from": "gpt", "value": "Here."}]
    lines = [
        {"id": "a", "messages": ask("Where is it?")},
        {"id": 7, "image": "page.png", "conversations": said},
        {"messages": ask("What happens then?")},
        {"id": "gone", "image": "gone.png", "conversations": said},
        {"id": "long", "messages": ask("Where? " * 500)},
        {"id": "z", "messages": ask("What?")},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path):
    return {line["id"]: line for line in map(json.loads, path.read_text().splitlines())}


def test_every_row_has_a_line(rows, tmp_path):
    out, told = tmp_path / "answers.jsonl", []
    engine = Engine(model(), processor(), max_running=1)
    assert answer_file(engine, rows, out, SAMPLING, say=lambda *n: told.append(n)) == (4, 2)
    found = read(out)
    assert set(found) == {"a", "7", "rows.jsonl:3", "gone", "long", "z"}
    assert "gone.png" in found["gone"]["error"]
    assert "context_tokens is" in found["long"]["error"]
    ids = alone(model(), prompt_of(ask("Where is it?"), 4), 4)
    want = processor().tokenizer.decode(processor().encoder.spoken_ids(ids), skip_special_tokens=False)
    assert found["a"]["text"] == want
    assert found["a"]["finish_reason"] == "length"
    assert (found["7"]["completion_tokens"], found["7"]["reduced"]) == (4, False)
    assert len(told) == 6
    assert sorted(told)[-1] == (4, 2)


def test_goes_on_where_it_stopped(rows, tmp_path):
    out = tmp_path / "answers.jsonl"
    engine = Engine(model(), processor())
    answer_file(engine, rows, out, SAMPLING)
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:2]) + lines[2][:20])  # a kill in the middle of a line
    done = engine.stats().requests_done
    assert sum(answer_file(engine, rows, out, SAMPLING)) == 4
    assert read(out) == {line["id"]: line for line in map(json.loads, whole.splitlines())}
    assert engine.stats().requests_done < done + 5
    assert answer_file(engine, rows, out, SAMPLING) == (0, 0)
    assert len(out.read_text().splitlines()) == 6


@pytest.mark.parametrize(
    "held", ["my notes\n", "notes", '{"id": 5, "text": "A"}\n\n{"id": 6, "text": "B"}\n', '{"id": 1, "question": "?"}']
)
def test_a_file_of_something_else_is_left_as_it_is(rows, tmp_path, held):
    out = tmp_path / "notes.txt"
    out.write_text(held)
    with pytest.raises(
        DataError, match=r"notes\.txt:[12]: .* is no answer of an earlier call; the file is left as it is"
    ):
        answer_file(Engine(model(), processor()), rows, out, SAMPLING)
    assert out.read_text() == held


def test_rows_whose_id_is_null_are_named_by_their_line(tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    rows.write_text("".join(json.dumps({"id": None, "messages": ask(text)}) + "\n" for text in ("A?", "B?")))
    assert answer_file(Engine(model(), processor()), rows, out, SAMPLING) == (2, 0)
    assert set(read(out)) == {"rows.jsonl:1", "rows.jsonl:2"}


def test_rows_that_are_none_or_twice_are_errors(rows, tmp_path):
    engine = Engine(model(), processor())
    for more, message in [
        ('{"id": "a"}', "id 'a' is an earlier row's too"),
        ("[1]", "a list; needs"),
        ("{", "no JSON"),
    ]:
        wrong = tmp_path / "wrong.jsonl"
        wrong.write_text(rows.read_text() + more + "\n")
        with pytest.raises(DataError, match=rf"wrong\.jsonl:7: {message}"):
            answer_file(engine, wrong, tmp_path / f"{len(message)}.jsonl", SAMPLING)
    outside = tmp_path / "outside.jsonl"
    (tmp_path / "inner").mkdir()
    assert answer_file(engine, rows, outside, SAMPLING, root=tmp_path / "inner") == (3, 3)


def test_a_list_of_conversations():
    engine = Engine(model(), processor(), max_running=2)
    texts = [f"{i}?" for i in range(7)]
    answers = answer_all(engine, [ask(text) for text in texts], SAMPLING)
    for text, answer in zip(texts, answers, strict=True):
        assert list(answer.token_ids) == alone(model(), prompt_of(ask(text), 4), 4)
