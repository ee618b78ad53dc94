"""A sample: what is said, turn by turn, and the images and videos shown in it, each at its place.

    picture = ImageRef(Path("page.png"))
    Sample("s1", (Turn("user", (picture, "What is this?")), Turn("assistant", ("A page.",))))

A part of a turn is a text (a plain str), an ImageRef or a VideoRef: `<image>` in a text is seven characters like any
other. `rows.parse_sample` makes samples of a data set's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from eagle_model.data.remote import RemoteFile

DOCUMENT_SUFFIX = ".pdf"  # of a path, in small letters: a document, whose pages are seen as frames are
ROLES = ("system", "user", "assistant", "observation")  # as turns are labelled in a prompt


class DataError(ValueError):
    """Something the user's data holds that cannot be used; the message says where, what and what to do."""


class PlaceholderError(DataError):
    """The places for media that a row's text has are not those that its lists fill."""


class OutsideRootError(DataError):
    """A path that leads out of the folder of the media, or a URL."""


class NothingToLearnError(DataError):
    """A row without an answer of the assistant's that could be learned."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image that a turn shows: a file, or a picture in memory."""

    path: Path  # of an image in memory, what messages call it
    number: int = 1  # what the prompt calls it, "<image 1>": its place among the images that the row lists
    max_tiles: int | None = None  # at most so many of it, thumbnail not counted; None: as many as there is room for
    in_memory: Image | None = field(default=None, compare=False)  # instead of a file
    remote: RemoteFile | None = None  # of one that lies elsewhere: `path` is where it is kept once it was fetched

    @property
    def source(self) -> Path | Image:
        return self.path if self.in_memory is None else self.in_memory


@dataclass(frozen=True, slots=True)
class VideoRef:
    """A video file or the clip [start_seconds, end_seconds) of it; None is the file's own start or end.

    Or a document, a PDF: its pages are seen as frames are.
    """

    path: Path
    start_seconds: float | None = None
    end_seconds: float | None = None
    number: int = 1  # what the prompt calls it, "The first video": its place among the videos that the row lists
    remote: RemoteFile | None = None  # of one that lies elsewhere: `path` is where what was fetched of it is kept


Media = ImageRef | VideoRef


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says: texts and media in the order in which they are read. Only texts where role is "assistant"."""

    role: str  # one of ROLES, or "tool": what a tool answered, which the prompt shows as a user's turn
    parts: tuple[str | Media, ...]
    learned: bool = True  # of an assistant's turn: whether its text is supervised, or context alone

    @property
    def text(self) -> str:
        """The texts alone, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sample or talk: its turns, and the media that they show."""

    id: str  # the row's own `id`, else "file:line"
    turns: tuple[Turn, ...]
    where: str = field(default="", compare=False)  # "file:line", since several rows may have one id
    unused_fields: tuple[str, ...] = field(default=(), compare=False)  # of the row: what it holds and nothing reads
    tools: tuple[str, ...] = ()  # what the assistant may call: each one's JSON, as the system turn shows it

    media: tuple[Media, ...] = field(init=False)  # images and videos in the order shown: the order of tiles, everywhere
    images: tuple[ImageRef, ...] = field(init=False, compare=False, repr=False)
    videos: tuple[VideoRef, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for turn in self.turns:
            if not isinstance(turn.parts, tuple):  # a str would pass for a sequence of its characters
                raise TypeError(
                    f"Sample {self.id}: a turn's parts are {shown(turn.parts)}; needs a tuple of texts, ImageRefs and "
                    "VideoRefs."
                )
        media = [(turn.role, part) for turn in self.turns for part in turn.parts if not isinstance(part, str)]
        if any(role == "assistant" for role, _ in media):
            raise ValueError(f"Sample {self.id}: an assistant's turn shows an image or a video; needs text alone.")
        object.__setattr__(self, "media", tuple(part for _, part in media))
        object.__setattr__(self, "images", tuple(part for part in self.media if isinstance(part, ImageRef)))
        object.__setattr__(self, "videos", tuple(part for part in self.media if isinstance(part, VideoRef)))


def shown(value: object) -> str:
    """A value as error messages show it: its repr, cut where it is long."""
    try:
        text = repr(value[:80] if isinstance(value, str) else value)
    except (RecursionError, MemoryError, ValueError):  # nested deeper than repr goes; an integer of 4300 digits
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else text[:77] + "..."


def listed_names(names: Sequence[str]) -> str:
    """Names as a sentence lists them: at most 20, then how many more."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
