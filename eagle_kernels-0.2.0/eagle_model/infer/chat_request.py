"""The body of POST /v1/chat/completions -> what to ask the engine, or a 400 sentence that names the field.

    asked = parse_chat({"model": "eagle", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8})
    asked.sampling.max_new_tokens, asked.n, asked.stream        # 8, 1, False
    with store.holding() as path_of:
        messages = asked.local_messages(path_of)                 # URLs of media become paths of the server's own files

OpenAI's fields, and beside them top_k, min_p, repetition_penalty, and what the model sees: `frames` (most a video),
`fps` and `tiles` (most an image). A part {"type": "file", "file": {"file_id": ...}} is an upload; so is the id in place
of a URL.
Tools are not supported, and a request that offers some is refused. A field that is neither known nor without effect is
refused too: an answer that silently leaves a wish out is worse than none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle_model.data.sample import shown
from eagle_model.infer.fetch import RequestError
from eagle_model.infer.media import Kind
from eagle_model.infer.sampling import MAX_BIASES, MAX_LOGPROBS, MAX_STOPS, Sampling

MAX_ANSWERS = 16  # limit: `n`; each takes a place in the batch
MAX_SEED = 1 << 63
_WITHOUT_EFFECT = {  # of OpenAI's: about billing, storage and routing
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
}  # fmt: skip
_MESSAGE_NOTES = {"name", "refusal", "annotations", "audio", "function_call"}  # of a message: nothing the model reads
_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    messages: tuple[dict[str, Any], ...]  # with URLs
    sampling: Sampling
    model: str | None  # the name that the client used
    n: int = 1
    stream: bool = False
    include_usage: bool = False  # the stream ends with a chunk of the numbers of tokens
    frames: int | None = None
    fps: float | None = None
    tiles: int | None = None

    def local_messages(self, path_of: Callable[[str, Kind], Path]) -> list[dict[str, Any]]:
        """The messages with paths where they have URLs. Raises RequestError where `path_of` does."""
        return [_local_message(message, path_of) for message in self.messages]


def parse_chat(body: object) -> ChatRequest:
    """Raises RequestError, 400, with the field's name."""
    if not isinstance(body, dict):
        raise RequestError(f"the body is {shown(body)}; needs a JSON object.")
    fields = _Fields({name: value for name, value in body.items() if value is not None})
    messages = fields.take("messages", list, "a list of at least one message", None)
    if not messages:
        raise RequestError("messages is missing or empty; needs a list of at least one message.", param="messages")
    options = fields.take("stream_options", dict, "an object", {})
    if unknown := sorted(set(options) - {"include_usage", "include_obfuscation"}):
        raise RequestError(f"stream_options has the unknown field {shown(unknown[0])}.", param="stream_options")
    model = fields.take("model", str, "a model's name", None)
    n = fields.number("n", 1, MAX_ANSWERS, whole=True)
    stream = fields.take("stream", bool, "true or false", False)
    frames, fps = fields.number("frames", 1, whole=True), fields.number("fps", 0.001)
    tiles = fields.number("tiles", 1, whole=True)
    _refuse_tools(fields)
    sampling = _sampling(fields)
    fields.end()
    return ChatRequest(
        messages=tuple(_checked_message(message, i) for i, message in enumerate(messages)),
        sampling=sampling,
        model=model,
        n=1 if n is None else int(n),
        stream=stream,
        include_usage=bool(options.get("include_usage", False)),
        frames=None if frames is None else int(frames),
        fps=None if fps is None else float(fps),
        tiles=None if tiles is None else int(tiles),
    )


