"""What is shown with a question: a chat message's parts, by the task's declaration.

    content = parts(question, Path("Video-MME"), most_frames=120)
    # [{"type": "video", "video": "data/x.mp4"}, {"type": "text", "text": "Who ...?\\nA. ..."}]

The video, or the images, come first and the question last: what several questions share is then the beginning of their
prompts, and is computed once. A video is shown as frames with their times, each as an image, where its task asks for
tiles, where subtitles stand between the frames, where the "video" is a folder of pictures, and for servers that take no
videos: 2 frames a second, at least 8, at most the task's.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from eagle_model.data.clips import open_clip, open_video
from eagle_model.data.formats.subtitles import Cue, read_cues
from eagle_model.data.images import load_image
from eagle_model.data.sample import DOCUMENT_SUFFIX, DataError, VideoRef
from eagle_model.data.sampling import sample_times
from eagle_model.evaluate.metrics import merged
from eagle_model.evaluate.task import Question
from eagle_model.files import read_json

FRAMES_PER_SECOND = 2.0  # of the paper's evaluation
MIN_FRAMES = 8
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_VIDEO_SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")
_TAG = re.compile(r"<image (\d)>")

Part = dict[str, Any]


class Frames(NamedTuple):
    times_seconds: tuple[float, ...]
    pictures: Sequence[Any]  # PIL images, or paths relative to the data's folder


def parts(question: Question, folder: Path, *, most_frames: int, no_videos: bool = False) -> list[Part]:
    """The content of a user's message, media first. Paths are relative to `folder`, the data's, and inside it.

    Args:    most_frames: of a video, that the context has room for; the task may show fewer.
             no_videos: frames in place of videos, for a server that takes images alone.
    Raises:  DataError, naming the question, where a file is missing, broken, or outside of the folder.
    """
    try:
        if question.made is not None:
            return [*question.made(), _text(question.text)]
        if not question.video:
            return _with_images(question, folder)
        video = _find(question.video, folder)
        if (folder / video).suffix.lower() == DOCUMENT_SUFFIX and not no_videos:
            return [{"type": "video", "video": video}, _text(question.text)]
        return _with_video(question, folder, video, min(most_frames, question.task.max_frames), no_videos)
    except (DataError, OSError, ValueError) as error:
        raise DataError(f"question {question.id} of {question.task.name}: {error}") from error


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _find(name: str, folder: Path) -> str:
    """The file itself, or one of the same name and another suffix: sets are downloaded as .mp4, .mkv or .webm."""
    path = inside(folder, name)
    if path.exists():
        return name
    for suffix in _VIDEO_SUFFIXES:
        other = Path(name).with_suffix(suffix) if Path(name).suffix in _VIDEO_SUFFIXES else Path(name + suffix)
        if (folder / other).exists():
            return str(other)
    raise DataError(f"{path} does not exist; download the videos of {folder.name} too.")


def inside(folder: Path, name: str) -> Path:
    """Raises DataError where a name that official files give leads out of the folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{name!r} leads out of {folder}; needs a file inside it.")
    return path


def _with_images(question: Question, folder: Path) -> list[Part]:
    shown: list[Part] = []
    for source in question.images:
        if isinstance(source, str):
            inside(folder, source)
        shown.append({"type": "image", "image": source if isinstance(source, str) else _decoded(source)})
    content: list[Part] = []
    at = 0
    for match in _TAG.finditer(question.text):  # MMMU says where each image comes, in its options too
        if 1 <= int(match[1]) <= len(shown):
            content += [_text(question.text[at : match.start()]), shown[int(match[1]) - 1]]
            at = match.end()
    used = [part for part in content if part["type"] == "image"]
    rest = [part for part in shown if not any(part is other for other in used)]
    return [*rest, *(part for part in (*content, _text(question.text[at:])) if part.get("text") != "")]


def _decoded(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"an image of {len(data)} bytes cannot be read: {error}.") from error
    return image


def _with_video(question: Question, folder: Path, video: str, most_frames: int, no_videos: bool) -> list[Part]:
    task, path = question.task, folder / video
    said: list[Part] = []
    cues = _cues(question, folder) if task.subtitles != "none" else []
    if task.tell_duration:
        said.append(_text(f"The video is {_duration(question, path):.1f} seconds long.\n"))
    if task.subtitles in ("block", "frames"):
        shown = cues
        if task.subtitles == "frames":
            times = frame_times(_ref(question, path), most_frames)
            shown = [cue for cue in cues if any(cue.start_seconds <= t < cue.end_seconds for t in times)]
        lines = "\n".join(cue.text for cue in shown)
        said.append(_text(f"What is said in the video:\n{lines}\n\n" if lines else "Nothing is said in the video.\n"))
    said.append(_text(question.text))
    is_folder = path.is_dir()
    if not (task.tiled or task.subtitles == "interleaved" or is_folder or no_videos):
        bounds = {"start": question.start, "end": question.end}
        return [{"type": "video", "video": video, **{k: v for k, v in bounds.items() if v is not None}}, *said]
    frames = _folder_frames(question, path, most_frames) if is_folder else _frames(question, path, most_frames)
    return [*_interleaved(frames, cues if task.subtitles == "interleaved" else [], tiled=task.tiled), *said]


def _ref(question: Question, path: Path) -> VideoRef:
    return VideoRef(path, question.start, question.end)


