"""What is said and seen -> token ids and labels, span by span, in one pass.

    encoder = ChatEncoder(tokenizer)
    sample = Sample("s", (Turn("user", (ImageRef(Path("a.png")), "What?")), Turn("assistant", ("A dog.",))))
    tokens = encoder.encode(sample, seen=[Grid(1, 1)], tokens_per_tile=256)
    tokens.labels_T             # IGNORE_INDEX but for "A dog.<|im_end|>"

Layout  ChatML: `<|im_start|>role\\n` text `<|im_end|>\\n` a turn, contents stripped; a default system turn comes first
        where a sample has none; a prompt for generation ends in `<|im_start|>assistant\\n`. What is written around
        images and frames says the template (templates.py): by default `<image 1><img>` `<IMG_CONTEXT>` x n `</img>`.
Tools   As in Qwen2.5's chat template: what may be called stands at the end of the system turn, what tools answered
        in a user's turn, several one after the other in one.
Thoughts  With auto_thinking_prompt, as Qwen3 is trained: a question whose answers, up to the next question, have no
        `<think>` is given `/nothink`, and they an empty block of it. The release decides by the last of the answers
        and adds a second block to one that has one; we add none where any has thoughts, and never a second.
Labels  An assistant turn's text through its `<|im_end|>`, inclusive, is supervised, unless the turn is not learned;
        all else is IGNORE_INDEX. Ids and labels are made together: nothing is tokenised twice, no offset computed.
Safety  Text never becomes a control token: `<|im_end|>` in a user's text is encoded as the characters it consists of.
        What annotations do write out as text keeps its own token: MARKUP_TOKENS and the tokenizer's non-special added
        tokens (Qwen's `<tool_call>`).
Source  ChatML and labels: arXiv:2504.15271 trains on Qwen2.5's template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, repeat, takewhile
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from eagle_model.batch import IGNORE_INDEX
from eagle_model.data.sample import DataError, ImageRef, Sample, Turn
from eagle_model.data.templates import (
    DEFAULT_TEMPLATE,
    END_OF_TEXT,
    NO_THINK,
    NO_THOUGHT,
    RESPONSE_END,
    RESPONSE_START,
    TEMPLATES,
    TOOLS_END,
    TOOLS_START,
    TURN_END,
    TURN_START,
    SampledVideo,
    Seen,
    TemplateName,
    Written,
    thinks,
    written,
)
from eagle_model.data.tiling import Grid

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
MARKUP_TOKENS = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")  # grounding, written out in annotations
INTERVAL_TOKENS = ("<interval>", "</interval>")  # of time, likewise; the training code's tokenizers have them
SPECIAL_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, *MARKUP_TOKENS)  # the released checkpoint's order of ids
_CONTROL_TOKENS = (TURN_START, TURN_END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT)  # what this file writes
_PIECE_CHARS = 1 << 16  # of a long text, encoded one after the other
_CUT_TOKENS = 64  # that cutting a text may add, where it falls into a word or a run of spaces
_CACHED_CHARS = 128  # frame labels and role names come again and again; long texts do not


def seen_media(
    sample: Sample,
    grids: Iterable[Grid],
    timestamps_seconds: Iterable[Sequence[float]],
    clip_seconds: Iterable[float | None],
) -> tuple[Seen, ...]:
    """What is seen of each of sample.media, in its order.

    Args:    grids: one an image.  timestamps_seconds: the times of the frames seen of each video, or the pages of a
             document.  clip_seconds: how long each video's clip lasts; None of a document.
    """
    images, videos = iter(grids), zip(timestamps_seconds, clip_seconds, strict=True)
    seen: list[Seen] = []
    for shown in sample.media:
        if isinstance(shown, ImageRef):
            seen.append(next(images))
        else:
            times, seconds = next(videos)
            rate = None if seconds is None else len(times) / seconds
            seen.append(SampledVideo(tuple(times), rate, has_times=seconds is not None))
    return tuple(seen)


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    id: str
    token_ids_T: Tensor  # int64
    labels_T: Tensor  # int64, not shifted: the token itself where supervised, else IGNORE_INDEX
    visual_positions_N: Tensor  # int64: where the visual tokens are, in the order of tiles


class _Span(NamedTuple):
    """A run of text, or one control token, `repeats` times over."""

    text: str
    control: str | None
    repeats: int
    supervised: bool


class ChatEncoder:
    """Encodes samples with one tokenizer; holds a cache, is safe to share between threads.

    tokenizer: any `tokenizers.Tokenizer` with the control tokens; it is not changed.
    template: the layout, a name of templates.TEMPLATES.
    system: the system turn of samples that have none; None for the template's own, "" for no system turn.
    auto_thinking_prompt: whether questions and answers without thoughts say so.

    Raises ValueError that lists the tokens the tokenizer lacks.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: TemplateName = DEFAULT_TEMPLATE,
        system: str | None = None,
        auto_thinking_prompt: bool = False,
    ) -> None:
        found = {token: tokenizer.token_to_id(token) for token in _CONTROL_TOKENS}
        ids = {token: token_id for token, token_id in found.items() if token_id is not None}
        if missing := [token for token in _CONTROL_TOKENS if token not in ids]:
            raise ValueError(
                f"the tokenizer lacks {', '.join(missing)}; needs {', '.join(_CONTROL_TOKENS)}. "
                f"Add them with tokenizer.add_special_tokens, or take the tokenizer of an Eagle 2.5 checkpoint."
            )
        self.template = TEMPLATES[template]
        self.system = self.template.system if system is None else system
        self.auto_thinking_prompt = auto_thinking_prompt
        self.context_id = ids[IMAGE_CONTEXT]
        self.turn_end_id = ids[TURN_END]
        end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        self.stop_token_ids = {self.turn_end_id} | ({end_of_text} if end_of_text is not None else set())
        self._ids = ids
        added = tokenizer.get_added_tokens_decoder()
        self._markup_ids = {
            token.content: token_id
            for token_id, token in added.items()
            if token.content in (*MARKUP_TOKENS, *INTERVAL_TOKENS)
            or not (token.special or token.content in _CONTROL_TOKENS)
        }
        self._forbidden_ids = frozenset(added) - frozenset(self._markup_ids.values()) | frozenset(ids.values())
        longest_first = sorted(self._markup_ids, key=lambda token: (-len(token), token))
        self._markup = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self.plain_tokenizer = _without_added_tokens(tokenizer)  # for texts: no string is a token of its own
        labels = ["", "\n", "assistant\n", "user\n", f"system\n{self.system}"]
        self._encode_short = lru_cache(maxsize=65_536)(self._encode_text)
        self._short = {label: len(self._encode_text(label)) for label in labels}  # that every sample has

    def encode(
        self,
        sample: Sample,
        *,
        seen: Sequence[Seen],
        tokens_per_tile: int,
        generation_prompt: bool = False,
    ) -> TokenizedSample:
        """The sample's tokens and labels.

        Args:    seen: what is seen of each of sample.media.  generation_prompt: ends in the start of an answer.
        Raises:  ValueError when `seen` has another length.
        """
        token_ids: list[int] = []
        labels: list[int] = []
        for span in self._spans(sample, seen, tokens_per_tile, generation_prompt):
            ids = self._span_ids(span)
            token_ids.extend(ids)
            labels.extend(ids if span.supervised else [IGNORE_INDEX] * len(ids))
        token_ids_T = torch.tensor(token_ids, dtype=torch.int64)
        visual_positions_N = token_ids_T.eq(self.context_id).nonzero().flatten()
        return TokenizedSample(sample.id, token_ids_T, torch.tensor(labels, dtype=torch.int64), visual_positions_N)

    def num_text_tokens(
        self,
        sample: Sample,
        clip_seconds: Sequence[float | None],
        timestamps_seconds: Sequence[Sequence[float]],
        *,
        generation_prompt: bool = False,
    ) -> int:
        """How many tokens `encode` makes beside the visual ones. Tiles do not change it; arguments as of seen_media."""
        seen = seen_media(sample, repeat(Grid(1, 1)), timestamps_seconds, clip_seconds)
        return self.num_span_tokens(sample, seen, generation_prompt=generation_prompt)

    def num_span_tokens(self, sample: Sample, seen: Sequence[Seen], *, generation_prompt: bool = False) -> int:
        """`num_text_tokens` where what is seen of each of sample.media is known."""
        spans = self._spans(sample, seen, 0, generation_prompt)
        return sum(span.repeats if span.control is not None else len(self._span_ids(span)) for span in spans)

    def uncounted(self, sample: Sample, seen: Sequence[Seen]) -> tuple[int, list[str]]:
        """What `num_span_tokens` counts, in two: tokens that are known, and texts that `nums_of_tokens` counts."""
        known, texts = 0, []
        for text, control, repeats, _ in self._spans(sample, seen, 0, False):
            if control is not None:
                known += repeats
            elif text in self._short:
                known += self._short[text]
            elif text:
                texts.append(text)
        return known, texts

    def nums_of_tokens(self, texts: Sequence[str]) -> list[int | DataError]:
        """Tokens of each text, all encoded together, which is faster; the error of each that cannot be."""
        plain = [text for text in texts if not (self._markup and self._markup.search(text))]
        encoded = dict(zip(plain, self.plain_tokenizer.encode_batch_fast(plain, add_special_tokens=False)))
        nums: list[int | DataError] = []
        for text in texts:
            ids = encoded[text].ids if text in encoded else None
            try:
                nums.append(len(ids if ids and self._forbidden_ids.isdisjoint(ids) else self._encode_text(text)))
            except DataError as error:
                nums.append(error)
        return nums

    def num_tokens_of(self, text: str) -> int:
        """Tokens of a text between two control tokens; nothing is stripped."""
        return len(self._encode_text(text))

    def spoken_ids(self, token_ids: Sequence[int]) -> list[int]:
        """An answer's tokens without control tokens. Markup stays: it is what the model says, as in
        `<ref>cat</ref><box>[[1,2,3,4]]</box>`, and belongs into the history of a chat."""
        return [token_id for token_id in token_ids if token_id not in self._forbidden_ids]

    def is_longer(self, sample: Sample, num_tokens: int) -> bool:
        """Whether the text alone takes more than num_tokens, where its beginning tells so. False: encode it to know.

        What this costs is bounded by num_tokens, however long the text is.
        """
        said = (part.strip() for turn in sample.turns for part in turn.parts if isinstance(part, str))
        text = "".join([*sample.tools, *said])
        if len(text) <= _PIECE_CHARS:
            return False
        num_found = 0
        for start in range(0, len(text), _PIECE_CHARS):
            piece = len(self._encode_text(text[start : start + _PIECE_CHARS]))
            num_found += max(0, piece - _CUT_TOKENS)
            if num_found > num_tokens:
                return True
        return False

    # -- spans

    def _spans(
        self, sample: Sample, seen: Sequence[Seen], tokens_per_tile: int, generation_prompt: bool
    ) -> Iterator[_Span]:
        if len(seen) != len(sample.media):
            raise ValueError(
                f"{sample.id}: {len(seen)} images and videos were planned, but the sample has {len(sample.media)}."
            )
        media = self._written_media(sample, seen, tokens_per_tile)
        for turn in self._turns(sample):
            yield from _turn(turn, media)
        if generation_prompt:
            yield _control(TURN_START)
            yield _text("assistant\n")

    def _written_media(self, sample: Sample, seen: Sequence[Seen], tokens_per_tile: int) -> Iterator[Written]:
        """What stands for each of sample.media, in its order."""
        num_pictures = [1 if isinstance(thing, Grid) else len(thing.timestamps_seconds) for thing in seen]
        of_images = self.template.counts == "images"
        is_only = (len(sample.images) if of_images else sum(num_pictures)) == 1
        before = 0
        for part, thing, num in zip(sample.media, seen, num_pictures, strict=True):
            yield written(
                self.template,
                thing,
                number=part.number,
                picture=before + 1,
                is_only=is_only,
                tokens_per_tile=tokens_per_tile,
            )
            before += num

    def _turns(self, sample: Sample) -> list[Turn]:
        """The turns as the prompt shows them: system first, tools in it, their answers as a user's turns."""
        turns = list(sample.turns)
        system = turns.pop(0).parts if turns[0].role == "system" else (self.system,) if self.system else None
        if sample.tools:
            system = (*(system or ()), TOOLS_START, *("\n" + tool for tool in sample.tools), TOOLS_END)
        turns = _with_thoughts(turns) if self.auto_thinking_prompt else turns
        shown = [] if system is None else [Turn("system", system)]
        for role, group in groupby(turns, key=lambda turn: turn.role):
            together = list(group)
            shown += [_responses(together)] if role == "tool" else together
        return shown

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
                ids.extend(self.plain_tokenizer.encode(piece, add_special_tokens=False).ids)
        if not self._forbidden_ids.isdisjoint(ids):
            raise DataError(
                f"the tokenizer's model makes a control token of the text {text[:80]!r}; use a byte-level BPE."
            )
        return tuple(ids)


