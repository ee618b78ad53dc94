"""A tiny model's folder, and a short film in the places where an official set has its videos."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import train_tokenizer
from eagle_model.evaluate.answer import engine_of
from eagle_model.infer.engine import Engine
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    sampling = SamplingConfig(context_tokens=1024, min_frames=2)
    tokenizer = train_tokenizer(["Which colour is it? A. red B. blue. Answer with the letter alone."], 320)
    processor = Processor(tokenizer, ProcessorConfig(tile_px=28, patch_px=7, sampling=sampling))
    torch.manual_seed(0)
    cfg = tiny(vocab_size=tokenizer.get_vocab_size(), image_token_id=processor.encoder.context_id)
    Eagle(cfg).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def engine(model_folder: Path) -> Iterator[Engine]:
    with engine_of(model_folder) as engine:
        yield engine


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds at 10 fps, each frame's number drawn into it."""
    from tests.video.make import draw, write_video

    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, [draw(i) for i in range(30)], fps=10, options={"g": "10"})
    return path
