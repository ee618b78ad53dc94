"""What the tutorials need and do not explain: a film, a model that is small enough for a laptop, the command `eagle`.

Your own films and a released model's folder go in their places. `examples/` is put on the path, whose scripts the
tutorials share.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))

import lora  # of examples/

WAYS = ("left", "right", "up", "down")


def make_film(path: Path, *, way: str = "right", seconds: int = 6, width_px: int = 160, height_px: int = 96) -> Path:
    """A bright square that moves one way over gray, 8 frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    num_frames, side = 8 * seconds, height_px // 4
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[way]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast", "g": "16"})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        for k in range(num_frames):
            picture_YX3 = np.full((height_px, width_px, 3), 70, np.uint8)
            share = k / (num_frames - 1)
            x = int((width_px - side) * (0.5 + dx * (share - 0.5)))
            y = int((height_px - side) * (0.5 + dy * (share - 0.5)))
            picture_YX3[y : y + side, x : x + side] = 230
            frame = av.VideoFrame.from_ndarray(picture_YX3, format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_model(folder: Path, context_tokens: int = 2048) -> Path:
    """An Eagle of random weights in the files of a released one; tiles of 28 x 28 pixels. It answers nonsense."""
    if not folder.exists():
        lora.make_model(folder, context_tokens)
    return folder


def eagle(*words: object, may_end_with: tuple[int, ...] = (0,)) -> None:
    """`eagle WORDS` in this process. In a terminal you type what it prints first."""
    from eagle_model.cli import app

    print("$ eagle", *words, flush=True)
    code = app([str(word) for word in words], prog_name="eagle", standalone_mode=False) or 0
    if code not in may_end_with:
        raise RuntimeError(f"eagle {words[0]} ended with {code}")
