"""`eagle data report`: one HTML page that shows what training will see of a data set, and what it costs.

    write_report(index, processor, Path("report.html"))

Lengths, tiles and packs are of all samples. What only whole plans tell (frames, tiles of images, lost area, what ADS
took away) is of PLANNED of them, evenly spread. Pixels are read of the few samples that are shown, headers of images.

The page holds everything it shows and loads nothing; it is written by svg.py and by the functions here.
"""

from __future__ import annotations

import base64
import html
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eagle_model.batch import IGNORE_INDEX
from eagle_model.data.contact_sheet import captions, patches_to_pixels
from eagle_model.data.images import image_size
from eagle_model.data.index import Index
from eagle_model.data.packing import pack
from eagle_model.data.processor import Processor, SamplePlan
from eagle_model.data.sample import DataError
from eagle_model.data.svg import histogram
from eagle_model.data.tiling import Grid
from eagle_model.files import write_text

PLANNED = 2000  # samples whose plans are looked at
PACKED = 16_384  # samples that are packed, to see how full rows get
MAX_TILES = 16  # of a sample that is shown; an hour of video has hundreds
THUMBNAIL_PX = 128
MAX_TEXT_CHARS = 4000  # of a sample that is shown
MAX_SKIPPED = 200  # listed
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}figure{display:inline-block;margin:0 2em 1em 0}
figcaption{font-weight:600}.seen{border:1px solid #ddd;border-radius:6px;padding:.5em 1em;margin:1em 0}
.seen figure{margin:2px;font-size:11px;text-align:center}.seen figcaption{font-weight:400}
.text{white-space:pre-wrap;overflow-wrap:anywhere}.learned{background:#d9f2d9}.visual{color:#888}"""


@dataclass
class Looked:
    """What the plans that were looked at say."""

    num_plans: int = 0
    frames: list[int] = field(default_factory=list)  # of each sample with videos
    kept_frames: list[float] = field(default_factory=list)  # share of those that the limits allow, where it is not all
    image_tiles: list[int] = field(default_factory=list)  # of each image
    lost_area: list[float] = field(default_factory=list)  # of each image: 1 - the pixels that its grid has for it
    tile_limits: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # of samples with images: t
    num_reduced: int = 0
    unplanned: list[str] = field(default_factory=list)


def write_report(index: Index, processor: Processor, out: Path, *, num_shown: int = 12) -> None:
    """Writes the page. num_shown: samples whose text and tiles are shown; their media are decoded."""
    looked = look(index, processor)
    parts = [
        _summary(index, processor),
        _by_source(index),
        _charts(index, looked),
        _degraded(looked),
        _packs(index, processor),
        *_shown(index, processor, num_shown),
        _skipped(index, looked),
    ]
    head = f"<meta charset='utf-8'><title>Data report</title><style>{_STYLE}</style>"
    write_text(
        out, f"<!doctype html>\n<html lang='en'><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def look(index: Index, processor: Processor) -> Looked:
    """Plans of up to PLANNED samples, evenly spread over the index."""
    looked, tile_px = Looked(), processor.config.tile_px
    for i in spread(index.num_samples, PLANNED):
        try:
            plan = index.plan(i)
        except DataError as error:
            looked.unplanned.append(str(error))
            continue
        looked.num_plans += 1
        looked.num_reduced += plan.visual.is_reduced
        if times := plan.visual.timestamps_seconds:
            num = sum(map(len, times))
            looked.frames.append(num)
            if num < plan.visual.most_frames:
                looked.kept_frames.append(num / plan.visual.most_frames)
        if plan.visual.grids:
            looked.tile_limits[plan.visual.max_tiles] += 1
        for image, grid in zip(plan.sample.images, plan.visual.grids, strict=True):
            looked.image_tiles.append(grid.num_tiles)
            try:
                width, height = image_size(image.source)
            except DataError as error:
                looked.unplanned.append(str(error))
                continue
            looked.lost_area.append(lost_area(grid, width, height, tile_px))
    return looked


def lost_area(grid: Grid, width_px: int, height_px: int, tile_px: int) -> float:
    """The share of an image's pixels that its grid has no room for: 0 where the grid is as large as the image."""
    return max(0.0, 1 - grid.cols * grid.rows * tile_px**2 / (width_px * height_px))


def spread(num: int, most: int) -> list[int]:
    """Up to `most` of the numbers 0 to num - 1, evenly spread."""
    return sorted({int(k * num / min(num, most)) for k in range(min(num, most))}) if num else []


# ---- sections


def _summary(index: Index, processor: Processor) -> str:
    tokens, tiles = int(index.tokens.sum()), int(index.tiles.sum())
    visual = 100 * tiles * processor.config.tokens_per_tile / max(1, tokens)
    limits = processor.config.sampling
    said = [
        f"context {limits.context_tokens:,} tokens",
        f"{limits.max_tiles} tiles an image",
        f"{limits.frames_per_second:g} frames a second",
        f"{limits.min_frames} to {limits.max_frames} frames a video",
        f"frames {limits.seek}",
        f"tiling {limits.tiling}",
        f"ADS {'on' if limits.ads else 'off'}",
    ]
    rows = [
        ("Samples", f"{index.num_samples:,}; {html.escape(index.contents())}"),
        ("Left out", f"{len(index.skipped):,}"),
        ("Tokens", f"{tokens:,}, {visual:.1f} % of them of {tiles:,} tiles"),
        ("Decoding", f"{index.decode_seconds.sum() / 3600:.2f} hours of one core, by estimate"),
        ("Limits", ", ".join(said)),
    ]
    cells = "".join(f"<tr><td>{name}</td><td style='text-align:left'>{value}</td></tr>" for name, value in rows)
    return f"<h1>What training will see</h1><table>{cells}</table>"


def _by_source(index: Index) -> str:
    names = ["samples", "% of tokens", "tokens: median", "99 %", "longest", "tiles", "% of decoding"]
    head = "".join(f"<th>{name}</th>" for name in names)
    body = []
    all_tokens, all_seconds = max(1, int(index.tokens.sum())), max(1e-9, float(index.decode_seconds.sum()))
    for k, source in enumerate(index.sources):
        own = index.source_of == k
        if not own.any():
            body.append(f"<tr><td>{html.escape(source.name)}</td><td>0</td></tr>")
            continue
        tokens = index.tokens[own]
        cells = [
            f"{own.sum():,}",
            f"{100 * tokens.sum() / all_tokens:.1f}",
            *(f"{np.quantile(tokens, q):,.0f}" for q in (0.5, 0.99, 1)),
            f"{index.tiles[own].sum():,}",
            f"{100 * index.decode_seconds[own].sum() / all_seconds:.1f}",
        ]
        body.append(f"<tr><td>{html.escape(source.name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<h2>Data sets</h2><table><tr><th>name</th>{head}</tr>{''.join(body)}</table>"


def _charts(index: Index, looked: Looked) -> str:
    seen = index.tiles[index.tiles > 0]
    charts: list[tuple[str, NDArray | list]] = [
        ("Tokens of a sample", index.tokens),
        ("Tiles of a sample, where it has any", seen),
        ("Frames of a sample with videos", looked.frames),
        ("Tiles of an image", looked.image_tiles),
        ("Area that an image loses, %", [100 * lost for lost in looked.lost_area]),
    ]
    drawn = [f"<figure><figcaption>{name}</figcaption>{histogram(values)}</figure>" for name, values in charts]
    note = f"Frames, tiles of images and lost area are of {looked.num_plans:,} samples, evenly spread."
    return f"<h2>Lengths</h2>{''.join(drawn)}<p>{note}</p>"


def _degraded(looked: Looked) -> str:
    """What ADS took away."""
    kept = looked.kept_frames
    lines = [
        f"{looked.num_reduced:,} of {looked.num_plans:,} samples show less than the limits allow, to fit the context."
    ]
    if kept:
        lines.append(
            f"Of {len(kept):,} of them frames were left out: {100 * float(np.median(kept)):.0f} % were kept in the "
            f"median, {100 * min(kept):.0f} % at the least."
        )
    limits = ", ".join(f"{t}: {num:,}" for t, num in sorted(looked.tile_limits.items(), reverse=True))
    if limits:
        lines.append(f"The most tiles an image (t), and samples with images that were planned with it: {limits}.")
    chart = ""
    if kept:
        drawn = histogram([100 * share for share in kept])
        chart = f"<figure><figcaption>Frames kept, %, of reduced samples</figcaption>{drawn}</figure>"
    return f"<h2>What ADS took away</h2><p>{' '.join(lines)}</p>{chart}"


def _packs(index: Index, processor: Processor) -> str:
    capacity = processor.config.sampling.context_tokens
    lengths = index.tokens[spread(index.num_samples, PACKED)]
    fill = [100 * int(lengths[row].sum()) / capacity for row in pack(lengths.tolist(), capacity, seed=0)]
    text = (
        f"{len(lengths):,} samples fill {len(fill):,} rows of {capacity:,} tokens to {np.mean(fill):.1f} % on average."
    )
    return f"<h2>Packs</h2><p>{text}</p><figure><figcaption>Fill of a row, %</figcaption>{histogram(fill)}</figure>"


def _shown(index: Index, processor: Processor, num_shown: int) -> Iterator[str]:
    yield "<h2>Samples as the model sees them</h2><p>Green is what is learned.</p>"
    for i in spread(index.num_samples, num_shown):
        try:
            yield _sample(index.plan(i), processor)
        except DataError as error:
            yield f"<div class='seen'>{html.escape(str(error))}</div>"


def _sample(plan: SamplePlan, processor: Processor) -> str:
    num_tiles = min(plan.num_tiles, MAX_TILES)
    loaded = processor.load_sample(plan, tiles=(0, num_tiles))
    config = processor.config
    tiles = patches_to_pixels(loaded.patches_IPK, patch_px=config.patch_px, mean=config.mean, std=config.std)
    figures = [
        f"<figure><img src='{_picture(tile.numpy())}' alt=''><figcaption>{caption}</figcaption></figure>"
        for tile, caption in zip(tiles, captions(plan))
    ]
    more = f"<p>and {plan.num_tiles - num_tiles:,} more tiles</p>" if plan.num_tiles > num_tiles else ""
    about = f"{plan.sample.id} of {plan.dataset}: {plan.num_tokens:,} tokens, {plan.num_tiles} tiles"
    reduced = ", reduced to fit" if plan.visual.is_reduced else ""
    ids, labels = loaded.tokens.token_ids_T.tolist(), loaded.tokens.labels_T.tolist()
    text = f"<div class='text'>{''.join(_runs(ids, labels, processor))}</div>"
    return f"<div class='seen'><b>{html.escape(about)}{reduced}</b><div>{''.join(figures)}</div>{more}{text}</div>"


def _runs(ids: Sequence[int], labels: Sequence[int], processor: Processor) -> Iterator[str]:
    """The text in spans: visual tokens by their number, what is learned marked; cut where it is long."""
    context, num_chars = processor.encoder.context_id, 0

    def kind(k: int) -> str:
        return "visual" if ids[k] == context else "given" if labels[k] == IGNORE_INDEX else "learned"

    for name, group in groupby(range(len(ids)), kind):
        run = list(group)
        text = (
            f"[{len(run)}]"
            if name == "visual"
            else processor.tokenizer.decode([ids[k] for k in run], skip_special_tokens=False)
        )
        num_chars += len(text)
        if num_chars > MAX_TEXT_CHARS:
            text = text[: max(0, MAX_TEXT_CHARS - num_chars + len(text))] + " ..."
        yield f"<span class='{name}'>{html.escape(text)}</span>"
        if num_chars > MAX_TEXT_CHARS:
            return


def _picture(tile_YX3: NDArray[np.uint8]) -> str:
    small = Image.fromarray(tile_YX3).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _skipped(index: Index, looked: Looked) -> str:
    reasons = [f"{name}: {why}" for name, why in index.skipped] + looked.unplanned
    if not reasons:
        return ""
    listed = "".join(f"<li>{html.escape(reason)}</li>" for reason in reasons[:MAX_SKIPPED])
    more = f"<p>and {len(reasons) - MAX_SKIPPED:,} more</p>" if len(reasons) > MAX_SKIPPED else ""
    return f"<h2>Left out</h2><ul>{listed}</ul>{more}"
