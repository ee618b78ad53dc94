"""The command line: eagle doctor | plan | sizes | train | verify | chat | serve | data | eval | annotate | bench ...

    eagle plan film.mp4 --context 8192
    eagle train tiny --run runs/first --set data.recipe=videos/recipe.json
    eagle chat runs/first film.mp4 --ask "Which way does the digit move?"

Exit codes: 0 done; 2 a user's mistake and 1 a machine without room, each with one sentence on stderr; 128 + a signal's
number where that ended it, but 0 where it ended several processes; 75 where one of several was lost and took the others
along (train/watchdog.py). Anything else is a defect of ours and shows its traceback. What a command needs is imported
inside it: `eagle --help` and the shell's completion do not wait for torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from eagle_model.model.config import EagleConfig
    from eagle_model.train.progressive import Progressive
    from eagle_model.train.trainer import Trainer

USAGE_ERROR = 2  # exit code, as other command lines have it
INTERRUPTED = 130  # exit code of a program that SIGINT ended, as shells count: 128 + 2
CLOSED_PIPE = 141  # of one whose reader went away: 128 + SIGPIPE
EXTRAS = {"matplotlib": "train", "PIL": "serve", "rich": "serve", "safetensors": "serve", "tokenizers": "serve"}
EXTRAS |= {
    "fastapi": "serve-http",
    "httpx2": "endpoint",
    "lmdb": "data",
    "onnx": "export",
    "onnxscript": "export",
    "prometheus_client": "serve-http",
    "pyarrow": "data",
    "simplejpeg": "serve",
    "torchao": "qlora",
    "typer": "serve",
    "uvicorn": "serve-http",
}  # what `pip install .` leaves out, and the extra that brings it
NEEDED = ("numpy", "torch", "triton")  # what an installation that was cut short lacks
COMMENT_COLUMN = 44  # of `eagle train --show`: most assignments are shorter


def _say(problem: str, *, code: int = USAGE_ERROR) -> int:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"eagle: {problem}", file=sys.stderr)
    return code


def _ask_for(missing: ModuleNotFoundError) -> NoReturn:
    """Ends the program with the extra to install; raises what is no optional package."""
    package = (missing.name or "").partition(".")[0]
    if package not in (*EXTRAS, *NEEDED):
        raise missing
    source = f"'eagle-kernels[{EXTRAS[package]}]'" if package in EXTRAS else package
    sys.exit(_say(f"{package} is not installed: pip install {source}"))


try:
    import typer

    from eagle_model import cli_annotate, cli_data, cli_eval, cli_infer
    from eagle_model.files import is_out_of_memory
except ModuleNotFoundError as error:
    _ask_for(error)
except KeyboardInterrupt:
    sys.exit(INTERRUPTED)

app = typer.Typer(
    help="Train and run Eagle 2.5, a vision-language model for long videos and large images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(cli_data.app, name="data")
for command in cli_infer.COMMANDS:
    app.command()(command)
app.add_typer(cli_eval.app, name="eval")
app.command()(cli_annotate.annotate)


def main() -> None:
    if sys.stdout is not None:  # as after `>&-`
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a log file shows each line as it comes
    code = _run()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # Python would say so at its end, once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def _run() -> int:
    """Runs the command; returns the exit code."""
    try:
        return app(prog_name="eagle", standalone_mode=False) or 0
    except SystemExit as stop:  # typer's, where a pipe is closed
        return CLOSED_PIPE if isinstance(stop.__context__, BrokenPipeError) else int(stop.code or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.TyperException as error:
        return _say(_usage(error))
    except ModuleNotFoundError as error:
        _ask_for(error)
    except (
        ImportError,
        ValueError,
        OSError,
    ) as error:  # ours are all ValueErrors: DataError, VideoError, ConfigError, ...
        return _say(str(error))
    except RecursionError:
        return _say("a file is nested too deeply to be read.")
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).partition("\n")[0]
        return _say(f"there is not enough memory{f' ({said})' if said else ''}.", code=1)


def _usage(error: typer.TyperException) -> str:
    """What is wrong with the options, where to read more, and the field that an unknown option of `train` may mean."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "eagle"
    hint = ""
    if command.endswith(" train") and (option := getattr(error, "option_name", None)):
        from eagle_model.fields import near_misses
        from eagle_model.train.config import TrainConfig

        given = next((a for a in sys.argv if a == option or a.startswith(f"{option}=")), option)
        after = sys.argv[sys.argv.index(given) + 1 :] if given in sys.argv else []
        value = given.partition("=")[2] or (after[0] if after and not after[0].startswith("-") else "VALUE")
        fields = near_misses(TrainConfig, option.lstrip("-").replace("-", "_"))
        hint = f"Did you mean {' or '.join(f'--set {field}={value}' for field in fields)}? " if fields else ""
    message = error.format_message()
    if hint:  # better than options that are spelled like it
        message = message.partition(" (Possible options")[0]
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} {hint}See {command} --help."


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if show:
        from importlib import metadata

        try:
            print(metadata.version("eagle-kernels"))
        except metadata.PackageNotFoundError:
            print("a source tree that was never installed")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def doctor(
    versions: Annotated[
        bool, typer.Option("--versions", help="Combinations of packages that are known to break.")
    ] = False,
) -> None:
    """What this machine can do, and what to install for the rest.

    Example:  eagle doctor --versions
    """
    from eagle_model.doctor import examine
    from eagle_model.versions import installed, warnings

    print("\n".join(warnings(installed()) if versions else examine()))


