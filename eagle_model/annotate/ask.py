"""What a step's `work` calls: answers by their keys, from the journal, else from an endpoint.

    answer = ask(prompt, [{"type": "text", "text": "..."}], schema, item="film.mp4")
    answer.value, answer.key             # the JSON, which keeps the schema; the journal's line that has it raw

The key of an answer is a hash of all that was asked: model, prompt, media, schema, seed and attempt. An answer that is
no JSON, or breaks its schema, is kept, and the request is made again with another seed.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.journal import Journal
from eagle_model.annotate.prompts import Prompt
from eagle_model.data.sample import DataError
from eagle_model.infer import batches
from eagle_model.infer.endpoint import EndpointConfig, EndpointError, Reply, RequestRefused
from eagle_model.infer.json_answers import JsonAnswerError, json_problem, read_json_answer

T = TypeVar("T")
RETRY_TEMPERATURE = 0.7  # of a second attempt: the same request at 0 would bring the same answer
Parts = Sequence[dict[str, Any]]  # of a message


class Unanswered(ValueError):
    """No attempt at a request brought an answer that keeps its schema."""


class Postponed(Exception):
    """The answer comes with the next batch: the item is worked on again then."""


class Asks(Protocol):
    """What answers: an Endpoint, or something in its place."""

    config: EndpointConfig

    def ask(self, messages: Any, *, max_tokens: int, temperature: float, seed: int, json_schema: Any) -> Reply: ...


class Answer(NamedTuple):
    value: Any  # the JSON, which keeps its schema, or the text
    key: str  # of the journal's line that has it raw


class Ask:
    """What a step's `work` calls: an answer of the journal's, else of the endpoint, journaled before it is used."""

    def __init__(
        self,
        config: AnnotateConfig,
        journal: Journal,
        *,
        annotator: Asks,
        reader: Asks,
        batch: bool,
        say: Callable[[str], object],
    ) -> None:
        """batch: what the journal lacks is put into `waiting`, for `send_batches`, and Postponed is raised."""
        self._annotator, self._reader, self._batch, self._say = annotator, reader, batch, say
        self._max_attempts, self._journal, self.stop = config.max_attempts, journal, threading.Event()
        self.waiting: dict[str, Waiting] = {}  # by key: what the next batch asks
        self._batches_read: set[str] = set()
        self.left_out: list[dict[str, str]] = []  # what `some` did without, and why

    def __call__(
        self,
        prompt: Prompt,
        parts: Parts,
        schema: dict[str, Any] | None,
        *,
        item: str,
        seed: int = 0,
        temperature: float = 0.0,
        max_tokens: int = 2048,
        blind: bool = False,
    ) -> Answer:
        """parts: of the message, media by their paths.  schema: of the answer, or None for a text.  item: what the
        journal calls it.  blind: ask the reader.

        Raises: Unanswered; EndpointError; DataError for media.
        """
        endpoint = self._reader if blind else self._annotator
        problem = ""
        for attempt in range(self._max_attempts):
            heat = temperature if attempt == 0 else max(temperature, RETRY_TEMPERATURE)
            options = {"seed": seed + attempt, "temperature": heat, "max_tokens": max_tokens, "json_schema": schema}
            key = _key(endpoint.config, parts, options)
            record, room = self._journal.get(key), max_tokens + endpoint.config.thinking_tokens
            if record is None or (record["problem"] is not None and record["room"] < room):
                about = {"key": key, "item": item, "prompt": f"{prompt.name}@{prompt.version}", "attempt": attempt}
                about["room"] = room  # tokens that it may take: a bad answer that had fewer is asked for again
                if self._batch:
                    self.waiting[key] = Waiting(endpoint, parts, options, about)
                    raise Postponed
                record = self._asked(endpoint, parts, options, about)
                self._journal.put(key, record)
            if record["problem"] is None:
                return Answer(read_json_answer(record["text"], schema) if schema else record["text"], key)
            problem = record["problem"]
        raise Unanswered(f"{prompt.name} of {item}: {self._max_attempts} answers, none good; the last: {problem}")

    def every(self, calls: Iterable[Callable[[], T]]) -> list[T]:
        """What each call gives. They must not need each other: where answers come in batches, all are put into one."""
        results, is_whole = [], True
        for call in calls:
            try:
                results.append(call())
            except Postponed:
                is_whole = False
        if not is_whole:
            raise Postponed
        return results

    def some(self, calls: Iterable[tuple[str, Callable[[], T]]]) -> list[T]:
        """`every`, of (name, call), without those that are refused or unanswered, where others are not: these are
        told in `left_out`."""
        problems: dict[str, Exception] = {}

        def tried(name: str, call: Callable[[], T]) -> list[T]:
            try:
                return [call()]
            except (Unanswered, RequestRefused) as error:
                problems[name] = error
                return []

        found = [one for result in self.every(partial(tried, *named) for named in calls) for one in result]
        if problems and not found:
            raise next(iter(problems.values()))
        self.left_out += [{"item": name, "problem": str(error)} for name, error in problems.items()]
        return found

    def send_batches(self) -> None:
        """Asks what is waiting, in batches, and journals the answers."""
        waiting, self.waiting = self.waiting, {}
        for endpoint in {id(w.endpoint): w.endpoint for w in waiting.values()}.values():
            bodies: dict[str, dict[str, Any]] = {}
            num_bytes = 0
            for key, one in waiting.items():
                if one.endpoint is endpoint:
                    try:
                        bodies[key] = endpoint.request([{"role": "user", "content": list(one.parts)}], **one.options)  # type: ignore[attr-defined]
                    except DataError as error:  # of its media
                        self._journal.put(key, _record(one.about, Reply.none(), str(error)))
                        continue
                    num_bytes += len(json.dumps(bodies[key]))
                    if num_bytes > batches.MAX_BATCH_BYTES or len(bodies) == batches.MAX_BATCH_REQUESTS:
                        self._send_batch(endpoint, bodies, waiting)
                        bodies, num_bytes = {}, 0
            if bodies:
                self._send_batch(endpoint, bodies, waiting)

    def _send_batch(self, endpoint: Any, bodies: dict[str, dict[str, Any]], waiting: dict[str, Waiting]) -> None:
        self._say(f"a batch of {len(bodies):,} requests is out")
        for key, reply in batches.answered(endpoint, bodies, name=self._journal.name, read=self._batches_read):
            one = waiting[key]
            if isinstance(reply, str):  # why there is none
                self._journal.put(key, _record(one.about, Reply.none(), reply))
            else:
                schema = one.options["json_schema"]
                self._journal.put(key, _record(one.about, reply, json_problem(reply.text, schema) if schema else None))

    def _asked(self, endpoint: Asks, parts: Parts, options: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
        if self.stop.is_set():
            raise EndpointError("the step is ending.")
        problem = None
        try:
            reply = endpoint.ask([{"role": "user", "content": list(parts)}], **options)
        except JsonAnswerError as error:
            reply, problem = error.reply, str(error)
        return _record(about, reply, problem)


class Waiting(NamedTuple):
    """A request that the next batch asks."""

    endpoint: Asks
    parts: Parts
    options: dict[str, Any]
    about: dict[str, Any]


def _record(about: dict[str, Any], reply: Reply, problem: str | None) -> dict[str, Any]:
    counted = {"prompt_tokens": reply.prompt_tokens, "answer_tokens": reply.answer_tokens, "dollars": reply.dollars}
    if problem is None and not reply.text.strip():
        problem = "an empty answer"  # of a model that thought too long, or a filter
    if problem is not None and reply.finish_reason not in ("stop", "error"):
        problem = f"{problem} (finish_reason: {reply.finish_reason})"
    return {**about, **counted, "problem": problem, "text": reply.text, "raw": reply.raw}


def _key(config: EndpointConfig, parts: Parts, options: dict[str, Any]) -> str:
    asked = [config.model, config.image_px, config.jpeg_quality, parts, options]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
