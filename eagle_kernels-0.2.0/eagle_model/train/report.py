"""report.html: one file that shows a run, made from what lies in the run's folder.

    write_report("runs/first")      # runs/first/report.html; `eagle report runs/first` does the same

It says where and when the run was made, and has curves, answers over time, the configuration, checkpoints, skipped
samples, and some of the run's samples as the model saw them: the pixels are taken back from the normalised patches of a
batch, the text from its token ids. The page itself is report.html.jinja, beside this file; what it shows is read here.

Curves are drawn thin as they were and thick as a mean over the last steps, those long ago counting less and less.

Dims     T tokens of a row, S documents, I tiles, P patches a tile, K = 3 * patch_px**2, N visual tokens, Y, X pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jinja2
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
from eagle_model.train.provenance import sentence
from eagle_model.train.step_log import read_log

MAX_SAMPLES = 6  # shown: enough to see that data arrive as they should, and the page stays short
MAX_TILES = 16  # shown of one sample: an hour of video has hundreds
MAX_TILE_BYTES = 1 << 24  # of a tile's PNG: its pixels have less than 2 MB
MAX_LINES = 20  # of one curve: more data sets than that are the largest ones
SMOOTHED_SHARE = 0.04  # of all steps: over so many a curve's mean goes
MAX_SKIPPED = 1000  # shown: the page still opens; skipped.json has all
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what reading a damaged file may raise

Content = TypeVar("Content")


def save_samples(
    folder: Path,
    batches: Sequence[PackedBatch],
    *,
    decode: Callable[[list[int]], str],
    patch_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    tokens_per_tile: int | None = None,
) -> None:
    """Writes the first MAX_SAMPLES documents of some rows for the report: `samples.json` and one PNG a tile.

    tokens_per_tile: needed of rows that hold a part of their tiles; of the others no picture is shown.
    A text is a list of [kind, text] in reading order, with kind one of "given", "learned" (supervised) and "visual".
    """
    folder.mkdir(parents=True, exist_ok=True)
    documents = [(batch, s) for batch in batches for s in range(len(batch.sample_ids))]
    samples = []
    for number, (batch, s) in enumerate(documents[:MAX_SAMPLES]):
        start, end = batch.cu_seqlens[s : s + 2].tolist()
        first, last = batch.tiles or (0, len(batch.patches_IPK))
        first_rows_I = batch.visual_rows_N[:: tokens_per_tile or max(1, len(batch.visual_rows_N) // max(1, last))]
        tiles = torch.nonzero((first_rows_I >= start) & (first_rows_I < end)).flatten()
        held = tiles[(tiles >= first) & (tiles < last)] - first
        shown = patches_to_pixels(batch.patches_IPK[held[:MAX_TILES]], patch_px=patch_px, mean=mean, std=std)
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


Line = tuple[list[int], list[float]]  # steps and values


@dataclass(frozen=True, slots=True)
class Curve:
    title: str
    label: str  # of the axis
    source: str  # a data: address
    rows: Mapping[str, object] = field(default_factory=dict)  # a table below it


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
    held_out = _read_or_tell(lambda: read_log(run / validation.LOG, damaged), damaged) or []
    shown: dict[str, object] = {
        "name": run.resolve().name,
        "about": _about(run / "run.json"),
        "summary": _summary(metrics, config),
        "curves": _curves(metrics, held_out),
        "answers": _answers(_read_or_tell(lambda: read_log(run / answers.LOG, damaged), damaged) or []),
        "samples": _samples(run / "samples", damaged),
        "skipped": _skipped(run / "skipped.json", damaged),
        "checkpoints": _checkpoints(run / "checkpoints"),
        "settings": _settings(config) if config else {},
    }
    page = _template().render(shown, damage=damage[:MAX_NAMES])
    write_text(run / "report.html", page + "\n")
    return run / "report.html"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8"))


def _read_or_tell(read: Callable[[], Content], damaged: Callable[[str], None]) -> Content | None:
    """What `read` returns; None where the file is damaged, which `damaged` is told."""
    try:
        return read()
    except OSError as error:
        damaged(os_reason(error))
    except ValueError as error:
        damaged(str(error))
    return None


def _about(path: Path) -> str:
    """Where the run was made, as its last trainer said; nothing where that is lost, which takes nothing else along."""
    try:
        return sentence(read_json(path)["made_by"])
    except _DAMAGE:
        return ""


def _summary(steps: list[dict[str, Any]], config: TrainConfig | None) -> dict[str, object]:
    if not steps:
        return {}
    seconds = sum(m["step_seconds"] for m in steps)
    waited = sum(m["data_wait_seconds"] for m in steps) / max(seconds, 1e-9)
    rows: dict[str, object] = {
        "steps": _of(steps[-1]["step"], config.max_steps if config else None),
        "epoch": _of(steps[-1]["epoch"] + 1, config.num_epochs if config else None),
        "loss, first and last": f"{steps[0]['loss']:.4f} and {steps[-1]['loss']:.4f}",
        "tokens": f"{sum(m['num_tokens'] for m in steps):,}",
        "supervised tokens": f"{sum(m['num_supervised_tokens'] for m in steps):,}",
        "time in steps": f"{seconds:,.1f} s, {waited:.0%} of it waiting for data",
        "largest process memory": f"{max(m['peak_rss_bytes'] for m in steps) / 2**20:,.0f} MiB",
    }
    if any(on_gpu := [m["peak_device_bytes"] for m in steps if m["peak_device_bytes"] is not None]):
        rows["largest device memory"] = f"{max(on_gpu) / 2**20:,.0f} MiB"
    flops = sum(m["model_flops"] or 0 for m in steps)
    if flops:
        rows["model FLOPs"] = f"{flops:.3e}, {flops / max(seconds, 1e-9) / 1e12:,.3f} TFLOP/s"
    for name, key in (("rows' room unfilled", "padding_share"), ("samples shown in part", "truncation_share")):
        if shares := [m[key] for m in steps if m[key] is not None]:
            rows[name] = f"{sum(shares) / len(shares):.1%}"
    return rows


def _of(number: int, all_in_all: int | None) -> str:
    return f"{number} of {all_in_all}" if all_in_all else str(number)


def _curves(steps: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> list[Curve]:
    """Those for which there is anything to draw."""
    plain = [
        ("Loss", "loss", "nats a token"),
        ("Learning rate", "learning_rate", "learning rate"),
        ("Tokens a second", "tokens_per_second", "tokens/s, with the wait for data"),
        ("Model FLOPs utilization", "mfu", "share of the GPU's peak"),
        ("Gradient norm", "grad_norm", "norm before clipping"),
    ]
    curves = [_curve(title, label, {"": _line(steps, key)}) for title, key, label in plain]
    parts = {name: _line(steps, "grad_norms", name) for name in _names(steps, "grad_norms")}
    curves.append(_curve("Gradient norm by part", "norm before clipping", parts, log_scale=True))
    datasets = sorted(_names(steps, "dataset_losses"), key=lambda name: -_num_tokens(steps, name))[:MAX_LINES]
    by_dataset = {name: _line(steps, "dataset_losses", name) for name in datasets}
    rows = {name: f"{_mean_loss(steps, name):.4f} over {_num_tokens(steps, name):,} tokens" for name in datasets}
    curves.append(_curve("Loss by data set", "nats a supervised token", by_dataset, rows=rows))
    finite = [line for line in held_out if isinstance(line.get("loss"), float)]
    curves.append(_curve("Held-out loss", "nats a token", {"": _line(finite, "loss")}, is_sparse=True))
    return [curve for curve in curves if curve is not None]


def _names(steps: list[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(name for m in steps for name in m[key]))


def _line(steps: list[dict[str, Any]], key: str, name: str | None = None) -> Line:
    values = [(m["step"], m[key] if name is None else m[key].get(name)) for m in steps]
    known = [(step, value) for step, value in values if value is not None]
    return [step for step, _ in known], [value for _, value in known]


def _num_tokens(steps: list[dict[str, Any]], dataset: str) -> int:
    return sum(m["dataset_tokens"].get(dataset, 0) for m in steps)


def _mean_loss(steps: list[dict[str, Any]], dataset: str) -> float:
    """Over all tokens of all steps."""
    total = sum(m["dataset_losses"].get(dataset, 0.0) * m["dataset_tokens"].get(dataset, 0) for m in steps)
    return total / max(1, _num_tokens(steps, dataset))


def smoothed(values: Sequence[float], num_steps: float) -> list[float]:
    """The mean of each value and those before it, the weight of one falling to 1/e over num_steps."""
    keep = max(0.0, 1 - 1 / max(1.0, num_steps))
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means


def _curve(
    title: str,
    label: str,
    lines: Mapping[str, Line],
    *,
    rows: Mapping[str, object] | None = None,
    log_scale: bool = False,
    is_sparse: bool = False,
) -> Curve | None:
    """One picture of some lines by their names; None where there is no value. is_sparse: points, not smoothed."""
    lines = {name: line for name, line in lines.items() if line[0]}
    if not lines:
        return None
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    for number, (name, (at, values)) in enumerate(lines.items()):
        colour = f"C{number % 10}"
        if is_sparse:
            axes.plot(at, values, marker="o", markersize=3, linewidth=1.2, color=colour)
            continue
        axes.plot(at, values, linewidth=0.8, alpha=0.35, color=colour)
        means = smoothed(values, SMOOTHED_SHARE * len(values))
        axes.plot(at, means, linewidth=1.4, color=colour, label=name or None)
    if log_scale and all(value > 0 for _, values in lines.values() for value in values):
        axes.set_yscale("log")
    if any(lines):
        axes.legend(fontsize="small", ncols=2)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return Curve(title, label, _data_uri("image/svg+xml", svg.getvalue()), rows or {})


def _answers(lines: list[dict[str, Any]]) -> list[dict[str, object]]:
    """Of each question: what was answered, step by step."""
    questions: list[dict[str, object]] = []
    for name in dict.fromkeys(str(line.get("id")) for line in lines):
        own = [line for line in lines if str(line.get("id")) == name]
        rows = {f"step {line['step']}": line.get("answer") for line in own}
        if expected := own[-1].get("expected"):
            rows["should be"] = expected
        questions.append({"name": name, "asked": own[-1].get("asked"), "rows": rows})
    return questions


def _samples(folder: Path, damaged: Callable[[str], None]) -> list[dict[str, object]] | None:
    """Those that can be read; None where none were saved."""
    path = folder / "samples.json"
    if not path.exists():
        return None
    found: list[dict[str, object]] = []
    try:
        for sample in read_json(path)[:MAX_SAMPLES]:
            found.append(_sample(folder, sample))
    except (OSError, ValueError) as error:
        damaged(str(error))
    except (KeyError, TypeError, AttributeError):
        damaged(f"{path} holds no samples as a run writes them; the others are shown.")
    return found


def _sample(folder: Path, sample: dict[str, Any]) -> dict[str, object]:
    return {
        "id": sample["id"],
        "num_hidden": sample["num_tiles"] - len(sample["tiles"]),
        "tiles": [_data_uri("image/png", _tile(folder, name)) for name in sample["tiles"][:MAX_TILES]],
        "text": _pairs(sample["text"]),
    }


def _pairs(found: Any) -> list[tuple[object, object]]:
    """Raises TypeError where these are none, in the place of ValueError too."""
    if not isinstance(found, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        raise TypeError("needs lists of two")
    return [(first, second) for first, second in found]


def _tile(folder: Path, name: str) -> bytes:
    path = folder / name
    if path.name != name or path.suffix != ".png" or not path.is_file():
        raise ValueError(f"{folder / 'samples.json'} names {few([name])}; needs a PNG file beside it.")
    with path.open("rb") as file:
        return file.read(MAX_TILE_BYTES)


def _skipped(path: Path, damaged: Callable[[str], None]) -> dict[str, object] | None:
    """How many there are, and the first of them with their reasons; None where the file is damaged."""
    try:
        skipped = read_json(path) if path.exists() else []
        return {"rows": _pairs(skipped)[:MAX_SKIPPED], "number": len(skipped)}
    except (OSError, ValueError) as error:
        damaged(str(error))
    except TypeError:
        damaged(f"{path} holds no list of samples and reasons as a run writes it.")
    return None


def _checkpoints(folder: Path) -> dict[str, object]:
    rows: dict[str, object] = {}
    best = sorted(path for path in folder.glob("best-*") if path.suffix == "")  # the lowest held-out loss
    for path in (*steps(folder).values(), *best):
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            rows[path.name] = str(error)
        else:
            rows[path.name] = f"{sum(entry.num_bytes for entry in manifest.files.values()) / 2**20:,.1f} MiB"
    return rows


def _settings(config: TrainConfig) -> dict[str, object]:
    assignments = [assignment for assignment, _ in listing(config) if assignment and not assignment.startswith("# ")]
    recipe: dict[str, object] = {"recipe_name": config.recipe_name} if config.recipe_name else {}
    return recipe | {path: value for path, _, value in (assignment.partition("=") for assignment in assignments)}


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
