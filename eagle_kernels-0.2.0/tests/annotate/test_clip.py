"""annotate/clip.py: types are drawn, nulls are left out, and the brief caption goes along."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from eagle_model.annotate.clip import chosen, clip_step, middle
from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.question_types import TYPES, draw
from eagle_model.annotate.work import Run
from tests.annotate.told import Told

ASKED = {"question": "Q?", "answer": "It is a.", "short": "a", "wrong": ["b", "c", "d"]}


def video(number: int = 1, seconds: float = 30.0) -> dict:
    segments = [{"number": i, "start": seconds * i, "end": seconds * (i + 1), "speech": ""} for i in range(number)]
    return {"id": "v", "path": "v.mp4", "segments": segments}


def test_five_types_are_asked_for_and_nulls_left_out(make_config: Callable[..., AnnotateConfig]) -> None:
    def says(text: str, number: int) -> str:
        kinds = re.findall(r"^- (\w+)$", text, re.MULTILINE)
        if not kinds:
            return json.dumps({"brief": "In a kitchen.", "detailed": "Somebody cooks."})
        return json.dumps({kind: ASKED if i else None for i, kind in enumerate(kinds)})

    told = Told(says)
    run = Run(make_config("http://none/v1"), annotator=told, reader=told)
    rows = clip_step(run).work(video(), told.asking())
    types = draw("v#0", 5, seed=0)
    assert [row["type"] for row in rows] == types[1:] and set(types) <= set(TYPES)
    assert rows[0]["id"] == f"v#0.{types[1]}" and rows[0]["anchor"] == "In a kitchen."
    assert (rows[0]["start"], rows[0]["end"], rows[0]["request"]) == (0.0, 30.0, "k1")
    assert "What happens, in brief: In a kitchen." in told.parts[1][1]["text"]
    assert told.parts[1][0] == told.parts[0][0] and told.parts[0][0]["max_frames"] == 50


def test_some_clips_of_a_long_video_are_taken() -> None:
    taken = chosen(video(100), 8, seed=0)
    numbers = [segment["number"] for segment in taken]
    assert len(numbers) == 8 and numbers == sorted(set(numbers)) and taken == chosen(video(100), 8, seed=0)
    assert numbers != [segment["number"] for segment in chosen(video(100), 8, seed=1)]
    assert len(chosen(video(3), 8, seed=0)) == 3


@pytest.mark.parametrize(
    ("span", "expected"), [((0.0, 100.0), (0.0, 100.0)), ((100.0, 400.0), (190.0, 310.0)), ((1.234, 5.678), (1.2, 5.7))]
)
def test_of_a_long_segment_the_middle_is_taken(span: tuple[float, float], expected: tuple[float, float]) -> None:
    assert middle(*span, most=120.0) == expected
