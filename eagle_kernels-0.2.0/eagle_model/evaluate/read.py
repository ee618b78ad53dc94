"""Official files of a benchmark -> questions, in the files' order; no picture or video is opened.

    for question in read(TASKS["videomme"], Path("Video-MME"), split="test"):
        question.id, question.text, question.answer         # "001-1", "When ...?\\nA. ...", "C"

JSON lists and objects, JSON Lines, CSV, TSV, parquet and lines of text, by the task's declaration and the file's
suffix, all through the readers of training data: bounded, one record after the other.
"""

from __future__ import annotations

import ast
import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eagle_model.data.annotations import json_members, json_rows
from eagle_model.data.formats.tables import csv_records, parquet_records
from eagle_model.data.sample import DataError, shown
from eagle_model.evaluate.task import Question, Task, letter

MAX_LINE_BYTES = 1 << 20  # limit: of a line of text; Charades-STA's have 100
MAX_OPTIONS = 26  # letters
_HIDDEN = ("", "?", "-1")  # in the place of an answer that is not public: MMMU has "?", others an index of -1
_CIRCLE = 1_000_000  # MMBench: index + k * this is the k-th rotation of a question
_MARK = r"\(?{}\s*[.):]\)?\s*"  # of an option that says its own letter


def read(
    task: Task, folder: Path, *, split: str | None = None, on_left_out: Callable[[str], object] = lambda where: None
) -> Iterator[Question]:
    """The questions of a split, each id once; an id that is made of a question's words, and is there again, gets "#2".

    split: None is the task's first.  on_left_out: is told where a record stands that the task does not take (`only`).
    Raises DataError, naming file and line, where files are missing, or a record is not of the task's layout.
    """
    split = split or next(iter(task.files))
    if split not in task.files:
        raise DataError(f"{task.name} has no split {split!r}; needs one of {', '.join(task.files)}.")
    patterns = task.files[split]
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not paths:
        raise DataError(
            f"{folder} holds no {' or '.join(patterns)}, the {split} split of {task.title}. Download {task.source} and "
            "give its folder."
        )
    found: dict[str, str] = {}
    times: dict[str, int] = {}
    number = 0
    for path in paths:
        for where, record in _records(task, path):
            if isinstance(record, DataError):
                raise record
            record["_row"], number = number, number + 1
            if task.only and not _is_alone(task.only, record):
                on_left_out(where)
                continue
            try:
                questions = list(_questions(task, record))
            except (KeyError, TypeError, ValueError, IndexError, AttributeError, SyntaxError) as error:
                if isinstance(error, DataError):
                    raise DataError(f"{where}: {error}") from error
                raise DataError(
                    f"{where}: not of {task.title}'s layout ({type(error).__name__}: {error}). It needs "
                    f"{', '.join(f'{name} ({kind})' for name, kind in task.columns.items())}."
                ) from error
            for question in questions:
                if _is_of_words(task):  # the file has no ids, and may ask twice
                    times[question.id] = times.get(question.id, 0) + 1
                    if times[question.id] > 1:
                        question = replace(question, id=f"{question.id}#{times[question.id]}")
                if question.id in found:
                    raise DataError(f"{where}: question {question.id} is also at {found[question.id]}.")
                found[question.id] = where
                yield question


def _records(task: Task, path: Path) -> Iterator[tuple[str, Any]]:
    added = {"_file": path.stem, "_folder": task.folders.get(path.stem, "")}
    rows: Iterator[tuple[str, Any]]
    if task.line:
        rows = _lines(task, path)
    elif path.suffix == ".parquet":
        rows = parquet_records(path)
    elif path.suffix in (".csv", ".tsv"):
        rows = csv_records(path)
    elif task.members or task.under:
        members = json_members(path, task.under or None)
        rows = ((where, {"_name": name, **row} if isinstance(row, dict) else None) for where, name, row in members)
    else:
        rows = json_rows(path)
    for where, row in rows:
        if row is None:
            continue  # a member that is no record: a licence, a canary
        if not isinstance(row, dict):
            yield where, row if isinstance(row, DataError) else DataError(f"{where}: {shown(row)} is no record.")
            continue
        try:
            entries = row[task.each] if task.each else [{}]
            records = [{**row, **entry, **added} for entry in entries]
        except (KeyError, TypeError):
            yield where, DataError(f"{where}: has no list {task.each!r} of {task.title}'s questions.")
            continue
        yield from ((where, record) for record in records)


