"""Prompts that vLLM's processing and ours are compared on, and the model's folder that they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import train_tokenizer
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle

FPS, SECONDS = 4.0, 3.0
TIMES = (0.0, 1.25, 2.75)


def _user(*parts: dict[str, str]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}
CASES: dict[str, dict[str, Any]] = {  # images: (width, height); videos: how many
    "text": {"messages": _user(_text("Hello")), "images": [], "videos": 0},
    "image": {"messages": _user(IMAGE, _text("What is it?")), "images": [(90, 60)], "videos": 0},
    "inside": {"messages": _user(_text("Look: "), IMAGE, _text("\nWhat?")), "images": [(28, 28)], "videos": 0},
    "images": {
        "messages": _user(IMAGE, _text(" and "), IMAGE, _text("?")),
        "images": [(60, 90), (200, 30)],
        "videos": 0,
    },
    "video": {"messages": _user(VIDEO, _text("What moves?")), "images": [], "videos": 1},
    "both": {"messages": _user(IMAGE, VIDEO, _text("Why?"), VIDEO), "images": [(30, 31)], "videos": 2},
}


def processor() -> Processor:
    sampling = SamplingConfig(context_tokens=512, max_tiles=6)
    tokenizer = train_tokenizer(["Look: What moves? The first video sampled with fps Frame sample at <image"], 320)
    mean, std = (0.5, 0.5, 0.25), (0.5, 0.25, 0.5)
    return Processor(tokenizer, ProcessorConfig(tile_px=28, patch_px=7, mean=mean, std=std, sampling=sampling))


def folder_of(folder: Path) -> Path:
    """Written as `eagle convert` writes a model."""
    ours = processor()
    torch.manual_seed(0)
    vocab_size = ours.tokenizer.get_vocab_size()
    Eagle(tiny(vocab_size=vocab_size, image_token_id=ours.encoder.context_id)).save_pretrained(folder)
    ours.save_pretrained(folder)
    return folder


def picture(width: int, height: int, seed: int) -> Image.Image:
    draws = np.random.default_rng(seed)
    small = Image.fromarray(draws.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BILINEAR)


def film(seed: int) -> np.ndarray:
    return np.stack([np.asarray(picture(40, 30, 100 * seed + i)) for i in range(len(TIMES))])


def media_of(case: dict[str, Any]) -> dict[str, Any]:
    """As vLLM's loaders give them."""
    found: dict[str, Any] = {}
    if case["images"]:
        found["image"] = [picture(*size, seed) for seed, size in enumerate(case["images"])]
    if case["videos"]:
        about = {"fps": FPS, "duration": SECONDS, "frames_indices": [round(t * FPS) for t in TIMES]}
        found["video"] = [(film(seed), about) for seed in range(case["videos"])]
    if case.get("swapped"):
        found = {kind: list(reversed(media)) for kind, media in found.items()}
    return found