@app.command()
def plan(
    files: Annotated[list[Path], typer.Argument(help="Images and videos, seen together as one sample.")],
    context: Annotated[int, typer.Option(min=1, help="Tokens that the sample may take.")] = 32_768,
    ask: Annotated[str, typer.Option(help="The question, whose tokens count too.")] = "",
    model: Annotated[Path | None, typer.Option(help="A checkpoint or a run, for its tokenizer and tile size.")] = None,
    max_tiles: Annotated[int, typer.Option(min=1, help="Most tiles an image.")] = 12,
    fps: Annotated[float, typer.Option(min=0.001, help="Most frames a second of video.")] = 2.0,
    min_frames: Annotated[int, typer.Option(min=1, help="Fewest frames a video, if --fps gives it as many.")] = 8,
    max_frames: Annotated[int, typer.Option(min=1, help="Most frames a video.")] = 512,
    out: Annotated[Path | None, typer.Option(help="The contact sheet; by default FILE.plan.png, here.")] = None,
) -> None:
    """What Eagle would see of images and videos: frames, times, tile grids and tokens, and a contact sheet.

    Example:  eagle plan film.mp4 --context 8192
    """
    from eagle_model.checkpoints import read_newest
    from eagle_model.data.contact_sheet import captions, patches_to_pixels, write_contact_sheet
    from eagle_model.data.processor import Processor, ProcessorConfig
    from eagle_model.data.rows import parse_sample
    from eagle_model.data.tokenizer import counting_tokenizer

    out = _sheet_path(out, files)
    limits = {"context_tokens": context, "max_tiles": max_tiles, "frames_per_second": fps}
    limits |= {"min_frames": min_frames, "max_frames": max_frames}
    if model is None:
        tokenizer, config = counting_tokenizer(), ProcessorConfig()
    else:
        theirs = read_newest(model, Processor.from_pretrained, print)
        tokenizer, config = theirs.tokenizer, theirs.config
    config = replace(config, sampling=replace(config.sampling, **limits))  # type: ignore[arg-type]
    processor = Processor(tokenizer, config)
    message = {"role": "user", "content": [*cli_infer.media_parts(files), {"type": "text", "text": ask}]}
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
    for video, times in zip(sample.videos, planned.visual.timestamps_seconds):
        print(_describe_video(video.path, times))
    _, patches_IPK = processor.load_sample(planned)
    if patches_IPK.shape[0]:
        tiles_IYX3 = patches_to_pixels(patches_IPK, patch_px=config.patch_px, mean=config.mean, std=config.std)
        write_contact_sheet(out, tiles_IYX3, captions(planned))
        print(f"Contact sheet: {out}")


