"""The contact sheet shows the model's own tiles, in the model's order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eagle_kernels.frames_to_tiles import frames_to_tiles
from eagle_kernels.tiles import Tiling
from eagle_model.data.contact_sheet import CAPTION_PX, CELL_PX, captions, patches_to_pixels, write_contact_sheet
from eagle_model.data.processor import Processor
from eagle_model.data.rows import parse_sample
from tests.data.conftest import tiny_config, write_image, write_video

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


@pytest.mark.parametrize(("tile_px", "patch_px"), [(28, 7), (56, 14)])
def test_pixels_come_back_exactly(tile_px: int, patch_px: int) -> None:
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 60, 90, 3), dtype=np.uint8))
    tiling = Tiling(tile_px=tile_px, patch_px=patch_px, mean=MEAN, std=STD, thumbnail=True, dtype=torch.float32)
    patches_IPK = frames_to_tiles(frames, (2, 1), tiling)
    raw = frames_to_tiles(frames, (2, 1), replace(tiling, dtype=torch.uint8, layout="tiles"))
    back = patches_to_pixels(patches_IPK, patch_px=patch_px, mean=MEAN, std=STD)
    assert torch.equal(back, raw.permute(0, 2, 3, 1))


def test_captions_follow_the_text(tokenizer, tmp_path: Path) -> None:
    processor = Processor(tokenizer, tiny_config(max_tiles=2))
    content = [
        {"type": "video", "video": str(write_video(tmp_path / "v.mp4"))},
        {"type": "image", "image": str(write_image(tmp_path / "i.png", 120, 60))},
    ]
    row = {"messages": [{"role": "user", "content": content}]}
    plan = processor.plan_sample(parse_sample(row, root=tmp_path, where="test", allow_outside_root=True))
    times = [f"{t:.2f} s" for t in plan.visual.timestamps_seconds[0]]
    assert times[0] == "0.00 s"
    assert captions(plan) == [*times, "row 1, column 1", "row 1, column 2", "whole"]
    assert len(captions(plan)) == plan.num_tiles


def test_a_sheet_has_a_cell_a_tile_in_rows_of_eight(tmp_path: Path) -> None:
    tiles_IYX3 = torch.zeros(11, 56, 56, 3, dtype=torch.uint8)
    tiles_IYX3[9] = 255  # second row, second column
    write_contact_sheet(tmp_path / "sheet.png", tiles_IYX3, [f"{i} s" for i in range(11)])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (CELL_PX + CAPTION_PX), 8 * CELL_PX, 3)
    middle = CELL_PX // 2
    assert sheet[CELL_PX + CAPTION_PX + middle, CELL_PX + middle].tolist() == [255, 255, 255]
    assert sheet[middle, middle].tolist() == [0, 0, 0]
