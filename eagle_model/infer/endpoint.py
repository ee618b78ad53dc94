"""A client of any OpenAI-compatible server: `eagle serve`, vLLM, or a hosted one. Blocking, and safe in many threads.

    endpoint = Endpoint(EndpointConfig(url="http://localhost:8000/v1", model="eagle"))
    parts = [{"type": "image", "image": "page.png"}, {"type": "text", "text": "What is the title?"}]
    endpoint.ask([{"role": "user", "content": parts}], max_tokens=64).text
    endpoint.ask("Name three colours.", json_schema={"type": "object", ...}).json     # checked against the schema

Messages are those of the engine: texts, {"type": "image", "image": path or PIL image} (perhaps with OpenAI's "detail":
low is one tile of `eagle serve`), {"type": "video", "video": path, "start": s, "end": s} (perhaps with its own
"frames_per_second" and "max_frames", or the "times" of the frames to show). Images travel as JPEG in data URLs; a video
as its frames, each after its time as text, since that is what every such server takes.

What may pass passes: a server that is busy, down, slow or cut short is asked again after a growing pause, as it asks
for (Retry-After). What cannot pass, such as a wrong key or model, raises EndpointError at once with its own words.
Budgets are kept before a request leaves: what it may cost at most is set aside until its answer tells the price.
"""

from __future__ import annotations

import base64
import email.utils
import io
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import httpx2
from PIL import Image

from eagle_kernels.video import VideoError
from eagle_model.data.clips import open_clip, open_video
from eagle_model.data.images import load_image
from eagle_model.data.sample import DataError, VideoRef
from eagle_model.data.sampling import evenly
from eagle_model.fields import require
from eagle_model.infer.json_answers import JsonAnswerError, read_json_answer, without_limits

Messages = str | Sequence[dict[str, Any]]
MAX_ANSWER_BYTES = 64 << 20  # limit: of one response; the longest answers are some 100 KB
MAX_PAUSE_SECONDS = 60.0  # between two tries where the server names no other
MAX_RETRY_AFTER_SECONDS = 600.0  # limit: a server that asks for longer is down
CHARS_A_TOKEN = 3  # of English text, fewer than there are: what is set aside for a prompt is at least its price
IMAGE_TOKENS = 1600  # of one image, at most, at hosted models: what is set aside for it
SHOWN_VIDEOS = 32  # clips whose frames are kept as they travel: 64 JPEGs of 30 KB each are 2 MB
_PASSING = {408, 409, 425, 429}  # HTTP: what the same request may not meet again, as all from 500 on, but
_LASTING = {501, 505}  # what the server does not know
REFUSED = {400, 413, 422}  # of one request; others (401, 403, 404) are of all


class EndpointError(ValueError):
    """A server that refuses a request or cannot be reached; the message has its own words."""


class RequestRefused(EndpointError):
    """This request is not taken (HTTP 400, 413 or 422), as of a picture that a hosted model will not look at."""