@app.command()
def verify(
    processes: Annotated[int, typer.Option(min=2, help="The most that a layout has; 32 for all of them.")] = 32,
    short: Annotated[bool, typer.Option("--short", help="One step of each layout.")] = False,
) -> None:
    """Proves that many processes compute the loss and every gradient that one does, and finds planted faults.

    In fp64 on this machine's CPU, in minutes; under torchrun on its GPUs, in bf16. Exit code 1 if anything differs.

    Example:  eagle verify --processes 8
    Example:  torchrun --nproc-per-node 8 -m eagle_model.cli verify
    """
    from eagle_model.train.verify import verify as is_verified

    if not is_verified(processes, short=short):
        raise typer.Exit(1)


@app.command()
def sizes(
    model: Annotated[
        str, typer.Argument(help="tiny, eagle2_5_8b, eagle2_2b, eagle2_1b, or a folder of a model or run.")
    ],
) -> None:
    """Parameters of a model by part, FLOPs a tile and a token, bytes of cache a token; from its config alone.

    Example:  eagle sizes eagle2_5_8b
    """
    from eagle_model.model.sizes import Sizes

    print("\n".join(Sizes.of(_model_config(model)).lines()))


def _model_config(model: str) -> EagleConfig:
    """Of a preset, or of a folder of a model or run."""
    from eagle_model.checkpoints import read_newest
    from eagle_model.model.config import PRESETS, EagleConfig

    if model in PRESETS:
        return PRESETS[model]()
    if Path(model).is_dir():
        return read_newest(Path(model), lambda folder: EagleConfig.read(folder / "config.json"), print)
    raise ValueError(f"{model} is neither a preset ({', '.join(PRESETS)}) nor a folder.")


@app.command()
def estimate(
    recipe: Annotated[str, typer.Argument(help="A recipe, as for `eagle train`.")],
    gpus: Annotated[int, typer.Option(min=1, help="How many GPUs share the step.")] = 1,
    gpu: Annotated[str, typer.Option(help="a100-80g, h100-80g, h200-141g or b200-180g.")] = "h100-80g",
    set_: Annotated[list[str], typer.Option("--set", help="path.to.field=value, as often as needed.")] = [],  # noqa: B006
    visual: Annotated[float, typer.Option(min=0, max=1, help="Share of visual tokens.")] = 7 / 8,
    documents: Annotated[int, typer.Option(min=1, help="Samples of a row, equally long.")] = 1,
) -> None:
    """What a training step will take on GPUs that are not here: memory and time by part, the cheapest layout that fits.

    Without a model of its own, a recipe is taken to train eagle2_5_8b. Times, and layouts of more than one GPU, are
    predictions.

    Example:  eagle estimate stage4 --gpus 64 --gpu h100-80g
    """
    from eagle_model.fields import override
    from eagle_model.train.estimate import report
    from eagle_model.train.recipes import recipe as recipe_of

    config = override(recipe_of(recipe), set_)
    cfg = _model_config(config.model or "eagle2_5_8b")
    print("\n".join(report(cfg, config, gpu, gpus, visual_share=visual, documents=documents)))


def _sheet_path(out: Path | None, files: list[Path]) -> Path:
    """Where the contact sheet goes. Raises ValueError where it cannot, before anything is decoded."""
    if out is None:
        return Path(f"{files[0].name}.plan.png")
    if out.is_dir() or not out.parent.is_dir() or out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--out is {out}; needs a file that ends in .png or .jpg, in a folder that exists.")
    if any(out.exists() and file.exists() and out.samefile(file) for file in files):
        raise ValueError(f"--out is {out}, one of the files to look at; it would be overwritten. Name another.")
    return out


def _describe_video(path: Path, times: tuple[float, ...]) -> str:
    from eagle_model.data.clips import open_video
    from eagle_model.data.documents import num_pages
    from eagle_model.data.sample import DOCUMENT_SUFFIX

    if path.suffix.lower() == DOCUMENT_SUFFIX:
        shown = ", ".join(f"{t + 1:.0f}" for t in times[:6]) + (", ..." if len(times) > 6 else "")
        return f"{path.name}: {num_pages(path)} pages: {len(times)} seen: {shown}"
    info = open_video(path).info
    shown = ", ".join(f"{t:.2f}" for t in times[:6]) + (", ..." if len(times) > 6 else "")
    varying = ", varying" if info.is_variable_frame_rate else ""
    return (
        f"{path.name}: {info.codec} {info.width_px} x {info.height_px}, {info.frames_per_second:.2f} fps{varying}, "
        f"{info.duration_seconds:.2f} s, {info.num_frames} frames: {len(times)} seen, at {shown} s"
    )


