"""Pictures of how it works, drawn from what the code decides.

python -m docs.generate.pictures        # writes docs/pictures
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eagle_model.data.packing import pack
from eagle_model.data.sampling import SamplingConfig, plan
from eagle_model.data.tiling import choose_grid

FOLDER = Path(__file__).parent.parent / "pictures"
IMAGES = {
    "2000 x 1300": (2000, 1300),
    "3840 x 2160": (3840, 2160),
    "A4 page, 1240 x 1754": (1240, 1754),
    "4000 x 500": (4000, 500),
}
CONTEXTS = {"32K": 32_768, "64K": 65_536, "128K": 131_072}
COLOURS = ("#8fb3d9", "#dcb36b", "#8cc08c", "#c79bd0", "#d98f8f", "#9bc7c7")
TEXT_TOKENS = 500


def svg(width: int, height: int, body: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" '
        f'font-size="13"><rect width="{width}" height="{height}" fill="#fff"/>'
    )
    return "\n".join([head, *body, "</svg>"]) + "\n"


def label(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="#222">{text}</text>'


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="#777"/>'


def grids() -> str:
    """Each image in its shape, cut as its grid says."""
    body = []
    for k, (name, (width_px, height_px)) in enumerate(IMAGES.items()):
        cols, rows = choose_grid(width_px, height_px, tile_px=448, max_tiles=12)
        scale = 170 / max(width_px, height_px)
        wide, high = width_px * scale, height_px * scale
        left, top = 20 + 235 * k + (190 - wide) / 2, 30 + (180 - high) / 2
        for row in range(rows):
            y = top + high * row / rows
            body += [box(left + wide * c / cols, y, wide / cols, high / rows, "#eef4fb") for c in range(cols)]
        tokens = 256 * (cols * rows + (cols * rows > 1))
        body += [label(115 + 235 * k, 20, name), label(115 + 235 * k, 235, f"{cols} x {rows}: {tokens:,} tokens")]
    return svg(960, 250, body)


def num_frames(seconds: int, context_tokens: int) -> int:
    """That ADS shows of a film at 30 frames a second."""
    times = np.arange(30 * seconds) / 30
    config = SamplingConfig(context_tokens=context_tokens)
    chosen = plan(
        config, tile_px=448, tokens_per_tile=256, images=(), videos=(times,), text_tokens=lambda frames: TEXT_TOKENS
    )
    return len(chosen.timestamps_seconds[0])


def frames() -> str:
    minutes = (0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6)

    def place(m: float, n: int) -> tuple[float, float]:
        return 70 + 830 * m / minutes[-1], 250 - 220 * n / 520

    body = ['<path d="M70 250 H900 M70 250 V20" stroke="#777" fill="none"/>', label(485, 288, "minutes")]
    body += [label(place(m, 0)[0], 268, f"{m:g}") for m in range(1, 7)]
    body += [label(60, place(0, n)[1] + 4, str(n), "end") for n in (128, 256, 384, 512)]
    for (name, context), colour in zip(CONTEXTS.items(), ("#3b78b5", "#b5813b", "#3b9a4b")):
        points = [place(m, num_frames(round(60 * m), context)) for m in minutes]
        line = " ".join(f"{x:g},{y:g}" for x, y in points)
        body.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        body.append(label(905, points[-1][1] + 4, name, "start"))
    return svg(960, 300, body)


def rows() -> str:
    """Lengths as of images, pages and films, packed."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(8.3, 1.0, 40)), 200, 32_768).astype(int)
    packed = pack(lengths.tolist(), 32_768)
    body = []
    for k, row in enumerate(packed):
        x, y = 20.0, 10 + 30 * k
        body.append(box(20, y, 920, 22, "#fff"))
        for place, sample in enumerate(row):
            wide = 920 * int(lengths[sample]) / 32_768
            body.append(box(x, y, wide, 22, COLOURS[(place + k) % len(COLOURS)]))
            x += wide
    return svg(960, 20 + 30 * len(packed), body)


def pictures() -> dict[str, str]:
    return {"grids.svg": grids(), "frames.svg": frames(), "rows.svg": rows()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pictures().items():
        (FOLDER / name).write_text(text)
