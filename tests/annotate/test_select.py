"""annotate/select.py: videos that are new, and why the others are left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eagle_model.annotate import select
from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.select import is_known, picture_hash, pooled, read_hashes, run_select, small
from eagle_model.annotate.work import Run, read_part
from eagle_model.data.clips import open_video
from eagle_model.data.sample import DataError
from eagle_model.infer.endpoint import EndpointConfig, Reply, RequestRefused
from tests.annotate.conftest import LIST, films

Make = Callable[..., AnnotateConfig]


class ByColour:
    """In an encoder's place: the mean colour, from the middle gray."""

    is_clip = True

    def __init__(self, folder: str) -> None:
        pass

    def __call__(self, frames_NYX3: torch.Tensor) -> np.ndarray:
        means = frames_NYX3.float().mean((1, 2)).numpy() - 110
        return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.fixture
def by_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "Encoder", ByColour)


def test_without_an_encoder_every_video_is_taken(tmp_path: Path, make_config: Make) -> None:
    folder = films(tmp_path / "films")
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "videos.jsonl").write_text((folder / "videos.jsonl").read_text() + '{"path": "broken.mp4"}\n')
    run = Run(make_config("http://none/v1", "part_videos=3"))
    totals = run_select(run)
    assert totals.num_rows == 3 and totals.failures[0]["item"] == "broken.mp4"
    assert "cannot be read" in totals.failures[0]["problem"]
    rows = read_part(run.folder / "select", 0).to_pylist()
    assert [(row["id"], row["num_clips"], row["width_px"]) for row in rows] == [
        ("bigbuckbunny.mp4", 1, 1280), ("bikes.mp4", 1, 640), ("carphone_pristine.mp4", 1, 193),
    ]  # fmt: skip
    assert rows[0]["chapters"][1] == {"start": 2.5, "end": None, "title": "Burrow"} and rows[1]["new_clips"] == [0.0]
    assert read_part(run.folder / "select", 1).num_rows == 0


def test_what_is_trained_on_already_is_left_out(tmp_path: Path, make_config: Make, by_colour: None) -> None:
    folder = films(tmp_path / "films")
    shutil.copy(folder / "bikes.mp4", folder / "copy.mp4")
    (folder / "videos.jsonl").write_text("".join(json.dumps(v) + "\n" for v in [*LIST, {"path": "copy.mp4"}]))
    first = Run(make_config("http://none/v1", "select.encoder=any", "select.clip_seconds=3.0"))
    totals = run_select(first)
    assert totals.failures == [{"item": "copy.mp4", "problem": "duplicate"}]
    features = np.load(first.folder / "select/features/part-00000.npy")
    assert features.shape == (2 + 3 + 1 + 3, 3) and features.dtype == np.float16

    said: list[str] = []
    (tmp_path / "old").mkdir()
    np.save(tmp_path / "old/bunny.npy", features[:2])
    again = make_config(
        "http://none/v1", "select.encoder=any", "select.clip_seconds=3.0", "select.reference=old",
        "select.threshold=0.999", "out=second",
    )  # fmt: skip
    totals = run_select(Run(again, say=said.append))
    assert {f["item"]: f["problem"] for f in totals.failures} == {"bigbuckbunny.mp4": "known", "copy.mp4": "duplicate"}
    assert any("largest cosine to the reference, 9 clips" in line for line in said)
    assert any("compares 9 clips with 2 of the reference" in line for line in said)


