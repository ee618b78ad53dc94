"""report.html: one file that shows a run, made from what lies in the run's folder.

    write_report("runs/first")      # runs/first/report.html; `eagle report runs/first` does the same

It has curves, the configuration, checkpoints, skipped samples, and some of the run's samples as the model saw them: the
pixels are taken back from the normalised patches of a batch, the text from its token ids.

Dims     T tokens of a row, S documents, I tiles, P patches a tile, K = 3 * patch_px**2, N visual tokens, Y, X pixels.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from PIL import Image

from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.checkpoints import CheckpointError, read_manifest, steps
from eagle_model.data.contact_sheet import patches_to_pixels
from eagle_model.fields import MAX_NAMES, few, listing
from eagle_model.files import os_reason, read_json, write_json, write_text
from eagle_model.train import answers, validation
from eagle_model.train.config import TrainConfig, read_config
from eagle_model.train.metrics import read_metrics
from eagle_model.train.step_log import read_log

MAX_SAMPLES = 6  # shown: enough to see that data arrive as they should, and the page stays short
MAX_TILES = 16  # shown of one sample: an hour of video has hundreds
MAX_TILE_BYTES = 1 << 24  # of a tile's PNG: its pixels have less than 2 MB
MAX_SKIPPED = 1000  # shown: the page still opens; skipped.json has all
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what reading a damaged file may raise

Content = TypeVar("Content")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top; }
img.curve { width: 100%; } img.tile { width: 112px; margin: 2px; image-rendering: pixelated; }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .8rem; } mark { background: #c8ecc8; }
"""


