"""The command line: eagle doctor | plan | train | chat | report.

A user's mistake ends in one sentence on stderr and exit code 2. Anything else is a defect of ours and shows its
traceback.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from eagle_kernels import native

USAGE_ERROR = 2
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

app = typer.Typer(
    help="Train and run Eagle 2.5, a vision-language model for long videos and large images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console(markup=False, highlight=False)


def main() -> None:
    try:
        app()
    except (ValueError, OSError) as error:  # ours are all ValueErrors: DataError, VideoError, ConfigError, ...
        print(f"eagle: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


@app.command()
def doctor() -> None:
    """What this machine can do, and what to install for the rest.

    Example:  eagle doctor
    """
    table = Table("part", "state", "what it gives", box=None)
    table.add_row("eagle-kernels", _version("eagle-kernels") or "not installed", f"Python {platform.python_version()}")
    build = native.build_info()
    table.add_row("native module", "built", ", ".join(f"{key} {value}" for key, value in build.items()))
    table.add_row("torch", torch.__version__, f"{torch.get_num_threads()} threads on {os.cpu_count()} CPUs")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            table.add_row(f"GPU {i}", p.name, f"sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB: kernels run")
    else:
        table.add_row("GPU", "none", "ops run their CPU code; kernels run under Triton's interpreter in the tests")
    for package, gives in [
        ("triton", "the Triton kernels"),
        ("av", "video on the CPU: pip install 'eagle-kernels[video]'"),
        ("tokenizers", "text: pip install 'eagle-kernels[serve]'"),
        ("matplotlib", "report.html: pip install 'eagle-kernels[train]'"),
        ("nvidia-dali-cuda130", "video on the GPU: pip install 'eagle-kernels[dali]'"),
        ("transformer-engine", "FP8: pip install 'eagle-kernels[fp8]'"),
        ("flash-attn", "a rival in the benches: pip install 'eagle-kernels[flash-attn]'"),
    ]:
        table.add_row(package, _version(package) or "not installed", gives)
    console.print(table)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@app.command()
def plan(
    files: Annotated[list[Path], typer.Argument(help="Images and videos, seen together as one sample.")],
    context: Annotated[int, typer.Option(help="Tokens that the sample may take.")] = 32_768,
    ask: Annotated[str, typer.Option(help="The question, whose tokens count too.")] = "",
    model: Annotated[Path | None, typer.Option(help="A checkpoint, for its own tokenizer and tile size.")] = None,
    max_tiles: Annotated[int, typer.Option(help="Most tiles an image.")] = 12,
    fps: Annotated[float, typer.Option(help="Most frames a second of video.")] = 2.0,
    min_frames: Annotated[int, typer.Option(help="Fewest frames a video, if it has them.")] = 8,
    max_frames: Annotated[int, typer.Option(help="Most frames a video.")] = 512,
    out: Annotated[Path | None, typer.Option(help="The contact sheet; by default FILE.plan.png, here.")] = None,
) -> None:
    """What Eagle would see of images and videos: frames, times, tile grids and tokens, and a contact sheet.

    Example:  eagle plan film.mp4 --context 8192
    """
    from eagle_model.data.contact_sheet import captions, patches_to_pixels, write_contact_sheet
    from eagle_model.data.media import parse_sample
    from eagle_model.data.processor import Processor, ProcessorConfig
    from eagle_model.data.tokens import counting_tokenizer

    limits = {"context_tokens": context, "max_tiles": max_tiles, "frames_per_second": fps}
    limits |= {"min_frames": min_frames, "max_frames": max_frames}
    if model is None:
        processor = Processor(counting_tokenizer(), ProcessorConfig(**limits))  # type: ignore[arg-type]
    else:
        theirs = Processor.from_pretrained(model)
        processor = Processor(theirs.tokenizer, replace(theirs.config, **limits))  # type: ignore[arg-type]
    message = {"role": "user", "content": [*_parts(files), {"type": "text", "text": ask}]}
    sample = parse_sample({"messages": [message]}, root=Path(), where="plan", allow_outside_root=True)
    planned = processor.plan_sample(sample, generation_prompt=True)

    about = "" if model else " (text counted by Qwen2.5's word rule; --model counts it exactly)"
    print(
        f"{planned.num_tokens} of {context} tokens: {planned.visual.num_visual_tokens} visual = "
        f"{planned.num_tiles} tiles x {processor.config.tokens_per_tile}, {planned.visual.num_text_tokens} text{about}"
    )
    for image, grid in zip(sample.images, planned.visual.grids):
        thumbnail = " and a thumbnail" if grid.num_tiles > 1 else ""
        print(f"{image.path.name}: {grid.cols} x {grid.rows} tiles{thumbnail}, at most {planned.visual.max_tiles}")
    for video, sampled in zip(sample.videos, planned.videos):
        print(_describe_video(video.path, sampled.timestamps_seconds))
    _, patches_IPK = processor.load_sample(planned)
    if patches_IPK.shape[0]:
        out = out or Path(f"{files[0].stem}.plan.png")
        config = processor.config
        tiles_IYX3 = patches_to_pixels(patches_IPK, patch_px=config.patch_px, mean=config.mean, std=config.std)
        write_contact_sheet(out, tiles_IYX3, captions(planned))
        print(f"Contact sheet: {out}")


def _parts(files: list[Path]) -> list[dict[str, str]]:
    """Chat message parts for files, image or video by suffix."""
    kinds = ["image" if path.suffix.lower() in IMAGE_SUFFIXES else "video" for path in files]
    return [{"type": kind, kind: str(path)} for kind, path in zip(kinds, files)]


def _describe_video(path: Path, times: tuple[float, ...]) -> str:
    from eagle_kernels.video import probe

    info = probe(path)
    shown = ", ".join(f"{t:.2f}" for t in times[:6]) + (", ..." if len(times) > 6 else "")
    varying = ", varying" if info.is_variable_frame_rate else ""
    return (
        f"{path.name}: {info.codec} {info.width_px} x {info.height_px}, {info.frames_per_second:.2f} fps{varying}, "
        f"{info.duration_seconds:.2f} s, {info.num_frames} frames: {len(times)} seen, at {shown} s"
    )


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="tiny or debug.")],
    run: Annotated[Path, typer.Option(help="The run's folder. One that holds a run resumes it.")],
    set_: Annotated[list[str], typer.Option("--set", help="path.to.field=value, as often as needed.")] = [],  # noqa: B006
) -> None:
    """Trains by a recipe; interrupted, the same command resumes.

    Example:  eagle train tiny --run runs/first --set data.recipe=videos/recipe.json --set max_steps=500
    """
    from eagle_model.train.config import override
    from eagle_model.train.recipes import recipe as recipe_of
    from eagle_model.train.trainer import Trainer, TrainingError

    try:
        Trainer(override(recipe_of(recipe), set_), run, say=print).train()
    except TrainingError as error:
        print(f"eagle: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(help="A checkpoint's folder, or a run's, whose newest is taken.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Images and videos to talk about.")] = None,
    ask: Annotated[str | None, typer.Option(help="One question; else they are read from the terminal.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
) -> None:
    """Answers questions about images and videos.

    Example:  eagle chat runs/first clip.mp4 --ask "Which way does the digit move?"
    """
    from eagle_model.data.processor import Processor
    from eagle_model.model.eagle import Eagle
    from eagle_model.train import checkpoint

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = checkpoint.latest(model / "checkpoints", print) or model
    saved = Processor.from_pretrained(model)
    room = saved.config.context_tokens - max_new_tokens  # for the question and its media
    processor = Processor(saved.tokenizer, replace(saved.config, context_tokens=room))
    eagle = Eagle.from_pretrained(model, dtype=dtype, device=device)
    messages: list[dict[str, object]] = []
    questions = [ask] if ask is not None else iter(_read_question, "")
    for question in questions:
        parts = _parts(files or []) if not messages else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        batch = processor(messages).to(device, dtype=dtype)
        stop = [processor.encoder.turn_end_id]
        (answer_ids,) = eagle.generate(batch, max_new_tokens=max_new_tokens, stop_token_ids=stop)
        answer = processor.tokenizer.decode(answer_ids)
        messages.append({"role": "assistant", "content": answer})
        print(answer)


def _read_question() -> str:
    try:
        return input("> ")
    except EOFError:
        return ""


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Writes report.html of a run: curves, configuration, samples as the model saw them.

    Example:  eagle report runs/first
    """
    from eagle_model.train.report import write_report

    print(f"Report: {write_report(run)}")


if __name__ == "__main__":
    main()
