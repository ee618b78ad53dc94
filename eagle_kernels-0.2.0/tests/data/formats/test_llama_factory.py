"""LLaMA-Factory's dataset_info.json, its two formats with their columns and tags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle_model.data.formats.llama_factory import left_out, read_dataset_info
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DataError, ImageRef, Sample


def info(root: Path, about: dict, records: object = ()) -> Path:
    (root / "rows.json").write_text(json.dumps(list(records)))  # type: ignore[call-overload]
    (root / "dataset_info.json").write_text(json.dumps({"mine": about}))
    return root / "dataset_info.json"


def sample(path: Path, record: dict) -> Sample:
    (entry,) = read_dataset_info(path)
    return parse_sample(entry.to_row(record), root=path.parent, where="x:1")


def test_alpaca_by_its_columns(root: Path) -> None:
    columns = {"prompt": "q", "query": "more", "response": "a", "history": "h", "system": "s", "images": "pics"}
    path = info(root, {"file_name": "rows.json", "columns": columns})
    record = {
        "q": "<image>What?",
        "more": "Briefly.",
        "a": "A dog.",
        "h": [["Hi", "Yes?"]],
        "s": "S",
        "pics": ["a.png"],
    }
    read = sample(path, record)
    assert [turn.role for turn in read.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert read.turns[3].parts == (ImageRef(root / "a.png"), "What?\nBriefly.")
    assert sample(info(root, {"file_name": "rows.json"}), {"instruction": "Q", "output": "A"}).turns[1].text == "A"


def test_sharegpt_by_its_tags(root: Path) -> None:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "u", "assistant_tag": "a", "observation_tag": "o"}
    about = {
        "file_name": "rows.json",
        "formatting": "sharegpt",
        "columns": {"messages": "chat", "tools": "t"},
        "tags": tags,
    }
    turns = [
        ("system", "S"),
        ("u", "Weather?"),
        ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("o", "sunny"),
        ("a", "Sun."),
    ]
    record = {"chat": [{"role": role, "content": text} for role, text in turns], "t": '[{"name": "f"}]'}
    read = sample(info(root, about), record)
    assert [turn.role for turn in read.turns] == ["system", "user", "assistant", "observation", "assistant"]
    assert '"name": "f"' in read.turns[2].text and read.tools == ('{"name": "f"}',)
    with pytest.raises(DataError, match="one of the roles"):
        sample(info(root, about), {"chat": [{"role": "x", "content": "?"}]})


def test_files_of_a_folder_and_what_is_on_a_hub(root: Path) -> None:
    (root / "parts").mkdir()
    for name in ("b.json", "a.jsonl", "c.md"):
        (root / "parts" / name).touch()
    path = info(root, {"file_name": "parts"})
    (entry,) = read_dataset_info(path)
    assert [file.name for file in entry.files] == ["a.jsonl", "b.json"]
    path.write_text(json.dumps({"far": {"hf_hub_url": "x/y"}}))
    assert (read_dataset_info(path), left_out(path)) == ([], ["far"])


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"file_name": "rows.json", "formatting": "x"}, "alpaca or sharegpt"),
        ({"file_name": "rows.json", "ranking": True}, "preferences"),
        ({"file_name": "rows.json", "columns": {"chosen": "c"}}, "preferences"),
        ({"file_name": "../rows.json"}, "inside"),
        ({"file_name": "/etc/passwd"}, "inside"),
        ({"file_name": "gone.json"}, "does not exist"),
    ],
)
def test_entries_that_cannot_be_used(root: Path, about: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dataset_info(info(root, about))


def test_files_that_are_no_dataset_info(root: Path) -> None:
    for text in ("[]", '{"a": 1}', "{"):
        (root / "dataset_info.json").write_text(text)
        with pytest.raises(DataError):
            read_dataset_info(root / "dataset_info.json")
