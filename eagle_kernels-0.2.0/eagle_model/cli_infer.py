"""`eagle chat | serve | infer | export`: a trained model at work.

    eagle chat runs/first film.mp4 --ask "Which way does the digit move?"
    eagle serve runs/first --media-folder /data/films
    eagle infer runs/first questions.jsonl --out answers.jsonl
    eagle export runs/first --onnx vision.onnx

An answer goes to stdout, all that is said about it to stderr. Exit codes: as of cli.py, and 3 where `infer` could not
answer a row.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from eagle_model.infer.engine import Engine
    from eagle_model.infer.request import Request, ShownMedium
    from eagle_model.infer.sampling import Sampling
    from eagle_model.model.quantize import Kind

SOME_FAILED = 3  # exit code of `infer`, as of `eagle data check`
_TIMES_SHOWN = 6  # of a video's frames, before "..."
_HELP = "/add FILE ... shows more with the next question, /new forgets the talk, an empty line ends it."
_MODEL = typer.Argument(help="A checkpoint's folder, or a run's, whose newest is taken.")
_ADAPTER = typer.Option(help="Low-rank adapters on the model: a folder of PEFT's, or a run's.")
_MAX_NEW = typer.Option(min=1, help="Most tokens of an answer; by default 512, or a quarter of a small context.")
_TILES = typer.Option(min=1, help="Most tiles an image; by default the model's own limit.")
_FRAMES = typer.Option(min=1, help="Most frames a video; by default the model's own limit.")
_WEIGHTS = typer.Option("--quantize", help="int8 or int4: the language model's weights in so many bits.")
_FPS = typer.Option(min=0.001, help="Most frames a second; by default the model's own limit.")


def media_parts(files: list[Path]) -> list[dict[str, str]]:
    """Chat message parts for files: image or video by what is in them. Raises ValueError for what is no file."""
    from eagle_model.data.images import is_still

    for path in files:
        if re.match(r"[a-z]+:/", str(path)):
            raise ValueError(f"{path} is a URL; nothing is fetched here. Download it first.")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; needs an image or a video.")
        if not path.exists():
            raise ValueError(f"{path} does not exist.")
    kinds = ["image" if is_still(path) else "video" for path in files]
    return [{"type": kind, kind: str(path)} for kind, path in zip(kinds, files)]


def chat(
    model: Annotated[Path, _MODEL],
    files: Annotated[list[Path] | None, typer.Argument(help="Images and videos to talk about.")] = None,
    ask: Annotated[str | None, typer.Option(help="One question; else they are read from the terminal.")] = None,
    adapter: Annotated[Path | None, _ADAPTER] = None,
    max_new_tokens: Annotated[int | None, _MAX_NEW] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of the draw; 0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest that make up this share.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the draw: the same one gives the same answer.")] = None,
    tiles: Annotated[int | None, _TILES] = None,
    frames: Annotated[int | None, _FRAMES] = None,
    fps: Annotated[float | None, _FPS] = None,
    quantize: Annotated[str | None, _WEIGHTS] = None,
) -> None:
    """Answers questions about images and videos.

    Without --ask it is a talk: /add FILE shows more, Ctrl-C stops an answer.

    Example:  eagle chat runs/first clip.mp4 --ask "Which way does the digit move?"
    """
    from eagle_model.infer.engine import Engine
    from eagle_model.infer.sampling import Sampling

    shown = media_parts(files or [])
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    limits = {"tiles": tiles, "frames": frames, "fps": fps}
    engine = Engine.from_folder(model, adapter=adapter, quantize=_kind(quantize), say=_note, max_running=1)
    with engine.start():
        talk = _Talk(engine, sampling, limits)
        if ask is not None:
            talk.answer(ask, shown)
            return
        _note(_HELP)
        _converse(talk, shown)


def _kind(quantize: str | None) -> Kind | None:
    if quantize not in (None, "int8", "int4"):
        raise ValueError(f"--quantize is {quantize}; needs int8 or int4.")
    return cast("Kind | None", quantize)


def _note(text: object) -> None:
    print(text, file=sys.stderr, flush=True)


def _converse(talk: _Talk, shown: list[dict[str, str]]) -> None:
    """Questions from the terminal until an empty line; a mistake in one is said, and the talk goes on."""
    files: list[dict[str, str]] = []
    for question in iter(_read_question, ""):
        try:
            if question.startswith("/"):
                shown += _command(question, talk)
                continue
            files, shown = shown, []  # once, be it in vain: a broken file would spoil every question after it
            talk.answer(question, files)
        except KeyboardInterrupt:
            _note("\nStopped.")
        except ValueError as error:
            _note(f"eagle: {error}")
            if files:
                _note("What was to be shown with it is dropped; /add it again.")
                files = []


def _command(line: str, talk: _Talk) -> list[dict[str, str]]:
    """Does what a line that begins with / says; returns what it adds to the next question."""
    name, *given = shlex.split(line)
    if name == "/add" and given:
        return media_parts([Path(file).expanduser() for file in given])
    if name == "/new" and not given:
        talk.messages.clear()
        return []
    raise ValueError(f"{line} is not understood. {_HELP}")


def _read_question() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


class _Talk:
    """A conversation with an engine. What was said stays, an answer that was stopped included."""

    def __init__(self, engine: Engine, sampling: Sampling, limits: dict[str, Any]) -> None:
        self.engine, self.sampling, self.limits = engine, sampling, limits
        self.messages: list[dict[str, object]] = []

    def answer(self, question: str, shown: list[dict[str, str]]) -> None:
        """Prints the answer as it comes. Raises what submit and the answer do, and KeyboardInterrupt."""
        began = time.perf_counter()
        asked: dict[str, object] = {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
        request = self.engine.submit([*self.messages, asked], self.sampling, **self.limits)
        for line in planned(request):
            _note(line)
        said, first = "", None
        try:
            for event in request.events():
                first = first or time.perf_counter()
                print(event.text, end="", flush=True)
                said += event.text
        finally:
            request.cancel()
            if said:  # a stopped answer is part of the talk too
                self.messages += [asked, {"role": "assistant", "content": said}]
        print()
        if request.error is not None:
            raise request.error
        if not said:
            self.messages += [asked, {"role": "assistant", "content": ""}]
        _note(speed(request, began, first or began, time.perf_counter()))


def planned(request: Request) -> list[str]:
    """What the model gets to see, a line for each image and video, and the tokens."""
    shown = request.shown
    lines = [_describe(medium) for medium in shown.media]
    lines.append(f"{shown.num_tokens} tokens, {shown.num_tiles} tiles among them.")
    return lines + ([shown.note] if shown.note else [])


def _describe(medium: ShownMedium) -> str:
    name = Path(medium.name).name
    if medium.grid is not None:
        columns, rows = medium.grid
        thumbnail = " and a thumbnail" if medium.num_tiles > 1 else ""
        return f"{name}: {columns} x {rows} tiles{thumbnail}"
    first = medium.timestamps_seconds[:_TIMES_SHOWN]
    more = ", ..." if len(medium.timestamps_seconds) > _TIMES_SHOWN else ""
    if medium.kind == "document":
        return f"{name}: {medium.num_tiles} pages: {', '.join(f'{t + 1:.0f}' for t in first)}{more}"
    return f"{name}: {medium.num_tiles} frames, at {', '.join(f'{t:.2f}' for t in first)}{more} s"


def speed(request: Request, began: float, first: float, end: float) -> str:
    """How fast an answer was; times in seconds of one clock."""
    used = request.usage
    rate = f", {(used.completion_tokens - 1) / (end - first):.1f} tokens a second" if used.completion_tokens > 1 else ""
    cached = f", {used.cached_tokens} of {used.prompt_tokens} prompt tokens known already" if used.cached_tokens else ""
    return f"{used.completion_tokens} tokens; first after {first - began:.2f} s{rate}{cached}."


def serve(
    model: Annotated[Path, _MODEL],
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 for all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    name: Annotated[str, typer.Option(help="Of the model, as clients name it.")] = "eagle",
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER: low-rank adapters that clients ask for as model NAME.")
    ] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar="EAGLE_API_KEY", help="That clients must send; several may be given.")
    ] = None,
    media_folder: Annotated[
        list[Path] | None, typer.Option(help="Whose files clients may name, as file:///FOLDER/film.mp4.")
    ] = None,
    media_host: Annotated[
        list[str] | None, typer.Option(help="That files may be fetched from by http(s); '*' for any public one.")
    ] = None,
    cors: Annotated[list[str] | None, typer.Option(help="https://site whose pages may ask; '*' for any.")] = None,
    max_answers: Annotated[int, typer.Option(min=1, help="At once, waiting ones included; beyond: 429.")] = 64,
    max_running: Annotated[int, typer.Option(min=1, help="Computed at once.")] = 16,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Of a chat request.")] = 64,
    max_file_mb: Annotated[int, typer.Option(min=1, help="Of one file.")] = 2048,
    max_files_mb: Annotated[
        int, typer.Option(min=1, help="Of all files that are kept, in the temporary folder.")
    ] = 16384,
    request_seconds: Annotated[float, typer.Option(min=0.1, help="Most of a request.")] = 600.0,
    drain_seconds: Annotated[int, typer.Option(min=0, help="After SIGTERM, for answers under way.")] = 30,
    cache_tokens: Annotated[int | None, typer.Option(min=1, help="Of the cache of keys; by default what fits.")] = None,
    quantize: Annotated[str | None, _WEIGHTS] = None,
) -> None:
    """Serves a model over HTTP with OpenAI's interface, and a page to try it on.

    Example:  eagle serve runs/first --media-folder /data/films
    """
    from eagle_model.infer.server import ServerConfig, make_app, read_media_limits
    from eagle_model.infer.server import serve as serve_app

    named = [_named(text) for text in adapter or []]
    config = ServerConfig(
        name=name,
        adapters=tuple(name for name, _ in named),
        api_keys=tuple(key for key in api_key or [] if key),
        cors_origins=tuple(cors or []),
        media=read_media_limits(media_folder or [], media_host or [], max_file_mb << 20, max_files_mb << 20),
        max_body_bytes=max_body_mb << 20,
        max_answers=max_answers,
        request_seconds=request_seconds,
    )
    from eagle_model.infer.engine import Engine

    engine = Engine.from_folder(
        model, quantize=_kind(quantize), say=_note, cache_tokens=cache_tokens, max_running=max_running
    )
    for adapter_name, folder in named:
        engine.add_adapter(adapter_name, folder)
    with tempfile.TemporaryDirectory(prefix="eagle-serve-") as files:
        app = make_app(engine, config, folder=Path(files))
        _note(f"http://{host}:{port}/  model {name!r}; /v1/chat/completions, /ready, /metrics. Ctrl-C ends it.")
        serve_app(app, host=host, port=port, drain_seconds=drain_seconds)


def _named(text: str) -> tuple[str, Path]:
    name, is_there, folder = text.partition("=")
    if not (name and is_there and folder):
        raise ValueError(f"--adapter is {text}; needs NAME=FOLDER.")
    return name, Path(folder)


def infer(
    model: Annotated[Path, _MODEL],
    rows: Annotated[Path, typer.Argument(help="A JSONL file: rows as for training, with or without an answer.")],
    out: Annotated[Path, typer.Option(help="The answers, a line each. What it holds already is not asked again.")],
    root: Annotated[
        Path | None, typer.Option(help="The folder that media must lie in; else they may lie anywhere.")
    ] = None,
    adapter: Annotated[Path | None, _ADAPTER] = None,
    max_new_tokens: Annotated[int | None, _MAX_NEW] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of the draw; 0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest that make up this share.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of each row's draw.")] = None,
    tiles: Annotated[int | None, _TILES] = None,
    frames: Annotated[int | None, _FRAMES] = None,
    fps: Annotated[float | None, _FPS] = None,
    max_running: Annotated[int, typer.Option(min=1, help="Rows computed at once.")] = 16,
    quantize: Annotated[str | None, _WEIGHTS] = None,
) -> None:
    """Answers every row of a file; interrupted, the same command goes on. Exit code 3: some could not be answered.

    Example:  eagle infer runs/first questions.jsonl --out answers.jsonl
    """
    from eagle_model.infer.engine import Engine
    from eagle_model.infer.offline import answer_file
    from eagle_model.infer.sampling import Sampling

    if not rows.is_file():
        raise ValueError(f"{rows} does not exist.")
    if out.exists() and out.samefile(rows):
        raise ValueError(f"--out is {out}, the file of the questions. Name another.")
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    engine = Engine.from_folder(model, adapter=adapter, quantize=_kind(quantize), say=_note, max_running=max_running)
    began, is_terminal = time.perf_counter(), sys.stderr.isatty()

    def say(done: int, failed: int) -> None:
        if is_terminal:
            print(f"\r{done} answered, {failed} failed", end="", file=sys.stderr, flush=True)

    limits: dict[str, Any] = {"tiles": tiles, "frames": frames, "fps": fps}
    with engine.start():
        done, failed = answer_file(engine, rows, out, sampling, root=root, say=say, **limits)
    _note(f"{chr(13) if is_terminal else ''}{done} answered, {failed} failed, in {time.perf_counter() - began:.1f} s")
    print(f"Written: {out}")
    if failed:
        raise typer.Exit(SOME_FAILED)


def export(
    model: Annotated[Path, _MODEL],
    onnx: Annotated[Path | None, typer.Option(help="The ONNX file to write.")] = None,
    package: Annotated[Path | None, typer.Option(help="The AOTInductor package, .pt2, to write.")] = None,
    adapter: Annotated[Path | None, _ADAPTER] = None,
) -> None:
    """Writes the vision tower and connector for other runtimes: tiles in, visual tokens out, any number of tiles.

    Example:  eagle export runs/first --onnx vision.onnx
    """
    import torch

    from eagle_model.infer.engine import read_model
    from eagle_model.infer.export import export_onnx, export_package

    if onnx is None and package is None:
        raise ValueError("--onnx FILE or --package FILE is missing; needs at least one of them.")
    eagle, _ = read_model(model, adapter=adapter, dtype=torch.float32, device="cpu", say=_note)
    writers: list[tuple[Callable[..., None], Path | None]] = [(export_onnx, onnx), (export_package, package)]
    for write, path in writers:
        if path is not None:
            write(eagle, path)
            print(f"Written: {path}")


COMMANDS = (chat, serve, infer, export)
