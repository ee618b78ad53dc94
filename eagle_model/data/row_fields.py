"""Fields of a row that nothing reads: those that are left out and counted, and those that are refused.

    refusal("image_path", "a.png", has_media=False)     # why it is refused
    refusal("score", 0.5, has_media=True)               # None: it changes nothing that is seen or learned

Data sets keep scores, origins and answers beside what is shown. But a field that other trainers read, or one that is
nearly the name of one that is read here, was meant to change what is seen or learned: it is refused by its name.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache

_READ = ("system", "image", "images", "video", "videos")  # beside the turns
_REFUSED = {  # name, without case and punctuation -> what it was meant to do, and what to do
    **dict.fromkeys(("audio", "audios", "sound", "sounds", "speech"), "sound is not supported"),
    **dict.fromkeys(
        ("tools", "tool", "functions", "toolcalls", "functioncall", "toolchoice"),
        "tools are read from 'tools', and calls of them from 'tool_calls' of the assistant's messages",
    ),
    "objects": "boxes and names are not filled into texts; write them there",
    **dict.fromkeys(
        ("fps", "samplefps", "videofps", "nframes", "maxframes", "minframes", "maxpixels", "minpixels", "totalpixels"),
        "how much is seen of media says the run's config, processor.sampling, for all rows",
    ),
    **dict.fromkeys(("resizedheight", "resizedwidth"), "images are resized to the grid of their tiles alone"),
    **dict.fromkeys(
        (
            "loss",
            "losses",
            "lossscale",
            "lossmask",
            "lossweight",
            "lossweights",
            "weight",
            "weights",
            "train",
            "sampleweight",
            "sampleweights",
            "trainable",
        ),
        "rows have no weight. Turns have 'loss': true or false, and a recipe's source has repeat_time",
    ),
    **dict.fromkeys(
        ("chosen", "rejected", "rejectedresponse", "rejectedmessages", "rejectedimages", "rejectedvideos"),
        "preferences are not learned; write the better answer as the assistant's turn",
    ),
    **dict.fromkeys(
        ("reasoning", "reasoningcontent", "thinking", "enablethinking", "chattemplatekwargs"),
        "write thoughts that are to be learned into the assistant's text",
    ),
    **dict.fromkeys(("systemprompt", "systemmessage", "sysprompt"), "write it as 'system'"),
    "history": "write earlier turns as turns",
}
_BOUND = re.compile(  # one end of a clip, as other names say it
    r"(video|clip|time|segment)?(start|end|begin|stop)(time|stamp|second|sec|s|ms|frame|idx|index|offset)s?"
    r"|(video|clip)(start|begin|end|stop)"
)
_BOUNDS = re.compile(r"(video|time|clip)?(bound|segment|range|span|window|interval)s?|clips?")  # both, as a list of two
_MEDIUM = r"(image|img|imag|picture|pic|photo|video|vid|media|medium|audio)s?"
_PLACE = r"(path|file|filename|filepath|url|uri|link|list|byte|base64|b64|data|location)s?"
_NEAR_MEDIA = re.compile(rf"(path|file|url|input|local|abs|full|rel|relative|list|main|raw)?{_MEDIUM}({_PLACE})?[0-9]*")
_FILE = re.compile(
    r"\.(avif|bmp|gif|heic|heif|jp2|jpe?g|png|ppm|tiff?|webp|avi|flv|m4v|mkv|mov|mp4|mpe?g|ts|webm|wmv)$", re.IGNORECASE
)


def says_nothing(value: object) -> bool:
    """Whether a value is null, or empty all through, as where a writer fills in every field that any row has.

    LLaMA-Factory writes structures as JSON in a string: "[]" says nothing either.
    """
    if isinstance(value, dict):
        return all(map(says_nothing, value.values()))
    if isinstance(value, list):
        return all(map(says_nothing, value))
    return value is None or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def refusal(name: str, value: object, *, has_media: bool, has_video: bool) -> str | None:
    """Why a row with this field is refused, to follow "the row has the field ...: "; None where it may be left out.

    has_media, has_video: whether the row shows any.
    """
    if says_nothing(value):
        return None
    plain = re.sub(r"[^a-z0-9]", "", name[:80].lower())
    if plain in _REFUSED:
        return _REFUSED[plain]
    if has_video and (_BOUND.fullmatch(plain) or (_BOUNDS.fullmatch(plain) and _is_pair(value))):
        return "a clip is given by 'start' and 'end', in seconds, of the video, or of a row that shows one video"
    if isinstance(value, (bool, int, float)):  # a number of images, a width: no medium
        return None
    if near := _nearly(plain):
        return f"it is nearly {near!r}, and is not read"
    if _NEAR_MEDIA.fullmatch(plain):
        return "media are read from 'image', 'images', 'video', 'videos' and 'data'"
    if not has_media and _names_media(value):
        return "it names a file, and the row shows none; media are read from 'image', 'images', 'video' and 'videos'"
    return None


@lru_cache(maxsize=4096)  # data sets have the same fields in all rows, and difflib takes a third of a millisecond
def _nearly(plain: str) -> str | None:
    """The field that this is a misspelling of: image_ or vidoes, but not image_id."""
    near = get_close_matches(plain, _READ, n=1, cutoff=0.8)
    return near[0] if near and not plain.endswith("id") else None


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, (int, float, str)) for v in value)


def _names_media(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_names_media, value[:4]))
    if isinstance(value, dict):
        return any(map(_names_media, [value.get("path"), value.get("url")])) or bool(value.get("bytes"))
    return isinstance(value, str) and (
        value[:11].startswith(("data:image/", "data:video/")) or bool(_FILE.search(value[-8:]))
    )
