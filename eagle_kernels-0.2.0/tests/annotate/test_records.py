"""annotate/records.py: the list of videos that a run begins with."""

import json
import os
from pathlib import Path

import pytest

from eagle_model.annotate.records import list_videos
from eagle_model.data.sample import DataError


def test_a_folder_is_listed_by_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/z.MP4", "a.mkv", "a.srt", "notes.txt"):
        (tmp_path / name).write_text("")
    found = list(list_videos(tmp_path, root=tmp_path))
    assert [(v["id"], v["subtitles"]) for v in found] == [("a.mkv", "a.srt"), ("b/z.MP4", None)]


def listed(tmp_path: Path, *rows: object) -> list[dict]:
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(list_videos(tmp_path / "v.jsonl", root=tmp_path))


def test_a_list_says_more_of_each_video(tmp_path: Path) -> None:
    row = {"path": "a.mp4", "id": "one", "licence": "CC0", "chapters": [{"start": 1, "title": "T"}]}
    (video,) = listed(tmp_path, row)
    assert (video["id"], video["licence"], video["title"]) == ("one", "CC0", None)
    assert video["chapters"] == [{"start": 1.0, "end": None, "title": "T"}]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"file": "a.mp4"}, "needs an object with the path"),
        ([], "needs an object with the path"),
        ({"path": "/etc/a.mp4"}, "leads out of"),
        ({"path": "../a.mp4"}, "leads out of"),
        ({"path": "a.mp4", "subtitles": "/etc/a.srt"}, "subtitles '/etc/a.srt' leads out of"),
        ({"path": "a.mp4", "title": 3}, "title is '3'; needs a text"),
        ({"path": "a.mp4", "chapters": [{"title": "T"}]}, "chapters needs a list"),
        ({"path": "a.mp4", "chapters": {"0": "T"}}, "chapters needs a list"),
    ],
    ids=range(8),
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, problem: str) -> None:
    with pytest.raises(DataError, match=f"v.jsonl:2: .*{problem}"):
        listed(tmp_path, {"path": "ok.mp4"}, row)


def test_an_id_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the id 'a.mp4' was there before"):
        listed(tmp_path, {"path": "a.mp4"}, {"path": "a.mp4"})


def test_names_of_any_language_and_those_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "Übung 日本 #1.mp4").write_text("")
    assert [v["id"] for v in list_videos(tmp_path, root=tmp_path)] == ["Übung 日本 #1.mp4"]
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.mp4")).write_text("")
    with pytest.raises(DataError, match=r"udcff.mp4': a name that is not UTF-8"):
        list(list_videos(tmp_path, root=tmp_path))
