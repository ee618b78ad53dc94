"""`eagle data check | convert | prepare | proxies | report | sources`: what is in a data set, and what training reads.

    eagle data check downloads/my_set
    eagle data convert downloads/my_set out && eagle train tiny --run runs/mine --set data.recipe=out/recipe.json
    eagle data prepare out/recipe.json prepared --processor models/eagle --workers 16     # then data.recipe=prepared
    eagle data report prepared --processor models/eagle --out report.html

Exit codes: as of cli.py, and 3 where `check` finds a problem.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from eagle_model.data.prepare import Progress
    from eagle_model.data.remote import RemoteConfig

PROBLEMS_FOUND = 3  # exit code of `check`
_EVERY_ROWS = 1000  # after so many rows the terminal is told how far it is

app = typer.Typer(help="Look at data sets of any format, and convert them.")
_LAYOUT = typer.Option(help="The official layout of a published set: eagle data sources lists them.")
_ONLY = typer.Option(help="Of several data sets, the one of this name; as often as needed.")
_PROCESSOR = typer.Option(help="A model's folder, a run's or a checkpoint's: its tokenizer, template and limits.")
_REMOTE = typer.Option(help="As data.remote of a run, in JSON: from where media named by URL are fetched.")
_OUTSIDE = typer.Option("--allow-outside-root", help="Media may lie outside the folder of the data: you trust it.")


def _remote(text: str | None) -> RemoteConfig | None:
    from eagle_model.data.remote import RemoteConfig
    from eagle_model.fields import from_json

    return None if text is None else from_json(RemoteConfig, json.loads(text))


def _progress(num_rows: int) -> None:
    if num_rows % _EVERY_ROWS == 0 and sys.stderr.isatty():
        print(f"\r{num_rows} rows", end="", file=sys.stderr, flush=True)


def _end_progress() -> None:
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A recipe, an annotation file, a table, a tar, or a folder.")],
    layout: Annotated[str | None, _LAYOUT] = None,
    only: Annotated[list[str] | None, _ONLY] = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Decode each image; finds those that are cut off.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    allow_outside_root: Annotated[bool, _OUTSIDE] = False,
) -> None:
    """Reads every row and opens every medium, and reports what is wrong; changes nothing. Exit code 3: something is.

    Example:  eagle data check my_set/recipe.json
    """
    from eagle_model.data.formats.check import check as check_data

    options = {"layout": layout, "pixels": pixels, "allow_outside_root": allow_outside_root, "progress": _progress}
    report = check_data(path, only=tuple(only or ()), **options)  # type: ignore[arg-type]
    _end_progress()
    print(json.dumps(report.to_json(), indent=2, ensure_ascii=False) if json_ else "\n".join(report.lines()))
    if not report.is_good:
        raise typer.Exit(PROBLEMS_FOUND)


@app.command()
def convert(
    path: Annotated[Path, typer.Argument(help="A recipe, an annotation file, a table, a tar, or a folder.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    layout: Annotated[str | None, _LAYOUT] = None,
    only: Annotated[list[str] | None, _ONLY] = None,
    skip: Annotated[bool, typer.Option("--skip", help="Leave bad rows out and list them in skipped.jsonl.")] = False,
    allow_outside_root: Annotated[bool, _OUTSIDE] = False,
) -> None:
    """Makes a recipe of a data set of any format; media inside tars, tables and LMDB become files.

    Example:  eagle data convert the_cauldron/ai2d out
    """
    from eagle_model.data.formats.convert import RECIPE, SKIPPED
    from eagle_model.data.formats.convert import convert as convert_data

    options = {"layout": layout, "allow_outside_root": allow_outside_root, "progress": _progress}
    done = convert_data(path, out, only=tuple(only or ()), on_bad_row="skip" if skip else "raise", **options)  # type: ignore[arg-type]
    _end_progress()
    media = f", {done.num_media} media files of {done.num_media_bytes / 1e6:.1f} MB" if done.num_media else ""
    skipped = f"; {done.num_skipped} skipped, listed in {out / SKIPPED}" if done.num_skipped else ""
    print("\n".join([f"{done.num_rows} rows{media}{skipped}", *done.notes, f"Written: {out / RECIPE}"]))


@app.command()
def proxies(
    recipe: Annotated[Path, typer.Argument(help="A recipe, or an annotation file.")],
    out: Annotated[Path, typer.Argument(help="A folder; what is there already is kept.")],
    fps: Annotated[float, typer.Option(help="Frames a second that are kept.")] = 2.0,
    tile: Annotated[int, typer.Option(help="Width and height of a frame in pixels: the model's tiles.")] = 448,
    psnr: Annotated[float, typer.Option(help="In dB, what a video keeps at least of what training sees.")] = 40.0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    remote: Annotated[str | None, _REMOTE] = None,
    allow_outside_root: Annotated[bool, _OUTSIDE] = False,
) -> None:
    """Writes a small file for each video, which training then decodes in its place: data.proxies=OUT.

    Called again it makes those that are missing. Exit code 3: some could not be made.

    Example:  eagle data proxies films/recipe.json films/proxies --workers 16
    """
    from eagle_model.data.proxies import FAILED, ProxySettings, make_proxies

    begin = time.monotonic()

    def progress(num_done: int, num_all: int) -> None:
        if sys.stderr.isatty():
            seconds = time.monotonic() - begin
            left = seconds / num_done * (num_all - num_done) if num_done else 0.0
            print(f"\r{num_done} of {num_all} videos, {left / 60:.0f} min left ", end="", file=sys.stderr, flush=True)

    made = make_proxies(
        recipe,
        out,
        ProxySettings(frames_per_second=fps, tile_px=tile, min_psnr_db=psnr),
        num_workers=workers,
        allow_outside_root=allow_outside_root,
        remote=_remote(remote),
        progress=progress,
    )
    _end_progress()
    before = f", {made.num_before} of them there before" if made.num_before else ""
    print(f"{made.num_done} videos{before}; {made.num_frames} frames, {made.num_bytes / 1e6:.1f} MB written")
    if made.num_frames:
        hours = made.film_seconds / 3600
        print(f"{made.num_bytes / 1e6 / hours:.0f} MB an hour of film, at least {made.least_psnr_db:.1f} dB")
    if made.num_failed:
        print(f"{made.num_failed} could not be made, listed in {out / FAILED}; training reads the originals")
        raise typer.Exit(PROBLEMS_FOUND)


@app.command()
def prepare(
    recipe: Annotated[Path, typer.Argument(help="A recipe or an annotation file.")],
    out: Annotated[Path, typer.Argument(help="A folder; one that was begun is gone on with.")],
    processor: Annotated[Path, _PROCESSOR],
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    video_time_limit: Annotated[float | None, typer.Option(help="Seconds to read the index of one video.")] = None,
    remote: Annotated[str | None, _REMOTE] = None,
    again: Annotated[bool, typer.Option("--again", help="Media have changed: opens those of another time.")] = False,
    allow_outside_root: Annotated[bool, _OUTSIDE] = False,
) -> None:
    """Reads every row and opens every medium once; training then starts at once, at any context: data.recipe=OUT.

    Example:  eagle data prepare recipe.json prepared --processor models/eagle --workers 16
    """
    from eagle_model.data.prepare import prepare as prepare_data
    from eagle_model.data.processor import Processor

    if workers < 1:
        raise ValueError(f"--workers is {workers}; needs at least 1.")

    def say(progress: Progress) -> None:
        if sys.stderr.isatty():
            print(f"\r{_said(progress)}  ", end="", file=sys.stderr, flush=True)

    options = {"allow_outside_root": allow_outside_root, "video_time_limit_seconds": video_time_limit}
    done = prepare_data(
        recipe,
        Processor.from_pretrained(processor),
        out,
        num_workers=workers,
        progress=say,
        remote=_remote(remote),
        again=again,
        **options,  # type: ignore[arg-type]
    )
    _end_progress()
    counts = f"{done['images']:,} images, {done['videos']:,} videos"
    print(f"{done['rows']:,} rows, {done['skipped']:,} of them bad; {counts}\nWritten: {out}")


def _said(progress: Progress) -> str:
    """How far it is, on one line."""
    share = 100 * progress.done_bytes / max(1, progress.all_bytes)
    rate = progress.num_rows / max(progress.seconds, 1e-9)
    left = "" if progress.seconds_left is None else f", {progress.seconds_left:,.0f} s left"
    parts = f"{progress.num_parts_done} of {progress.num_parts} parts"
    bad = f", {progress.num_skipped:,} bad" if progress.num_skipped else ""
    return f"{share:.0f} %, {parts}, {progress.num_rows:,} rows{bad}, {rate:,.0f} rows/s{left}"


@app.command()
def report(
    recipe: Annotated[Path, typer.Argument(help="A prepared folder, or a recipe, which is planned for it.")],
    processor: Annotated[Path, _PROCESSOR],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    context_tokens: Annotated[int | None, typer.Option(help="Another context than the processor's.")] = None,
    samples: Annotated[int, typer.Option(help="Samples that are shown as the model sees them.")] = 12,
    remote: Annotated[str | None, _REMOTE] = None,
    allow_outside_root: Annotated[bool, _OUTSIDE] = False,
) -> None:
    """One HTML page: how long samples are, what they show, what ADS took away, how full packs are, and samples.

    Example:  eagle data report prepared --processor models/eagle --context-tokens 65536
    """
    from dataclasses import replace

    from eagle_model.data.index import open_index
    from eagle_model.data.prefetch import Prefetch
    from eagle_model.data.processor import Processor
    from eagle_model.data.report import write_report

    made = Processor.from_pretrained(processor)
    if context_tokens is not None:
        sampling = replace(made.config.sampling, context_tokens=context_tokens)
        made = Processor(made.tokenizer, replace(made.config, sampling=sampling), kept=made.kept)
    with Prefetch(2) as prefetch:
        index = open_index(
            recipe, made, prefetch, skip_bad=True, allow_outside_root=allow_outside_root, remote=_remote(remote)
        )
    write_report(index, made, out, num_shown=samples)
    print(f"{index.num_samples:,} samples, {len(index.skipped):,} left out\nWritten: {out}")


@app.command()
def sources(
    find: Annotated[str | None, typer.Argument(help="A part of a name or a use: perception, grounding.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page of the docs.")] = False,
) -> None:
    """Every data set that the paper names: its use, where it comes from, and the layout that reads it.

    Example:  eagle data sources grounding
    """
    from eagle_model.data.sources.table import SETS, STAGES, listing, page

    if markdown:
        print(page(), end="")
        return
    wanted = (find or "").lower()
    found = [s for s in SETS if wanted in s.name.lower() or any(wanted in use.lower() for use in s.uses)]
    if not found:
        raise ValueError(f"no set has {find!r} in its name or use; eagle data sources lists all.")
    print("\n".join([*listing(found), *(STAGES if find is None else ())]))
