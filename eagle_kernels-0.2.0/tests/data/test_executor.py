"""Videos as packets to the training process: rows are those of the CPU, pixels within what two decoders differ by."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from eagle_model.data.executor import DaliExecutor
from eagle_model.data.loader import DataConfig, Loader
from eagle_model.data.processor import Processor
from tests.data.conftest import chat_row, tiny_config, write_image
from tests.data.conftest import write_video as write_h264
from tests.data.test_loader import assert_same
from tests.video.make import VPX, draw, write_video

pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI (the extra `dali`)")


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, tiny_config(context_tokens=512, max_frames=8))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VP9, which DALI's CPU code decodes; H.264, which it does not; an image; text; and a picture that is cut off."""
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "vp9.webm", (draw(i) for i in range(40)), codec="libvpx-vp9", options=VPX)
    write_h264(folder / "h264.mp4")
    image = write_image(folder / "wide.png", 168, 56)
    (folder / "cut.png").write_bytes(image.read_bytes()[:60])
    media = [{"video": ["vp9.webm", "h264.mp4"]}, {"image": "wide.png", "video": "vp9.webm"}, {"image": "cut.png"}, {}]
    rows = [chat_row(f"Question {i}?", id=f"s{i}", **media[i % 4]) for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("workers", ["thread", "process"])
def test_rows_are_the_same_and_pixels_nearly(
    recipe: Path, processor: Processor, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(recipe=str(recipe), on_bad_sample="substitute")
    with Loader(config, processor) as loader:
        want = list(islice(loader, loader.num_rows))
        skipped = loader.skipped
    executor, deferred = DaliExecutor(processor.tiling, "cpu"), 0
    fill = executor.fill

    def counted(patches_IPK: torch.Tensor, videos: list) -> torch.Tensor:
        nonlocal deferred
        deferred += len(videos)
        assert all(video.packets.path.name == "vp9.webm" for video in videos)
        for video in videos:
            patches_IPK[slice(*video.tiles)] = float("nan")
        return fill(patches_IPK, videos)

    monkeypatch.setattr(executor, "fill", counted)
    config = DataConfig(recipe=str(recipe), on_bad_sample="substitute", workers=workers)  # type: ignore[arg-type]
    with Loader(config, processor, executor=executor) as loader:
        for batch, same in zip(islice(loader, len(want)), want, strict=True):
            difference = (batch.patches_IPK.float() - same.patches_IPK.float()).abs()
            assert difference.sum() <= 0.03 * difference.numel()  # of -1 to 1, and nothing is left unfilled
            assert_same(replace(batch, patches_IPK=same.patches_IPK), same)
        assert loader.skipped == skipped
    assert deferred == 6