def _with_thoughts(turns: list[Turn]) -> list[Turn]:
    """Turns in which a question whose answers are without thoughts says so, and they too."""
    shown = list(turns)
    questions = [i for i, turn in enumerate(turns) if turn.role == "user"]
    for start, end in zip(questions, [*questions[1:], len(turns)]):
        answers = [i for i in range(start + 1, end) if turns[i].role == "assistant"]
        if not answers or any(thinks(turns[i].text) for i in answers):
            continue
        if not _last_text(turns[start]).rstrip().endswith(NO_THINK):
            shown[start] = replace(turns[start], parts=(*turns[start].parts, NO_THINK))
        for i in answers:
            if not turns[i].text.lstrip().startswith(NO_THOUGHT.rstrip()):
                shown[i] = replace(turns[i], parts=(NO_THOUGHT, *turns[i].parts))
    return shown


def _last_text(turn: Turn) -> str:
    """What a turn says after all of its media."""
    parts = list(takewhile(lambda part: isinstance(part, str), reversed(turn.parts)))
    return "".join(map(str, reversed(parts)))


def _responses(turns: list[Turn]) -> Turn:
    """What tools answered, one after the other in one turn."""
    parts = [part for turn in turns for part in ("\n", RESPONSE_START, *turn.parts, RESPONSE_END)]
    return Turn("user", tuple(parts[1:]))


