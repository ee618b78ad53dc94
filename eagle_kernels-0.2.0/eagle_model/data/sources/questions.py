"""Questions about videos, as their authors lay them out: a record -> rows.

    for row in nextqa({"video": "4010069381", "question": ..., "a0": ..., ...}, "", Place(root, file)): ...

Each function takes a record, its name where the file is an object of them, and the place of its file. What is asked
beside the question (that the answer is a letter and its text) is ours, records.CHOOSE. Where a video lies says each
function; `Place.find` takes the first place where there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from eagle_model.data.formats.media import Embedded
from eagle_model.data.formats.records import DESCRIBE, LETTERS, chat, multiple_choice
from eagle_model.data.sample import DataError, shown
from eagle_model.files import read_json

Rows = Iterator[dict]
WHAT_ACTION = "What is done in this video? Answer with the action alone."
WHICH = "Several options may be right, or none. Answer with the letter and the text of each that is, one a line."
WHAT_HAPPENS = "What happens in this video, and when? Give start and end of each event, in seconds, one a line."
_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi")


class Place:
    """Where an annotation file is, and its media."""

    def __init__(self, root: Path, file: Path) -> None:
        self.root, self.file = root, file

    def find(self, name: str, folders: Sequence[str], suffixes: Sequence[str] = _SUFFIXES) -> str:
        """The first of the places where a file lies, relative to root; the first of all where it lies in none.

        A name that leads out of the root is refused when the row is read.
        """
        places = [f"{folder}/{name}{suffix}" for folder in folders for suffix in suffixes]
        return next((place for place in places if os.path.isfile(self.root / place)), places[0])

    @cached_property
    def map_of_videos(self) -> dict[str, str]:
        """NExT-QA's: the number of a video -> where it lies in VidOR. Empty where it is not there."""
        path = self.file.with_name("map_vid_vidorID.json")
        return read_json(path) if path.is_file() else {}


def need(record: object, *names: str) -> dict:
    """The record. Raises DataError, the reason alone, where it is no object with these fields."""
    if not isinstance(record, dict) or any(record.get(name) is None for name in names):
        raise DataError(f"the record is {shown(record)}; needs an object with {', '.join(names)}.")
    return record


def line(start: float, end: float, text: str) -> str:
    """A moment of a video, as all of these layouts write it."""
    return f"{start:.1f} - {end:.1f} s: {text.strip()}"


def llava_video(record: object, name: str, place: Place) -> Rows:
    """LLaVA-Video-178K: rows of LLaVA's, but the tag <image> stands for a video; videos beside the annotation."""
    record = need(record, "video", "conversations")
    turns = [need(turn, "from", "value") for turn in record["conversations"]]
    turns = [
        {**turn, "value": turn["value"].replace("<image>", "<video>")} if turn["from"] == "human" else turn
        for turn in turns
    ]
    folder = place.file.parent.relative_to(place.root)
    yield record | {"video": str(folder / record["video"]), "conversations": turns}


def finevideo(record: object, name: str, place: Place) -> Rows:
    """FineVideo: parquet of mp4 and json, its description, questions and answers, and the activities of its scenes."""
    record = need(record, "mp4", "json")
    about = need(record["json"], "content_metadata")["content_metadata"]
    video = [("video", Embedded(record["mp4"]))]
    pairs = [(DESCRIBE["video"], about["description"])] if about.get("description") else []
    pairs += [(qa["question"], qa["answer"]) for qa in about.get("qAndA") or [] if qa["question"] and qa["answer"]]
    if pairs:
        yield chat(pairs, video)
    moments = []
    for activity in [a for scene in about.get("scenes") or [] for a in scene.get("activities") or []]:
        start, end = (_clock((activity.get("timestamp") or {}).get(f"{edge}_timestamp")) for edge in ("start", "end"))
        if start is not None and end is not None and end > start and activity.get("description"):
            moments.append(line(start, end, activity["description"]))
    if moments:
        yield chat([(WHAT_HAPPENS, "\n".join(moments))], video)


def _clock(text: object) -> float | None:
    """Seconds of "00:01:02.345"; None where it is no time."""
    parts = text.split(":") if isinstance(text, str) else []
    try:
        return sum(float(part) * 60**i for i, part in enumerate(reversed(parts))) if 1 <= len(parts) <= 3 else None
    except ValueError:
        return None


