"""A request to the engine, as the one who asked sees it: events as the answer comes, or the answer when it is there.

    for event in request.events():
        print(event.text, end="", flush=True)
    answer = request.result()
    answer.text, answer.finish_reason, answer.usage.cached_tokens

`TextStream` makes text of tokens: no half of a character, no control token, nothing of a stop string.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from tokenizers.decoders import DecodeStream
from torch import Tensor

from eagle_model.data.chat import ChatEncoder
from eagle_model.data.processor import Processor
from eagle_model.infer.sampling import Chosen, Sampling

if TYPE_CHECKING:
    from eagle_model.infer.prompts import Prompt

FinishReason = Literal["stop", "length", "cancelled", "error"]
Drive = Callable[[], bool]  # does some work where no thread does; whether there may be more


class TokenLogprob(NamedTuple):
    token_id: int
    text: str  # of this token alone, as the tokenizer writes it
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()  # (token id, text, log-probability) of the likeliest, best first


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int  # the token that ends the turn included
    cached_tokens: int  # of the prompt: their keys were there already


@dataclass(frozen=True, slots=True)
class ShownMedium:
    name: str
    kind: Literal["image", "video", "document"]
    num_tiles: int
    grid: tuple[int, int] | None = None  # columns and rows of an image's tiles, thumbnail not counted
    timestamps_seconds: tuple[float, ...] = ()  # of a video's frames; of a document, the numbers of pages, from 0


@dataclass(frozen=True, slots=True)
class Shown:
    """What the model gets to see."""

    media: tuple[ShownMedium, ...]  # in the order shown
    num_tiles: int
    num_tokens: int  # of the prompt
    reduced: bool  # fewer frames or tiles than asked for, because more did not fit the context
    note: str  # the same as a sentence; "" where nothing was reduced


@dataclass(frozen=True, slots=True)
class Event:
    """What came: mostly one token. The last event of an answer, and it alone, has a finish_reason."""

    text: str  # may be "": in the middle of a character, or of what may become a stop string
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that has ended."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason
    usage: Usage


class Request:
    """Made by `Engine.submit`. One thread may read its events, any thread may cancel it."""

    def __init__(self, sampling: Sampling, prompt: Prompt, *, drive: Drive) -> None:
        self.sampling, self.prompt = sampling, prompt
        self.error: Exception | None = None  # why finish_reason is "error"
        self._drive = drive
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._seen: list[Event] = []
        self._listener: Callable[[Event], object] | None = None
        self._lock = threading.Lock()  # of who gets an event: the queue or the listener
        self._is_cancelled = False
        self._usage = Usage(self.shown.num_tokens, 0, 0)

    @property
    def shown(self) -> Shown:
        return self.prompt.shown

    def load_tiles(self, first: int, end: int) -> Tensor:
        """(tiles, P, K): the pixels that the model sees of these of its tiles, normalised. Raises as `Prompt.load`."""
        return self.prompt.load(first, end)

    @property
    def usage(self) -> Usage:
        """So far."""
        return self._usage

    @property
    def is_done(self) -> bool:
        """Whether the last event was read."""
        return bool(self._seen) and self._seen[-1].finish_reason is not None

    def events(self) -> Iterator[Event]:
        """The answer's events as they come, from the next unread one; waits for each. Ends after the last.

        Where the engine's thread does not run, this does the engine's work.
        """
        while not self.is_done:
            event = self._next()
            self._seen.append(event)
            yield event

    def listen(self, listener: Callable[[Event], object]) -> None:
        """Passes every event on as it comes, in the engine's thread, instead of `events`: for who waits for many
        answers at once. Those that came already are passed on at once. `listener` must not wait, nor raise.
        """
        with self._lock:
            self._listener = listener
            while True:
                try:
                    self._pass_on(self._events.get_nowait())
                except queue.Empty:
                    return

    def result(self) -> Answer:
        """The whole answer; waits for it. Raises what went wrong where finish_reason is "error"."""
        for _ in self.events():
            pass
        if self.error is not None:
            raise self.error
        seen = self._seen
        reason = seen[-1].finish_reason
        assert reason is not None
        logprobs = None
        if self.sampling.logprobs is not None:
            logprobs = tuple(one for event in seen for one in event.logprobs or ())
        token_ids = tuple(token_id for event in seen for token_id in event.token_ids)
        return Answer("".join(event.text for event in seen), token_ids, logprobs, reason, self.usage)

    def cancel(self) -> None:
        """The answer ends at the next step, with finish_reason "cancelled", and gives its memory back."""
        self._is_cancelled = True

    def _next(self) -> Event:
        while self._drive():
            try:
                return self._events.get_nowait()
            except queue.Empty:
                pass
        return self._events.get()

    # -- for the engine

    def _add(self, event: Event, *, num_cached: int) -> None:
        used = self._usage
        num_new = used.completion_tokens + len(event.token_ids)
        self._usage = replace(used, completion_tokens=num_new, cached_tokens=num_cached)
        with self._lock:
            if self._listener is None:
                self._events.put(event)
            else:
                self._pass_on(event)

    def _pass_on(self, event: Event) -> None:
        assert self._listener is not None
        self._seen.append(event)
        self._listener(event)


class TextStream:
    """Text of one answer's tokens."""

    def __init__(self, processor: Processor, stop: Sequence[str] = ()) -> None:
        self._encoder: ChatEncoder = processor.encoder
        self._tokenizer = processor.tokenizer
        self._stop = tuple(stop)
        self._decoder = DecodeStream(skip_special_tokens=False)
        self._ids: list[int] = []
        self._num_decoded = 0  # characters that the decoder gave
        self._held = ""  # the end of the text, which may be the start of a stop string

    def add(self, token_id: int) -> tuple[str, bool]:
        """(text that is certain by now, whether a stop string came: then nothing follows)."""
        for spoken_id in self._encoder.spoken_ids([token_id]):
            self._ids.append(spoken_id)
            if piece := self._decoder.step(self._tokenizer, spoken_id):  # None in the middle of a character
                self._num_decoded += len(piece)
                self._held += piece
        found = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if found:
            return self._held[: min(found)], True
        num_sure = len(self._held) - self._num_held()
        sure, self._held = self._held[:num_sure], self._held[num_sure:]
        return sure, False

    def end(self) -> str:
        """What is left when no token follows: a character that was cut short too."""
        rest = self._tokenizer.decode(self._ids, skip_special_tokens=False)[self._num_decoded :]
        return self._held + rest

    def text_of(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def logprob(self, chosen: Chosen) -> TokenLogprob:
        assert chosen.logprob is not None
        top = tuple((token_id, self.text_of(token_id), logprob) for token_id, logprob in chosen.top)
        return TokenLogprob(chosen.token_id, self.text_of(chosen.token_id), chosen.logprob, top)

    def _num_held(self) -> int:
        """The longest end of the text that begins a stop string."""
        most = 0
        for stop in self._stop:
            for num in range(min(len(stop) - 1, len(self._held)), most, -1):
                if stop.startswith(self._held[-num:]):
                    most = num
                    break
        return most
