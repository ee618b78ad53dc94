"""Writes frames as a small H.264 file that is cheap to take single frames from: short groups, one after another.

    num_bytes = write_frames(Path("proxy.mp4"), frames_YX3, crf=18, group_frames=8)     # frame i is at i / 25 s

BT.709, full range, colour at full size: at a quarter of it a tile keeps 41 dB before anything is coded (docs/notes/
video.md). No frame leans on a later one, so a frame costs at most its group's beginning.

Dims    Y rows, X columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray

FRAMES_A_SECOND = 25  # of the file's own clock, which says nothing of when the frames were shown
LOSSLESS_CRF, WORST_CRF = 0, 51  # of x264
TO_PLANES = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
PLANES = "yuv444p"


def write_frames(path: Path, frames_YX3: Iterable[NDArray[np.uint8]], *, crf: int, group_frames: int) -> int:
    """Encodes RGB frames of one size into an MP4 whose tables come first; how many bytes it has.

    crf: x264's constant rate factor, 0 (lossless) to 51; about 6 halve or double the file. group_frames: every so
    many frames there is one that decoding can start at.
    Raises ValueError for no frames, and for a crf or group_frames that cannot be.
    """
    if not (LOSSLESS_CRF <= crf <= WORST_CRF and group_frames >= 1):
        raise ValueError(f"write_frames: crf is {crf} and group_frames {group_frames}; needs 0 to 51 and at least 1.")
    # psnr: bits go where they lower the error; psychovisual tuning would spend them on sharp-looking noise.
    options = {"crf": str(crf), "g": str(group_frames), "bf": "0", "preset": "medium", "tune": "psnr"}
    num_frames = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_A_SECOND, options=options)
        coder = stream.codec_context
        coder.thread_count = 1
        coder.pix_fmt = PLANES
        coder.color_range, coder.colorspace = ColorRange.JPEG, Colorspace.ITU709
        for num_frames, rgb_YX3 in enumerate(frames_YX3, 1):
            if num_frames == 1:
                stream.height, stream.width = rgb_YX3.shape[:2]
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb_YX3), format="rgb24")
            planes = rgb.reformat(
                format=PLANES,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.JPEG,
                interpolation=TO_PLANES,
            )
            planes.pts = num_frames - 1
            container.mux(stream.encode(planes))
        if num_frames == 0:
            raise ValueError("write_frames: there are no frames.")
        container.mux(stream.encode(None))
    return path.stat().st_size
