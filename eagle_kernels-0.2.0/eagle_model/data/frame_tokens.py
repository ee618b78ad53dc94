"""How many tokens a sample's text takes with any frames beside it, without writing it out: by tables.

    frames = FrameTokens(encoder)
    base = frames.base(sample)                                 # the text with one frame of each video, counted exactly
    base + frames.more(times_n, seconds, number=1)             # with the frames at these times, of the first video

What changes with the frames are numbers: a frame's own number and time, and the rate and length that a video's first
words name. A tokenizer that cuts text where a run of digits begins and ends makes of each run tokens of its own, so
what a label costs is a sum: that of the label with zeros, and one summand for each number, looked up in a table that is
filled by encoding. Qwen's tokenizer is of that kind, and GPT's. `is_exact` says whether this one is; where it is not,
counting takes the long way, `ChatEncoder.num_text_tokens`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import normalizers

from eagle_model.data.chat import ChatEncoder
from eagle_model.data.sample import ImageRef, Sample
from eagle_model.data.templates import SampledVideo, Seen
from eagle_model.data.tiling import Grid

_AROUND_TILES = 2  # <img> and </img>
_RUN = re.compile("[0-9]+")
_NUMBERS = (1, 7, 12, 345, 6789, 98765)  # runs of one digit to five, as the test of a tokenizer tries them
_MAX_SECONDS = 36_000  # limit: of tables, 7 MB each; times after ten hours are encoded each time


class FrameTokens:
    """Counts for one encoder; its tables grow as larger numbers come. Safe to share between threads."""

    def __init__(self, encoder: ChatEncoder) -> None:
        template = encoder.template
        self._encoder = encoder
        label, after = template.frame.split("{tiles}")
        page_label, page_after = template.frame_without_time.split("{tiles}")
        self._first = _Slots(encoder, lambda values: label.format(number=1, seconds=values[0]), (0.0,))
        self._frame = _Slots(encoder, lambda v: after + label.format(number=round(v[1]), seconds=v[0]), (0.0, 2.0))
        self._page = _Slots(encoder, lambda v: page_after + page_label.format(number=round(v[0])), (2.0,))
        self._about = _Slots(
            encoder,
            lambda v: template.video.split("{frames}")[0].format(ordinal="first", fps=v[0], duration=v[1]),
            (1.0, 1.0),
        )
        self.is_exact = _cuts_at_numbers(encoder, [self._first, self._frame, self._page, self._about])

    def depends_on_pictures(self, sample: Sample) -> bool:
        """Whether what is said of an image changes with the frames beside it, which tables do not know."""
        return self._encoder.template.counts == "pictures" and bool(sample.images) and bool(sample.videos)

    def seen_at_least(self, sample: Sample, are_documents: Sequence[bool]) -> list[Seen]:
        """What `base` counts: images, and one frame of each video, at 0 s of a clip of 1 s."""
        documents = iter(are_documents)
        return [Grid(1, 1) if isinstance(medium, ImageRef) else _one_frame(next(documents)) for medium in sample.media]

    def base(self, sample: Sample, are_documents: Sequence[bool], *, generation_prompt: bool = False) -> int:
        """Tokens of the text with one frame of each video."""
        seen = self.seen_at_least(sample, are_documents)
        return self._encoder.num_span_tokens(sample, seen, generation_prompt=generation_prompt)

    def more(self, times_n: NDArray[np.float64], seconds: float | None) -> int:
        """What a video's text takes beyond what `base` counts of it.

        times_n: of its n >= 1 frames, seconds.  seconds: how long its clip lasts; None: a document, of pages.
        """
        num_1 = np.array([len(times_n)])
        if seconds is None:
            return int(self.more_of_documents(num_1)[0])
        return int(self.more_of_videos(times_n[None], num_1, np.array([seconds]))[0])

    def more_of_documents(self, num_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """`more` of documents that show so many pages."""
        return (num_B - 1) * (_AROUND_TILES + self._page.base) + self._sum_of_numbers(self._page, 0, num_B)

    def more_of_videos(
        self, times_BN: NDArray[np.float64], num_B: NDArray[np.int64], seconds_B: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """`more` of several videos at once. times_BN: of the first num_B[b] frames, and anything after."""
        rate_B = num_B / seconds_B
        more_B = self._about.more(0, rate_B) + self._about.more(1, num_B / rate_B)
        more_B += self._first.more(0, times_BN[:, 0])
        labels_BN = self._frame.more(0, times_BN[:, 1:])
        labels_BN[np.arange(1, times_BN.shape[1]) >= num_B[:, None]] = 0
        more_B += labels_BN.sum(1) + self._sum_of_numbers(self._frame, 1, num_B)
        return more_B + (num_B - 1) * (_AROUND_TILES + self._frame.base)

    def _sum_of_numbers(self, slots: _Slots, slot: int, num_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the frames' own numbers, 2 to n, cost more than the given one, together."""
        numbers = np.arange(2, int(num_B.max(initial=1)) + 1)
        return np.append(0, slots.whole(slot, numbers).cumsum())[num_B - 1]

    def counter(
        self,
        sample: Sample,
        clip_seconds: Sequence[float | None],
        *,
        generation_prompt: bool = False,
        base_tokens: int | None = None,
    ) -> Callable[[Sequence[NDArray[np.float64]]], int]:
        """What counts the sample's text, <img> and labels included, given the times of each video's frames: exact.

        base_tokens: what `base` gives, where it was counted before.
        """
        if not self.is_exact or self.depends_on_pictures(sample):

            def count(times: Sequence[NDArray[np.float64]]) -> int:
                return self._encoder.num_text_tokens(
                    sample, clip_seconds, [t.tolist() for t in times], generation_prompt=generation_prompt
                )

            return count
        base = base_tokens
        if base is None:
            are_documents = [seconds is None for seconds in clip_seconds]
            base = self.base(sample, are_documents, generation_prompt=generation_prompt)
        return lambda times: base + sum(map(self.more, times, clip_seconds))


