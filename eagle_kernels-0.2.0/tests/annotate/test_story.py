"""annotate/story.py: chapters are captioned with their titles, and questions are asked of captions."""

from __future__ import annotations

import json
from collections.abc import Callable

import pyarrow as pa
import pytest

from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.story import story_step
from eagle_model.annotate.work import Run
from tests.annotate.told import Told

ASKED = {"question": "Q?", "answer": "It is a.", "short": "a", "wrong": ["b", "c", "d"]}


def video(*titles: str, made_by: str = "list") -> dict:
    segments = [
        {
            "number": i,
            "start": 10.0 * i,
            "end": 10.0 * i + 10,
            "title": t,
            "made_by": made_by,
            "speech": "Hi." if i else "",
        }
        for i, t in enumerate(titles)
    ]
    return {"id": "v", "path": "v.mp4", "duration_seconds": 10.0 * len(titles), "segments": segments}


def says(text: str, number: int) -> str:
    if "Below are the chapters" in text:
        return json.dumps({"questions": [ASKED] * 7})
    return json.dumps({"brief": "A brief.", "detailed": f"Caption {number}."})


@pytest.fixture
def run(make_config: Callable[..., AnnotateConfig]) -> Run:
    told = Told(says)
    return Run(make_config("http://none/v1", "story.num_questions=2"), annotator=told, reader=told)


def test_captions_then_questions(run: Run) -> None:
    ask = run.annotator.asking()
    rows = story_step(run).work(video("Start", ""), ask)
    assert [row["kind"] for row in rows] == ["caption", "caption", "story", "story"]
    assert rows[0]["anchor"] == "A brief." and (rows[1]["start"], rows[1]["end"]) == (10.0, 20.0)
    assert rows[2] == {
        **ASKED, "id": "v#story0", "kind": "story", "type": "story", "video": "v", "start": None, "end": None,
        "anchor": None, "prompt": rows[2]["prompt"], "model": "told", "request": "k2",
    }  # fmt: skip
    first, second, questions = run.annotator.parts
    assert first[0] == {
        "type": "video", "video": "v.mp4", "start": 0.0, "end": 10.0, "frames_per_second": 2.0, "max_frames": 50,
    }  # fmt: skip
    assert "The chapter's title is: Start" in first[1]["text"] and "It is said" not in first[1]["text"]
    assert "title is: (none)" in second[1]["text"] and 'It is said in it: "Hi."' in second[1]["text"]
    assert len(questions) == 1  # the captions alone: no frames
    assert "0.0 ~ 10.0 s: Start\nCaption 0.\n\n10.0 ~ 20.0 s: (no title)\nCaption 1." in questions[0]["text"]
    assert "Write 2 questions about the whole video" in questions[0]["text"]


@pytest.mark.parametrize(
    ("segments", "number"), [(video("A", "B"), 1), (video("A"), 0), (video("A", "B", made_by="shots"), 0)], ids=range(3)
)
def test_videos_with_two_chapters_of_people_are_taken(run: Run, segments: dict, number: int) -> None:
    tables = {
        "select": pa.Table.from_pylist([{"id": "v", "path": "v.mp4"}, {"id": "w", "path": "w.mp4"}]),
        "segment": pa.Table.from_pylist([{"id": "v", **s} for s in segments["segments"]]),
    }
    assert len(story_step(run).items(tables)) == number
