"""Where labels are hidden: the file that a benchmark's server takes, of all answers.

write_submission(Path("out"), TASKS["egoschema"], rows)       # out/egoschema.csv: q_uid,answer
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eagle_model.evaluate.task import Submission, Task
from eagle_model.files import write_json, write_text


def write_submission(out: Path, task: Task, rows: Sequence[Mapping[str, Any]]) -> Path | None:
    """The file's path, or None where the task has none or no answer is hidden.

    An answer in which no option was read is given as the first one where the server wants a letter: it has no other
    way to say so. The table counts how many they are, as `unread`.
    """
    if task.submission is None or all(row["answer"] is not None for row in rows):
        return None
    form = task.submission
    path = out / form.file
    said = {str(row["id"]): _said(form, row) for row in rows}
    if form.shape == "dict":
        write_json(path, said)
    elif form.shape == "list":
        write_json(path, [{form.id: _number(key), form.answer: value} for key, value in said.items()])
    else:
        text = io.StringIO()
        table = csv.writer(text, delimiter="\t" if form.shape == "tsv" else ",", lineterminator="\n")
        table.writerow([form.id, form.answer])
        table.writerows(said.items())
        write_text(path, text.getvalue())
    return path


def _said(form: Submission, row: Mapping[str, Any]) -> Any:
    if form.says == "text":
        return row["text"]
    letter = row["parsed"] or "A"
    return letter if form.says == "letter" else ord(letter[0]) - ord("A")


def _number(key: str) -> int | str:
    """Ids that the official files give as integers are given back so."""
    return int(key) if key.isdigit() and str(int(key)) == key else key
