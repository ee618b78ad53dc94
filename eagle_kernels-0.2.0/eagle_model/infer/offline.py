"""Rows of a file answered one after another, many at a time: `eagle infer rows.jsonl --out answers.jsonl`.

    answer_file(engine, "rows.jsonl", "answers.jsonl", Sampling(max_new_tokens=64))     # goes on where it stopped
    answers = answer_all(engine, [messages, messages, ...])                             # of a list, in its order

A row is one of training (docs/data_formats.md), with or without an answer: an assistant's turn at its end is left out,
to be asked for. `id` names it, else its line does. An answer's line has "id", "text", "finish_reason", "prompt_tokens",
"completion_tokens" and "reduced", or "id" and "error" where the row cannot be answered. What the file holds already is
not asked again; a last line that a kill cut short is. A file that holds other lines is left as it is, and an error.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DataError, Sample
from eagle_model.infer.engine import GREEDY, Engine
from eagle_model.infer.request import Answer, Request
from eagle_model.infer.sampling import Sampling

AHEAD = 2  # times max_running: so many rows are planned before they are needed


def answer_all(engine: Engine, conversations: Sequence[Sequence[dict]], sampling: Sampling = GREEDY) -> list[Answer]:
    """The answers to conversations, in their order. Raises as `Engine.submit` and `Request.result`."""
    asked: list[Request] = []
    answers: list[Answer] = []
    for messages in conversations:
        if len(asked) - len(answers) >= AHEAD * engine.max_running:
            answers.append(asked[len(answers)].result())
        asked.append(engine.submit(messages, sampling))
    return answers + [request.result() for request in asked[len(answers) :]]


def answer_file(
    engine: Engine,
    rows: str | Path,
    out: str | Path,
    sampling: Sampling = GREEDY,
    *,
    root: str | Path | None = None,
    tiles: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
    say: Callable[[int, int], object] = lambda done, failed: None,
) -> tuple[int, int]:
    """Answers every row of a JSONL file that `out` has no line of; returns how many were answered, and failed.

    Args:    root: media must lie inside this folder; None: paths are relative to the rows' folder and may lead
                 anywhere.  tiles, frames, fps: as for `Engine.submit`.  say: is told both numbers after each line.
    Raises:  FileNotFoundError without the rows; DataError for a line that is no JSON object, where two rows have one
             id, or where `out` holds something else than answers.
    """
    rows, out = Path(rows), Path(out)
    done = _finished(out)
    num_done = num_failed = 0
    with out.open("a", encoding="utf-8") as file:

        def write(line: dict[str, Any]) -> None:
            nonlocal num_done, num_failed
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            num_failed += "error" in line
            num_done += "error" not in line
            say(num_done, num_failed)

        asked: list[tuple[str, Request]] = []
        for name, row in _read(rows, done):
            while len(asked) >= AHEAD * engine.max_running:
                write(_line(*asked.pop(0)))
            try:
                question = _question(row, rows.parent if root is None else Path(root), name, is_open=root is None)
                asked.append((name, engine.submit(question, sampling, tiles=tiles, frames=frames, fps=fps)))
            except DataError as error:
                write({"id": name, "error": str(error)})
        for name, request in asked:
            write(_line(name, request))
    return num_done, num_failed


def _question(row: dict, root: Path, where: str, *, is_open: bool) -> Sample:
    sample = parse_sample(row, root=root, where=where, allow_outside_root=is_open)
    if sample.turns[-1].role == "assistant":
        sample = replace(sample, turns=sample.turns[:-1])
    if not sample.turns:
        raise DataError(f"{where}: the row has an answer alone; needs a question.")
    return sample


def _line(name: str, request: Request) -> dict[str, Any]:
    try:
        answer = request.result()
    except DataError as error:
        return {"id": name, "error": str(error)}
    usage = answer.usage
    return {
        "id": name,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "reduced": request.shown.reduced,
    }


def _finished(out: Path) -> set[str]:
    """The ids that the file has lines of. A last line that was cut short is taken away.

    Raises DataError for any other line that is no answer: the file may be somebody's work.
    """
    if not out.is_file():
        return set()
    done, whole = set(), 0
    with out.open("rb") as file:
        for number, line in enumerate(file, 1):
            is_whole, answer = line.endswith(b"\n"), None
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
            if answer is None and not is_whole and b'{"id": '.startswith(line[:7]):
                break
            if not (isinstance(answer, dict) and "id" in answer and ("text" in answer or "error" in answer)):
                raise DataError(
                    f"{out}:{number}: {line[:40]!r} is no answer of an earlier call; the file is left as it is. Name "
                    "another, or take the line out."
                )
            if not is_whole:
                break
            done.add(answer["id"])
            whole += len(line)
    if whole < out.stat().st_size:
        with out.open("r+b") as file:
            file.truncate(whole)
    return done


def _read(path: Path, done: Iterable[str]) -> Iterator[tuple[str, dict]]:
    seen: set[str] = set()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: no JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: a {type(row).__name__}; needs a JSON object.")
            name = f"{path.name}:{number}" if row.get("id") is None else str(row["id"])
            if name in seen:
                raise DataError(f"{path}:{number}: id {name!r} is an earlier row's too; needs one of its own.")
            seen.add(name)
            if name not in done:
                yield name, row
