"""A contact sheet: every tile that a plan shows the model, in its order, with its time or its place, as one picture.

tokens, patches_IPK = processor.load_sample(plan)
tiles_IYX3 = patches_to_pixels(patches_IPK, patch_px=14, mean=(0.5,) * 3, std=(0.5,) * 3)
write_contact_sheet(Path("sheet.png"), tiles_IYX3, captions(plan))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from eagle_model.data.processor import SamplePlan
from eagle_model.data.tiling import Grid

CELL_PX = 160
CAPTION_PX = 16
MAX_COLUMNS = 8
BACKGROUND = (24, 24, 24)


def patches_to_pixels(patches_IPK: Tensor, *, patch_px: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised patches back to uint8 RGB tiles, (I, Y, X, 3): the inverse of `frames_to_tiles`."""
    num_tiles, num_patches, _ = patches_IPK.shape
    side = round(num_patches**0.5)
    blocks = patches_IPK.float().reshape(num_tiles, side, side, 3, patch_px, patch_px)  # I, row, column, channel, y, x
    pixels_IYX3 = blocks.permute(0, 1, 4, 2, 5, 3).reshape(num_tiles, side * patch_px, side * patch_px, 3)
    pixels_IYX3 = pixels_IYX3 * torch.tensor(std) + torch.tensor(mean)
    return (pixels_IYX3 * 255).round().clamp(0, 255).to(torch.uint8)


def captions(plan: SamplePlan) -> list[str]:
    """One caption a tile, in the order of the tiles: "12.5 s" of a frame, "page 2", "row 1, column 2" or "whole"."""
    found: list[str] = []
    for seen in plan.seen:
        if not isinstance(seen, Grid):
            found += [f"{t:.2f} s" if seen.has_times else f"page {t + 1:.0f}" for t in seen.timestamps_seconds]
            continue
        if seen.num_tiles > 1:
            found += [f"row {r + 1}, column {c + 1}" for r in range(seen.rows) for c in range(seen.cols)]
        found.append("whole")
    return found


def write_contact_sheet(path: Path, tiles_IYX3: Tensor, texts: Sequence[str]) -> None:
    """Writes a PNG of the tiles, at most MAX_COLUMNS a row, with a caption under each."""
    columns = min(MAX_COLUMNS, len(texts))
    rows = -(-len(texts) // columns)
    sheet = Image.new("RGB", (columns * CELL_PX, rows * (CELL_PX + CAPTION_PX)), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for i, (tile_YX3, text) in enumerate(zip(tiles_IYX3, texts, strict=True)):
        left, top = i % columns * CELL_PX, i // columns * (CELL_PX + CAPTION_PX)
        cell = Image.fromarray(tile_YX3.numpy()).resize((CELL_PX - 4, CELL_PX - 4), Image.Resampling.LANCZOS)
        sheet.paste(cell, (left + 2, top + 2))
        draw.text((left + 4, top + CELL_PX - 1), text, fill=(220, 220, 220), font=font)
    sheet.save(path)
