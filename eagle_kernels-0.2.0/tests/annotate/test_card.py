"""annotate/card.py: counts of what passed, and a random few that are remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eagle_model.annotate.card import Statistics, write_card
from eagle_model.annotate.config import AnnotateConfig
from tests.annotate.test_build import question


def test_a_card_has_the_papers_statistics(tmp_path: Path, make_config: Callable[..., AnnotateConfig]) -> None:
    statistics = Statistics()
    rows = [
        question(id="a", licence="CC|0"),
        question(id="b", reason="blind"),
        question(id="c", duration_seconds=7300.0),
    ]
    for row in rows:
        statistics.count(row, most_shown=2, seed=0)
    for row in (rows[0], rows[2]):
        statistics.count_video(row)
    config = make_config("http://none/v1")
    write_card(tmp_path / "card.md", config, {"train": 6}, {"train": 2}, statistics)
    text = (tmp_path / "card.md").read_text()
    for line in (
        "| train | 2 | 6 |", "| kept | 2 |", "| blind | 1 |", "| below 30 s | 1 |", "| 7,200 to 12,000 s | 1 |",
        "| planning | 2 |", "| CC\\|0 | 1 |", "| not stated | 1 |", "| below 5 words | 2 |", "| clip_questions@1 | 2 |",
    ):  # fmt: skip
        assert line in text, line
    assert "2.0 hours of video. 2 of 3 questions were kept." in text and "were not asked." in text


def test_as_many_as_are_shown_are_remembered_whatever_their_order() -> None:
    rows = [question(id=f"q{i:03}") for i in range(100)]
    shown = []
    for order in (rows, rows[::-1]):
        statistics = Statistics()
        for row in order:
            statistics.count(row, most_shown=7, seed=0)
        shown.append([row["id"] for row in statistics.shown])
    assert shown[0] == shown[1] == sorted(shown[0]) and len(shown[0]) == 7
