"""Workers change no byte, meet damage where one does, and hold a bounded number of frames."""

import random
import threading
import time

import pytest
import torch

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")


from eagle_kernels.video import VideoError, decode, probe
from eagle_kernels.video.libav import drops, workers
from eagle_kernels.video.libav import picture as libav_picture
from tests.video.make import (
    GOOD_NAMES,
    GoldenSet,
    read,
)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_workers_and_left_out_packets_change_no_byte(
    golden: GoldenSet, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = golden.good[name].path
    times = probe(path).frame_times_seconds
    in_order = [frame.rgb_YX3 for frame in decode(path, times.tolist())]
    monkeypatch.setattr(drops, "WORTH_A_CHECK", 0)
    rng = random.Random(1)
    sparse = sorted(rng.sample(range(len(times)), min(9, len(times))))
    for order in (list(range(len(times))), sparse, rng.sample(range(len(times)), min(9, len(times)))):
        for num_workers in (1, 3):
            frames = list(decode(path, times[order].tolist(), num_workers=num_workers))
            assert [f.timestamp_seconds for f in frames] == times[order].tolist()
            for i, frame in zip(order, frames, strict=True):
                assert torch.equal(frame.rgb_YX3, in_order[i]), f"frame {i} of {name}, {num_workers} workers"


@pytest.mark.parametrize("name", ["garbage_inside.mp4", "garbage_inside.mkv", "garbage_inside.ts", "truncated.mkv"])
def test_workers_meet_damage_where_one_does(golden: GoldenSet, name: str) -> None:
    path = golden.bad[name]
    times = probe(path).frame_times_seconds.tolist()
    outcomes = []
    for num_workers in (1, 2):
        given, message = [], ""
        try:
            given.extend(decode(path, times, num_workers=num_workers))
        except VideoError as error:
            message = str(error)
        outcomes.append(([(f.timestamp_seconds, read(f.rgb_YX3.numpy())) for f in given], message))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_run_ahead_by_a_bounded_number_of_frames(
    golden: GoldenSet, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    whole = libav_picture.to_rgb
    monkeypatch.setattr(libav_picture, "to_rgb", lambda *args: made.append(0) or whole(*args))
    path = golden.good["b_frames.mp4"].path
    frames = decode(path, [i / 25 for i in range(120)], num_workers=num_workers)
    most = 0
    for i, _ in enumerate(frames, 1):
        if i % 30 == 10:
            time.sleep(0.05)  # time to run ahead
        most = max(most, len(made) - i)
    ahead = (workers.FRAMES_AHEAD + 1) * num_workers * (workers.GROUPS_AHEAD + 1)
    assert most <= (0 if num_workers == 1 else ahead)


def test_workers_end_when_the_caller_goes(golden: GoldenSet) -> None:
    path = golden.good["b_frames.mp4"].path
    frames = decode(path, [i / 25 for i in range(120)], num_workers=2)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("eagle-video")]
