"""A page to look through questions with frames of what they are about: one HTML file and its pictures, no script.

write_page(Path("build/page"), config, questions)        # page/index.html, page/0-0.jpg, ...
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eagle_model.annotate.config import AnnotateConfig
from eagle_model.data.sample import DataError
from eagle_model.files import write_text, write_whole
from eagle_model.infer.endpoint import frames_at

WIDTH_PX = 320  # of a frame
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; max-width: 1400px; margin: 2em auto; padding: 0 1em; color: #222 }
article { border-top: 1px solid #ccc; padding: 1em 0 } img { margin: 0 4px 4px 0; max-width: 320px }
.dropped { color: #a33 } .about { color: #777; font-size: 13px } li.right { font-weight: 600 }
"""


def write_page(folder: Path, config: AnnotateConfig, questions: Sequence[dict[str, Any]]) -> None:
    """The page of these questions (records.CHECKED). A video that is gone by now shows no frames, and says so."""
    folder.mkdir(exist_ok=True)
    names: set[str] = set()
    articles = [_article(folder, config, question, names) for question in questions]
    title = html.escape(config.build.name)
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    write_text(folder / "index.html", "\n".join([head, f"<h1>{title}</h1>", *articles, "</html>"]) + "\n")
    for picture in folder.glob("*.jpg"):
        if picture.name not in names and re.fullmatch(r"[0-9a-f]{10}-\d+\.jpg", picture.name):  # of an earlier page
            picture.unlink()


def _article(folder: Path, config: AnnotateConfig, question: dict[str, Any], names: set[str]) -> str:
    start, end = question["start"] or 0.0, question["end"] or question["duration_seconds"]
    number = config.build.shown_frames
    times = np.round(np.linspace(start, end, 2 * number + 1)[1::2], 3).tolist()
    tag = hashlib.sha256(question["id"].encode()).hexdigest()[:10]
    try:
        frames = frames_at(config.media_root / question["path"], times) if number else []
        pictures = "".join(
            _picture(folder, f"{tag}-{i}.jpg", t, f, names) for i, (t, f) in enumerate(zip(times, frames))
        )
    except DataError as error:
        pictures = f"<p>{html.escape(str(error))}</p>"
    e = {name: html.escape(str(question[name])) for name in ("id", "question", "answer", "type", "prompt", "model")}
    reason = f' <span class="dropped">dropped: {html.escape(question["reason"])}</span>' if question["reason"] else ""
    marks = html.escape(", ".join(question["marks"]))
    options = "".join(f"<li>{html.escape(option)}</li>" for option in question["wrong"])
    span = f"{start:.1f} to {end:.1f} s"
    return (
        f"<article><h3>{e['question']}{reason}</h3><div>{pictures}</div><p>{e['answer']}</p>"
        f'<ul><li class="right">{html.escape(question["short"])}</li>{options}</ul>'
        f'<p class="about">{e["id"]}, {span}, {e["type"]}; {e["prompt"]}, {e["model"]}; {marks}</p></article>'
    )


def _picture(folder: Path, name: str, seconds: float, frame: Image.Image, names: set[str]) -> str:
    names.add(name)
    frame.thumbnail((WIDTH_PX, WIDTH_PX))
    write_whole(folder / name, lambda beside: frame.save(beside, "JPEG", quality=80))
    return f'<img src="{name}" alt="{seconds:.1f} s" title="{seconds:.1f} s">'
