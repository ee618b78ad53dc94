"""Step 6, build: rows that `eagle train` reads, a card of what they are, and a page to look through them.

    build(Run(config))
    # build/recipe.json, train.jsonl, validation.jsonl, recipe_validation.json, card.md, page/index.html

A clip's question gives up to three rows: about the clip alone; about the whole video, with the clip's interval in the
question (time anchor); and about the whole video, with the clip's brief caption before it (context anchor). A video's
rows all go to training or all to validation.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagle_model.annotate.card import Statistics, write_card
from eagle_model.annotate.config import BuildConfig
from eagle_model.annotate.filter import ANCHOR_MARKS
from eagle_model.annotate.judge import LETTERS
from eagle_model.annotate.page import write_page
from eagle_model.annotate.question_types import stable_random
from eagle_model.annotate.work import Run, find_parts, read_part
from eagle_model.files import write_json, write_whole

VARIANTS = ("clip", "time", "context")
_TAG = re.compile(r"(\\*)(<(?:image|video)(?:-[0-9]{1,9})?>)")


@dataclass
class Built:
    num_rows: Counter[str] = field(default_factory=Counter)  # of each split
    num_videos: Counter[str] = field(default_factory=Counter)
    folder: Path = Path()


def build(run: Run) -> Built:
    """Writes everything anew from the parts of the step filter, in their order: the same parts give the same bytes."""
    config, folder = run.config.build, run.folder / "build"
    folder.mkdir(parents=True, exist_ok=True)
    built, statistics = Built(folder=folder), Statistics()
    splits = ("train", "validation")

    def write(beside: Path) -> None:  # both files at once: one pass over the parts
        with beside.open("w", encoding="utf-8") as train, (folder / ".validation").open("w", encoding="utf-8") as other:
            for split, row in _all_rows(run, built, statistics):
                line = json.dumps(row, ensure_ascii=False)
                (train if split == "train" else other).write(line + "\n")
                built.num_rows[split] += 1

    write_whole(folder / "train.jsonl", write)
    write_whole(folder / "validation.jsonl", lambda beside: os.replace(folder / ".validation", beside))
    root = os.path.relpath(run.config.media_root.resolve(), folder.resolve())
    for split, name in zip(splits, ("recipe.json", "recipe_validation.json")):
        source = {"root": root, "annotation": f"{split}.jsonl", "repeat_time": 1, "length": built.num_rows[split]}
        write_json(folder / name, {config.name if split == "train" else f"{config.name}_{split}": source})
    write_card(folder / "card.md", run.config, built.num_rows, built.num_videos, statistics)
    write_page(folder / "page", run.config, statistics.shown)
    return built


def _all_rows(run: Run, built: Built, statistics: Statistics) -> Iterator[tuple[str, dict[str, Any]]]:
    config, seed = run.config.build, run.config.seed
    filtered = run.folder / "filter"
    selected = find_parts(run.folder / "select")
    if find_parts(filtered) != selected:
        raise ValueError(f"{filtered} lacks parts of {len(selected)}; run `eagle annotate filter` to its end first.")
    for number in selected:
        last = None
        for question in read_part(filtered, number).to_pylist():
            statistics.count(question, most_shown=config.num_shown, seed=seed)
            if question["reason"] is not None or set(question["marks"]) & set(config.drop_marks):
                continue
            split = split_of(question["video"], config.validation_share, seed)
            if question["video"] != last:
                last = question["video"]
                built.num_videos[split] += 1
                statistics.count_video(question)
            for row in rows_of(question, config, seed):
                statistics.variants[row["about"]["variant"]] += 1
                yield split, row


def split_of(video: str, validation_share: float, seed: int) -> str:
    return "validation" if stable_random(seed, "split", video).random() < validation_share else "train"


def rows_of(question: dict[str, Any], config: BuildConfig, seed: int) -> list[dict[str, Any]]:
    """The training rows of a question that was kept."""
    ask, answer = question["question"], question["answer"]
    if stable_random(seed, "choice", question["id"]).random() < config.multiple_choice_share:
        ask, answer = as_choice(question, seed)
    if question["start"] is None:
        return [_row(question, "video", ask, answer)]
    start, end = question["start"], question["end"]
    rows = []
    if "clip" in config.variants:
        rows.append({**_row(question, "clip", ask, answer), "start": start, "end": end})
    if "time" in config.variants:
        rows.append(_row(question, "time", f"Look at {start:.1f} s to {end:.1f} s of the video. {ask}", answer))
    if "context" in config.variants and not set(question["marks"]) & set(ANCHOR_MARKS):
        rows.append(_row(question, "context", f"Find this part of the video: {question['anchor']}\n{ask}", answer))
    return rows


def as_choice(question: dict[str, Any], seed: int) -> tuple[str, str]:
    """The question with four options, and the letter of the right one."""
    options = [question["short"], *question["wrong"]]
    order = list(range(len(options)))
    stable_random(seed, "options", question["id"]).shuffle(order)
    listed = "\n".join(f"{letter}. {options[i]}" for letter, i in zip(LETTERS, order))
    return f"{question['question']}\n{listed}\nAnswer with the letter.", LETTERS[order.index(0)]


def _row(question: dict[str, Any], variant: str, ask: str, answer: str) -> dict[str, Any]:
    about = {name: question[name] for name in ("type", "prompt", "model", "request", "licence", "source")}
    return {
        "id": f"{question['id']}/{variant}",
        "video": question["path"],
        "conversations": [{"from": "human", "value": f"<video>\n{no_tags(ask)}"}, {"from": "gpt", "value": answer}],
        "about": {"variant": variant, **about, "marks": question["marks"]},
    }


def no_tags(text: str) -> str:
    r"""A text in which nothing is a place for media: `<image>` becomes `\<image>`, as data/rows.py reads it."""
    return _TAG.sub(lambda m: m[1] * 2 + "\\" + m[2], text)
