"""The demo's video set: its movement question cannot be answered without the order of the frames. The other examples,
in small: what they say they do, they do."""

import json
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import digit_videos
import lora
import video_digits

from eagle_kernels.video import probe
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def places(hops_HYX3: np.ndarray) -> list[tuple[int, int]]:
    """Upper left corner of what is brighter than the ground, of each hop."""
    found = []
    for hop_YX in hops_HYX3[..., 0]:
        ys, xs = np.nonzero(hop_YX > 60)
        found.append((int(xs.min()), int(ys.min())))
    return found


def test_a_digit_advances_its_way_and_visits_a_permutation_on_both_axes(digits) -> None:
    rng = np.random.default_rng(0)
    ways = Counter()
    for _ in range(60):
        hops, [(question, way)] = digit_videos.movement_clip(rng, digits.images, digits.target)
        assert question == digit_videos.ASK_MOVEMENT
        xs, ys = zip(*places(hops), strict=True)
        dx, dy = digit_videos.WAYS[way]
        steps = np.diff(xs) * dx + np.diff(ys) * dy
        assert (steps > 0).all()
        assert len(set(xs)) == len(set(ys)) == len(hops)
        # The same places on both axes, up to the digit's own outline: what the frames show as a set names no axis.
        assert sorted(np.subtract(xs, min(xs))) == sorted(np.subtract(ys, min(ys)))
        ways[way] += 1
    assert set(ways) == set(digit_videos.WAYS)


def test_a_needle_clip_asks_of_every_frame_once(digits) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        hops, turns = digit_videos.needle_clip(rng, digits.images, digits.target)
        assert sorted(q for q, _ in turns) == [f"Which digit is in frame {k + 1}?" for k in range(len(hops))]


def test_the_set_is_real_video_in_eagles_format_and_held_out_digits_are_unseen(tmp_path: Path, monkeypatch) -> None:
    seen: dict[bool, set[bytes]] = {True: set(), False: set()}
    for kind, make in list(digit_videos.KINDS.items()):

        def spy(rng, pictures, labels, make=make):
            seen[len(pictures) < 1000] |= {p.tobytes() for p in pictures}
            return make(rng, pictures, labels)

        monkeypatch.setitem(digit_videos.KINDS, kind, spy)
    folder = tmp_path / "videos"
    files = list(digit_videos.build(folder, num_train=8, num_test=4))
    assert len(files) == 12
    assert seen[True]
    assert not seen[True] & seen[False]

    (source,) = read_recipe(folder / "recipe.json")
    samples = list(read_samples(source))
    assert len(samples) == 8
    info = probe(samples[0].videos[0].path)
    assert (info.codec, info.frames_per_second) == ("h264", 8.0)
    assert info.num_frames % digit_videos.FRAMES_PER_HOP == 0


def test_an_interrupted_build_leaves_no_half_made_set(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    making = digit_videos.build(folder, num_train=8, num_test=4)
    next(making)
    making.close()
    assert not folder.exists()
    list(digit_videos.build(folder, num_train=8, num_test=4))
    rows = (folder / "train.jsonl").read_text().splitlines()
    assert len({json.loads(row)["id"] for row in rows}) == len(rows) == 8


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE])
def test_a_stopped_demo_exits_by_its_signal(how: signal.Signals, tmp_path: Path, monkeypatch) -> None:
    class Stopped:
        stopped_by = how

        def __init__(self, config, run, *, say) -> None:
            assert run == tmp_path / "training"

        def train(self) -> bool:
            return False

    (tmp_path / "videos").mkdir()
    monkeypatch.setattr(video_digits, "Trainer", Stopped)
    monkeypatch.setattr(video_digits, "show_plan", lambda folder: None)
    monkeypatch.setattr(sys, "argv", ["video_digits.py", "--run", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        video_digits.main()
    assert stopped.value.code == 128 + how


def test_lora_trains_asks_and_merges(tmp_path: Path, capsys) -> None:
    lora.main(tmp_path, None, max_steps=2)
    printed = capsys.readouterr().out
    for colour in lora.COLOURS:
        assert f"{colour}: without adapters" in printed
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000002"
    sizes = [
        (tmp_path / "model/model.safetensors").stat().st_size,
        (checkpoint / "adapter_model.safetensors").stat().st_size,
    ]
    assert sizes[1] < sizes[0] / 3
    picture = tmp_path / "data" / "red.png"
    answers = [
        lora.ask(tmp_path / "model", picture),
        lora.ask(tmp_path / "model", picture, tmp_path / "run"),
        lora.ask(tmp_path / "merged", picture),
    ]
    assert answers[0] != answers[1] == answers[2]
