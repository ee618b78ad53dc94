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
        (
            *(
                "fps",
                "samplefps",
                "samplingfps",
                "targetfps",
                "videofps",
                "maxfps",
                "minfps",
                "framerate",
                "numsegments",
            ),
            *("nframes", "numframes", "videonumframes", "videoframes", "maxframes", "minframes", "maxnumframes"),
            *("videosamplerate", "videominnumframes", "videomaxnumframes", "maxpixels", "minpixels", "totalpixels"),
            *("videomaxpixels", "videominpixels", "imagemaxpixels", "imageminpixels", "maxtiles", "maxdynamictiles"),
        ),
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
    **dict.fromkeys(("systemprompt", "systemmessage", "sysprompt", "sys"), "write it as 'system'"),
    **dict.fromkeys(("repeat", "repeats", "repeattime"), "a recipe's source has repeat_time, for all of its rows"),
    "history": "write earlier turns as turns",
}
_BOUND = re.compile(  # one end of a clip, as other names say it
    r"(video|clip|time|segment)?(start|end|begin|stop|finish)"
    r"(time|stamp|timestamp|ts|second|sec|s|ms|frame|idx|index|offset)s?"
    r"|(video|clip|segment|time|timestamp|ts|t)(start|begin|end|stop|finish)|(start|end)t"
)
_BARE_BOUND = {"begin", "stop", "finish", "from", "to"}  # of a clip where the value is a time
_BOUNDS = re.compile(  # both ends in one value
    r"(video|time|clip|frame)?(bound|segment|range|span|window|interval|stamp|moment)s?|(video)?clips?|startend"
)
_FRAMES = re.compile(r"(video|sampled|selected|key)?frames?(indices|indexes|index|idxs?|ids?|list|numbers?)?")
_TIME = re.compile(r"([0-9]+:){0,2}[0-9]+([.,][0-9]+)?s?")
_TIMES = re.compile(rf"\W*{_TIME.pattern}\s*(-|--|–|,|to|;)\s*{_TIME.pattern}\W*")
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
    if has_video and (
        _BOUND.fullmatch(plain)
        or (plain in _BARE_BOUND and _is_time(value))
        or (_BOUNDS.fullmatch(plain) and _are_bounds(value))
    ):
        return "a clip is given by 'start' and 'end', in seconds, of the video, or of a row that shows one video"
    if has_video and _FRAMES.fullmatch(plain) and isinstance(value, list):
        return "which frames are seen says the run's config, processor.sampling, for all rows"
    if isinstance(value, (bool, int, float)):  # a number of images, a width: no medium
        return None
    if near := _nearly(plain):
        return f"it is nearly {near!r}, and is not read"
    if _NEAR_MEDIA.fullmatch(plain):
        return "media are read from 'image', 'images', 'video', 'videos' and 'data'"
    if _has_media_word(name[:80]) and _names_media(value):
        return f"it names media, which are read from {', '.join(map(repr, _READ[1:]))} and 'data'"
    if not has_media and _names_media(value):
        return "it names a file, and the row shows none; media are read from 'image', 'images', 'video' and 'videos'"
    return None


@lru_cache(maxsize=4096)  # data sets have the same fields in all rows, and difflib takes a third of a millisecond
def _nearly(plain: str) -> str | None:
    """The field that this is a misspelling of: image_ or vidoes, but not image_id."""
    near = get_close_matches(plain, _READ, n=1, cutoff=0.8)
    return near[0] if near and not plain.endswith("id") else None


@lru_cache(maxsize=4096)
def _has_media_word(name: str) -> bool:
    """second_image, imageAfter, left-img: of what kind it is, and which."""
    words = re.findall(r"[a-z]+|[A-Z][a-z]*", name)
    return any(re.fullmatch(_MEDIUM, word.lower()) for word in (words[:1] + words[-1:]))


def _is_time(value: object) -> bool:
    if isinstance(value, str):
        return len(value) < 40 and bool(_TIME.fullmatch(value.strip()))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_bounds(value: object) -> bool:
    """Whether a value is one clip's two ends: a list, alone or in a list, an object, or "3-5"."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, dict):
        return len(value) < 20 and any(name in value for name in ("start", "begin", "from", "start_time", "end"))
    if isinstance(value, str):
        return len(value) < 80 and bool(_TIMES.fullmatch(value))
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, (int, float, str)) for v in value)


def _names_media(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_names_media, value[:4]))
    if isinstance(value, dict):
        return any(map(_names_media, [value.get("path"), value.get("url")])) or bool(value.get("bytes"))
    return isinstance(value, str) and (
        value[:11].startswith(("data:image/", "data:video/")) or bool(_FILE.search(value[-8:]))
    )
