"""annotate/segment.py: whose chapters count, and what is said in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.segment import speech_in
from eagle_model.annotate.steps import run_named
from eagle_model.annotate.work import Run, read_part
from tests.annotate.conftest import films


def test_the_first_source_that_has_chapters_counts(tmp_path: Path, make_config: Callable[..., AnnotateConfig]) -> None:
    folder = films(tmp_path / "films")
    (folder / "bikes.srt").write_text(
        "1\n00:00:01,000 --> 00:00:02,000\nGo!\n\n2\n00:00:06,000 --> 00:00:09,000\nStop.\n"
    )
    tags = [{"timestamp": 0, "tag": "Ride"}, {"timestamp": 5000, "tag": "Rest"}]
    rows = [{"id": "bikes", "annotations": tags}, {"id": "bigbuckbunny", "annotations": tags}]
    (tmp_path / "vitt.json").write_text("\n".join(map(json.dumps, rows)))
    run = Run(make_config("http://none/v1", "segment.vitt=vitt.json"))
    run_named(run, "select")
    assert run_named(run, "segment").num_rows == 6
    rows = read_part(run.folder / "segment", 0).to_pylist()
    found = [(row["id"][:5], row["start"], row["title"], row["made_by"], row["speech"]) for row in rows]
    assert found == [
        ("bigbu", 0.0, "Meadow", "list", ""),
        ("bigbu", 2.5, "Burrow", "list", ""),
        ("bikes", 0.0, "Ride", "vitt", "Go!"),
        ("bikes", 5.0, "Rest", "vitt", "Stop."),
        ("carph", 0.0, "Talking", "description", ""),
        ("carph", 2.0, "Driving", "description", ""),
    ]


def test_a_cue_belongs_where_its_middle_is() -> None:
    cues = [(0.0, 4.0, "a"), (9.0, 12.0, "b"), (11.0, 13.0, "c")]
    assert speech_in(cues, 0.0, 10.0) == "a" and speech_in(cues, 10.0, 20.0) == "b c" and speech_in([], 0, 1) == ""
    long = speech_in([(0.0, 1.0, "word " * 2000)], 0.0, 1.0)
    assert len(long) <= 4004 and long.endswith("word ...")