@app.command()
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="tiny, debug, lora, stage1, stage1_5, stage2, stage3, stage4; progressive for several."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", "--run-folder", help="The run's folder. One that holds a run resumes it."),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(help="With progressive: recipes, one after the other. By default stage2,stage3,stage4."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Instead of a recipe: the config.json of a run, which makes the same run again.")
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", help="path.to.field=value, as often as needed.")] = [],  # noqa: B006
    show: Annotated[bool, typer.Option("--show", help="List all fields, their values and meanings, and stop.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Write a Chrome trace of the third step.")] = False,
) -> None:
    """Trains by a recipe; interrupted, the same command resumes.

    Example:  eagle train tiny --run runs/first --set data.recipe=videos/recipe.json --set max_steps=500
    Example:  eagle train progressive --run runs/eagle --set model=start --set data.recipe=mix.json --set stage4:seed=1
    """
    if recipe == "progressive" and config is None:
        if profile:
            raise ValueError("--profile goes with one recipe: eagle train stage2 --profile ...")
        return _train_progressive(stages, run, set_, show)
    if stages is not None:
        raise ValueError("--stages goes with progressive: eagle train progressive --stages stage2,stage3 ...")
    from eagle_model.fields import listing, override
    from eagle_model.train.config import read_config
    from eagle_model.train.recipes import RECIPES
    from eagle_model.train.recipes import recipe as recipe_of

    if recipe is not None and config is None:
        start = recipe_of(recipe)
    elif config is not None and recipe is None:
        start = read_config(config)
    else:
        raise ValueError(f"Give a recipe ({', '.join(RECIPES)}) or --config FILE: one of the two.")
    chosen = override(start, set_)
    if show:
        _show(listing(chosen))
        return
    if run is None:
        raise ValueError("--run is missing; needs the run's folder, as in --run runs/first.")

    from eagle_model.train.trainer import Trainer

    _train(lambda: Trainer(chosen, run, say=print, profile=profile))


def _train_progressive(stages: str | None, run: Path | None, assignments: list[str], show: bool) -> None:
    from eagle_model.fields import listing
    from eagle_model.train.progressive import STAGES, Progressive, stages_of

    names = list(STAGES) if stages is None else [name.strip() for name in stages.split(",")]
    chosen = stages_of(names, assignments)
    if show:
        for config in chosen:
            print(f"\n# ---- {config.recipe_name}")
            _show(listing(config))
        return
    if run is None:
        raise ValueError("--run is missing; needs the folder of the stages' runs, as in --run runs/eagle.")
    _train(lambda: Progressive(chosen, run, say=print))


def _show(lines: list[tuple[str, str]]) -> None:
    for assignment, about in lines:
        print(f"{assignment:{COMMENT_COLUMN}}  # {about}" if assignment else f"\n# {about}")


