"""Records of every shape -> rows that rows.parse_sample reads."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from eagle_model.data.formats.media import Embedded
from eagle_model.data.formats.records import CHOOSE, chat, multiple_choice, row_of
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DataError, ImageRef, Sample, VideoRef
from tests.data.formats.conftest import picture


def sample(record: dict) -> Sample:
    return parse_sample(row_of(record), root=Path("r"), where="x:1")


def texts(record: dict) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in sample(record).turns]


def test_alpaca_with_input_history_and_system() -> None:
    record = {
        "instruction": "Add.",
        "input": "1 and 2",
        "output": "3",
        "history": [["Hi", "Hello"]],
        "system": "Be brief.",
    }
    assert texts(record) == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add.\n1 and 2"),
        ("assistant", "3"),
    ]
    assert texts({"instruction": "Say <image>.", "input": "", "output": "<image>"})[0] == ("user", "Say <image>.")


def test_ms_swift_places_media_by_tags() -> None:
    record = {"query": "<image>What is it, beside <image>?", "response": "A dog.", "images": ["a.png", "b.png"]}
    parts = sample(record).turns[0].parts
    assert parts == (ImageRef(Path("r/a.png"), 1), "What is it, beside ", ImageRef(Path("r/b.png"), 2), "?")
    record = {"query": "What?", "response": "A walk.", "videos": ["a.mp4"], "history": [["Who?", "Me."]], "system": "S"}
    read = sample(record)
    assert [turn.role for turn in read.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert read.turns[1].parts == (VideoRef(Path("r/a.mp4")), "Who?")


def test_the_cauldron_and_finevision_show_images_first() -> None:
    record = {
        "images": [{"bytes": picture(), "path": None}, {"bytes": None, "path": "b.png"}],
        "texts": [{"user": "Q1", "assistant": "A1", "source": "s"}, {"user": "Q2", "assistant": "A2"}],
    }
    messages = row_of(record)["messages"]
    assert messages[0]["content"] == [
        {"type": "image", "image": Embedded(picture())},
        {"type": "image", "image": {"path": "b.png"}},
        {"type": "text", "text": "Q1"},
    ]
    assert [m["content"] for m in messages[1:]] == ["A1", "Q2", "A2"]


def test_questions_with_options() -> None:
    asked = f"Which?\nA. cat\nB. dog\n{CHOOSE}"
    for answer in (1, "1", "B", "b", "dog"):
        record = {"image": "a.png", "question": "Which?", "choices": ["cat", "dog"], "answer": answer}
        assert texts(record) == [("user", asked), ("assistant", "B. dog")]
    lettered = {"image": "a.png", "question": "Which?", "A": "cat", "B": "dog", "answer": "B"}
    assert texts(lettered) == [("user", asked), ("assistant", "B. dog")]
    assert texts({"question": "Which?", "answer": "This."}) == [("user", "Which?"), ("assistant", "This.")]
    for answer in ("Z", 2, -1, None, "fish"):
        with pytest.raises(DataError):
            row_of({"question": "Which?", "choices": ["cat", "dog"], "answer": answer})


def test_captions_of_one_medium() -> None:
    assert texts({"file_name": "a.png", "text": "A dog."}) == [
        ("user", "Describe this image."),
        ("assistant", "A dog."),
    ]
    assert sample({"video": "a.mp4", "caption": "A walk.", "start": 1, "end": 2}).videos == (
        VideoRef(Path("r/a.mp4"), 1.0, 2.0),
    )
    assert sample({"video": "a.mp4", "caption": "A walk.", "start_time": 1}).videos == (VideoRef(Path("r/a.mp4"), 1.0),)
    with pytest.raises(DataError, match="no image or video"):
        row_of({"text": "alone"})


def test_prompt_and_completion() -> None:
    assert texts({"prompt": "Q", "completion": "A"}) == [("user", "Q"), ("assistant", "A")]


def test_base64_and_data_urls_become_bytes_where_media_stand() -> None:
    text = base64.b64encode(picture()).decode()
    url = f"data:image/png;base64,{text}"
    row = row_of({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]})
    assert row["messages"][0]["content"][0]["image_url"]["url"] == Embedded(picture())
    assert row_of({"image": text, "question": "Q", "answer": "A"})["messages"][0]["content"][0]["image"] == Embedded(
        picture()
    )
    said = {"messages": [{"role": "user", "content": url}], "conversations": [{"from": "human", "value": url}]}
    assert row_of(said) == said  # in a text it is text
    with pytest.raises(DataError, match="base64"):
        row_of({"image": "data:image/png;base64,***", "question": "Q", "answer": "A"})


def test_rows_of_ours_stay_as_they_are() -> None:
    row = {"id": 1, "video": "a.mp4", "conversations": [{"from": "human", "value": "<video>"}], "score": 0.5}
    assert row_of({**row, "empty": None}) == row


def test_what_is_not_used_stays_and_is_seen_by_the_reader_of_rows() -> None:
    read = sample({"question": "Q", "answer": "A", "score": 0.5})
    assert read.unused_fields == ("score",)
    with pytest.raises(DataError, match="audio"):
        sample({"question": "Q", "answer": "A", "audio": "a.wav"})


@pytest.mark.parametrize(
    "record",
    [
        [],
        {},
        {"foo": 1},
        {"instruction": 1.5, "output": []},
        {"texts": []},
        {"texts": [1]},
        {"query": "a", "response": "b", "history": ["c"]},
        {"question": "Q", "choices": 3, "answer": "A"},
    ],
)
def test_other_records_are_errors(record: object) -> None:
    with pytest.raises(DataError):
        row_of(record)


def test_a_row_of_pairs_and_media() -> None:
    row = chat([("Q", "A")], [("image", "a.png")], system="S", more={"start": 1, "id": "n"})
    assert (
        row["start"] == 1
        and row["id"] == "n"
        and [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
    )
    with pytest.raises(DataError):
        multiple_choice("Q", [], 0)
