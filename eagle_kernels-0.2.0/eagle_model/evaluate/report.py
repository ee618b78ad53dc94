"""What a run gives: a table beside the published numbers, scores.json, and a page with answers beside the frames.

    table = lines(task, rows, about)              # for the terminal; the same in out/report.md
    write_report(out, task, rows, about, frames)  # report.md, scores.json, report.html

The page holds everything in itself and asks nothing of a network: questions that were answered right and wrong, evenly
over the run, each with frames that the model saw.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from eagle_model.evaluate.published import PUBLISHED
from eagle_model.evaluate.submission import write_submission
from eagle_model.evaluate.task import Question, Task
from eagle_model.evaluate.totals import Number, by_group, total
from eagle_model.files import write_json, write_text

NUM_SHOWN = 12  # answers of each kind on the page
NUM_FRAMES = 8  # of each, evenly over what was seen
FRAME_PX = 160
_PLAIN = {"score", "G-Avg"}  # marks, not shares: shown as they are
_NAMES = {"lmms_first": "lmms-eval's first letter", "lmms_ranked": "lmms-eval's ranked letter", "unread": "not read"}

Row = Mapping[str, Any]


class Seen(NamedTuple):
    caption: str
    image: Image.Image


def _text(name: str, number: Number) -> str:
    return number.text(1.0) if name in _PLAIN else number.text()


def lines(task: Task, rows: Sequence[Row], about: Mapping[str, Any]) -> list[str]:
    """The table, as Markdown. The published numbers stand beside a number of the same name."""
    found = total(task.total, rows)
    hidden = sum(row["answer"] is None for row in rows)
    bad = sum(row["error"] is not None for row in rows)
    table = [
        f"# {task.title}",
        "",
        "; ".join(f"{name}: {value}" for name, value in about.items() if value is not None),
        "",
        f"{len(rows)} questions"
        + (f", {hidden} without a public answer" if hidden else "")
        + (f", {bad} that could not be shown and count as wrong" if bad else "")
        + (f", {reduced} with fewer frames or tiles than asked for" if (reduced := _count(rows, "is_reduced")) else "")
        + (f", {cut} cut at {task.max_new_tokens} tokens" if (cut := _count(rows, "is_cut")) else "")
        + ". In brackets 95 % intervals, by bootstrap over videos or images.",
        "",
    ]
    judges = sorted({str(row["judge"]) for row in rows if "judge" in row})
    if judges:
        table += [f"Judged by {', '.join(judges)}.", ""]
    published = PUBLISHED.get(task.name, {})
    models = list(dict.fromkeys(model for numbers in published.values() for model in numbers))
    table += [
        "| | this run | " + " | ".join(f"{m} (published)" for m in models) + (" |" if models else ""),
        "|---|---|" + "---|" * len(models),
    ]
    for name, number in found.items():
        its = [f"{published.get(name, {}).get(model, '')}" for model in models]
        table.append(f"| {_NAMES.get(name, name)} | {_text(name, number)} | " + " | ".join(its) + (" |" if its else ""))
    if not found:
        table.append("| no answer is public | |" + " |" * len(models))
    for column in dict.fromkeys(task.groups):
        groups = by_group(task.total, rows, column)
        if groups:
            table += ["", f"| {column.strip('_')} | |", "|---|---|"]
        for value, numbers in groups.items():
            name, number = next(iter(numbers.items()))
            table.append(f"| {value} | {_text(name, number)} |")
    return table


def _count(rows: Sequence[Row], name: str) -> int:
    return sum(bool(row[name]) for row in rows)


def write_report(
    out: Path,
    task: Task,
    rows: Sequence[Row],
    about: Mapping[str, Any],
    questions: Sequence[Question] = (),
    frames: Callable[[Question], Sequence[Seen]] | None = None,
) -> list[Path]:
    """Writes report.md, scores.json, report.html and, where labels are hidden, the submission; returns their paths.

    questions, frames: for the page: the questions of the rows, and what was seen of one; without them no page.
    """
    written = [out / "report.md", out / "scores.json"]
    write_text(written[0], "\n".join(lines(task, rows, about)) + "\n")
    numbers = {name: number._asdict() for name, number in total(task.total, rows).items()}
    write_json(written[1], {"task": task.name, **about, "numbers": numbers, "published": PUBLISHED.get(task.name, {})})
    if frames is not None:
        written.append(out / "report.html")
        write_text(written[-1], page(task, rows, about, questions, frames))
    if submission := write_submission(out, task, rows):
        written.append(submission)
    return written


def page(
    task: Task,
    rows: Sequence[Row],
    about: Mapping[str, Any],
    questions: Sequence[Question],
    frames: Callable[[Question], Sequence[Seen]],
) -> str:
    by_id = {question.id: question for question in questions}
    body = [f"<pre>{escape(chr(10).join(lines(task, rows, about)))}</pre>"]
    for heading, chosen in (("Wrong", _spread(rows, False)), ("Right", _spread(rows, True))):
        body.append(f"<h2>{heading}</h2>")
        for row in chosen:
            question = by_id[row["id"]]
            shown = "" if row["error"] else "".join(map(_figure, frames(question)))
            body.append(
                f"<section><h3>{escape(str(row['id']))}</h3><div class=frames>{shown}</div>"
                f"<pre>{escape(question.text)}</pre><p>Answer: <b>{escape(str(row['answer']))}</b>. Said: "
                f"<q>{escape(row['text'] or row['error'] or '')}</q>, read as <b>{escape(row['parsed'] or 'nothing')}"
                f"</b>.</p></section>"
            )
    style = (
        "body{font:15px system-ui;max-width:70em;margin:2em auto;padding:0 1em}pre{white-space:pre-wrap}"
        "section{border-top:1px solid #ccc;padding:1em 0}.frames{display:flex;flex-wrap:wrap;gap:6px}"
        "figure{margin:0;font-size:12px}"
    )
    head = f"<!doctype html><meta charset=utf-8><title>{escape(task.title)}</title><style>{style}</style>"
    return head + "".join(body) + "\n"


def _spread(rows: Sequence[Row], is_right: bool) -> list[Row]:
    """Evenly over the run, some of those whose first number is 1, or is not."""
    found = [row for row in rows if row["numbers"] and (next(iter(row["numbers"].values())) >= 0.999) is is_right]
    step = max(1, len(found) // NUM_SHOWN)
    return found[::step][:NUM_SHOWN]


def _figure(seen: Seen) -> str:
    small = seen.image.convert("RGB")
    small.thumbnail((FRAME_PX, FRAME_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f"<figure><img src='data:image/jpeg;base64,{data}'><figcaption>{escape(seen.caption)}</figcaption></figure>"


def evenly(number: int, most: int = NUM_FRAMES) -> list[int]:
    """At most `most` of 0 ... number - 1."""
    if number <= most:
        return list(range(number))
    return [round(i * (number - 1) / (most - 1)) for i in range(most)]
