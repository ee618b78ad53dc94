"""Folders of media with captions, records, subtitles or a metadata file beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle_model.data.formats.folders import folder_records
from eagle_model.data.sample import DataError, OutsideRootError
from tests.data.formats.test_subtitles import SAID, SRT


def records(root: Path, **options: bool) -> list[object]:
    return [record for _, record in folder_records(root, **options)]


def test_captions_records_and_subtitles_beside_media(root: Path) -> None:
    (root / "a.txt").write_text(" A dog.\n")
    (root / "b.json").write_text(json.dumps({"question": "Q", "answer": "A"}))
    (root / "clips").mkdir()
    (root / "clips/walk.mp4").touch()
    (root / "clips/walk.txt").write_text("A walk.")
    (root / "clips/walk.srt").write_text(SRT, newline="")
    (root / ".hidden.png").touch()
    (root / "notes.md").touch()
    assert records(root) == [
        {"id": "a.png", "image": "a.png", "question": "Describe this image.", "answer": "A dog."},
        {"id": "b.jpg", "image": "b.jpg", "question": "Q", "answer": "A"},
        {
            "id": "clips/walk.mp4",
            "video": "clips/walk.mp4",
            "question": f"Subtitles:\n{SAID}\n\nDescribe this video.",
            "answer": "A walk.",
        },
    ]


def test_a_medium_without_a_caption_is_an_error(root: Path) -> None:
    (root / "a.txt").write_bytes(b"\xff")
    first, second = records(root)
    assert "not UTF-8" in str(first) and "needs b.txt or b.json" in str(second)


def test_a_metadata_file_says_the_records(root: Path) -> None:
    (root / "in").mkdir()
    (root / "in/metadata.csv").write_text("file_name,text\nx.png,An x.\n,no file\n")
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "A dog."}\nnot JSON\n')
    found = records(root)
    assert found[0] == {"file_name": "a.png", "text": "A dog."}
    assert isinstance(found[1], DataError)
    assert found[2] == {"file_name": "in/x.png", "text": "An x."}
    assert isinstance(found[3], DataError)


@pytest.mark.parametrize("name", ["a.txt", "a.json", "metadata.csv"])
def test_what_lies_beside_may_not_link_out(root: Path, name: str) -> None:
    outside = root.parent / "secret"
    outside.write_text('{"question": "Q", "answer": "A"}' if name == "a.json" else "file_name,text\na.png,secret\n")
    (root / "b.jpg").unlink()
    (root / name).symlink_to(outside)
    try:
        (found,) = records(root)
    except OutsideRootError as error:
        found = error
    assert isinstance(found, OutsideRootError)
    assert not isinstance(records(root, allow_outside_root=True)[0], DataError)


def test_links_to_folders_are_passed_over(root: Path) -> None:
    (root / "loop").symlink_to(root, target_is_directory=True)
    assert len(records(root)) == 2


def test_what_lies_beside_may_end_in_capitals(root: Path) -> None:
    (root / "Walk.MOV").touch()
    (root / "Walk.TXT").write_text("A walk.")
    (root / "Walk.Srt").write_text(SRT)
    record = records(root)[0]
    assert isinstance(record, dict) and record["id"] == "Walk.MOV"
    assert record["answer"] == "A walk." and "Subtitles:" in record["question"]
