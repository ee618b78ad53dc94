"""What a benchmark is, as data: its official files, what is asked of a record, and how answers are scored.

    task = Task(name="quiz", title="Quiz", source="nobody/quiz", revision="none", seen="written here",
                files={"test": ("quiz.jsonl",)}, columns={"id": "str", "q": "str", "choices": "list[str]", "a": "int"},
                id="{id}", question="{q}", options="choices", answer="a", answer_is="index", video="videos/{id}.mp4",
                prompt=LETTER, score="letter")

A template ("videos/{id}.mp4") is filled from the record's columns, and from what the reader adds: `_name` (of the JSON
member that the record is), `_row` (its number among all), `_file` (the annotation file's stem) and `_folder`
(what `folders` says of that stem).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LETTER = "{question}\n{options}\nAnswer with the letter of the right option alone."
SHORT = "{question}\nAnswer with a single word or a short phrase."
LONG = "{question}"
BY_COLUMNS = "not pinned: the files are read by their columns"  # a revision

Subtitles = Literal["none", "block", "frames", "interleaved"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """The file that a benchmark's server takes where labels are hidden."""

    file: str
    shape: Literal["dict", "list", "csv", "tsv"]  # {id: answer}; [{id: .., answer: ..}]; a table with these two columns
    id: str = "id"
    answer: str = "answer"
    says: Literal["letter", "index", "text"] = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A benchmark: its official files, what is shown of them, what is asked and how answers are scored."""

    name: str  # as the command line has it
    title: str  # as papers have it
    source: str  # where the official files come from
    revision: str  # of the source that this layout is of, or why there is none
    seen: str  # what the layout was learned from
    files: Mapping[str, tuple[str, ...]]  # split -> patterns of its annotation files; the first split is the default
    columns: Mapping[str, str]  # of a record -> type; the fixtures of the tests have these
    # -- a record
    under: str = ""  # the member of the JSON file whose entries are the records
    members: bool = False  # the records are the members of the JSON object
    line: str = ""  # a regular expression whose named groups are the columns of a line of text
    only: str = ""  # a column that has members: records with another one beside this are left out, and counted
    each: str = ""  # the column that lists a record's questions, each with columns of its own
    id: str  # template, different for each question; where {question} or {query} is in it, a second one gets "#2"
    question: str = "{question}"  # template
    options: str | tuple[str, ...] = ""  # the column that lists them, or a column each; empty ones are none
    answer: str = "answer"  # column
    answer_is: Literal["letter", "index", "option", "text", "texts", "seconds", "intervals"] = "letter"
    # -- what is shown
    video: str = ""  # template of a path; a .pdf's pages are seen as frames
    start: str = ""  # column, or template: seconds or H:M:S
    end: str = ""
    images: tuple[str, ...] = ()  # columns of paths, of encoded bytes or of base64; or templates of paths
    folders: Mapping[str, str] = field(default_factory=dict)  # annotation file's stem -> `_folder`
    frame_folders: tuple[str, ...] = ()  # of these `_folder`s, whose videos are folders of pictures
    frame_folder_fps: float = 3.0
    subtitles: Subtitles = "none"
    subtitle_file: str = ""  # template: .srt, .vtt, or LongVideoBench's .json
    subtitle_start: str = ""  # column: seconds of the film at which the video begins
    max_frames: int = 256
    tiled: bool = False  # frames are tiled as images are
    # -- question and score
    prompt: str = LETTER  # of {question} and {options}
    tell_duration: bool = False  # the video's length in seconds is said before the question
    max_new_tokens: int = 16
    score: str  # a name of scores.SCORES
    total: str = "mean"  # a name of totals.TOTALS
    groups: tuple[str, ...] = ()  # columns by which the table breaks the score down; a column may list several
    keep: tuple[str, ...] = ()  # columns that scores and totals need besides
    circular: bool = False  # asked once for each rotation of its options
    judge: str = ""  # a name of judge.JUDGES
    submission: Submission | None = None
    parts: tuple[str, ...] = ()  # names of the tasks that this one consists of; nothing else is read then


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question of a task, before anything was opened."""

    id: str
    task: Task
    text: str  # the filled prompt
    options: tuple[str, ...] = ()
    answer: Any = None  # as scores need it: a letter, a text, texts, seconds; None: hidden
    video: str = ""  # a path in the data's folder, or of a folder of pictures
    start: float | None = None
    end: float | None = None
    images: tuple[Any, ...] = ()  # paths, or encoded bytes
    subtitle_file: str = ""
    subtitle_start: float = 0.0
    made: Callable[[], list[dict[str, Any]]] | None = None  # makes a message's parts, in place of files
    fields: Mapping[str, Any] = field(default_factory=dict)  # columns of `groups` and `keep`

    @property
    def media(self) -> str:
        """Equal where the pixels are: questions of one video are asked together, and belong together in statistics."""
        if self.video:
            return f"{self.video}:{self.start}:{self.end}"
        paths = [image for image in self.images if isinstance(image, str)]
        return "|".join(paths) if paths and len(paths) == len(self.images) else self.id


def letter(index: int) -> str:
    return chr(ord("A") + index)