class _Fields:
    """Of a body: each is taken once, and at the end none may be left."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given

    def take(self, name: str, kind: type, need: str, default: Any) -> Any:
        value = self.given.pop(name, default)
        if value is not default and not isinstance(value, kind):
            raise RequestError(f"{name} is {shown(value)}; needs {need}.", param=name)
        return value

    def number(self, name: str, least: float, most: float = math.inf, *, whole: bool = False) -> float | None:
        value = self.given.pop(name, None)
        if value is None:
            return None
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= min(most, 1 << 64):
            kind = "a whole number" if whole else "a number"
            bound = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
            raise RequestError(f"{name} is {shown(value)}; needs {kind} {bound}.", param=name)
        return value

    def end(self) -> None:
        if unknown := sorted(str(name) for name in self.given.keys() - _WITHOUT_EFFECT):
            raise RequestError(f"the field {shown(unknown[0])} is not known here; take it out.", param=unknown[0][:80])


def _refuse_tools(fields: _Fields) -> None:
    for name in ("tools", "functions"):
        if fields.given.pop(name, None):
            raise RequestError(f"{name} is given; this server calls none. Take it out.", param=name)
    for name in ("tool_choice", "function_call"):
        if fields.given.pop(name, "none") not in ("none", "auto"):
            raise RequestError(f"{name} asks for a tool; this server calls none. Take it out.", param=name)


def _sampling(fields: _Fields) -> Sampling:
    newer, older = (fields.number(name, 1, whole=True) for name in ("max_completion_tokens", "max_tokens"))
    if newer is not None and older is not None and newer != older:
        raise RequestError("max_completion_tokens and max_tokens differ; give one of them.", param="max_tokens")
    most = older if newer is None else newer
    given: dict[str, Any] = {"max_new_tokens": None if most is None else int(most)}
    for name, least, highest in (
        ("temperature", 0, 2), ("top_p", 1e-6, 1), ("min_p", 0, 1), ("repetition_penalty", 0.01, 100),
        ("presence_penalty", -2, 2), ("frequency_penalty", -2, 2),
    ):  # fmt: skip
        if (value := fields.number(name, least, highest)) is not None:
            given[name] = float(value)
    if (top_k := fields.number("top_k", -1, whole=True)) is not None:
        given["top_k"] = max(0, int(top_k))  # vLLM's clients say -1 for none
    if (seed := fields.number("seed", -MAX_SEED, MAX_SEED - 1, whole=True)) is not None:
        given["seed"] = int(seed) % MAX_SEED
    given["stop"] = _stops(fields.given.pop("stop", ()))
    given["logit_bias"] = _biases(fields.take("logit_bias", dict, "an object of token ids and numbers", {}))
    top = fields.number("top_logprobs", 0, MAX_LOGPROBS, whole=True)
    if fields.take("logprobs", bool, "true or false", False):
        given["logprobs"] = int(top or 0)
    elif top is not None:
        raise RequestError("top_logprobs is given without logprobs; set logprobs to true.", param="top_logprobs")
    given["json_schema"] = _schema(fields.take("response_format", dict, "an object with a type", {}))
    try:
        return Sampling(**given)
    except ValueError as error:
        raise RequestError(str(error)) from error


def _stops(stop: object) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, (list, tuple))
        or len(stops) > MAX_STOPS
        or not all(isinstance(text, str) and text for text in stops)
    ):
        raise RequestError(f"stop is {shown(stop)}; needs a string, or at most {MAX_STOPS} of them.", param="stop")
    return tuple(stops)


def _biases(given: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    biases = []
    for token, bias in list(given.items())[: MAX_BIASES + 1]:
        is_number = isinstance(bias, (int, float)) and not isinstance(bias, bool) and -100 <= bias <= 100
        if not (token.isascii() and token.isdigit()) or len(token) > 9 or not is_number:
            raise RequestError(
                f"logit_bias has {shown(token)}: {shown(bias)}; needs a token's id and a number from -100 to 100.",
                param="logit_bias",
            )
        biases.append((int(token), float(bias)))
    if len(biases) > MAX_BIASES:
        raise RequestError(f"logit_bias has {len(given)} entries; needs at most {MAX_BIASES}.", param="logit_bias")
    return tuple(biases)


def _schema(response_format: dict[str, Any]) -> str | None:
    """The JSON schema that an answer must have, as text; None: any answer."""
    kind = response_format.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return json.dumps({"type": "object"})
    about = response_format.get("json_schema")
    if kind != "json_schema" or not isinstance(about, dict) or not isinstance(about.get("schema"), dict):
        raise RequestError(
            f"response_format is {shown(response_format)}; needs type text, json_object, or json_schema with "
            "{'schema': {...}}.",
            param="response_format",
        )
    return json.dumps(about["schema"])


# -- messages


def _checked_message(message: object, number: int) -> dict[str, Any]:
    """A message as the processor takes it, but for its URLs."""
    where = f"messages[{number}]"
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise RequestError(
            f"{where} is {shown(message)}; needs an object with a role of {', '.join(_ROLES)}.", param=where
        )
    given = {name: value for name, value in message.items() if value is not None and name not in _MESSAGE_NOTES}
    if given.get("tool_calls") == []:  # as some clients send every answer back
        del given["tool_calls"]
    if unknown := sorted(given.keys() - {"role", "content"}):
        raise RequestError(f"{where} has the unknown field {shown(unknown[0])}; take it out.", param=where)
    content = given.get("content")
    if not isinstance(content, (str, list)):
        raise RequestError(f"{where}.content is {shown(content)}; needs a string or a list of parts.", param=where)
    role = "system" if given["role"] == "developer" else given["role"]
    if isinstance(content, list):
        content = [_checked_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    return {"role": role, "content": content}


def _checked_part(part: object, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in ("text", "image_url", "video_url", "file"):
        raise RequestError(f"{where} is {shown(part)}; needs type text, image_url, video_url or file.", param=where)
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise RequestError(f"{where}.text is {shown(part.get('text'))}; needs a string.", param=where)
        return {"type": "text", "text": part["text"]}
    about = part.get(kind)
    about = {"url": about} if isinstance(about, str) else about
    key = "file_id" if kind == "file" else "url"
    if not isinstance(about, dict) or not isinstance(about.get(key), str) or not about[key]:
        raise RequestError(f"{where}.{kind} is {shown(about)}; needs an object with {key}.", param=where)
    medium = {"image_url": "image", "video_url": "video", "file": "file"}[kind]
    known = {"image": {"url", "detail"}, "video": {"url", "start", "end"}, "file": {"file_id"}}[medium]
    if unknown := sorted(set(about) - known):
        raise RequestError(f"{where}.{kind} has the unknown field {shown(unknown[0])}.", param=where)
    return {"type": medium, "url": about[key], **{k: v for k, v in about.items() if k != key and v is not None}}


def _local_message(message: dict[str, Any], path_of: Callable[[str, Kind], Path]) -> dict[str, Any]:
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [_local_part(part, path_of) for part in message["content"]]}


def _local_part(part: dict[str, Any], path_of: Callable[[str, Kind], Path]) -> dict[str, Any]:
    from eagle_model.data.images import is_still

    if part["type"] == "text":
        return part
    kind = part["type"]
    path = path_of(part["url"], "video" if kind == "file" else kind)
    if kind == "file":
        kind = "image" if is_still(path) else "video"
    more = {name: part[name] for name in ("detail", "start", "end") if name in part}
    return {"type": kind, kind: str(path), **more}
