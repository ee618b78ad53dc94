"""The engine's events -> OpenAI's chat.completion and chat.completion.chunk objects.

    maker = ChatAnswer("chatcmpl-1", "eagle", created=1700000000)
    maker.chunk(0, Event("Hel", (5,), None, None))       # {"object": "chat.completion.chunk", "choices": [...], ...}
    maker.whole([answer], usage)                         # {"object": "chat.completion", ...}

Beside OpenAI's fields there is `eagle`: what the model saw of each image and video, and whether it was less than was
asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eagle_model.infer.request import Answer, Event, Shown, TokenLogprob, Usage


@dataclass(frozen=True)
class ChatAnswer:
    id: str
    model: str
    created: int  # seconds since 1970
    bytes_of: Callable[[int], bytes] | None = None  # of a token, which may be a part of a character; None: its text's

    def first(self, index: int, shown: Shown | None) -> dict[str, Any]:
        """The chunk that comes before a choice's text; with what the model saw, in the first one of all."""
        chunk = self._chunk([_choice(index, {"role": "assistant", "content": ""})])
        return chunk if shown is None else {**chunk, "eagle": shown_json(shown)}

    def chunk(self, index: int, event: Event) -> dict[str, Any]:
        delta = {"content": event.text} if event.text else {}
        return self._chunk([_choice(index, delta, self._logprobs(event.logprobs), _reason(event.finish_reason))])

    def chunk_json(self, index: int, event: Event) -> str:
        """`chunk` as JSON; of a token like most, without making the same object again."""
        if event.logprobs is not None or event.finish_reason is not None or not event.text:
            return json.dumps(self.chunk(index, event), ensure_ascii=False)
        text = json.dumps(event.text, ensure_ascii=False)
        return f'{self._head}{{"index": {index}, "delta": {{"content": {text}}}{self._tail}'

    @cached_property
    def _head(self) -> str:
        return json.dumps(self._chunk([]), ensure_ascii=False).removesuffix("]}")

    _tail = ', "logprobs": null, "finish_reason": null}]}'

    def usage(self, usages: Sequence[Usage]) -> dict[str, Any]:
        """The last chunk of a stream whose client asked for it."""
        return {**self._chunk([]), "usage": usage_json(usages)}

    def whole(self, answers: Sequence[Answer], shown: Shown) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self._logprobs(answer.logprobs),
                "finish_reason": _reason(answer.finish_reason),
            }
            for index, answer in enumerate(answers)
        ]
        usage = usage_json([answer.usage for answer in answers])
        return {**self._object("chat.completion", choices), "usage": usage, "eagle": shown_json(shown)}

    def _logprobs(self, logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        content = []
        for one in logprobs:
            top = [self._token(*other) for other in one.top]
            content.append({**self._token(one.token_id, one.text, one.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, text: str, logprob: float) -> dict[str, Any]:
        content = text.encode(errors="replace") if self.bytes_of is None else self.bytes_of(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(content)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._object("chat.completion.chunk", choices)

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def _choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _reason(reason: str | None) -> str | None:
    """As OpenAI names it: an answer that was cancelled is one that was cut."""
    return "length" if reason == "cancelled" else reason


def usage_json(usages: Sequence[Usage]) -> dict[str, Any]:
    """Of all choices; the prompt counts once."""
    prompt, completion = usages[0].prompt_tokens, sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usages[0].cached_tokens},
    }


def shown_json(shown: Shown) -> dict[str, Any]:
    media = [
        {
            "kind": medium.kind,
            "num_tiles": medium.num_tiles,
            "grid": medium.grid,
            "timestamps_seconds": medium.timestamps_seconds,
        }
        for medium in shown.media
    ]
    return {
        "media": media,
        "num_tiles": shown.num_tiles,
        "num_tokens": shown.num_tokens,
        "reduced": shown.reduced,
        "note": shown.note,
    }
