"""Moments of videos, what happens when, as their authors lay them out: a record -> rows. Functions as in questions.py.

    for row in captions({"timestamps": [[0.83, 19.86], ...], "sentences": [...]}, "v_QOlSCBRmfWY", place): ...
    # asked: what happens, and when?   answered: "0.8 - 19.9 s: A young woman enters.\n17.4 - 60.8 s: She dances."

Times are seconds from the video's start, with one decimal.
"""

from __future__ import annotations

from eagle_model.data.formats.records import DESCRIBE, chat
from eagle_model.data.sample import DataError, shown
from eagle_model.data.sources.questions import WHAT_HAPPENS, Place, Rows, line, need

WHEN = "When does this happen in the video: {}? Give start and end in seconds."
CHAPTERS = "Divide this video into chapters. Give each one's start, in seconds, and its title, one a line."
_VIDEOS = ("videos", "train", "validation", "raw_videos")


def captions(record: object, name: str, place: Place) -> Rows:
    """ActivityNet Captions, and files processed like it: {video: {timestamps, sentences}}; videos/ID.mp4."""
    record = need(record, "timestamps", "sentences")
    if len(record["timestamps"]) != len(record["sentences"]):
        raise DataError(f"{len(record['timestamps'])} times and {len(record['sentences'])} sentences.")
    events = [line(start, end, text) for (start, end), text in zip(record["timestamps"], record["sentences"])]
    video = place.find(name, _VIDEOS)
    yield chat([(WHAT_HAPPENS, "\n".join(events))], [("video", video)], more={"id": name})


def segments(record: object, name: str, place: Place) -> Rows:
    """ActivityNet, HACS Segments, FineAction, COIN, YouCook2: {"database": {video: {annotations: [{segment, label}]}}}.

    COIN says `annotation`, YouCook2 `sentence`. Videos: videos/ID.mp4, or v_ID as ActivityNet names them, LABEL/v_ID
    as HACS's download does, raw_videos/SUBSET/RECIPE/ID as YouCook2's. Those of the subset "testing", and those without
    segments, are passed over.
    """
    record = need(record)
    events = record.get("annotations", record.get("annotation")) or []
    if record.get("subset") == "testing" or not events:
        return
    spans = sorted((*need(event, "segment")["segment"], _label(event)) for event in events)
    folders = [*_VIDEOS, f"raw_videos/{record.get('subset')}/{record.get('recipe_type')}", spans[0][2]]
    found = (place.find(file, folders) for file in (name, f"v_{name}"))
    video = next((path for path in found if (place.root / path).is_file()), f"videos/{name}.mp4")
    answer = "\n".join(line(*span) for span in spans)
    yield chat([(WHAT_HAPPENS, answer)], [("video", video)], more={"id": name})


def _label(event: dict) -> str:
    label = event.get("label", event.get("sentence"))
    if not isinstance(label, str):
        raise DataError(f"a segment is {shown(event)}; needs a label or a sentence.")
    return label


def charades_sta(record: object, name: str, place: Place) -> Rows:
    """Charades-STA: a line "ID start end##sentence."; Charades_v1_480/ID.mp4 or videos/."""
    times, _, sentence = str(record).partition("##")
    parts = times.split()
    if len(parts) != 3 or not sentence:
        raise DataError(f"the line is {shown(record)}; needs 'ID start end##sentence'.")
    video = place.find(parts[0], ["Charades_v1_480", "videos"])
    answer = f"{float(parts[1]):.1f} - {float(parts[2]):.1f} s"
    yield chat([(WHEN.format(sentence.rstrip(".")), answer)], [("video", video)])


def qvhighlights(record: object, name: str, place: Place) -> Rows:
    """QVHighlights: JSON Lines of vid, query, relevant_windows; videos/VID.mp4."""
    record = need(record, "qid", "vid", "query", "relevant_windows")
    answer = "\n".join(f"{start:.1f} - {end:.1f} s" for start, end in record["relevant_windows"])
    pair = (WHEN.format(record["query"].rstrip(".")), answer)
    yield chat([pair], [("video", place.find(record["vid"], _VIDEOS))], more={"id": str(record["qid"])})


def vitt(record: object, name: str, place: Place) -> Rows:
    """ViTT: JSON Lines, though named .json, of id and annotations of {timestamp in ms, tag}; videos/ID.mp4."""
    record = need(record, "id", "annotations")
    tags = sorted((need(tag, "timestamp", "tag")["timestamp"] / 1000, tag["tag"]) for tag in record["annotations"])
    answer = "\n".join(f"{start:.1f} s: {tag.strip()}" for start, tag in tags)
    video = place.find(record["id"], _VIDEOS)
    yield chat([(CHAPTERS, answer)], [("video", video)], more={"id": record["id"]})


def vidchapters(record: object, name: str, place: Place) -> Rows:
    """VidChapters-7M's processed JSON: {video: {duration, timestamps, sentences}}; videos/ID.mp4. No pickle is read."""
    record = need(record, "timestamps", "sentences")
    chapters = zip(record["timestamps"], record["sentences"])
    answer = "\n".join(f"{start:.1f} s: {title.strip()}" for (start, _), title in chapters)
    yield chat([(CHAPTERS, answer)], [("video", place.find(name, _VIDEOS))], more={"id": name})


def vript(record: object, name: str, place: Place) -> Rows:
    """Vript: a file a video of {meta, data: {clip: {caption: {content}}}}; vript_long_videos_clips/VIDEO/CLIP.mp4."""
    record = need(record, "video_id", "caption")
    folders = [f"{base}/{record['video_id']}" for base in ("vript_long_videos_clips", "vript_short_videos_clips")]
    text = need(record["caption"], "content")["content"]
    yield chat([(DESCRIBE["video"], text)], [("video", place.find(name, [*folders, "videos"]))], more={"id": name})