def _lines(task: Task, path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, data in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
            if text := data.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip():
                match = re.fullmatch(task.line, text)
                where = f"{path}:{number}"
                row = match.groupdict() if match else DataError(f"{where}: {shown(text)} is no line of {task.title}.")
                yield where, {"_line": str(number), **row} if isinstance(row, dict) else row


def _questions(task: Task, record: Mapping[str, Any]) -> Iterator[Question]:
    question_id = task.id.format_map(record)
    if task.circular and question_id.isdigit() and int(question_id) >= _CIRCLE:
        return  # the file's own rotation: made below, of the question itself
    options = _options(task, record)
    answer = _answer(task, record, options)
    fields = {name: _plain(record[name]) for name in (*task.groups, *task.keep) if record.get(name) is not None}
    for turn in range(len(options) if task.circular else 1):
        turned = (*options[turn:], *options[:turn])
        said = answer
        if task.circular and answer is not None:
            said = letter((ord(answer) - ord("A") - turn) % len(options))
        yield Question(
            id=question_id if turn == 0 else str(int(question_id) + turn * _CIRCLE),
            task=task,
            text=_prompt(task, record, turned),
            options=turned,
            answer=said,
            video=_path(task.video, record),
            start=_time(task.start, record),
            end=_time(task.end, record),
            images=tuple(_images(task, record)),
            subtitle_file=_path(task.subtitle_file, record),
            subtitle_start=_time(task.subtitle_start, record) or 0.0,
            fields={**fields, "circle": question_id} if task.circular else fields,
        )


def _is_alone(member: str, record: Mapping[str, Any]) -> bool:
    column, _, name = member.partition("/")
    return list(record.get(column) or ()) == [name]


def _is_of_words(task: Task) -> bool:
    return "{question}" in task.id or "{query}" in task.id


def _path(template: str, record: Mapping[str, Any]) -> str:
    return template.format_map(record) if template else ""


def _prompt(task: Task, record: Mapping[str, Any], options: Sequence[str]) -> str:
    # An empty cell of a table is no column: MMBench's hint is there or not.
    said = {"hint": "", **{name: value for name, value in record.items() if value is not None}}
    question = task.question.format_map(said).strip()
    listed = "\n".join(f"{letter(i)}. {option}" for i, option in enumerate(options))
    prompt = task.prompt if options or "{options}" not in task.prompt else "{question}"
    return prompt.format(question=question, options=listed)


def _options(task: Task, record: Mapping[str, Any]) -> tuple[str, ...]:
    if isinstance(task.options, tuple):
        found = [record.get(name) for name in task.options]
    else:
        value = record.get(task.options) if task.options else None
        if isinstance(value, str):  # MMMU writes a list as Python does
            value = ast.literal_eval(value) if value.strip() else []
        if value is not None and not isinstance(value, (list, tuple)):
            raise DataError(f"{task.options} is {shown(value)}; needs a list.")
        found = list(value or [])
    options = ["" if option is None else str(option).strip() for option in found]
    while options and options[-1] == "":  # columns, and cells of tables, that a question with fewer does not fill
        options.pop()
    if len(options) > MAX_OPTIONS:
        raise DataError(f"{len(options)} options; needs at most {MAX_OPTIONS}, a letter each.")
    marks = [re.match(_MARK.format(letter(i)), option) for i, option in enumerate(options)]
    return tuple(option[mark.end() :] if mark and all(marks) else option for option, mark in zip(options, marks))


def _answer(task: Task, record: Mapping[str, Any], options: Sequence[str]) -> Any:
    value = record.get(task.answer)
    if value is None or value == [] or str(value).strip() in _HIDDEN[: 3 if task.answer_is == "index" else 2]:
        return None
    if task.answer_is == "index":
        if not 0 <= int(value) < max(1, len(options)):
            raise DataError(f"{task.answer} is {value}, but there are {len(options)} options.")
        return letter(int(value))
    if task.answer_is == "option":
        text = str(value).strip()
        if text not in options:
            raise DataError(f"{task.answer} is {shown(text)}, which is none of the options.")
        return letter(options.index(text))
    if task.answer_is == "letter":
        text = str(value).strip()
        if not options:
            return text  # an open question among others with options
        match = re.fullmatch(r"\(?([A-Za-z])[).]?", text)
        if not match or ord(match[1].upper()) - ord("A") >= len(options):
            raise DataError(f"{task.answer} is {shown(text)}; needs a letter of {len(options)} options.")
        return match[1].upper()
    if task.answer_is == "texts":
        return [str(text) for text in (value if isinstance(value, list) else [value])]
    if task.answer_is == "seconds":
        return [_seconds(record["start"]), _seconds(record["end"])]
    if task.answer_is == "intervals":
        return [[float(start), float(end)] for start, end in value]
    return _plain(value)


def _images(task: Task, record: Mapping[str, Any]) -> Iterator[Any]:
    for name in task.images:
        if "{" in name:
            yield name.format_map(record)
            continue
        value = record.get(name)
        for image in value if isinstance(value, list) else [value]:
            if isinstance(image, dict):
                image = image.get("bytes") or image.get("path")
            if isinstance(image, str) and task.columns.get(name) == "base64":
                try:
                    image = base64.b64decode(image, validate=True)
                except binascii.Error as error:
                    raise DataError(f"{name} is no base64: {error}.") from error
            if image:
                yield image


def _time(name: str, record: Mapping[str, Any]) -> float | None:
    if not name:
        return None
    return _seconds(name.format_map(record) if "{" in name else record.get(name))


def _seconds(value: Any) -> float | None:
    """Of a number or "1:02:03.5"; None stays None."""
    if value is None or value == "":
        return None
    parts = str(value).strip().split(":")
    return sum(float(part) * 60**i for i, part in enumerate(reversed(parts)))


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, bytes):
        raise DataError("a column of bytes is no field of an answer.")
    return value