class BudgetReached(EndpointError):
    """Asking once more might cost more than allowed."""


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    url: str  # up to and with /v1
    model: str
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable with the key; unset: no key is sent
    max_concurrent: int = 16  # requests in flight
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None  # of prompts and answers, as the server counted them
    timeout_seconds: float = 600.0  # until an answer is there
    max_retries: int = 8  # of one request, after what may pass
    structured: Literal["json_schema", "json_shape", "json_object", "none"] = "json_schema"  # how schemas are sent
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # newer models know the other alone
    thinking_tokens: int = 0  # that an answer may take beside its own: models that think first count both together
    leave_out: tuple[Literal["temperature", "seed"], ...] = ()  # of requests: what the model refuses
    image_px: int = 512  # longer side of images and frames that are sent
    jpeg_quality: int = 85
    frames_per_second: float = 2.0  # of a video in a message
    max_frames: int = 64
    dollars_per_million_prompt_tokens: float = 0.0
    dollars_per_million_answer_tokens: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.url.startswith(("http://", "https://")), "url", self.url, "http:// or https://, up to and with /v1"
        )
        for name in ("max_concurrent", "image_px", "max_frames"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("timeout_seconds", "frames_per_second"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("requests_per_minute", "tokens_per_minute"):
            require((getattr(self, name) or 1) > 0, name, getattr(self, name), "more than 0, or none")
        for name in ("max_retries", "thinking_tokens"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(1 <= self.jpeg_quality <= 100, "jpeg_quality", self.jpeg_quality, "1 to 100")

    def dollars(self, prompt_tokens: float, answer_tokens: float) -> float:
        """The price of so many tokens."""
        prompt = prompt_tokens * self.dollars_per_million_prompt_tokens
        return (prompt + answer_tokens * self.dollars_per_million_answer_tokens) / 1e6


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer. `raw` is the server's whole response, as it came."""

    text: str
    finish_reason: str  # "stop", "length", or what the server said
    prompt_tokens: int
    answer_tokens: int
    dollars: float
    seconds: float  # from sending to having it, without pauses
    num_tries: int  # 1: answered at once
    raw: dict[str, Any] = field(repr=False)
    json: Any = None  # with a schema: the answer's value, which keeps it

    @staticmethod
    def none() -> Reply:
        """No answer, at no price."""
        return Reply(
            text="",
            finish_reason="error",
            prompt_tokens=0,
            answer_tokens=0,
            dollars=0.0,
            seconds=0.0,
            num_tries=1,
            raw={},
        )


@dataclass
class Budget:
    """What all requests together may cost; shared by as many endpoints and threads as one likes.

    num_requests and dollars begin at what an earlier run has spent.
    """

    max_dollars: float | None = None
    max_requests: int | None = None
    num_requests: int = 0
    dollars: float = 0.0
    _held_requests: int = field(default=0, init=False)
    _held_dollars: float = field(default=0.0, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False, repr=False)

    @contextmanager
    def hold(self, dollars: float, *, num_requests: int = 1) -> Iterator[Callable[[float], None]]:
        """Sets `dollars` aside for requests while the block runs; the block calls what it is given with each price.

        Waits while others hold what would be needed. Raises BudgetReached where nobody does and it is too little.
        """
        with self._changed:
            while not self._fits(dollars, num_requests):
                if not self._held_requests:
                    raise BudgetReached(self._said(dollars, num_requests))
                self._changed.wait()
            self._held_requests += num_requests
            self._held_dollars += dollars
        try:
            yield self._spend
        finally:
            with self._changed:
                self._held_requests -= num_requests
                self._held_dollars -= dollars
                self._changed.notify_all()

    def _spend(self, dollars: float) -> None:
        with self._changed:
            self.num_requests += 1
            self.dollars += dollars

    def _fits(self, dollars: float, more: int) -> bool:
        return not self._is_out_of_requests(more) and self._has_dollars(dollars)

    def _is_out_of_requests(self, more: int) -> bool:
        return self.max_requests is not None and self.num_requests + self._held_requests + more > self.max_requests

    def _has_dollars(self, dollars: float) -> bool:
        return self.max_dollars is None or self.dollars + self._held_dollars + dollars <= self.max_dollars

    def _said(self, dollars: float, more: int) -> str:
        spent = f"{self.num_requests:,} requests and {self.dollars:.2f} dollars are spent"
        if self._is_out_of_requests(more):
            return f"{spent}; max_requests is {self.max_requests:,}. Raise it to go on from here."
        return f"{spent}, and the next request may cost {dollars:.4f}; max_dollars is {self.max_dollars}. Raise it."


class Endpoint:
    """One model at one server. `ask` may be called from as many threads as one likes."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        root: str | Path | None = None,
        budget: Budget | None = None,
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """root: the folder of the media that messages name.  budget: of all requests, None is without end.
        transport, sleep: in place of the network and of waiting, for tests."""
        self.config, self.budget = config, budget or Budget()
        self._root, self._sleep = Path(root or "."), sleep
        key = os.environ.get(config.api_key_env)
        self._client = httpx2.Client(
            base_url=config.url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(config.timeout_seconds, connect=min(30.0, config.timeout_seconds)),
            limits=httpx2.Limits(max_connections=config.max_concurrent),
            transport=transport,
        )
        self._shown = lru_cache(maxsize=SHOWN_VIDEOS)(self._decoded)  # questions about one clip follow each other
        self._places = threading.Semaphore(config.max_concurrent)
        self._pace = _Pace(config.requests_per_minute, config.tokens_per_minute)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self,
        messages: Messages,
        *,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int | None = None,
        json_schema: dict[str, Any] | None = None,
    ) -> Reply:
        """One answer; waits for its turn, for the server and for rates.

        Args:    messages: as the module says, or one text.
                 json_schema: the answer must keep it. It is checked here too, whatever the server promises.
        Raises:  EndpointError when the server refuses, or is not there after all tries; BudgetReached (one of them);
                 JsonAnswerError, with the reply, when the answer is no JSON or breaks the schema; DataError for media.
        """
        body = self.request(
            messages, max_tokens=max_tokens, temperature=temperature, seed=seed, json_schema=json_schema
        )
        reply = self.send(body)
        if json_schema is None:
            return reply
        try:
            value = read_json_answer(reply.text, json_schema)
        except JsonAnswerError as error:
            error.reply = reply
            raise
        return replace(reply, json=value)

    def request(
        self,
        messages: Messages,
        *,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int | None = None,
        json_schema: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The body that `ask` would send, with all media in it. Raises DataError for media that cannot be read."""
        config = self.config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": self._encoded(messages),
            config.max_tokens_name: max_tokens + config.thinking_tokens,
        }
        options = {"temperature": temperature, "seed": seed}
        body |= {k: v for k, v in options.items() if v is not None and k not in config.leave_out}
        if json_schema is not None and config.structured in ("json_schema", "json_shape"):
            schema = json_schema if config.structured == "json_schema" else without_limits(json_schema)
            named = {"name": "answer", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif json_schema is not None and config.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def send(self, body: dict[str, Any]) -> Reply:
        """The answer to a body of `request`. Raises EndpointError."""
        data = json.dumps(body, ensure_ascii=False).encode()
        with self._places, self.budget.hold(self.price(body)) as spend:
            headers = {"Content-Type": "application/json"}
            raw, seconds, num_tries = self.call("POST", "chat/completions", content=data, headers=headers)
            reply = read_completion(raw, self.config, seconds=seconds, num_tries=num_tries)
            spend(reply.dollars)
        self._pace.count(reply.prompt_tokens + reply.answer_tokens)
        return reply

    def price(self, body: dict[str, Any]) -> float:
        """Dollars that a body of `request` may cost at most."""
        return self.config.dollars(_prompt_tokens(body["messages"]), body[self.config.max_tokens_name])

    def call(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        files: dict[str, Any] | None = None,
        data: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        as_text: bool = False,
    ) -> tuple[Any, float, int]:
        """(the JSON or text of a response, its seconds, the number of tries) of any path of the server's API.

        Raises: EndpointError when it refuses, or does not answer after all tries.
        """
        for num_tries in range(1, self.config.max_retries + 2):
            self._pace.wait(self._sleep)
            started = time.monotonic()
            pause, kind = None, EndpointError
            try:
                response = self._client.request(method, path, content=content, files=files, data=data, headers=headers)
                problem, pause = _passing_problem(response)
                if not problem:
                    value = self._read(response, is_answer=path == "chat/completions", as_text=as_text)
                    return value, time.monotonic() - started, num_tries
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            except _CutShort as error:
                problem, kind = str(error), RequestRefused if isinstance(error, _NoChoice) else EndpointError
            if num_tries <= self.config.max_retries:
                wait = pause if pause is not None else _pause(num_tries)
                if pause is not None:  # the server's own word holds for all
                    self._pace.hold_off(pause)
                self._sleep(wait)
        raise kind(f"{self.config.url}: no answer after {self.config.max_retries + 1} tries: {problem}")

    def _read(self, response: httpx2.Response, *, is_answer: bool, as_text: bool) -> Any:
        if response.status_code not in (200, 201):
            kind = RequestRefused if response.status_code in REFUSED else EndpointError
            raise kind(f"{self.config.url} refuses: HTTP {response.status_code}: {_words(response)}")
        if as_text:
            return response.text
        if len(response.content) > MAX_ANSWER_BYTES:
            size = len(response.content)
            raise EndpointError(f"{self.config.url}: a response of {size} bytes; no answer is so long.")
        try:
            value = json.loads(response.content)
            if is_answer:
                read_completion(value, self.config)
            return value
        except IndexError:
            raise _NoChoice(f"an answer without a choice: {response.text[:200]}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _CutShort(f"no chat completion: {error!r}: {response.text[:200]}") from None

    def _encoded(self, messages: Messages) -> list[dict[str, Any]]:
        if isinstance(messages, str):
            return [{"role": "user", "content": messages}]
        return [{**message, "content": self._content(message["content"])} for message in messages]

    def _content(self, content: str | Sequence[str | dict[str, Any]]) -> str | list[dict[str, Any]]:
        return content if isinstance(content, str) else [sent for part in content for sent in self._parts(part)]

    def _parts(self, part: str | dict[str, Any]) -> list[dict[str, Any]]:
        if isinstance(part, str):
            return [_text(part)]
        kind = part.get("type") or next((k for k in ("text", "image", "video") if k in part), None)
        if kind in ("text", "image_url", "video_url"):  # as they travel
            return [part]
        if kind == "image":
            return [self._image(part["image"], part.get("detail"))]
        if kind == "video":
            return self._video(part)
        raise DataError(f"a part of a message is {str(part)[:80]}; needs the type text, image or video.")

    def _video(self, part: dict[str, Any]) -> list[dict[str, Any]]:
        times, config = part.get("times"), self.config
        return self._shown(
            VideoRef(self._root / part["video"], part.get("start"), part.get("end")),
            part.get("frames_per_second", config.frames_per_second),
            part.get("max_frames", config.max_frames),
            None if times is None else tuple(times),
        )

    def _decoded(
        self, video: VideoRef, rate: float, max_frames: int, times: tuple[float, ...] | None
    ) -> list[dict[str, Any]]:
        if times is None:
            times = frame_times(video, frames_per_second=rate, max_frames=max_frames)
        frames = zip(times, frames_at(video.path, times))
        return [sent for t, frame in frames for sent in (_text(f"{t:.1f} s:"), image_part(frame, self.config))]

    def _image(self, source: str | Path | Image.Image, detail: str | None) -> dict[str, Any]:
        path = source if isinstance(source, Image.Image) else self._root / source
        sent = image_part(Image.fromarray(load_image(path).numpy()), self.config)
        if detail is not None:
            sent["image_url"]["detail"] = detail
        return sent


def read_completion(raw: dict[str, Any], config: EndpointConfig, *, seconds: float = 0.0, num_tries: int = 1) -> Reply:
    """The reply in a chat completion's JSON. Raises KeyError, IndexError, TypeError or ValueError for another JSON.

    A choice without a message is how some servers withhold what their filter found: an empty text.
    """
    choice, usage = raw["choices"][0], raw.get("usage") or {}
    prompt, answer = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    message = choice.get("message") or ({} if choice.get("finish_reason") else choice["message"])
    return Reply(
        text=without_thoughts(_said(message.get("content")) or message.get("refusal") or ""),
        finish_reason=str(choice.get("finish_reason") or "stop"),
        prompt_tokens=prompt,
        answer_tokens=answer,
        dollars=config.dollars(prompt, answer),
        seconds=seconds,
        num_tries=num_tries,
        raw=raw,
    )


def _said(content: str | list[dict[str, Any]] | None) -> str:
    """A message's text. Some servers send it in chunks, those of thinking among them, which are no part of it."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    return content or ""


def without_thoughts(text: str) -> str:
    """What a reply says after it thought aloud, as reasoning models do where the server leaves it in: nothing, where
    it never came to an end. `raw` of a reply has all of it."""
    _, end, said = text.rpartition("</think>")
    return said.lstrip() if end else "" if text.lstrip().startswith("<think>") else text


def image_part(image: Image.Image, config: EndpointConfig) -> dict[str, Any]:
    """An image as a part of a message that travels: no side over `image_px`, JPEG, in a data URL."""
    scale = config.image_px / max(image.size)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)  # type: ignore[arg-type]
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=config.jpeg_quality)
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()},
    }


def frame_times(video: VideoRef, *, frames_per_second: float, max_frames: int) -> tuple[float, ...]:
    """The times of the frames to show of a video or clip, evenly spread: cheap ones near them (`tolerance`).

    Raises: DataError.
    """
    clip = open_clip(video, seek="tolerance")
    seconds = clip.duration_seconds or len(clip.frame_times_seconds)
    number = min(max(1, int(seconds * frames_per_second)), max_frames, len(clip.frame_times_seconds))
    times = evenly(clip.frame_times_seconds, number)
    return tuple(map(float, times if clip.choose is None else clip.choose(times)))


def frames_at(path: Path, times: Sequence[float]) -> list[Image.Image]:
    """The frames shown at these times. Raises DataError."""
    try:
        return [Image.fromarray(frame.rgb_YX3.numpy()) for frame in open_video(path).frames(times)]
    except VideoError as error:
        raise DataError(f"video {path} cannot be shown: {error}") from error


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _prompt_tokens(messages: Sequence[dict[str, Any]]) -> int:
    """More than a prompt has, to set its price aside."""
    num_chars = num_images = 0
    for message in messages:
        parts = message["content"] if isinstance(message["content"], list) else [_text(message["content"])]
        num_images += sum(part["type"] != "text" for part in parts)
        num_chars += sum(len(part["text"]) for part in parts if part["type"] == "text")
    return num_chars // CHARS_A_TOKEN + num_images * IMAGE_TOKENS + 8 * len(messages)


class _CutShort(Exception):
    """A response that is no answer, as of a server that is going down."""


class _NoChoice(_CutShort):
    """A response with no answer in it: of a server's trouble, or of a filter that lets none of them pass."""


def _passing_problem(response: httpx2.Response) -> tuple[str, float | None]:
    """What is wrong and may pass, and the pause that the server asks for."""
    status = response.status_code
    if status not in _PASSING and (status < 500 or status in _LASTING):
        return "", None
    words = _words(response)
    if response.status_code == 429 and "insufficient_quota" in words:  # an empty account, which waiting does not fill
        return "", None
    return f"HTTP {response.status_code}: {words}", _retry_after(response.headers.get("Retry-After"))


def _words(response: httpx2.Response) -> str:
    return " ".join(response.text[:500].split())


def _retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds them or a date."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS) if seconds == seconds else None


def _pause(num_tries: int) -> float:
    """Doubling, and random below it, so that clients which failed together do not come back together."""
    return random.uniform(0.5, 1.0) * min(MAX_PAUSE_SECONDS, 2.0 ** (num_tries - 1))


class _Pace:
    """Requests and tokens a minute: a request leaves no earlier than the ones before it allow."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._request_seconds = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._token_seconds = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self, sleep: Callable[[float], None]) -> None:
        with self._lock:
            now = time.monotonic()
            leaves = max(now, self._next)
            self._next = leaves + self._request_seconds
        if leaves > now:
            sleep(leaves - now)

    def count(self, num_tokens: int) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic()) + num_tokens * self._token_seconds

    def hold_off(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)
