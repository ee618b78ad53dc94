"""Which fields of a row are refused by name, and which are left out."""

from __future__ import annotations

import time

import pytest

from eagle_model.data.row_fields import refusal, says_nothing

REFUSED = [  # name, value: each was found in somebody's data, or is nearly such a name
    ("imgs", ["a.png"]), ("img", "a.png"), ("Image", "a.png"), ("image_path", "a.png"), ("image_url", "a.png"),
    ("imagePath", "a.png"), ("image_1", "a.png"), ("image2", "a.png"), ("images_path", ["a.png"]), ("pictures", ["a"]),
    ("photo", "a.jpg"), ("image_file", "a"), ("media", ["a.png"]), ("video_path", "v.mp4"),
    ("vidoe", "v"), ("vidoes", ["v"]), ("video_url", "v"), ("audios", ["a.wav"]), ("audio", "a.wav"), ("imge", "a.png"),
    ("image_bytes", "xx"), ("image_base64", "xx"), ("tools", "[{}]"), ("objects", {"ref": ["a"], "bbox": [[1]]}),
    ("fps", 2), ("nframes", 8), ("max_pixels", 5), ("weight", 2), ("weights", [1]), ("loss", False), ("train", 0),
    ("loss_scale", 2.0), ("sample_weight", 0.5), ("rejected_response", "no"), ("chosen", {"value": "x"}),
    ("reasoning_content", "because"), ("system_prompt", "x"), ("sytem", "x"), ("history", [["a", "b"]]),
    ("num_frames", 8), ("sampling_fps", 1), ("frame_rate", 2), ("max_dynamic_tiles", 3), ("repeat_time", 3),
    ("sys", "x"), ("second_image", "b.png"), ("leftImage", "b.png"), ("image_after", ["b.png"]),
    ("reference-img", {"path": "b.png"}),
    ]  # fmt: skip
LEFT_OUT = [
    ("score", 0.5), ("source", "coco"), ("image_id", "12"), ("video_id", "v_12"), ("image_width", 640), ("height", 5),
    ("num_images", 2), ("n_images", 2), ("has_image", True), ("dataset", "coco"), ("label", 3), ("bbox", [1, 2, 3, 4]),
    ("caption", "A dog."), ("question", "What?"), ("type", "image"), ("timestamp", [3, 5]), ("date", "today"),
    ("duration", 3.5), ("imageid", "x"), ("coco_url", "http://x/a.jpg"), ("original", {"path": "a.png"}), ("end", 3),
    ("clip", [0, 2]), ("tools", []), ("tools", "[]"), ("en_conversations", ["x"]),
    ("objects", {"ref": [], "bbox": None}), ("audios", None), ("image_path", ""), ("image_after", "a dog"), ("to", 5),
    ("frames", [0, 1]), ("image_caption", "A dog."), ("video_category", "sports"), ("frame_ids", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_was_meant_to_change_something_is_refused(name: str, value: object) -> None:
    for has_video in (False, True):
        assert refusal(name, value, has_media=True, has_video=has_video)


@pytest.mark.parametrize(("name", "value"), LEFT_OUT)
def test_what_changes_nothing_is_left_out(name: str, value: object) -> None:
    assert refusal(name, value, has_media=True, has_video=False) is None


@pytest.mark.parametrize("value", ["d/a.JPG", ["v.mp4"], {"path": "a.png"}, {"bytes": "xx"}, "data:image/png;base64,A"])
def test_a_file_of_a_row_that_shows_none_is_refused(value: object) -> None:
    why = refusal("file", value, has_media=False, has_video=False)
    assert why is not None
    assert why.startswith("it names a file, and the row shows none")
    assert refusal("file", value, has_media=True, has_video=False) is None
    assert refusal("file", "a.txt", has_media=False, has_video=False) is None


@pytest.mark.parametrize(
    "name", ["clip", "bound", "segment", "time_range", "start_sec", "endTime", "clip_start", "start_ms"]
)
def test_other_names_of_a_clip_are_refused_beside_a_video(name: str) -> None:
    why = refusal(name, [0.9, 1.2], has_media=True, has_video=True)
    assert why is not None
    assert why.startswith("a clip is given by 'start' and 'end', in seconds")
    assert refusal(name, [0.9, 1.2], has_media=True, has_video=False) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip", {"start": 1, "end": 2}), ("clip", "0.5-1.5"), ("segments", [[0.5, 1]]), ("timestamps", [1, 2]),
        ("moment", [1, 2]), ("t_start", 1), ("start_timestamp", "00:01"), ("endTs", 3), ("begin", 1),
        ("to", "1:02:03.5"), ("from", 2.5), ("frame_range", [3, 9]), ("frames", [0, 2]), ("frame_indices", [0, 2]),
        ("start_end", [1, 2]),
    ],
)  # fmt: skip
def test_what_chooses_a_part_of_a_video_is_refused(name: str, value: object) -> None:
    assert refusal(name, value, has_media=True, has_video=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("from", "youtube"), ("stop", "word"), ("timestamps", [[0, 5], [3, 9]]), ("timestamp", "2024-01-02 10:00"),
        ("timestamp", 1700000000), ("frames", 300), ("clip", "v_12_scene"), ("duration", 3.5), ("to", "the right"),
        ("segments", [{"text": "a"}, {"text": "b"}]), ("frame_id", "x"),
    ],
)  # fmt: skip
def test_what_is_known_of_a_video_is_left_out(name: str, value: object) -> None:
    assert refusal(name, value, has_media=True, has_video=True) is None


def test_what_says_nothing() -> None:
    assert all(map(says_nothing, [None, "", " [] ", [], {}, {"ref": [], "bbox": [None, {"x": ""}]}]))
    assert not any(map(says_nothing, [0, False, "a", [0], {"a": {"b": 0}}]))


def test_long_names_and_many_rows_are_quick() -> None:
    started = time.process_time()
    refusal("image" * 1_000_000, "x", has_media=False, has_video=False)
    refusal("x", "a." * 1_000_000, has_media=False, has_video=False)
    for _ in range(20_000):
        refusal("original_caption", "x", has_media=True, has_video=False)
    assert time.process_time() - started < 5  # about 0.1 on an idle core; difflib for each row would take 40