def _one_frame(is_document: bool) -> SampledVideo:
    return SampledVideo((0.0,), None, has_times=False) if is_document else SampledVideo((0.0,), 1.0)


class _Slots:
    """A text with numbers in it: what it costs with the given ones, and what others cost more."""

    def __init__(self, encoder: ChatEncoder, write: Callable[[Sequence[float]], str], given: tuple[float, ...]) -> None:
        self.write, self.given = write, given
        self._encoder = encoder
        self.base = self._count(given)
        self._wholes = [np.empty(0, np.int64) for _ in given]  # by slot: of 0, 1, 2, ...; with cents as given
        self._tables = [np.empty(0, np.int16) for _ in given]  # by slot: of 0.00, 0.01, 0.02, ...

    def more(self, slot: int, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """What each of these numbers, written with two decimals, costs in this slot more than the given one."""
        cents = rounded_cents(values)
        most = int(cents.max(initial=0))
        if most >= len(self._tables[slot]):
            if most >= 100 * _MAX_SECONDS:
                each = [self._cost(slot, value) for value in (cents.ravel() / 100).tolist()]
                return np.array(each, np.int64).reshape(cents.shape)
            zero = float(int(self.given[slot]))
            cents_100 = np.array([self._cost(slot, zero + k / 100) for k in range(100)])
            wholes = self.whole(slot, np.arange(min(_MAX_SECONDS, max(most // 100 + 1, len(self._tables[slot]) // 50))))
            self._tables[slot] = np.add.outer(wholes, cents_100).ravel().astype(np.int16)
        return self._tables[slot][cents].astype(np.int64)

    def whole(self, slot: int, values: NDArray) -> NDArray[np.int64]:
        """The same of numbers without decimals."""
        most = int(values.max(initial=0))
        if most >= len(self._wholes[slot]):
            table = self._wholes[slot]
            more = [self._cost(slot, float(value)) for value in range(len(table), most + 1)]
            self._wholes[slot] = np.append(table, np.array(more, np.int64))
        return self._wholes[slot][values]

    def _cost(self, slot: int, value: float) -> int:
        return self._count((*self.given[:slot], value, *self.given[slot + 1 :])) - self.base

    def _count(self, values: Sequence[float]) -> int:
        return self._encoder.num_tokens_of(self.write(values))


def rounded_cents(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Hundredths as f"{value:.2f}" rounds them: to the nearest of the exact binary value, a tie to the even one.

    100 * value is rounded itself, so where that lands on a tie the rounding's error (Dekker's, exact) decides.
    """
    product = values * 100.0
    cents = np.rint(product)
    ties = np.abs(product - cents) == 0.5
    if ties.any():
        value, rounded = values[ties], product[ties]
        split = 134217729.0 * value  # 2**27 + 1: `high` has 26 bits, so 100 * high is exact
        high = split - (split - value)
        error = (high * 100.0 - rounded) + (value - high) * 100.0
        cents[ties] = np.where(error > 0, np.ceil(rounded), np.where(error < 0, np.floor(rounded), cents[ties]))
    return cents.astype(np.int64)


def _cuts_at_numbers(encoder: ChatEncoder, slots: Sequence[_Slots]) -> bool:
    """Whether the tokenizer cuts these texts where runs of digits begin, or at the space before, and where they end."""
    tokenizer = encoder.plain_tokenizer
    if tokenizer.pre_tokenizer is None or not isinstance(tokenizer.normalizer, (type(None), normalizers.NFC)):
        return False
    for slot in slots:
        for value in _NUMBERS:
            text = slot.write([float(value)] * len(slot.given))
            pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
            cuts = {0, *(end for _, (_, end) in pieces)}
            for run in _RUN.finditer(text):
                starts = {run.start(), run.start() - 1} if text[run.start() - 1 : run.start()] == " " else {run.start()}
                if run.end() not in cuts or not starts & cuts:
                    return False
    return True
