"""Step 5, filter: each question, and why it is dropped.

    run_step(run, filter_step(run))        # filter/part-00000.parquet: records.CHECKED, dropped ones with their reason

What is free comes first: options that are one, intervals outside the clip, near-duplicates. Then, by requests: answered
right without the video each time (blind): dropped; answered from one random frame: marked; answered differently on
repeat with the frames (unstable), or always otherwise than the row says (disputed): dropped. An anchor that is too
short, too long or gives the answer away is marked, and build.py makes no row with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pyarrow as pa

from eagle_model.annotate import prompts
from eagle_model.annotate.ask import Ask
from eagle_model.annotate.judge import LETTERS, chosen_option, contains, words
from eagle_model.annotate.question_types import stable_random
from eagle_model.annotate.records import CHECKED
from eagle_model.annotate.story import shown, text_part
from eagle_model.annotate.work import Rows, Run, Step

REASONS = ("options", "interval", "question_leak", "duplicate", "blind", "unstable", "disputed")
ANCHOR_MARKS = ("anchor_length", "anchor_leak")
CLIP_SLACK_SECONDS = 0.05  # intervals are written to a tenth
REPEAT_TEMPERATURE = 0.7  # of answers that are compared: what is known comes out the same
_SMALL_WORDS = """of in on at to by for with from and or is are was were be been it its this that there he she they his
her their as into one some no not"""


def filter_step(run: Run) -> Step:
    config, choose = run.config.filter, prompts.load("choose", run.config.prompts)

    def work(video: dict[str, Any], ask: Ask) -> Rows:
        reasons: list[str | None] = []
        for number, row in enumerate(video["questions"]):
            reason = free_reason(row, video["duration_seconds"])
            earlier = [r for r, why in zip(video["questions"][:number], reasons) if why is None]
            if reason is None and any(alike(row, other) >= config.duplicate_share for other in earlier):
                reason = "duplicate"
            reasons.append(reason)
        pairs = zip(video["questions"], reasons)
        return ask.some((row["id"], partial(checked, video, row, reason, ask)) for row, reason in pairs)

    def checked(video: dict[str, Any], row: dict[str, Any], reason: str | None, ask: Ask) -> dict[str, Any]:
        marks = anchor_marks(row, config.min_anchor_words, config.max_anchor_words)
        if reason is None:
            reason, more = _asked(run, ask, choose, video, row)
            marks += more
        about = {name: video[name] for name in ("duration_seconds", "path", "licence", "source")}
        return {**row, **about, "reason": reason, "marks": marks}

    return Step(
        name="filter",
        inputs=("select", "story", "clip"),
        settings=config,
        prompts=(choose,),
        columns=CHECKED,
        items=_items,
        work=work,
    )


def _items(parts: dict[str, pa.Table]) -> Rows:
    questions: dict[str, Rows] = {}
    for row in [*parts["story"].to_pylist(), *parts["clip"].to_pylist()]:
        if row["kind"] != "caption":
            questions.setdefault(row["video"], []).append(row)
    return [{**v, "questions": questions[v["id"]]} for v in parts["select"].to_pylist() if v["id"] in questions]


# ---- without a request


def free_reason(row: dict[str, Any], duration_seconds: float) -> str | None:
    options = [" ".join(words(option)) for option in (row["short"], *row["wrong"])]
    if len(set(options)) < len(LETTERS) or not all(options):
        return "options"
    if row["start"] is not None:
        end = duration_seconds + CLIP_SLACK_SECONDS
        if not 0 <= row["start"] < row["end"] <= end:
            return "interval"
    return "question_leak" if leaks(row["short"], row["question"]) else None


def anchor_marks(row: dict[str, Any], least: int, most: int) -> list[str]:
    if row["anchor"] is None:
        return []
    marks = [] if least <= len(row["anchor"].split()) <= most else ["anchor_length"]
    return [*marks, *(["anchor_leak"] if leaks(row["short"], row["anchor"]) else [])]


def leaks(answer: str, text: str) -> bool:
    """Whether a text gives an answer away: it holds the whole of it, or all of its words that say something."""
    told, said = words(answer), words(text)
    telling = {w for w in told if w not in _SMALL_WORDS.split()}
    return contains(said, told) or (len(telling) > 1 and telling <= set(said))


def alike(row: dict[str, Any], other: dict[str, Any]) -> float:
    """The share of pairs of neighbouring words that two questions have in common, whatever their answers: a question
    with two answers is no better than one asked twice. Questions about other clips are others."""
    if (row["start"], row["end"]) != (other["start"], other["end"]):
        return 0.0
    a, b = (set(pairwise(["", *words(r["question"]), ""])) for r in (row, other))
    return len(a & b) / len(a | b)


# ---- by requests


def _asked(
    run: Run, ask: Ask, choose: prompts.Prompt, video: dict[str, Any], row: dict[str, Any]
) -> tuple[str | None, list[str]]:
    """Why a question is dropped, and its marks."""
    config, seed = run.config.filter, run.config.seed
    start, end = row["start"] or 0.0, row["end"] or video["duration_seconds"]

    def votes(name: str, number: int, media: list[dict[str, Any]], temperature: float, blind: bool) -> list[int | None]:
        """What is chosen, as the number of an option of the row: 0 is right."""

        def voted(vote: int) -> int | None:
            order = shuffled(seed, row["id"], name, vote)
            options = [(row["short"], *row["wrong"])[i] for i in order]
            listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options))
            text = text_part(choose.fill(question=row["question"], options=listed))
            reply = ask(
                choose, [*media, text], None, item=row["id"], seed=seed + vote, temperature=temperature,
                max_tokens=64, blind=blind,
            ).value  # fmt: skip
            number_of = chosen_option(reply, options)
            return None if number_of is None else order[number_of]

        return ask.every(partial(voted, vote) for vote in range(number))

    if config.blind_votes and set(votes("blind", config.blind_votes, [], 0.0, True)) == {0}:
        return "blind", []
    marks = []
    if config.one_frame:
        at = round(stable_random(seed, "frame", row["id"]).uniform(start, end), 1)
        frame = {"type": "video", "video": video["path"], "times": [min(at, video["duration_seconds"])]}
        marks = ["one_frame"] if votes("frame", 1, [frame], 0.0, False) == [0] else []
    if config.repeat_votes:
        media = [shown(video, start, end, 2.0, config.max_frames)]
        seen = set(votes("repeat", config.repeat_votes, media, REPEAT_TEMPERATURE, False))
        if len(seen) > 1 or seen == {None}:
            return "unstable", marks
        if seen != {0}:
            return "disputed", marks
    return None, marks


def shuffled(seed: int, *names: object) -> Sequence[int]:
    """An order of the four options."""
    order = list(range(len(LETTERS)))
    stable_random(seed, *names).shuffle(order)
    return order
