r"""A record of any data set -> a row of ours: who says what, and which media are shown where.

    row_of({"instruction": "Add.", "input": "1 and 2", "output": "3"})
    # {"messages": [{"role": "user", "content": "Add.\n1 and 2"}, {"role": "assistant", "content": "3"}]}

Shapes  `conversations` or `messages`        LLaVA, ShareGPT, OpenAI, ms-swift, TRL: as they are; rows.py reads them
        `query`, `response`                  ms-swift: tags in the text place `images` and `videos`
        `instruction`, `output`              Alpaca, with `input`; `history` of both: pairs that came before
        `prompt`, `completion`               TRL
        `texts` of {user, assistant}         the_cauldron, FineVision: `images` come first
        `question`, `answer`                 multiple choice with `choices`, `options`, or the letters A to J
        `caption` or `text`, and a medium    what an image or a video shows
Media   `image`, `images`, `video`, `videos`, of a table also `file_name` or `path`: a path, Hugging Face's
        {bytes, path}, base64, a data: URL, or LMDB's {lmdb_file, lmdb_key}; bytes become Embedded. In all shapes but
        the first two a text is text: `<image>` in it places nothing.
Rest    What no shape uses stays in the row, where row_fields.py refuses what would change its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from eagle_model.data.formats.media import Embedded, from_base64, kind_of
from eagle_model.data.rows import VIDEO_BOUNDS
from eagle_model.data.sample import DataError, shown

LETTERS = "ABCDEFGHIJ"
DESCRIBE = {"image": "Describe this image.", "video": "Describe this video."}  # asked for a caption
CHOOSE = "Answer with the letter and the text of the right option."
_MEDIA_FIELDS = ("image", "images", "video", "videos")
_CONTAINERS = {  # of media, wherever they stand in a row that is read as it is
    "image", "images", "video", "videos", "data", "image_list", "video_list", "image_url", "video_url", "url", "path",
    "messages", "conversations", "content",
}  # fmt: skip
_BASE64 = re.compile(r"[A-Za-z0-9+/]{80}")  # how a picture's begins; a path of 80 such characters has a dot too


def row_of(record: object) -> dict:
    """The row. Raises DataError, the reason alone, for a record of no shape that is known."""
    if not isinstance(record, dict):
        raise DataError(f"the record is {shown(record)}; needs an object.")
    record = {name: value for name, value in record.items() if value is not None}
    if "conversations" in record or "messages" in record:
        return {name: embedded(value, name) if name in _CONTAINERS else value for name, value in record.items()}
    for needed, make in _SHAPES:
        if all(name in record for name in needed):
            return make(record)
    raise DataError(
        f"the record has the fields {', '.join(map(str, list(record)[:20]))}, which are of no known shape; needs "
        "conversations, messages, query and response, instruction and output, question and answer, texts, or a caption "
        "and an image or video."
    )


def chat(
    pairs: Sequence[tuple[str, str]],
    media: Sequence[tuple[str, object]] = (),
    *,
    system: str | None = None,
    more: dict | None = None,
) -> dict:
    """A row of questions and answers; the media, (kind, what) each, are shown before the first question.

    Texts are texts: no tag is read in them. `more` is what the record has beside, the start and end of its video too.
    """
    has_video = any(kind == "video" for kind, _ in media)
    times = {name: more[name] for name in VIDEO_BOUNDS if more and name in more and has_video}
    parts: list[dict] = []
    for kind, what in media:
        parts.append({"type": kind, kind: what, **(times if kind == "video" else {})})
    messages: list[dict] = [] if not system else [{"role": "system", "content": system}]
    for question, answer in pairs:
        asked: object = [*parts, {"type": "text", "text": question}] if parts else question
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        parts = []
    rest = {name: value for name, value in (more or {}).items() if name not in times}
    return {"messages": messages, **rest}


def multiple_choice(question: str, options: Sequence[str], right: int) -> tuple[str, str]:
    """(what is asked, what is answered) of a question with lettered options; right counts from 0."""
    if not 1 <= len(options) <= len(LETTERS) or not 0 <= right < len(options):
        raise DataError(
            f"option {right} is the right one of {len(options)}; needs 1 to {len(LETTERS)}, and one of them."
        )
    lettered = [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    return "\n".join([question, *lettered, CHOOSE]), lettered[right]


def embedded(value: object, name: str) -> object:
    """A row's value with bytes, base64 and data: URLs in the places of media as Embedded."""
    if isinstance(value, list):
        return [embedded(entry, name) for entry in value]
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return Embedded(value["bytes"])
        if "bytes" in value and value["bytes"] is None:
            value = {key: entry for key, entry in value.items() if key != "bytes"}
        if isinstance(value.get("base64"), str):
            return _decoded(value["base64"])
        return {key: embedded(entry, key) if key in _CONTAINERS else entry for key, entry in value.items()}
    if isinstance(value, bytes):
        return Embedded(value)
    if isinstance(value, str) and name not in ("content", "messages", "conversations") and _is_base64(value):
        return _decoded(value)
    return value