def _turn(turn: Turn, media: Iterator[Written]) -> Iterator[_Span]:
    """Turn start, role, contents without the white space around them, turn end, newline.

    The role's newline and the text may be cut here without changing a token: the text is stripped, and a pre-tokenizer
    ends a piece at a newline that a word follows. Tests compare with the uncut string.
    """
    yield _control(TURN_START)
    if turn.role == "assistant":
        yield _text("assistant\n")
        yield _Span(turn.text.strip(), None, 1, turn.learned)
        yield _Span("", TURN_END, 1, turn.learned)
    else:
        label = f"{turn.role}\n"  # text that runs up to the next control token is encoded as one piece
        text, at_start, after_newline = "", True, False
        for part in turn.parts:
            if isinstance(part, str):
                text += part.removeprefix("\n") if after_newline else part
                after_newline = False
                continue
            runs, end = next(media)
            text = text.lstrip() if at_start else text
            for before, num_tokens in runs:
                yield _text(label + text + before)
                yield _control(IMAGE_START)
                yield _control(IMAGE_CONTEXT, num_tokens)
                yield _control(IMAGE_END)
                label, text, at_start = "", "", False
            text, after_newline = end, end.endswith("\n")
        yield _text(label + (text.strip() if at_start else text.rstrip()))
        yield _control(TURN_END)
    yield _text("\n")


def _text(text: str) -> _Span:
    return _Span(text, None, 1, False)


def _control(token: str, repeats: int = 1) -> _Span:
    return _Span("", token, repeats, False)


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A copy in which no string is special: `encode_special_tokens` would still find the non-special added tokens."""
    fields = json.loads(tokenizer.to_str())
    fields.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(fields))
