"""The estimate of what pixels cost: larger images, more frames and longer groups cost more; text nothing."""

import numpy as np
import pytest

from eagle_model.data.clips import Clip, document_clip
from eagle_model.data.decode_cost import (
    FRAME_SECONDS_A_PX,
    IMAGE_SECONDS_A_PX,
    PAGE_SECONDS,
    TILE_SECONDS,
    decode_seconds,
)


def film(num_frames: int, frames_a_key: float) -> Clip:
    return Clip(np.arange(float(num_frames)), float(num_frames), None, num_frames, frames_a_key, 1000)


def test_what_pixels_cost() -> None:
    assert decode_seconds([], num_image_tiles=0, clips=[], num_frames=[]) == 0
    image = decode_seconds([(1000, 500)], num_image_tiles=3, clips=[], num_frames=[])
    assert image == pytest.approx(500_000 * IMAGE_SECONDS_A_PX + 3 * TILE_SECONDS)
    pages = decode_seconds([], num_image_tiles=0, clips=[document_clip(9)], num_frames=[4])
    assert pages == pytest.approx(4 * (PAGE_SECONDS + TILE_SECONDS))


@pytest.mark.parametrize(
    ("frames_a_key", "taken", "decoded"),
    [(1, 10, 10), (9, 10, 50), (9, 90, 100), (100, 100, 100)],  # each from its key frame, but no frame twice
)
def test_a_video_is_decoded_from_its_key_frames(frames_a_key: float, taken: int, decoded: int) -> None:
    seconds = decode_seconds([], num_image_tiles=0, clips=[film(100, frames_a_key)], num_frames=[taken])
    assert seconds == pytest.approx(decoded * 1000 * FRAME_SECONDS_A_PX + taken * TILE_SECONDS)
