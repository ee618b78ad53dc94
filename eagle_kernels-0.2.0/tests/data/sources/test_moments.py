"""Moments of videos in their official layouts. Where each layout was learned from says sources/table.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle_model.data.sample import DataError, VideoRef
from eagle_model.data.sources.moments import CHAPTERS, WHEN
from tests.data.sources.conftest import Read


def test_activitynet_captions(read: Read) -> None:
    record = {
        "duration": 82.73,
        "timestamps": [[0.83, 19.86], [17.37, 60.81]],
        "sentences": ["She enters. ", " She dances."],
    }
    (sample,) = read("activitynet_captions", {"train.json": {"v_ab": record}}, ["videos/v_ab.mp4"])
    assert sample.turns[1].text == "0.8 - 19.9 s: She enters.\n17.4 - 60.8 s: She dances."
    with pytest.raises(DataError, match="2 times and 1 sentences"):
        read("activitynet_captions", {"train.json": {"v_ab": {**record, "sentences": ["x"]}}}, ["videos/v_ab.mp4"])


BALLET = {"segment": [1, 2.5], "label": "Ballet"}
SEGMENTS = {
    "activitynet": ({"annotations": [BALLET], "subset": "training"}, "videos/v_ab.mp4"),
    "hacs": ({"annotations": [BALLET], "subset": "training"}, "videos/ab.mp4"),
    "hacs as downloaded": ({"annotations": [BALLET], "subset": "training"}, "Ballet/v_ab.mp4"),
    "coin": (
        {"annotation": [{"id": "212", **BALLET}], "class": "X", "start": 0, "subset": "training"},
        "videos/ab.mp4",
    ),
    "youcook2": (
        {
            "annotations": [{"segment": [1, 2.5], "id": 0, "sentence": "Ballet"}],
            "recipe_type": "226",
            "subset": "training",
        },
        "raw_videos/training/226/ab.mkv",
    ),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments(read: Read, tmp_path: Path, name: str) -> None:
    record, place = SEGMENTS[name]
    others = {"test": {"subset": "testing", "annotations": [{}]}, "none": {"subset": "training", "annotations": []}}
    content = {"version": "1", "taxonomy": [{"parentId": 0}], "database": {**others, "ab": record}}
    (sample,) = read("segments", {"all.json": content}, [place])
    assert sample.videos == (VideoRef(tmp_path / place),) and sample.turns[1].text == "1.0 - 2.5 s: Ballet"


def test_charades_sta(read: Read, tmp_path: Path) -> None:
    text = "AB12C 24.3 30.4##a person sits down.\n\nAB12C 0.0 6.9##he stands.\n"
    first, second = read("charades_sta", {"charades_sta_train.txt": text}, ["Charades_v1_480/AB12C.mp4"])
    assert [turn.text for turn in first.turns] == [WHEN.format("a person sits down"), "24.3 - 30.4 s"]
    assert second.turns[1].text == "0.0 - 6.9 s"


def test_qvhighlights(read: Read) -> None:
    record = {
        "qid": 8, "query": "They play.", "duration": 126, "vid": "a_660.0_810.0", "relevant_clip_ids": [0],
        "relevant_windows": [[0, 16], [30, 42]], "saliency_scores": [[4, 1, 1]],
    }  # fmt: skip
    line = json.dumps(record) + "\n"
    (sample,) = read("qvhighlights", {"highlight_train_release.jsonl": line}, ["videos/a_660.0_810.0.mp4"])
    assert [turn.text for turn in sample.turns] == [WHEN.format("They play"), "0.0 - 16.0 s\n30.0 - 42.0 s"]


def test_vitt(read: Read) -> None:
    tags = [{"timestamp": 16000, "tag": "Technique"}, {"timestamp": 260, "tag": "Opening"}]
    lines = json.dumps({"id": "FmTp", "annotations": tags}) + "\n"
    (sample,) = read("vitt", {"ViTT-annotations.json": lines}, ["videos/FmTp.mp4"])
    assert [turn.text for turn in sample.turns] == [CHAPTERS, "0.3 s: Opening\n16.0 s: Technique"]


def test_vidchapters(read: Read) -> None:
    record = {
        "duration": 90.0,
        "timestamps": [[0, 30.0], [30.0, 90.0]],
        "sentences": ["Intro", "Main"],
        "path": "x.npy",
    }
    (sample,) = read("vidchapters", {"chapters_dvc_train.json": {"ab-_1": record}}, ["videos/ab-_1.mp4"])
    assert sample.turns[1].text == "0.0 s: Intro\n30.0 s: Main"


def test_vript(read: Read) -> None:
    clip = {
        "video_id": "007", "clip_id": "007-Scene-001", "video_title": "t", "voiceover": ["..."],
        "caption": {"shot_type": "Medium", "camera_movement": "static", "content": "A car.", "scene_title": "Road"},
    }  # fmt: skip
    content = {"meta": {"video_id": "007", "num_clips": 1, "integrity": True}, "data": {"007-Scene-001": clip}}
    (sample,) = read(
        "vript",
        {"vript_captions/vript_long_videos_captions/007_caption.json": content},
        ["vript_long_videos_clips/007/007-Scene-001.mp4"],
    )
    assert sample.turns[1].text == "A car."
