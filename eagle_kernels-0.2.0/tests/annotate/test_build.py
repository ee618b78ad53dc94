"""annotate/build.py: rows that the reader of training reads as they were meant, and splits that share no video."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eagle_model.annotate.build import as_choice, build, no_tags, rows_of, split_of
from eagle_model.annotate.config import AnnotateConfig, BuildConfig
from eagle_model.annotate.records import CHECKED, VIDEOS
from eagle_model.annotate.work import Run, write_part
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import parse_sample, read_samples
from eagle_model.files import write_json


def question(**more: object) -> dict:
    base = {"id": "v#0.planning", "video": "v", "kind": "clip", "type": "planning", "question": "What next?"}
    base |= {"answer": "He leaves.", "short": "he leaves", "wrong": ["x", "y", "z"], "start": 2.0, "end": 4.5}
    base |= {"anchor": "A man sits.", "prompt": "clip_questions@1", "model": "m", "request": "k", "reason": None}
    return base | {"marks": [], "duration_seconds": 9.0, "path": "v.mp4", "licence": None, "source": None} | more


def test_three_variants_of_a_clips_question() -> None:
    clip, time, context = rows_of(question(), BuildConfig(), seed=0)
    assert (clip["start"], clip["end"], clip["conversations"][0]["value"]) == (2.0, 4.5, "<video>\nWhat next?")
    assert (
        "start" not in time
        and time["conversations"][0]["value"] == "<video>\nLook at 2.0 s to 4.5 s of the video. What next?"
    )
    assert context["conversations"][0]["value"] == "<video>\nFind this part of the video: A man sits.\nWhat next?"
    assert all(row["conversations"][1] == {"from": "gpt", "value": "He leaves."} for row in (clip, time, context))


def test_a_bad_anchor_makes_no_row_and_a_story_makes_one() -> None:
    rows = rows_of(question(marks=["anchor_leak"]), BuildConfig(), seed=0)
    assert [row["about"]["variant"] for row in rows] == ["clip", "time"]
    (row,) = rows_of(question(start=None, end=None), BuildConfig(), seed=0)
    assert row["about"]["variant"] == "video" and "start" not in row
    assert len(rows_of(question(), BuildConfig(variants=("time",)), seed=0)) == 1


@pytest.mark.parametrize("text", ["<image> and <video-2>", r"\<video> and \\<image>", "a < b", "<images>"])
def test_what_looks_like_a_place_for_media_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "v.mp4").write_bytes(b"")
    (row, *_) = rows_of(question(question=text), BuildConfig(), seed=0)
    sample = parse_sample(row, root=tmp_path, where="here")
    assert sample.turns[0].text == f"\n{text}" and len(sample.media) == 1
    assert sample.unused_fields == ("about",) and sample.media[0].start_seconds == 2.0
    assert no_tags("plain") == "plain"


def test_a_share_is_asked_as_multiple_choice() -> None:
    config = BuildConfig(multiple_choice_share=0.5, variants=("clip",))
    rows = [rows_of(question(id=f"v#{i}"), config, seed=0)[0] for i in range(400)]
    answers = [row["conversations"][1]["value"] for row in rows]
    assert 160 < sum(len(a) == 1 for a in answers) < 240 and {"A", "B", "C", "D"} < set(answers)
    text, letter = as_choice(question(), seed=0)
    assert f"{letter}. he leaves" in text.splitlines()


def test_a_videos_split_is_its_names() -> None:
    splits = [split_of(f"v{i}", 0.1, seed=0) for i in range(5000)]
    assert 400 < splits.count("validation") < 600 and split_of("v1", 0.0, 0) == "train"


def test_splits_share_no_video(tmp_path: Path, make_config: Callable[..., AnnotateConfig]) -> None:
    (tmp_path / "films").mkdir()
    run = Run(make_config("http://none/v1", "build.validation_share=0.3", "build.num_shown=0"))
    for name, columns in (("select", VIDEOS), ("filter", CHECKED)):
        (run.folder / name).mkdir(parents=True)
        for part in range(2):
            marks = [["one_frame"] * part, []]
            names = [f"v{part}{i}" for i in range(20)]
            rows = [
                question(id=f"{n}#{k}", video=n, path=f"{n}.mp4", reason=[None, "blind"][k], marks=marks[k])
                for n in names
                for k in (0, 1)
            ]
            write_part(run.folder / name, part, rows if name == "filter" else [{"id": n} for n in names], columns)
            write_json(run.folder / name / f"part-0000{part}.done.json", {"num_requests": 0, "dollars": 0.0})
            for n in names:
                (tmp_path / "films" / f"{n}.mp4").write_bytes(b"")
    built = build(run)
    read = {
        split: [json.loads(line) for line in (built.folder / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation")
    }
    videos = {split: {row["video"] for row in rows} for split, rows in read.items()}
    assert not videos["train"] & videos["validation"] and len(videos["train"] | videos["validation"]) == 40
    assert {split: len(rows) for split, rows in read.items()} == built.num_rows
    assert built.num_videos == {split: len(found) for split, found in videos.items()}
    for name, split in (("recipe.json", "train"), ("recipe_validation.json", "validation")):
        (source,) = read_recipe(built.folder / name)
        assert len(list(read_samples(source))) == built.num_rows[split]
    marked = make_config("http://none/v1", "build.drop_marks=one_frame", "build.num_shown=0")
    assert sum(build(Run(marked)).num_rows.values()) == 60  # half of the kept have the mark; three rows a question
    assert "| blind | 40 |" in (built.folder / "card.md").read_text()

    (run.folder / "filter/part-00001.done.json").unlink()
    with pytest.raises(ValueError, match="run `eagle annotate filter` to its end first"):
        build(run)
