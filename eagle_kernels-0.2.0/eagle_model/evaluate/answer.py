"""Who answers: one narrow function, `answer(questions) -> replies`, of a model here or of a server's.

    answer = of_engine(engine_of(Path("runs/first")), Path("Video-MME"))        # here, by continuous batching
    answer = of_endpoint(Endpoint(config), Path("Video-MME"))                   # a server's model
    for reply in answer(share(questions, rank, num_ranks)): ...                 # one of several processes

Replies come in any order. A question whose media cannot be shown gets a reply with `error` in place of a text; whether
that ends the run is the runner's to say. Decoding is greedy everywhere.

Several questions about one video, one after the other, see the same frames, whatever the length of their texts: there
is TEXT_TOKENS of room for it and the answer, and only more takes frames away. So the video is decoded and encoded once,
and the language model reads its frames once.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from eagle_model.data.contact_sheet import captions, patches_to_pixels
from eagle_model.data.images import load_image
from eagle_model.data.processor import Processor, SamplePlan
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DataError
from eagle_model.evaluate.report import Seen, evenly
from eagle_model.evaluate.show import FRAMES_PER_SECOND, MIN_FRAMES, frame_rate, parts
from eagle_model.evaluate.task import Question
from eagle_model.infer.engine import Engine, read_model
from eagle_model.infer.sampling import Sampling

if TYPE_CHECKING:
    from eagle_model.infer.endpoint import Endpoint
    from eagle_model.infer.request import Request

TEXT_TOKENS = 1024  # of the context, kept for a question's text and its answer; a quarter of a small context
MAX_FRAMES = 512  # of Video-MME; elsewhere a task's own
FRAME_TOKENS = 24  # a frame's label and its marks: "Frame 123 sample at 1234.50s: <img></img>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    id: str
    text: str = ""
    num_frames: int = 0  # that were seen of videos
    num_tiles: int = 0  # of images and frames
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    is_reduced: bool = False  # fewer frames or tiles than the task asks for, for want of context
    is_cut: bool = False  # the answer was as long as it may be
    error: str | None = None


Answer = Callable[[Iterable[Question]], Iterator[Reply]]


def most_frames(processor: Processor) -> int:
    """Of one tile each, that fit beside a question's text."""
    context = processor.config.sampling.context_tokens
    room = context - min(TEXT_TOKENS, context // 4)
    return max(1, room // (processor.config.tokens_per_tile + FRAME_TOKENS))


def _evaluating(processor: Processor, max_frames: int, frames_per_second: float) -> Processor:
    sampling = replace(
        processor.config.sampling,
        frames_per_second=frames_per_second,
        min_frames=min(MIN_FRAMES, max_frames, most_frames(processor)),
        max_frames=max_frames,
        seek="exact",
    )
    return Processor(processor.tokenizer, replace(processor.config, sampling=sampling))


def plan_of(processor: Processor, question: Question, folder: Path) -> SamplePlan:
    """What the model sees of a question. Raises DataError, naming it."""
    content = parts(question, folder, most_frames=most_frames(processor))
    row = {"messages": [{"role": "user", "content": content}]}
    sample = parse_sample(row, root=folder, where=f"question {question.id}")
    frames = min(question.task.max_frames, most_frames(processor))
    return _evaluating(processor, frames, frame_rate(content, folder)).plan_sample(sample, generation_prompt=True)


# -- the engine


def engine_of(
    folder: Path,
    *,
    adapter: Path | None = None,
    device: str | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> Engine:
    """A model's engine that shows videos as the paper's evaluation does: 2 frames a second, 8 at least, 512 at most.

    Arguments and errors as of `Engine.from_folder`.
    """
    model, processor = read_model(folder, adapter=adapter, device=device, say=say)
    return Engine(model, _evaluating(processor, MAX_FRAMES, FRAMES_PER_SECOND))


def of_engine(engine: Engine, folder: Path, *, num_ahead: int = 64) -> Answer:
    """By continuous batching: so many questions are on their way at once, in order, so that those of one video meet
    its frames, and what was computed of them, in the engine's cache."""

    def submit(question: Question) -> tuple[Question, Request | Reply]:
        frames = min(question.task.max_frames, most_frames(engine.processor))
        try:
            content = parts(question, folder, most_frames=frames)
            request = engine.submit(
                [{"role": "user", "content": content}],
                Sampling(max_new_tokens=question.task.max_new_tokens),
                root=folder,
                frames=frames,
                fps=frame_rate(content, folder),
            )
        except DataError as error:
            return question, Reply(id=question.id, error=str(error))
        return question, request

    def finished(question: Question, request: Request | Reply) -> Reply:
        if isinstance(request, Reply):
            return request
        answer = request.result()
        if isinstance(request.error, DataError):
            return Reply(id=question.id, error=str(request.error))
        if request.error is not None:
            raise request.error
        shown = request.shown
        return Reply(
            id=question.id,
            text=answer.text.strip(),
            num_frames=sum(medium.num_tiles for medium in shown.media if medium.kind != "image"),
            num_tiles=shown.num_tiles,
            num_prompt_tokens=answer.usage.prompt_tokens,
            num_new_tokens=answer.usage.completion_tokens,
            is_reduced=shown.reduced,
            is_cut=answer.finish_reason == "length",
        )

    def answer(questions: Iterable[Question]) -> Iterator[Reply]:
        waiting: deque[tuple[Question, Request | Reply]] = deque()
        for question in questions:
            waiting.append(submit(question))
            if len(waiting) >= num_ahead:
                yield finished(*waiting.popleft())
        while waiting:
            yield finished(*waiting.popleft())

    return answer


# -- a server


def of_endpoint(endpoint: Endpoint, folder: Path) -> Answer:
    """As many questions at once as the endpoint's configuration says; videos as frames with their times.

    EndpointConfig.max_frames is the most of a video, and image_px the size that pictures are sent in. What the server
    does not take, as more than its context holds, gets a reply with `error`.
    """
    from eagle_model.infer.endpoint import RequestRefused

    config = endpoint.config

    def ask(question: Question) -> Reply:
        try:
            content = parts(question, folder, most_frames=config.max_frames, no_videos=True)
            shown = [part for part in content if part["type"] == "image"]
            messages = [{"role": "user", "content": content}]
            got = endpoint.ask(messages, max_tokens=question.task.max_new_tokens)
        except DataError as error:
            return Reply(id=question.id, error=str(error))
        except RequestRefused as error:
            return Reply(id=question.id, error=f"question {question.id} of {question.task.name}: {error}")
        return Reply(
            id=question.id,
            text=got.text.strip(),
            num_frames=len(shown) if question.video else 0,
            num_tiles=len(shown),
            num_prompt_tokens=got.prompt_tokens,
            num_new_tokens=got.answer_tokens,
            is_cut=got.finish_reason == "length",
        )

    def answer(questions: Iterable[Question]) -> Iterator[Reply]:
        with ThreadPoolExecutor(config.max_concurrent, thread_name_prefix="eval-ask") as pool:
            asked: set[Future[Reply]] = set()
            try:
                for question in questions:
                    asked.add(pool.submit(ask, question))
                    if len(asked) >= config.max_concurrent:
                        done, asked = wait(asked, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                while asked:
                    done, asked = wait(asked, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    return answer


# -- ranks


def share(questions: Iterable[Question], rank: int, num_ranks: int) -> Iterator[Question]:
    """The questions of one of several processes: whole videos go round, so that each is encoded by one of them."""
    seen: dict[str, int] = {}
    for question in questions:
        if seen.setdefault(question.media, len(seen)) % num_ranks == rank:
            yield question


def together(questions: Iterable[Question]) -> Iterator[Question]:
    """Those of one video one after the other, videos in the order in which they first come.

    Holds them all; questions that carry their images with them are not held, and stay where they are.
    """
    by_media: dict[str, list[Question]] = {}
    for question in questions:
        if question.images and not isinstance(question.images[0], str):
            yield question
        else:
            by_media.setdefault(question.media, []).append(question)
    for same in by_media.values():
        yield from same


# -- what was seen, to look at


def seen_by_model(processor: Processor, folder: Path) -> Callable[[Question], list[Seen]]:
    """Tiles of a question as the model saw them, some of them, with their times or places."""

    def seen(question: Question) -> list[Seen]:
        plan = plan_of(processor, question, folder)
        chosen, named, config = evenly(plan.num_tiles), captions(plan), processor.config
        found = []
        for i in chosen:
            patches_IPK = processor.load_sample(plan, tiles=(i, i + 1)).patches_IPK
            pixels = patches_to_pixels(patches_IPK, patch_px=config.patch_px, mean=config.mean, std=config.std)
            found.append(Seen(named[i], Image.fromarray(pixels[0].numpy())))
        return found

    return seen


def seen_by_server(max_frames: int, folder: Path) -> Callable[[Question], list[Seen]]:
    """Pictures of a question as they are sent to a server, some of them, before they are made smaller."""

    def seen(question: Question) -> list[Seen]:
        content = parts(question, folder, most_frames=max_frames, no_videos=True)
        pictures = [part["image"] for part in content if part["type"] == "image"]
        return [
            Seen(
                f"picture {i + 1}",
                pictures[i]
                if isinstance(pictures[i], Image.Image)
                else Image.fromarray(load_image(folder / pictures[i]).numpy()),
            )
            for i in evenly(len(pictures))
        ]

    return seen
