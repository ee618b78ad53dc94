"""The records of the video package."""

from dataclasses import FrozenInstanceError

import pytest

from eagle_kernels.video import VideoError, probe
from tests.video.make import GoldenSet


def test_an_error_of_the_file_is_a_value_error() -> None:
    assert issubclass(VideoError, ValueError)


def test_info_cannot_be_changed(golden: GoldenSet) -> None:
    info = probe(golden.good["b_frames.mp4"].path)
    with pytest.raises(FrozenInstanceError):
        info.num_frames = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        info.frame_times_seconds[0] = 1.0