def _is_base64(text: str) -> bool:
    return text.startswith("data:") or bool(_BASE64.match(text) and "." not in text)


def _decoded(text: str) -> Embedded:
    try:
        return from_base64(text)
    except ValueError as error:
        raise DataError(f"{error}.") from None


def _taken(record: dict, *names: str) -> tuple[list[tuple[str, object]], dict]:
    """(media in the record's order, the fields that are neither media nor named)."""
    media: list[tuple[str, object]] = []
    for name in _MEDIA_FIELDS:
        if name in record:
            kind, found = name.removesuffix("s"), embedded(record[name], name)
            media += [(kind, what) for what in (found if isinstance(found, list) else [found])]
    for name in ("file_name", "path"):
        if not media and isinstance(record.get(name), str) and (kind_ := kind_of(record[name])):
            media, names = [(kind_, record[name])], (*names, name)
    rest = {name: value for name, value in record.items() if name not in (*names, *_MEDIA_FIELDS)}
    return media, rest


def _text(record: dict, name: str) -> str:
    value = record.get(name, "")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{name} is {shown(value)}; needs a text.")
    return value


def _history(record: dict) -> list[tuple[str, str]]:
    history = record.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    ):
        raise DataError(f"history is {shown(history)}; needs a list of [question, answer].")
    return [(pair[0], pair[1]) for pair in history]


def _swift(record: dict) -> dict:
    """Tags in the texts stand for the media of the lists."""
    pairs = [*_history(record), (_text(record, "query"), _text(record, "response"))]
    row = chat(pairs, more={k: v for k, v in record.items() if k not in ("query", "response", "history")})
    return row | {name: embedded(record[name], name) for name in _MEDIA_FIELDS if name in record}


def _alpaca(record: dict) -> dict:
    media, rest = _taken(record, "instruction", "input", "output", "history", "system")
    asked = "\n".join(filter(None, [_text(record, "instruction"), _text(record, "input")]))
    pairs = [*_history(record), (asked, _text(record, "output"))]
    return chat(pairs, media, system=_text(record, "system"), more=rest)


def _prompt(record: dict) -> dict:
    media, rest = _taken(record, "prompt", "completion")
    return chat([(_text(record, "prompt"), _text(record, "completion"))], media, more=rest)


def _texts(record: dict) -> dict:
    media, rest = _taken(record, "texts")
    texts = record["texts"]
    if not isinstance(texts, list) or not texts or not all(isinstance(turn, dict) for turn in texts):
        raise DataError(f"texts is {shown(texts)}; needs a list of {{user, assistant}}.")
    return chat([(_text(turn, "user"), _text(turn, "assistant")) for turn in texts], media, more=rest)


def _question(record: dict) -> dict:
    lettered = [letter for letter in LETTERS if letter in record]
    media, rest = _taken(record, "question", "answer", "choices", "options", *lettered)
    asked, answer = _text(record, "question"), record["answer"]
    options = record.get("choices") or record.get("options") or [record[letter] for letter in lettered]
    if options:
        if not isinstance(options, list):
            raise DataError(f"choices is {shown(options)}; needs a list.")
        texts = [str(option) for option in options]
        return chat([multiple_choice(asked, texts, _right(answer, texts))], media, more=rest)
    return chat([(asked, _text(record, "answer"))], media, more=rest)


def _right(answer: object, options: list[str]) -> int:
    """Which of the options, from 0, an answer means: its number, its letter or its text."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer
    text = str(answer).strip()
    if text in options:
        return options.index(text)
    if len(text) == 1 and text.upper() in LETTERS:
        return LETTERS.index(text.upper())
    if text.isascii() and text.isdigit() and len(text) < 3:
        return int(text)
    raise DataError(f"answer is {shown(answer)}; needs the text, the letter or the number of one of the options.")


def _caption(name: str, record: dict) -> dict:
    media, rest = _taken(record, name)
    if not media:
        raise DataError(f"the record has {name!r} and no image or video; a text alone asks nothing.")
    return chat([(DESCRIBE[media[0][0]], _text(record, name))], media, more=rest)


_SHAPES = (
    (("query", "response"), _swift),
    (("instruction", "output"), _alpaca),
    (("prompt", "completion"), _prompt),
    (("texts",), _texts),
    (("question", "answer"), _question),
    (("caption",), lambda record: _caption("caption", record)),
    (("text",), lambda record: _caption("text", record)),
)
