"""Chat to token ids and labels, span by span, in one pass.

Layout  ChatML: `<|im_start|>role\\n` text `<|im_end|>\\n` a turn, contents stripped; a default system turn comes first
        where a sample has none; a prompt for generation ends in `<|im_start|>assistant\\n`.
        `<image-k>` becomes `<image k><img>` `<IMG_CONTEXT>` x n `</img>`. `<video-k>` becomes
        `The first video sampled with 2.00 fps: ` and for each frame `Frame 1 sample at 0.00s: <img>...</img>`, nothing
        between them. That is the layout of the released processor; beyond the tenth video, where the release has no
        word, we write `The 11-th video`.
Labels  An assistant turn's text through its `<|im_end|>`, inclusive, is supervised; all else is IGNORE_INDEX. Ids and
        labels are made together: nothing is tokenised twice and no offset is computed.
Safety  Text never becomes a control token: `<|im_end|>` in a user's text is encoded as the characters it consists of.
        What annotations do write out as text keeps its own token: MARKUP_TOKENS and the tokenizer's non-special added
        tokens (Qwen's `<tool_call>`).
Source  ChatML and labels: arXiv:2504.15271 trains on Qwen2.5's template; layout: processor of nvidia/Eagle2.5-8B.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from tokenizers import Tokenizer

from eagle_model.batch import IGNORE_INDEX
from eagle_model.data.media import PLACEHOLDER, DataError, Sample, Turn

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
TURN_START, TURN_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
MARKUP_TOKENS = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")  # grounding, written out in annotations
SPECIAL_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, *MARKUP_TOKENS)  # the released checkpoint's order of ids
DEFAULT_SYSTEM = "You are a helpful assistant."
_CONTROL_TOKENS = (TURN_START, TURN_END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT)  # what this file writes
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_CACHED_CHARS = 128  # frame labels and role names come again and again; long texts do not


class SampledVideo(NamedTuple):
    """What the text says of one video."""

    timestamps_seconds: tuple[float, ...]  # one a frame, from the file's first shown frame
    frames_per_second: float  # sampled frames a second of the clip


class _Span(NamedTuple):
    """A run of text, or one control token, `repeats` times over."""

    text: str
    control: str | None
    repeats: int
    supervised: bool


class ChatEncoder:
    """Encodes samples with one tokenizer; holds a cache, is safe to share between threads.

    tokenizer: any `tokenizers.Tokenizer` with the control tokens; it is not changed.
    system: the system turn of samples that have none; "" for no system turn.

    Raises ValueError that lists the tokens the tokenizer lacks.
    """

    def __init__(self, tokenizer: Tokenizer, *, system: str = DEFAULT_SYSTEM) -> None:
        found = {token: tokenizer.token_to_id(token) for token in _CONTROL_TOKENS}
        ids = {token: token_id for token, token_id in found.items() if token_id is not None}
        if missing := [token for token in _CONTROL_TOKENS if token not in ids]:
            raise ValueError(
                f"the tokenizer lacks {', '.join(missing)}; needs {', '.join(_CONTROL_TOKENS)}. "
                f"Add them with tokens.add_special_tokens, or take the tokenizer of an Eagle 2.5 checkpoint."
            )
        self.system = system
        self.context_id = ids[IMAGE_CONTEXT]
        self.turn_end_id = ids[TURN_END]
        self._ids = ids
        added = tokenizer.get_added_tokens_decoder()
        self._markup_ids = {
            token.content: token_id
            for token_id, token in added.items()
            if token.content in MARKUP_TOKENS or not (token.special or token.content in _CONTROL_TOKENS)
        }
        self._forbidden_ids = frozenset(added) - frozenset(self._markup_ids.values()) | frozenset(ids.values())
        longest_first = sorted(self._markup_ids, key=lambda token: (-len(token), token))
        self._markup = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self._plain = _without_added_tokens(tokenizer)
        self._encode_short = lru_cache(maxsize=65_536)(self._encode_text)

    def encode(
        self,
        sample: Sample,
        *,
        videos: Sequence[SampledVideo],
        tiles_per_image: Sequence[int],
        tokens_per_tile: int,
        generation_prompt: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Token ids and, as long, labels: the token itself where it is supervised, else IGNORE_INDEX (not shifted)."""
        token_ids: list[int] = []
        labels: list[int] = []
        for span in self._spans(sample, videos, tiles_per_image, tokens_per_tile, generation_prompt):
            ids = self._span_ids(span)
            token_ids.extend(ids)
            labels.extend(ids if span.supervised else [IGNORE_INDEX] * len(ids))
        return token_ids, labels

    def num_text_tokens(
        self, sample: Sample, videos: Sequence[SampledVideo], *, generation_prompt: bool = False
    ) -> int:
        """How many tokens `encode` makes beside the visual ones; the tiles do not change it."""
        spans = self._spans(sample, videos, [0] * len(sample.images), 0, generation_prompt)
        return sum(len(self._span_ids(span)) for span in spans)

    # -- spans

    def _spans(
        self,
        sample: Sample,
        videos: Sequence[SampledVideo],
        tiles_per_image: Sequence[int],
        tokens_per_tile: int,
        generation_prompt: bool,
    ) -> Iterator[_Span]:
        for what, got, need in (
            ("videos", len(videos), len(sample.videos)),
            ("images", len(tiles_per_image), len(sample.images)),
        ):
            if got != need:
                raise ValueError(f"{sample.id}: {got} {what} were planned, but the sample has {need}.")
        turns = list(sample.turns)
        if self.system and turns[0].role != "system":
            turns.insert(0, Turn("system", self.system))
        for turn in turns:
            yield from self._turn(turn, videos, tiles_per_image, tokens_per_tile)
        if generation_prompt:
            yield _control(TURN_START)
            yield _text("assistant\n")

    def _turn(
        self, turn: Turn, videos: Sequence[SampledVideo], tiles_per_image: Sequence[int], tokens_per_tile: int
    ) -> Iterator[_Span]:
        yield _control(TURN_START)
        # The role's newline and the text may be cut here without changing a token: the text is stripped, and a
        # pre-tokenizer ends a piece at a newline that a word follows. Tests compare with the uncut string.
        if turn.role == "assistant":
            yield _text("assistant\n")
            yield _Span(turn.text.strip(), None, 1, True)
            yield _Span("", TURN_END, 1, True)
        else:
            pending = f"{turn.role}\n"  # text that runs up to the next control token is encoded as one piece
            text = turn.text.strip()
            end = 0
            for match in PLACEHOLDER.finditer(text):
                pending += text[end : match.start()]
                end = match.end()
                k = int(match[2])
                if match[1] == "image":
                    yield from _tile_run(f"{pending}<image {k}>", tiles_per_image[k - 1] * tokens_per_tile)
                    pending = ""
                else:
                    ordinal = _ORDINALS[k - 1] if k <= len(_ORDINALS) else f"{k}-th"
                    pending += f"The {ordinal} video sampled with {videos[k - 1].frames_per_second:.2f} fps: "
                    for i, seconds in enumerate(videos[k - 1].timestamps_seconds, start=1):
                        yield from _tile_run(f"{pending}Frame {i} sample at {seconds:.2f}s: ", tokens_per_tile)
                        pending = ""
            yield _text(pending + text[end:])
            yield _control(TURN_END)
        yield _text("\n")

    # -- ids

    def _span_ids(self, span: _Span) -> Sequence[int]:
        if span.control is not None:
            return [self._ids[span.control]] * span.repeats
        return self._encode_short(span.text) if len(span.text) <= _CACHED_CHARS else self._encode_text(span.text)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        """Plain text, in which only markup tokens are tokens of their own."""
        if not text:
            return ()
        ids: list[int] = []
        for piece in self._markup.split(text) if self._markup else (text,):
            if piece in self._markup_ids:
                ids.append(self._markup_ids[piece])
            elif piece:
                ids.extend(self._plain.encode(piece, add_special_tokens=False).ids)
        if not self._forbidden_ids.isdisjoint(ids):
            raise DataError(
                f"the tokenizer's model makes a control token of the text {text[:80]!r}; use a byte-level BPE."
            )
        return tuple(ids)


def _text(text: str) -> _Span:
    return _Span(text, None, 1, False)


def _control(token: str, repeats: int = 1) -> _Span:
    return _Span("", token, repeats, False)


def _tile_run(text: str, num_tokens: int) -> Iterator[_Span]:
    yield _text(text)
    yield _control(IMAGE_START)
    yield _control(IMAGE_CONTEXT, num_tokens)
    yield _control(IMAGE_END)


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A copy in which no string is special: `encode_special_tokens` would still find the non-special added tokens."""
    fields = json.loads(tokenizer.to_str())
    fields.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(fields))
