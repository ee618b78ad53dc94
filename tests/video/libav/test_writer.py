"""Frames that are written come back: as many, in order, as near as the crf says, and from short groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eagle_kernels import video
from eagle_kernels.video.containers import mp4
from eagle_kernels.video.libav.writer import FRAMES_A_SECOND, write_frames
from tests.video.make import draw, numbers, smooth_picture


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(np.float64) - b).mean()))


def test_frames_come_back_in_order_from_short_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    num_bytes = write_frames(path, (draw(i) for i in range(21)), crf=20, group_frames=8)
    assert num_bytes == path.stat().st_size
    assert mp4.read_tables(path) is not None, "it opens by its tables"
    film = video.open(path)
    assert film.info.key_frames.tolist() == [0, 8, 16]
    assert numbers(film.frames(np.arange(21) / FRAMES_A_SECOND)) == list(range(21))


def test_colours_are_kept_and_a_lower_crf_keeps_more(tmp_path: Path) -> None:
    """All hues, at odd sizes too: a wrong matrix or range would cost 20 dB."""
    picture = smooth_picture(95, 127).round().astype(np.uint8)
    found = []
    for crf in (28, 16, 0):
        num_bytes = write_frames(tmp_path / "a.mp4", [picture], crf=crf, group_frames=1)
        (frame,) = video.open(tmp_path / "a.mp4").frames([0.0])
        found.append((psnr_db(frame.rgb_YX3.numpy(), picture), num_bytes))
    assert found == sorted(found)
    assert found[0][0] > 36
    assert found[2][0] > 48


@pytest.mark.parametrize(
    ("crf", "group_frames", "num_frames", "message"),
    [
        (52, 8, 1, "crf is 52 and group_frames 8; needs 0 to 51"),
        (-1, 8, 1, "crf is -1"),
        (20, 0, 1, "group_frames 0"),
        (20, 8, 0, "there are no frames"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, crf: int, group_frames: int, num_frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_frames(tmp_path / "a.mp4", [draw(0)] * num_frames, crf=crf, group_frames=group_frames)
