"""Questions about videos in their official layouts. Where each layout was learned from says sources/table.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle_model.data.formats.records import CHOOSE, DESCRIBE
from eagle_model.data.sample import VideoRef
from eagle_model.data.sources.questions import WHAT_ACTION, WHAT_HAPPENS, WHICH
from tests.data.sources.conftest import Read


def test_llava_video(read: Read, tmp_path: Path) -> None:
    rows = [
        {
            "id": "s-1",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is she doing?"},
                {"from": "gpt", "value": "She folds a towel."},
                {"from": "human", "value": "Where?"},
                {"from": "gpt", "value": "In <image>."},
            ],
            "data_source": "0_30_s_academic_v0_1",
            "video": "academic_source/Charades/AB12C.mp4",
        }
    ]
    file = "0_30_s_academic_v0_1/0_30_s_academic_oe_v0_1_qa_processed.json"
    (sample,) = read("llava_video_178k", {file: rows}, ["0_30_s_academic_v0_1/academic_source/Charades/AB12C.mp4"])
    video = VideoRef(tmp_path / "0_30_s_academic_v0_1/academic_source/Charades/AB12C.mp4")
    assert sample.turns[0].parts == (video, "\nWhat is she doing?")
    assert sample.turns[3].text == "In <image>."
    assert sample.unused_fields == ("data_source",)


def test_finevideo(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from eagle_model.data.formats.convert import convert
    from eagle_model.data.recipe import read_recipe
    from eagle_model.data.rows import read_samples
    from tests.data.conftest import write_video

    activities = [
        {"description": "He waves.", "timestamp": {"start_timestamp": "00:00:00.500", "end_timestamp": "00:01:01.000"}},
        {"description": "Unclear.", "timestamp": {"start_timestamp": "then", "end_timestamp": None}},
    ]
    about = {
        "description": "A man waves.",
        "fps": 30.0,
        "qAndA": [{"question": "Who?", "answer": "A man."}, {"question": "Why?", "answer": None}],
        "scenes": [{"activities": activities, "mood": {"description": "calm"}}],
    }
    film = write_video(tmp_path / "film.mp4").read_bytes()
    (tmp_path / "data").mkdir()
    record = {"mp4": film, "json": {"content_fine_category": "x", "content_metadata": about}}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "data/train-00000-of-00001.parquet")
    done = convert(tmp_path / "data", tmp_path / "out", layout="finevideo")
    assert (done.num_rows, done.num_media) == (2, 1)
    (source,) = read_recipe(tmp_path / "out/recipe.json")
    described, timed = read_samples(source)
    assert [turn.text for turn in described.turns] == [DESCRIBE["video"], "A man waves.", "Who?", "A man."]
    assert [turn.text for turn in timed.turns] == [WHAT_HAPPENS, "0.5 - 61.0 s: He waves."]
    assert described.videos[0].path.read_bytes() == film and described.videos == timed.videos


NEXTQA = (
    "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    "24,90,640,480,why did he jump,3,6,CW,joy,fear,play,ball,fall\n"
)


@pytest.mark.parametrize("place", ["videos/24.mp4", "NExTVideo/1164/24.mp4"])
def test_nextqa(read: Read, tmp_path: Path, place: str) -> None:
    (sample,) = read("nextqa", {"train.csv": NEXTQA, "map_vid_vidorID.json": {"24": "1164/24"}}, [place])
    assert sample.videos == (VideoRef(tmp_path / place),) and sample.id == "24_6"
    assert [turn.text for turn in sample.turns] == [
        f"why did he jump\nA. joy\nB. fear\nC. play\nD. ball\nE. fall\n{CHOOSE}",
        "D. ball",
    ]


def test_star(read: Read, tmp_path: Path) -> None:
    choices = [{"choice_id": 1, "choice": "The bag."}, {"choice_id": 0, "choice": "The cup."}]
    record = {
        "question_id": "Interaction_T1_9", "question": "Which object was taken?", "video_id": "AB12C", "start": 7.7,
        "end": 15.7, "answer": "The cup.", "question_program": [], "choices": choices, "situations": {"000001": {}},
    }  # fmt: skip
    (sample,) = read("star", {"STAR_train.json": [record]}, ["Charades_v1_480/AB12C.mp4"])
    assert sample.videos == (VideoRef(tmp_path / "Charades_v1_480/AB12C.mp4", 7.7, 15.7),)
    assert sample.turns[0].text.startswith("Which object was taken?\nA. The cup.\nB. The bag.")
    assert sample.turns[1].text == "A. The cup."


def test_clevrer(read: Read) -> None:
    choices = [("The cube's entrance", "correct"), ("The sphere's exit", "wrong"), ("A collision", "correct")]
    questions = [
        {"question_id": 0, "question": "How many?", "question_type": "descriptive", "answer": "2", "program": []},
        {
            "question_id": 1, "question": "What is responsible?", "question_type": "explanatory",
            "choices": [{"choice_id": i, "choice": text, "answer": answer} for i, (text, answer) in enumerate(choices)],
        },
        {"question_id": 2, "question": "Without it?", "choices": [{"choice_id": 0, "choice": "x", "answer": "wrong"}]},
    ]  # fmt: skip
    scene = {"scene_index": 1003, "video_filename": "video_01003.mp4", "questions": questions}
    (sample,) = read("clevrer", {"train.json": [scene]}, ["video_train/video_01000-02000/video_01003.mp4"])
    said = [turn.text for turn in sample.turns]
    assert said[:2] == ["How many?", "2"]
    assert said[2].endswith(WHICH) and said[3] == "A. The cube's entrance\nC. A collision" and said[5] == "None"


def test_perception_test(read: Read) -> None:
    record = {
        "metadata": {"split": "train", "video_id": "video_1", "frame_rate": 30.0, "num_frames": 300},
        "object_tracking": [],
        "action_localisation": [
            {"id": 1, "label": "Turning it", "timestamps": [9, 9], "frame_ids": [60, 90], "parent_objects": []},
            {"id": 0, "label": "Putting it down", "timestamps": [9, 9], "frame_ids": [0, 45], "parent_objects": []},
        ],
        "mc_question": [
            {"id": 0, "question": "What moves?", "options": ["cup", "box", "none"], "answer_id": 1, "area": "physics"}
        ],
    }
    asked, timed = read("perception_test", {"all_train.json": {"video_1": record}}, ["videos/video_1.mp4"])
    assert asked.turns[1].text == "B. box"
    assert timed.turns[1].text == "0.0 - 1.5 s: Putting it down\n2.0 - 3.0 s: Turning it"


@pytest.mark.parametrize("folder", ["train", "train/riding a bike", "videos"])
def test_kinetics(read: Read, folder: str) -> None:
    text = "label,youtube_id,time_start,time_end,split\nriding a bike,-ab_c,7,17,train\n"
    (sample,) = read("kinetics", {"train.csv": text}, [f"{folder}/-ab_c_000007_000017.mp4"])
    assert [turn.text for turn in sample.turns] == [WHAT_ACTION, "riding a bike"]


def test_something_something(read: Read) -> None:
    record = {"id": "7", "label": "pushing a cup", "template": "Pushing [something]", "placeholders": ["a cup"]}
    (sample,) = read("something_something_v2", {"train.json": [record]}, ["20bn-something-something-v2/7.webm"])
    assert sample.turns[1].text == "pushing a cup"


def test_allava_longalign_and_finevision_need_no_layout(tmp_path: Path) -> None:
    """Stage 1's set, the long texts, and most of Table 11a are read as they are."""
    import json

    from eagle_model.data.formats.check import check
    from tests.data.formats.conftest import picture

    (tmp_path / "allava_laion/images").mkdir(parents=True)
    (tmp_path / "allava_laion/images/1.jpeg").write_bytes(picture(kind="JPEG"))
    turns = [{"from": "human", "value": "<image>\nDepict it."}, {"from": "gpt", "value": "A ring."}]
    row = {
        "id": "allava_laion_cap_1", "image": "allava_laion/images/1.jpeg", "conversations": turns,
        "original_caption": "Ring", "url": "https://host/ring.jpg",
    }  # fmt: skip
    (tmp_path / "ALLaVA-Caption-LAION-4V.json").write_text(json.dumps([row]))
    report = check(tmp_path / "ALLaVA-Caption-LAION-4V.json", pixels=True)
    assert report.is_good and set(report.unused_fields) == {"original_caption", "url"}
    messages = [{"role": "user", "content": "Sum it up."}, {"role": "assistant", "content": "Done."}]
    (tmp_path / "long.jsonl").write_text(json.dumps({"messages": messages, "length": 9000}) + "\n")
    assert check(tmp_path / "long.jsonl").is_good
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    record = {
        "images": [{"bytes": picture(), "path": None}], "texts": [{"user": "Q", "assistant": "A"}], "source": "ai2d",
        "relevance_ratings": [5], "relevance_min": 5,
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "train.parquet")
    assert check(tmp_path / "train.parquet", pixels=True).is_good
