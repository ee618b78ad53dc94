"""Small real media, made once a session: what the data tests read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import train_tokenizer

TEXTS = [
    "system You are a helpful assistant. user assistant observation",
    "The first video sampled with 2.00 fps: Frame 1 sample at 0.00s: Frame 2 sample at 0.50s: <image 1>",
    "What moves? A digit moves to the left, then up. Which digit is in frame 3? It is a seven.",
] * 3


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 400)


@pytest.fixture(scope="session")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, tiny_config())


def tiny_config(**changes: object) -> ProcessorConfig:
    """56 px tiles of 4 x 4 patches: 4 visual tokens a tile. Changes of fields of SamplingConfig go there."""
    limits = {f.name for f in fields(SamplingConfig)}
    sampling = {"context_tokens": 1024, "min_frames": 2, "max_frames": 16}
    sampling |= {name: value for name, value in changes.items() if name in limits}
    others = {"tile_px": 56, "patch_px": 14} | {name: value for name, value in changes.items() if name not in limits}
    return ProcessorConfig(sampling=SamplingConfig(**sampling), **others)  # type: ignore[arg-type]


def write_video(path: Path, *, num_frames: int = 20, fps: int = 10, first_level: int = 0) -> Path:
    """64 x 48 H.264; frame i is gray, of level first_level + 4 * i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "g": "8"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for i in range(num_frames):
            pixels = np.full((48, 64, 3), first_level + 4 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_image(path: Path, width: int = 80, height: int = 60, *, level: int = 128) -> Path:
    Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: clip.mp4 (20 frames), long.mp4 (60), both 10 fps; wide.png (168 x 56), square.png (56 x 56);
    cut.mp4, cut.png, empty.mp4."""
    root = tmp_path_factory.mktemp("media")
    write_video(root / "clip.mp4")
    write_video(root / "long.mp4", num_frames=60)
    write_image(root / "wide.png", 168, 56, level=200)
    write_image(root / "square.png", 56, 56, level=50)
    whole = (root / "long.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "empty.mp4").touch()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(root / "noise.png")
    (root / "cut.png").write_bytes((root / "noise.png").read_bytes()[:4000])
    return root


@pytest.fixture
def recipe(tmp_path: Path, media: Path) -> Callable[..., Path]:
    """recipe(rows, **fields): writes rows as JSON Lines and a recipe of one source; returns the recipe's path."""

    def write(rows: list[dict], **more_fields: object) -> Path:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        fields = {"root": str(media), "annotation": "rows.jsonl", **more_fields}
        (tmp_path / "recipe.json").write_text(json.dumps({"digits": fields}))
        return tmp_path / "recipe.json"

    return write


def chat_row(question: str = "What moves?", answer: str = "A digit.", **more: object) -> dict:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}