def test_looking_is_done_once(
    tmp_path: Path, make_config: Make, by_colour: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    films(tmp_path / "films")
    config = make_config("http://none/v1", "select.encoder=any")
    first = run_select(Run(config))
    monkeypatch.setattr(select, "_look", lambda *_: pytest.fail("looked at again"))
    assert run_select(Run(config)) == first


def test_other_hashes_or_another_model_at_the_same_place_are_looked_with_again(
    tmp_path: Path, make_config: Make, by_colour: None
) -> None:
    films(tmp_path / "films")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("old")
    (tmp_path / "known.txt").write_text("00000000000000ff\n")
    run = Run(make_config("http://none/v1", "select.encoder=model", "select.benchmark_hashes=known.txt"))
    notes = []
    for path, text in (("known.txt", "00000000000000fe\n"), ("model/weights", "newer"), ("other", "")):
        run_select(run)
        notes.append((run.folder / "select/features/part-00000.json").read_text())
        (tmp_path / path).write_text(text)
    run_select(run)
    notes.append((run.folder / "select/features/part-00000.json").read_text())
    assert len(set(notes)) == 3 and notes[2] == notes[3]


def test_another_encoder_needs_its_own_threshold(
    tmp_path: Path, make_config: Make, by_colour: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ByColour, "is_clip", False)
    films(tmp_path / "films")
    (tmp_path / "old").mkdir()
    np.save(tmp_path / "old/a.npy", np.eye(3, dtype=np.float16))
    said: list[str] = []
    config = make_config("http://none/v1", "select.encoder=any", "select.reference=old")
    with pytest.raises(DataError, match=r"--set select.threshold="):
        run_select(Run(config, say=said.append))
    assert "kept" in said[-1]  # the histogram came first
    np.save(tmp_path / "old/b.npy", np.eye(4, dtype=np.float16))
    with pytest.raises(DataError, match="this encoder's are 3 wide"):
        run_select(Run(config))


def test_frames_of_a_benchmark_are_known_by_their_hashes(tmp_path: Path, make_config: Make) -> None:
    folder = films(tmp_path / "films")
    film = open_video(folder / "bikes.mp4")
    chosen = film.choose(np.arange(0.5, 10), seek="tolerance")  # as a benchmark's frames are taken: 1 a second
    hashes = [picture_hash(small(frame.rgb_YX3)) ^ 0b101 for frame in film.frames(chosen[2:5])]  # two bits of noise
    (tmp_path / "known.txt").write_text("".join(f"{h:016x}\n" for h in hashes))
    config = make_config("http://none/v1", "select.benchmark_hashes=known.txt")
    assert run_select(Run(config)).failures == [{"item": "bikes.mp4", "problem": "benchmark"}]
    kept = make_config("http://none/v1", "select.benchmark_hashes=known.txt", "select.drop=still")
    run = Run(kept)
    run_select(run)
    assert [row["marks"] for row in read_part(run.folder / "select", 0).to_pylist()] == [[], ["benchmark"], []]


def test_one_frame_alike_is_chance() -> None:
    known = np.array([0b1111, 1 << 63], np.uint64)
    assert is_known([0b1110, (1 << 63) | 1], known, 1) and not is_known([0b1111, 0xFFFF0000], known, 1)
    assert is_known([0b1111], known, 0) and not is_known([], known, 4) and not is_known([1], known[:0], 64)


def test_a_plain_picture_has_no_hash() -> None:
    rgb_YX3 = torch.full((48, 64, 3), 90, dtype=torch.uint8)
    assert picture_hash(small(rgb_YX3)) is None
    rgb_YX3[:, 32:] = 200  # the fifth of nine columns is half of each
    assert picture_hash(small(rgb_YX3)) == int("00011000" * 8, 2)


def test_hashes_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("00000000000000ff\n8000000000000000\n")
    assert read_hashes(tmp_path / "h").tolist() == [255, 1 << 63]
    (tmp_path / "h").write_text("nonsense\n")
    with pytest.raises(DataError, match="16 hexadecimal digits"):
        read_hashes(tmp_path / "h")


def test_clips_are_pooled() -> None:
    frames = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    found = pooled(frames, np.array([0, 0, 2]), 3)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found, [[half, half], [half, half], [0, 1]], atol=1e-3)


class Refusing:
    """In an annotator's place: it looks at no bunny, and sees a watermark in all else."""

    def __init__(self) -> None:
        self.config = EndpointConfig(url="http://none/v1", model="told", max_concurrent=2)

    def ask(self, messages: Any, *, json_schema: Any, **_: Any) -> Reply:
        if "bunny" in messages[0]["content"][0]["video"]:
            raise RequestRefused("HTTP 400: content policy")
        return replace(Reply.none(), text='{"watermark": true, "unsafe": false, "still": false}')


def test_a_video_that_the_annotator_will_not_look_at_ends_no_step(tmp_path: Path, make_config: Make) -> None:
    films(tmp_path / "films")
    annotator = Refusing()
    run = Run(make_config("http://none/v1", "select.screen=true"), annotator=annotator, reader=annotator)
    totals = run_select(run)
    assert [f["problem"] for f in totals.failures] == ["watermark", "watermark"] and totals.num_requests == 2
    assert [row["marks"] for row in read_part(run.folder / "select", 0).to_pylist()] == [["unscreened"]]