def _train(make: Callable[[], Trainer | Progressive]) -> None:
    from eagle_model.train.first import FirstFailed
    from eagle_model.train.trainer import LostProcess, TrainingError
    from eagle_model.train.watchdog import ENDED

    try:
        trainer = make()
        done = trainer.train()
    except LostProcess as error:
        raise typer.Exit(_say(str(error), code=ENDED)) from error
    except TrainingError as error:
        raise typer.Exit(_say(str(error), code=1)) from error
    except FirstFailed as error:  # which says why
        raise typer.Exit(USAGE_ERROR) from error
    is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1  # torchrun would start anew what it takes for a failure
    if not done and trainer.stopped_by and not is_launched:
        raise typer.Exit(128 + trainer.stopped_by)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Writes report.html of a run: curves, configuration, samples as the model saw them.

    Example:  eagle report runs/first
    """
    from eagle_model.train.report import write_report

    print(f"Report: {write_report(run)}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A released folder, a checkpoint, or a run, whose newest is taken.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    run: Annotated[bool, typer.Option("--run", help="Make a run's folder, to start training from.")] = False,
    adapter: Annotated[Path | None, typer.Option(help="A LoRA adapter's folder, to merge into the weights.")] = None,
    processor: Annotated[Path | None, typer.Option(help="A folder with the tokenizer, where SOURCE has none.")] = None,
    layout: Annotated[str, typer.Option(help="released, transformers5, groot or lerobot: whose names.")] = "released",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; by default the source's.")] = None,
) -> None:
    """Makes a Hugging Face folder of a checkpoint, or of a Hugging Face folder a run to start training from.

    Example:  eagle convert runs/first my-eagle
    """
    from eagle_model.convert import to_folder, to_run

    kind = _dtype(dtype) if dtype else None
    if run and layout != "released":
        raise ValueError(f"--layout is {layout}; a run's checkpoints have the released names.")
    if run:
        out = to_run(source, out, adapter=adapter, processor=processor, dtype=kind)
    else:
        to_folder(source, out, adapter=adapter, processor=processor, layout=layout, dtype=kind)
    print(f"Written: {out}")


@app.command()
def assemble(
    vision: Annotated[Path, typer.Argument(help="A SigLIP2's folder.")],
    llm: Annotated[Path, typer.Argument(help="A language model's folder: Qwen2.5, Qwen3 or Llama.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    tile_px: Annotated[int | None, typer.Option(min=1, help="Of a tile; by default the SigLIP2's image size.")] = None,
    token_order: Annotated[
        str, typer.Option(help="released or training: which of Eagle's tokens comes first.")
    ] = "released",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    seed: Annotated[int, typer.Option(min=0, help="Of the new connector.")] = 0,
) -> None:
    """Makes a new Eagle of a vision tower and a language model: what the first stage of training starts from.

    Example:  eagle assemble siglip2-so400m-patch14-384 Qwen2.5-7B-Instruct start --tile-px 448
    """
    import torch

    from eagle_model.convert import assemble

    torch.manual_seed(seed)
    assemble(vision, llm, out, tile_px=tile_px, token_order=token_order, dtype=_dtype(dtype))
    print(f"Written: {out}")


def _dtype(name: str) -> torch.dtype:
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ValueError(f"--dtype is {name}; needs one of {', '.join(dtypes)}.")
    return dtypes[name]


@app.command()
def bench(
    out: Annotated[Path, typer.Option(help="The folder that takes bench.json, bench.md and bench.png.")],
    ops: Annotated[list[str] | None, typer.Argument(help="Ops by name; all of them by default.")] = None,
) -> None:
    """Times the ops beside torch and other libraries, against the ceilings of this machine; from a checkout.

    Example:  eagle bench rms_norm swiglu --out results
    """
    import subprocess

    root = Path(__file__).resolve().parent.parent
    folder = root / "bench"
    if not (folder / "harness.py").is_file():
        raise ValueError(
            f"the benches are not part of the installed package, and {root} is no checkout. Clone the repository, "
            "run pip install -e '.[bench]' there, and eagle bench again."
        )
    missing = [
        p for p in ("pytest", "pytest_benchmark", "pytest_timeout", "matplotlib") if importlib.util.find_spec(p) is None
    ]
    if missing:
        raise ValueError(f"the benches need {', '.join(missing)}: pip install 'eagle-kernels[bench]'")
    benches = [path for path in folder.glob("bench_*.py") if "def test_" in path.read_text()]  # not the scripts
    known = sorted(path.stem.removeprefix("bench_") for path in benches)
    if unknown := [op for op in ops or [] if op not in known]:
        raise ValueError(f"no bench of {', '.join(unknown)}; there are {', '.join(known)}")
    out.mkdir(parents=True, exist_ok=True)
    results = out.resolve() / "bench.json"
    files = [str(folder / f"bench_{op}.py") for op in ops or known]
    for command in (
        [sys.executable, "-m", "pytest", "-q", "--benchmark-json", str(results), *files],
        [sys.executable, "-m", "bench.report", str(results), "--out", str(results.parent)],
    ):
        if code := subprocess.run(command, cwd=root).returncode:
            raise typer.Exit(code)
    print(f"Results: {results.with_suffix('.md')}")


if __name__ == "__main__":
    main()
