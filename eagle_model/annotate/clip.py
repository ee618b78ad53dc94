"""Step 4, clip (bottom-up): a caption of each clip, then a question of each of five types drawn for it.

run_step(run, clip_step(run))        # clip/part-00000.parquet: records.QUESTIONS, of the kind clip

The brief caption is the context anchor, and the clip's interval the time anchor: with either, build.py asks the same
question about the whole video.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa

from eagle_model.annotate import prompts
from eagle_model.annotate.ask import Ask
from eagle_model.annotate.prompts import schema_of
from eagle_model.annotate.question_types import draw, stable_random
from eagle_model.annotate.records import QUESTIONS
from eagle_model.annotate.story import TEMPERATURE, origin, said, shown, text_part, with_segments
from eagle_model.annotate.work import Rows, Run, Step


def clip_step(run: Run) -> Step:
    config, folder, seed = run.config.clip, run.config.prompts, run.config.seed
    caption, ask_for = prompts.load("clip_caption", folder), prompts.load("clip_questions", folder)

    def asked_of(video: dict[str, Any], segment: dict[str, Any], ask: Ask) -> Rows:
        start, end = middle(segment["start"], segment["end"], config.max_seconds)
        name = f"{video['id']}#{segment['number']}"
        part = shown(video, start, end, config.frames_per_second, config.max_frames)
        text = caption.fill(speech=said(segment["speech"]))
        options: dict[str, Any] = {"item": name, "seed": seed, "temperature": TEMPERATURE}
        brief = ask(caption, [part, text_part(text)], schema_of(caption.name), **options).value["brief"]
        types = draw(name, config.num_types, seed=seed, without=config.without)
        text = ask_for.fill(brief=brief, types="\n".join(f"- {t}" for t in types))
        schema = schema_of(ask_for.name, tuple(types))
        answer = ask(ask_for, [part, text_part(text)], schema, max_tokens=4096, **options)
        rows = []
        for kind, asked in answer.value.items():
            if asked is not None:  # null: the clip gives no question of this type
                more = {"id": f"{name}.{kind}", "kind": "clip", "type": kind, **asked}
                more |= {"start": start, "end": end, "anchor": brief}
                rows.append({**more, **origin(video, ask_for, answer, run)})
        return rows

    def work(video: dict[str, Any], ask: Ask) -> Rows:
        segments = chosen(video, config.max_clips, seed)
        named = ((f"{video['id']}#{s['number']}", partial(asked_of, video, s, ask)) for s in segments)
        rows = ask.some(named)
        return [row for of_segment in rows for row in of_segment]

    return Step(
        name="clip",
        inputs=("select", "segment"),
        settings=config,
        prompts=(caption, ask_for),
        columns=QUESTIONS,
        items=_items,
        work=work,
    )


def _items(parts: dict[str, pa.Table]) -> Rows:
    return with_segments(parts)


def chosen(video: dict[str, Any], most: int, seed: int) -> Rows:
    """At most so many of a video's segments, at random by its name, in their order."""
    segments = video["segments"]
    if len(segments) <= most:
        return segments
    picked = stable_random(seed, "clips", video["id"]).sample(range(len(segments)), most)
    return [segments[i] for i in sorted(picked)]


def middle(start: float, end: float, most: float) -> tuple[float, float]:
    """The middle of a segment that is longer than `most` seconds, to a tenth."""
    cut = max(0.0, (end - start - most) / 2)
    return round(start + cut, 1), round(end - cut, 1)
