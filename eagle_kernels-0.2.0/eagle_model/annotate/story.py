"""Step 3, story (top-down): a caption of each chapter, guided by its title, then questions about the whole video.

run_step(run, story_step(run))        # story/part-00000.parquet: records.QUESTIONS, of the kinds caption and story
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa

from eagle_model.annotate import prompts
from eagle_model.annotate.ask import Answer, Ask
from eagle_model.annotate.prompts import Prompt, schema_of
from eagle_model.annotate.records import QUESTIONS
from eagle_model.annotate.segment import HUMAN
from eagle_model.annotate.work import Rows, Run, Step

TEMPERATURE = 0.3  # of captions and questions: some variety, few inventions


def story_step(run: Run) -> Step:
    config, folder, seed = run.config.story, run.config.prompts, run.config.seed
    caption, ask_for = prompts.load("story_caption", folder), prompts.load("story_questions", folder)

    def captioned(video: dict[str, Any], chapter: dict[str, Any], ask: Ask) -> dict[str, Any]:
        text = caption.fill(
            title=chapter["title"] or "(none)",
            start=f"{chapter['start']:.1f}",
            end=f"{chapter['end']:.1f}",
            speech=said(chapter["speech"]),
        )
        part = shown(video, chapter["start"], chapter["end"], config.frames_per_second, config.max_frames)
        name = f"{video['id']}#{chapter['number']}"
        parts, schema = [part, text_part(text)], schema_of(caption.name)
        answer = ask(caption, parts, schema, item=name, seed=seed, temperature=TEMPERATURE)
        row = {"id": f"{name}.caption", "kind": "caption", "type": None, "question": chapter["title"]}
        row |= {"answer": answer.value["detailed"], "short": None, "wrong": None}
        row |= {"start": chapter["start"], "end": chapter["end"], "anchor": answer.value["brief"]}
        return {**row, **origin(video, caption, answer, run)}

    def work(video: dict[str, Any], ask: Ask) -> Rows:
        rows = ask.every(partial(captioned, video, chapter, ask) for chapter in video["segments"])
        listed = "\n\n".join(
            f"{r['start']:.1f} ~ {r['end']:.1f} s: {r['question'] or '(no title)'}\n{r['answer']}" for r in rows
        )
        text = ask_for.fill(duration=f"{video['duration_seconds']:.0f}", chapters=listed, number=config.num_questions)
        options = {"item": video["id"], "seed": seed, "temperature": TEMPERATURE, "max_tokens": 4096}
        answer = ask(ask_for, [text_part(text)], schema_of(ask_for.name), **options)
        for number, asked in enumerate(answer.value["questions"][: config.num_questions]):
            more = {"id": f"{video['id']}#story{number}", "kind": "story", "type": "story", **asked}
            rows.append({**more, "start": None, "end": None, "anchor": None, **origin(video, ask_for, answer, run)})
        return rows

    def items(parts: dict[str, pa.Table]) -> Rows:
        videos = with_segments(parts)
        return [v for v in videos if is_human(v) and len(v["segments"]) >= config.min_chapters]

    return Step(
        name="story",
        inputs=("select", "segment"),
        settings=config,
        prompts=(caption, ask_for),
        columns=QUESTIONS,
        items=items,
        work=work,
    )


def with_segments(parts: dict[str, pa.Table]) -> Rows:
    """The videos of a part, each with the list of its segments."""
    segments: dict[str, Rows] = {}
    for segment in parts["segment"].to_pylist():
        segments.setdefault(segment["id"], []).append(segment)
    return [{**v, "segments": segments[v["id"]]} for v in parts["select"].to_pylist() if v["id"] in segments]


def is_human(video: dict[str, Any]) -> bool:
    return video["segments"][0]["made_by"] in HUMAN


def said(speech: str) -> str:
    """What a prompt says of a segment's speech, after its sentence about the frames."""
    return f'\nIt is said in it: "{speech}"' if speech else ""


def shown(video: dict[str, Any], start: float, end: float, rate: float, max_frames: int) -> dict[str, Any]:
    """The part of a message that shows a piece of a video."""
    part = {"type": "video", "video": video["path"], "start": start, "end": end}
    return {**part, "frames_per_second": rate, "max_frames": max_frames}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def origin(video: dict[str, Any], prompt: Prompt, answer: Answer, run: Run) -> dict[str, Any]:
    """Where a row is from: the columns that lead to the raw answer."""
    model = run.annotator.config.model
    return {
        "video": video["id"],
        "prompt": f"{prompt.name}@{prompt.version}",
        "model": model,
        "request": answer.key,
    }
