"""A small model's folder with its processor's files, and a picture, for the tests of Hugging Face's tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eagle_model import Eagle, Processor
from eagle_model.data.processor import ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import train_tokenizer
from eagle_model.model.config import tiny
from tests.model.samples import randomise


def write_folder(folder: Path) -> Path:
    sampling = SamplingConfig(context_tokens=384, max_tiles=2)
    tokenizer = train_tokenizer(["What is this? A cat. A dog. You are a helpful assistant. system user"] * 2, 320)
    processor = Processor(tokenizer, ProcessorConfig(tile_px=28, patch_px=7, sampling=sampling))
    torch.manual_seed(0)
    eagle = Eagle(tiny(vocab_size=tokenizer.get_vocab_size(), image_token_id=processor.encoder.context_id))
    randomise(eagle)
    eagle.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(size: tuple[int, int] = (40, 28), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


QUESTION = [{"type": "image", "image": picture()}, {"type": "text", "text": "What is this?"}]
