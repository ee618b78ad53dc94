"""annotate/chapters.py: what counts as chapters, and where they end."""

import json
from pathlib import Path

import pytest

from eagle_model.annotate.chapters import chapters_of_description, closed, read_vidchapters, read_vitt
from eagle_model.data.sample import DataError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hello\n0:00 Intro\n1:05 - The walk\n\n", [(0, "Intro"), (65, "The walk")]),
        ("00:00 Intro\n01:02:03 End", [(0, "Intro"), (3723, "End")]),
        ("(0:00) Intro\n[2:30] Middle", [(0, "Intro"), (150, "Middle")]),
        ("Intro 0:00\nMiddle: 2:30", [(0, "Intro"), (150, "Middle")]),
        ("- 0:00 Intro\n• 2:30 | Middle", [(0, "Intro"), (150, "Middle")]),
        ("1. 0:00 Intro\n2. 2:30 Middle", [(0, "Intro"), (150, "Middle")]),
        ("▶ 0:00 Intro\n🔥 2:30 Мост", [(0, "Intro"), (150, "Мост")]),
        ("0:00 Intro\n2:30 Middle\nLive every Friday at 2:10", [(0, "Intro"), (150, "Middle")]),
        ("Глава 0:00\nМост 2:30", [(0, "Глава"), (150, "Мост")]),
        (f"0:00 Intro\n2:30 Middle\n1:00 {'x' * 300}", [(0, "Intro"), (150, "Middle")]),
        ("0:10 Best moment\n1:05 Another", []),  # no chapters: the first does not begin at the start
        ("0:00 Intro\n2:00 B\n1:00 C", []),
        ("0:00 Intro", []),
        ("Watch at 12:30 tomorrow.\nhttp://a.b/?t=0:00", []),
        ("0:61 Intro\n0:99 End", []),
        ("", []),
    ],
    ids=range(16),
)
def test_time_stamps_of_a_description(text: str, found: list[tuple[float, str]]) -> None:
    assert [(start, title) for start, _, title in chapters_of_description(text)] == found


@pytest.mark.parametrize(
    "text", ["0:00 - 1:05 Intro\n1:10–2:00: End", "Intro (0:00-1:05)\nEnd (1:10 - 2:00)"], ids=range(2)
)
def test_a_chapter_whose_end_is_told(text: str) -> None:
    assert chapters_of_description(text) == [(0.0, 65.0, "Intro"), (70.0, 120.0, "End")]


def test_chapters_end_where_the_next_begins() -> None:
    chapters = [(10.0, None, "B"), (0.0, None, " A\n a"), (30.0, 90.0, "D"), (29.5, None, "C"), (70.0, None, "E")]
    assert closed(chapters, 60.0) == [(0.0, 10.0, "A a"), (10.0, 29.5, "B"), (30.0, 60.0, "D")]


def test_vitt_keeps_the_fullest_of_several_sets(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "annotations": [{"timestamp": 260, "tag": "Opening"}]},
        {"id": "x", "annotations": [{"timestamp": 0, "tag": "A"}, {"timestamp": 16000, "tag": "B"}]},
    ]
    (tmp_path / "v.json").write_text("\n".join(map(json.dumps, rows)))
    assert read_vitt(tmp_path / "v.json") == {"x": [(0.0, None, "A"), (16.0, None, "B")]}


def test_vidchapters(tmp_path: Path) -> None:
    about = {"duration": 9, "timestamps": [[0, 4], [4, 9]], "sentences": ["A", "B"]}
    (tmp_path / "v.json").write_text(json.dumps({"x": about}))
    assert read_vidchapters(tmp_path / "v.json") == {"x": [(0.0, 4.0, "A"), (4.0, 9.0, "B")]}


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_vitt, '{"id": "x"}'),
        (read_vitt, "[1]"),
        (read_vidchapters, '{"x": {"timestamps": [[0, 1]], "sentences": []}}'),
    ],
    ids=["vitt", "no object", "vidchapters"],
)
def test_another_file_is_refused(tmp_path: Path, read, text: str) -> None:
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(DataError, match=r"v.json:1"):
        read(tmp_path / "v.json")