def nextqa(record: object, name: str, place: Place) -> Rows:
    """NExT-QA, multiple choice: CSV; videos/ID.mp4, or NExTVideo/FOLDER/ID.mp4 by map_vid_vidorID.json beside it."""
    record = need(record, "video", "question", "answer", *(f"a{i}" for i in range(5)))
    number, official = record["video"], place.map_of_videos.get(record["video"])
    folders = ["videos", *([f"NExTVideo/{os.path.dirname(official)}"] if isinstance(official, str) else [])]
    pair = multiple_choice(record["question"], [record[f"a{i}"] for i in range(5)], int(record["answer"]))
    yield chat([pair], [("video", place.find(number, folders))], more={"id": f"{number}_{record.get('qid')}"})


def star(record: object, name: str, place: Place) -> Rows:
    """STAR: JSON list; a clip of Charades' video, Charades_v1_480/ID.mp4 or videos/ID.mp4."""
    record = need(record, "question_id", "video_id", "start", "end", "question", "answer", "choices")
    options = [choice["choice"] for choice in sorted(record["choices"], key=lambda choice: choice["choice_id"])]
    if record["answer"] not in options:
        raise DataError(f"the answer {shown(record['answer'])} is none of the choices.")
    pair = multiple_choice(record["question"], options, options.index(record["answer"]))
    video = place.find(record["video_id"], ["Charades_v1_480", "videos"])
    times = {"start": float(record["start"]), "end": float(record["end"])}
    yield chat([pair], [("video", video)], more={"id": record["question_id"], **times})


def clevrer(record: object, name: str, place: Place) -> Rows:
    """CLEVRER: JSON list of scenes with their questions; video_train/video_00000-01000/video_00000.mp4 or videos/."""
    record = need(record, "scene_index", "video_filename", "questions")
    first = record["scene_index"] // 1000 * 1000
    folders = [f"{base}/video_{first:05d}-{first + 1000:05d}" for base in ("video_train", "video_validation")]
    video = place.find(record["video_filename"].removesuffix(".mp4"), [*folders, "videos"])
    pairs = [_clevrer(need(question, "question")) for question in record["questions"]]
    yield chat(pairs, [("video", video)], more={"id": str(record["scene_index"])})


def _clevrer(question: dict) -> tuple[str, str]:
    if "choices" not in question:
        return question["question"], str(need(question, "answer")["answer"])
    choices = list(zip(LETTERS, question["choices"]))
    lettered = [f"{letter}. {choice['choice']}" for letter, choice in choices]
    right = [text for text, (_, choice) in zip(lettered, choices) if choice["answer"] == "correct"]
    return "\n".join([question["question"], *lettered, WHICH]), "\n".join(right) or "None"


def perception_test(record: object, name: str, place: Place) -> Rows:
    """Perception Test: {video: {metadata, mc_question, action_localisation}}; videos/ID.mp4.

    Times are made of frame_ids and the frame rate.
    """
    record = need(record, "metadata")
    video = [("video", place.find(name, ["videos", "train_videos", "valid_videos"]))]
    if questions := record.get("mc_question"):
        pairs = [multiple_choice(q["question"], q["options"], int(q["answer_id"])) for q in questions]
        yield chat(pairs, video, more={"id": name})
    rate = float(need(record["metadata"], "frame_rate")["frame_rate"])
    if actions := record.get("action_localisation"):
        spans = sorted((a["frame_ids"][0] / rate, a["frame_ids"][1] / rate, a["label"]) for a in actions)
        answer = "\n".join(line(*span) for span in spans)
        yield chat([(WHAT_HAPPENS, answer)], video, more={"id": f"{name}_actions"})


def kinetics(record: object, name: str, place: Place) -> Rows:
    """Kinetics 400, 600 and 700: CSV of label, youtube_id, time_start, time_end, split; SPLIT/ID_000001_000011.mp4.

    Or SPLIT/LABEL/ of it, or videos/.
    """
    record = need(record, "label", "youtube_id", "time_start", "time_end")
    clip = f"{record['youtube_id']}_{int(record['time_start']):06d}_{int(record['time_end']):06d}"
    split = record.get("split", "train")
    video = place.find(clip, [split, f"{split}/{record['label']}", "videos"])
    yield chat([(WHAT_ACTION, record["label"])], [("video", video)], more={"id": clip})


def something_something(record: object, name: str, place: Place) -> Rows:
    """Something-Something V2: JSON list of id and label; 20bn-something-something-v2/ID.webm or videos/."""
    record = need(record, "id", "label")
    video = place.find(record["id"], ["20bn-something-something-v2", "videos"], (".webm", ".mp4"))
    yield chat([(WHAT_ACTION, record["label"])], [("video", video)], more={"id": record["id"]})