def _duration(question: Question, path: Path) -> float:
    return open_clip(_ref(question, path)).duration_seconds or 0.0


def frame_rate(content: Sequence[Part], folder: Path) -> float:
    """At which a message's video is sampled: 2 a second, or as much more as 8 frames of a short clip need."""
    for part in content:
        if part["type"] == "video":
            clip = open_clip(VideoRef(folder / part["video"], part.get("start"), part.get("end")))
            if clip.duration_seconds:
                return max(FRAMES_PER_SECOND, MIN_FRAMES / clip.duration_seconds)
    return FRAMES_PER_SECOND


def frame_times(video: VideoRef, most_frames: int) -> tuple[float, ...]:
    """2 a second, at least 8 where there are, at most `most_frames`, evenly from the first to the last."""
    clip = open_clip(video)
    there = len(clip.frame_times_seconds)
    wanted = max(MIN_FRAMES, int((clip.duration_seconds or there) * FRAMES_PER_SECOND))
    return sample_times(clip.frame_times_seconds, max(1, min(wanted, most_frames, there)))


def _frames(question: Question, path: Path, most_frames: int) -> Frames:
    times = frame_times(_ref(question, path), most_frames)
    if path.suffix.lower() == DOCUMENT_SUFFIX:
        from eagle_model.data.documents import load_pages

        pages = load_pages(path, [round(t) for t in times])
        return Frames(times, [Image.fromarray(page.numpy()) for page in pages])
    return Frames(times, [Image.fromarray(frame.rgb_YX3.numpy()) for frame in open_video(path).frames(times)])


def clue_frames(question: Question, folder: Path, *, most: int) -> list[Part]:
    """Frames of the parts of a video that answer the question (its column `clue_intervals`), evenly over them."""
    path = folder / _find(question.video, folder)
    spans = merged(question.fields["clue_intervals"])
    seconds = sum(end - start for start, end in spans)
    found: list[Part] = []
    for start, end in spans:
        number = max(1, round(most * (end - start) / seconds)) if seconds else 1
        times = [start + (end - start) * (i + 0.5) / number for i in range(number)]
        frames = open_video(path).frames(times)
        found += [{"type": "image", "image": Image.fromarray(frame.rgb_YX3.numpy())} for frame in frames]
    return found


def _folder_frames(question: Question, path: Path, most_frames: int) -> Frames:
    """Pictures of a folder, in the order of their names, so many a second; those of the clip."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    times = np.arange(len(files)) / question.task.frame_folder_fps
    first, end = question.start or 0.0, np.inf if question.end is None else question.end
    of_clip = [i for i, t in enumerate(times) if first <= t < end]
    if not of_clip:
        raise DataError(f"{path} has {len(files)} pictures, none from {first:g} to {end:g} s.")
    seconds = len(of_clip) / question.task.frame_folder_fps
    number = min(max(MIN_FRAMES, int(seconds * FRAMES_PER_SECOND)), most_frames, len(of_clip))
    chosen = [of_clip[i] for i in np.linspace(0, len(of_clip) - 1, max(1, number)).round().astype(int)]
    pictures = [Image.fromarray(load_image(files[i]).numpy()) for i in chosen]
    return Frames(tuple(float(times[i]) for i in chosen), pictures)


def _interleaved(frames: Frames, cues: Sequence[Cue], *, tiled: bool) -> list[Part]:
    """Frames with their times, and each cue before the first frame that comes after its middle.

    Of the cues only those during which a frame is shown, as LongVideoBench has it; a cue of less than a second counts
    as one.
    """
    content: list[Part] = []
    left = [
        (middle, cue.text)
        for cue in cues
        for middle in [(cue.start_seconds + cue.end_seconds) / 2]
        for half in [max(0.5, (cue.end_seconds - cue.start_seconds) / 2)]
        if any(middle - half < t < middle + half for t in frames.times_seconds)
    ]
    for number, (t, picture) in enumerate(zip(frames.times_seconds, frames.pictures), start=1):
        while left and left[0][0] < t:
            content.append(_text(f'Said: "{left.pop(0)[1]}"\n'))
        content.append(_text(f"Frame {number} at {t:.2f} s: "))
        detail = "auto" if tiled else "low"
        content.append({"type": "image", "image": picture, "detail": detail})
    return [*content, *(_text(f'Said: "{text}"\n') for _, text in left), _text("\n")]


def _cues(question: Question, folder: Path) -> list[Cue]:
    """In the video's own seconds, in order; none where there is no file: not every video has subtitles."""
    path = inside(folder, question.subtitle_file)
    if not path.is_file():
        return []
    if path.suffix == ".json":
        found = []
        for entry in read_json(path):
            start, end = entry.get("timestamp") or (_clock(entry["start"]), _clock(entry["end"]))
            if isinstance(start, (int, float)):
                end = end if isinstance(end, (int, float)) else start + 1.0  # the last one's may be missing
                found.append(Cue(float(start), float(end), str(entry.get("text") or entry.get("line") or "")))
    else:
        found = read_cues(path)
    shift = question.subtitle_start
    moved = [Cue(start - shift, end - shift, text) for start, end, text in found if text]
    return sorted(cue for cue in moved if cue.end_seconds > 0)


def _clock(text: str) -> float:
    return sum(float(part) * 60**i for i, part in enumerate(reversed(text.split(":"))))
