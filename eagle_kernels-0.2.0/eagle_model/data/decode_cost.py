"""What a sample's pixels cost to load: an estimate in seconds of one CPU core, so that packs and ranks can be balanced.

    decode_seconds([(4000, 3000)], num_image_tiles=13, clips=[], num_frames=[])       # 0.15

Only proportions matter. An image is decoded whole, a video from the key frame before each frame that is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from eagle_model.data.clips import Clip

# Of one core, of the order of bench/results/decode_tiles-cpu.json; a faster machine changes all of them alike.
IMAGE_SECONDS_A_PX = 10e-9  # JPEG to RGB
FRAME_SECONDS_A_PX = 4e-9  # H.264 and HEVC of 8 bits
TILE_SECONDS = 2e-3  # resized, normalised, cut into patches
PAGE_SECONDS = 0.05  # of a document, rendered


def decode_seconds(
    images: Sequence[tuple[int, int]], *, num_image_tiles: int, clips: Sequence[Clip], num_frames: Sequence[int]
) -> float:
    """images: (width_px, height_px) of each.  num_image_tiles: of all images.  num_frames: taken of each clip."""
    seconds = IMAGE_SECONDS_A_PX * sum(width * height for width, height in images) + TILE_SECONDS * num_image_tiles
    for clip, num in zip(clips, num_frames, strict=True):
        seconds += clip_seconds(clip, num)
    return seconds


def clip_seconds(clip: Clip, num_frames: int) -> float:
    """Of one video or document, of which num_frames are taken."""
    if clip.duration_seconds is None:
        return (PAGE_SECONDS + TILE_SECONDS) * num_frames
    num_decoded = min(float(clip.num_frames), num_frames * (clip.frames_a_key + 1) / 2)  # half a group before each
    return FRAME_SECONDS_A_PX * clip.frame_px * max(num_decoded, num_frames) + TILE_SECONDS * num_frames