def save_samples(
    folder: Path,
    batches: Sequence[PackedBatch],
    *,
    decode: Callable[[list[int]], str],
    patch_px: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Writes the first MAX_SAMPLES documents of some rows for the report: `samples.json` and one PNG a tile.

    A text is a list of [kind, text] in reading order, with kind one of "given", "learned" (supervised) and "visual".
    """
    folder.mkdir(parents=True, exist_ok=True)
    documents = [(batch, s) for batch in batches for s in range(len(batch.sample_ids))]
    samples = []
    for number, (batch, s) in enumerate(documents[:MAX_SAMPLES]):
        start, end = batch.cu_seqlens[s : s + 2].tolist()
        num_tiles = batch.patches_IPK.shape[0]
        first_rows_I = batch.visual_rows_N.unflatten(0, (num_tiles, -1))[:, 0] if num_tiles else batch.visual_rows_N
        tiles = torch.nonzero((first_rows_I >= start) & (first_rows_I < end)).flatten()
        shown = patches_to_pixels(batch.patches_IPK[tiles[:MAX_TILES]], patch_px=patch_px, mean=mean, std=std)
        names = [f"sample-{number}-tile-{i:02d}.png" for i in range(len(shown))]
        for name, pixels_YX3 in zip(names, shown, strict=True):
            Image.fromarray(pixels_YX3.numpy()).save(folder / name)
        text = [
            [kind, f"[{len(ids)} visual tokens]" if kind == "visual" else decode(ids)]
            for kind, ids in _spans(batch, start, end)
        ]
        samples.append({"id": batch.sample_ids[s], "text": text, "num_tiles": tiles.numel(), "tiles": names})
    write_json(folder / "samples.json", samples)


def _spans(batch: PackedBatch, start: int, end: int) -> list[tuple[str, list[int]]]:
    """Runs of tokens of one kind. A label stands one row before the token that it supervises."""
    visual_rows = set(batch.visual_rows_N.tolist())
    labels, ids = batch.labels_T.tolist(), batch.token_ids_T.tolist()
    spans: list[tuple[str, list[int]]] = []
    for t in range(start, end):
        learned = t > start and labels[t - 1] != IGNORE_INDEX
        kind = "visual" if t in visual_rows else "learned" if learned else "given"
        if not spans or spans[-1][0] != kind:
            spans.append((kind, []))
        spans[-1][1].append(ids[t])
    return spans


def write_report(run_folder: str | Path, say: Callable[[str], None] = print) -> Path:
    """Writes `run_folder`/report.html from what the run has left there so far; returns its path.

    Args:   say: is told of each file that is damaged; the page names it too, and shows the rest.
    Raises: ValueError when the folder holds no run; OSError when the page cannot be written.
    """
    run = Path(run_folder)
    if not (any((run / name).is_file() for name in ("run.json", "config.json")) or steps(run / "checkpoints")):
        raise ValueError(f"{run} holds no run: run.json is missing. Give the folder that `eagle train` wrote.")
    damage: list[str] = []

    def damaged(problem: str) -> None:
        damage.append(problem)
        say(problem)

    config = _read_or_tell(lambda: read_config(run / "config.json"), damaged)
    log = run / "metrics.jsonl"
    metrics = _read_or_tell(lambda: read_metrics(log, damaged) if log.exists() else [], damaged) or []
    body = [*_summary(metrics, config), *_curves(metrics)]
    body += _held_out(_read_or_tell(lambda: read_log(run / validation.LOG, damaged), damaged) or [])
    body += _answers(_read_or_tell(lambda: read_log(run / answers.LOG, damaged), damaged) or [])
    body += ["<h2>Samples as the model saw them</h2>", *_samples(run / "samples", damaged)]
    body += ["<h2>Skipped samples</h2>", _skipped(run / "skipped.json", damaged)]
    body += ["<h2>Checkpoints</h2>", _checkpoints(run / "checkpoints")]
    if config:
        body += ["<h2>Configuration</h2>", _table(_settings(config))]
    name = _text(run.resolve().name)
    marks = [f"<p><strong>Damaged:</strong> {_text(problem)}</p>" for problem in damage[:MAX_NAMES]]
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
    page += f"<style>{_STYLE}</style></head><body>" + "\n".join([f"<h1>Run {name}</h1>", *marks, *body])
    write_text(run / "report.html", page + "</body></html>\n")
    return run / "report.html"


def _read_or_tell(read: Callable[[], Content], damaged: Callable[[str], None]) -> Content | None:
    """What `read` returns; None where the file is damaged, which `damaged` is told."""
    try:
        return read()
    except OSError as error:
        damaged(os_reason(error))
    except ValueError as error:
        damaged(str(error))
    return None


def _summary(steps: list[dict[str, float]], config: TrainConfig | None) -> list[str]:
    if not steps:
        return ["<p>No step is done yet.</p>"]
    seconds = sum(m["step_seconds"] for m in steps)
    waited = sum(m["data_wait_seconds"] for m in steps) / max(seconds, 1e-9)
    rows = {
        "steps": f"{steps[-1]['step']} of {config.max_steps}" if config and config.max_steps else steps[-1]["step"],
        "epoch": steps[-1]["epoch"],
        "loss, first and last": f"{steps[0]['loss']:.4f} and {steps[-1]['loss']:.4f}",
        "tokens": f"{sum(m['num_tokens'] for m in steps):,}",
        "supervised tokens": f"{sum(m['num_supervised_tokens'] for m in steps):,}",
        "time in steps": f"{seconds:,.1f} s, {waited:.0%} of it waiting for data",
        "largest process memory": f"{max(m['peak_rss_bytes'] for m in steps) / 2**20:,.0f} MiB",
    }
    return [_table(rows)]


def _curves(steps: list[dict[str, float]]) -> list[str]:
    if not steps:
        return []
    curves = [
        ("Loss", "loss", "nats a token"),
        ("Learning rate", "learning_rate", "learning rate"),
        ("Tokens a second", "tokens_per_second", "tokens/s, with the wait for data"),
        ("Gradient norm", "grad_norm", "norm before clipping"),
    ]
    return [part for title, key, label in curves for part in (f"<h2>{title}</h2>", _curve(steps, key, label))]


def _curve(steps: list[dict[str, float]], key: str, label: str) -> str:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([m["step"] for m in steps], [m[key] for m in steps], linewidth=1.2, color="#1f77b4")
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return f'<img class="curve" alt="{_text(label)}" src="{_data_uri("image/svg+xml", svg.getvalue())}">'


def _held_out(lines: list[dict[str, Any]]) -> list[str]:
    finite = [line for line in lines if isinstance(line.get("loss"), float)]
    return ["<h2>Held-out loss</h2>", _curve(finite, "loss", "nats a token")] if finite else []


def _answers(lines: list[dict[str, Any]]) -> list[str]:
    """A table for each question: what was answered, step by step."""
    parts: list[str] = ["<h2>Answers</h2>"] if lines else []
    for name in dict.fromkeys(str(line.get("id")) for line in lines):
        own = [line for line in lines if str(line.get("id")) == name]
        expected = own[-1].get("expected")
        parts.append(f"<h3>{_text(name)}: {_text(own[-1].get('asked'))}</h3>")
        rows = {f"step {line['step']}": line.get("answer") for line in own}
        parts.append(_table(rows | ({"should be": expected} if expected else {})))
    return parts


def _samples(folder: Path, damaged: Callable[[str], None]) -> list[str]:
    path = folder / "samples.json"
    if not path.exists():
        return ["<p>None were saved.</p>"]
    parts = ["<p>What is marked is what the model learns to say.</p>"]
    try:
        for sample in read_json(path)[:MAX_SAMPLES]:
            parts.append(_sample(folder, sample))
    except _DAMAGE as error:
        damaged(f"{path}: {error!r}" if isinstance(error, (KeyError, TypeError, AttributeError)) else str(error))
    return parts


def _sample(folder: Path, sample: dict[str, Any]) -> str:
    hidden = sample["num_tiles"] - len(sample["tiles"])
    tiles = [
        f'<img class="tile" alt="tile" src="{_data_uri("image/png", _tile(folder, name))}">'
        for name in sample["tiles"][:MAX_TILES]
    ]
    text = "".join(f"<mark>{_text(t)}</mark>" if kind == "learned" else _text(t) for kind, t in sample["text"])
    more = f"<p>and {hidden} more tiles</p>" if hidden else ""
    return f"<h3>{_text(sample['id'])}</h3><div>{''.join(tiles)}</div>{more}<pre>{text}</pre>"


def _tile(folder: Path, name: str) -> bytes:
    path = folder / name
    if path.name != name or path.suffix != ".png" or not path.is_file():
        raise ValueError(f"{folder / 'samples.json'} names {few([name])}; needs a PNG file beside it.")
    with path.open("rb") as file:
        return file.read(MAX_TILE_BYTES)


def _skipped(path: Path, damaged: Callable[[str], None]) -> str:
    try:
        skipped = read_json(path) if path.exists() else []
        rows = [f"<tr><td>{_text(name)}</td><td>{_text(reason)}</td></tr>" for name, reason in skipped[:MAX_SKIPPED]]
    except _DAMAGE as error:
        damaged(f"{path}: {error}")
        return "<p>They cannot be read.</p>"
    if not rows:
        return "<p>None.</p>"
    table = f"<table><tr><th>sample</th><th>reason</th></tr>{''.join(rows)}</table>"
    return f"<p>{len(skipped)}</p>{table}"


def _checkpoints(folder: Path) -> str:
    rows = {}
    for path in steps(folder).values():
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            rows[path.name] = str(error)
        else:
            rows[path.name] = f"{sum(entry.num_bytes for entry in manifest.files.values()) / 2**20:,.1f} MiB"
    return _table(rows) if rows else "<p>None yet.</p>"


def _table(rows: Mapping[str, object]) -> str:
    cells = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def _settings(config: TrainConfig) -> dict[str, object]:
    assignments = [assignment for assignment, _ in listing(config) if assignment and not assignment.startswith("# ")]
    recipe: dict[str, object] = {"recipe_name": config.recipe_name} if config.recipe_name else {}
    return recipe | {path: value for path, _, value in (assignment.partition("=") for assignment in assignments)}


def _text(value: object) -> str:
    return html.escape(str(value))


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
