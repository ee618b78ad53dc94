"""The engine: many requests to one model at once, over one cache of keys and values in blocks.

    engine = Engine.from_folder("runs/first")
    request = engine.submit([{"role": "user", "content": "Hello"}], Sampling(max_new_tokens=100))
    request.result().text                       # works by itself; or once, for many: `with engine.start(): ...`

Each step gives every running answer one token and computes a chunk of the prompts that wait (schedule.py). Keys of
prompts stay in the cache while there is room: another question about the same film, or the next turn of a chat,
computes what is new in it alone. Greedy answers do not depend on what else is going on, up to the rounding of
matrix products whose number of rows differs.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import warnings
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from eagle_model.checkpoints import read_newest
from eagle_model.data.processor import CONFIG_FILE, Processor
from eagle_model.data.sample import DataError, Sample
from eagle_model.infer.cache import Blocks
from eagle_model.infer.encoded import Encoded, Loader
from eagle_model.infer.forward import Forward
from eagle_model.infer.guided import Guides
from eagle_model.infer.prompts import Prompt, Prompts
from eagle_model.infer.request import Event, FinishReason, Request, TextStream
from eagle_model.infer.sampling import Chosen, Sampler, Sampling
from eagle_model.infer.schedule import BLOCK_TOKENS, Scheduler, Sequence, Work
from eagle_model.model.eagle import Eagle, build, load, read_model_config
from eagle_model.model.lora import load_adapter
from eagle_model.model.quantize import Kind, Quantize

DEFAULT_NEW_TOKENS = 512  # of an answer: about a page of text
CONTEXTS_ON_CPU = 4  # that the cache of a CPU holds by default; memory is taken as it is used
SHARE_OF_GPU = 0.85  # of the memory that is free beside the weights: the rest is for a step's activations
GREEDY = Sampling()
WARM_UP_TOKENS = 4  # of the first answer: a prompt's step, then some of one token
MAX_RUNNING = 16  # answers at once
MAX_QUEUED = 1024  # requests that wait; beyond, whoever asks is told at once


class QueueFull(RuntimeError):
    """Too many requests wait: try again later."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What is going on in an engine."""

    queued: int
    running: int
    blocks: int  # of BLOCK_TOKENS tokens each
    blocks_used: int  # by running requests
    blocks_free: int  # that nobody holds, those that can be found included
    blocks_found: int  # whose keys can be found
    prefix_hits: int  # tokens of prompts whose keys were there already, since the start
    prompt_tokens: int  # whose keys were computed
    tokens_done: int  # of answers
    requests_done: int
    preemptions: int
    tiles_encoded: int


@dataclass(eq=False, slots=True)
class _Active:
    """A request and all that its answer needs."""

    request: Request
    sequence: Sequence
    sampler: Sampler
    text: TextStream
    loader: Loader | None
    model: Eagle
    num_new: int
    num_said: int = 0


class Engine:
    """Threads may submit; one steps: the engine's own after `start`, else whoever reads a request."""

    def __init__(
        self,
        model: Eagle,
        processor: Processor,
        *,
        cache_tokens: int | None = None,
        context_tokens: int | None = None,
        max_running: int = MAX_RUNNING,
        max_queued: int = MAX_QUEUED,
        prefill_tokens: int | None = None,
        encoder_tokens: int | None = None,
    ) -> None:
        """
        Args:   cache_tokens: that the cache holds, of all requests; None: on a GPU what fits, on a CPU four contexts.
                context_tokens: the most of a prompt and its answer; None: the processor's, or the cache's if it is
                less.
                max_running: answers at once.  max_queued: requests that wait.
                prefill_tokens: of prompts in a step; None: 2048 on a GPU, 512 on a CPU.
                encoder_tokens: visual tokens that are kept beside the cache; None: as many as the cache holds.
        Raises: ValueError for sizes that leave no room.
        """
        self.model, self.processor = model.eval(), processor
        self._device = model.llm.embed_tokens.weight.device
        wanted = context_tokens or processor.config.sampling.context_tokens
        if cache_tokens is None:
            cache_tokens = _default_cache_tokens(model, wanted)
        num_blocks = cache_tokens // BLOCK_TOKENS
        self.context_tokens = min(wanted, num_blocks * BLOCK_TOKENS)
        if prefill_tokens is None:
            prefill_tokens = 2048 if self._device.type == "cuda" else 512
        least = {"cache_tokens": BLOCK_TOKENS, "context_tokens": 2, "max_running": 1, "prefill_tokens": 1}
        for name, value in zip(least, (cache_tokens, self.context_tokens, max_running, prefill_tokens), strict=True):
            if value < least[name]:
                raise ValueError(f"Engine: {name} is {value}; needs at least {least[name]}.")
        each = processor.config.tokens_per_tile
        kept = cache_tokens if encoder_tokens is None else encoder_tokens
        self._prompts = Prompts(processor)
        self._encoded = Encoded(capacity_tiles=max(kept // each, 1))
        self._forward = Forward(model, num_blocks=num_blocks)
        self._scheduler = Scheduler(
            Blocks(num_blocks), max_running=max_running, prefill_tokens=prefill_tokens, ready=self._ready
        )
        self.max_running, self._max_queued = max_running, max_queued
        self._adapters: dict[str, Eagle] = {}
        self._active: dict[Sequence, _Active] = {}
        self._arrived: list[_Active] = []
        self._lock = threading.Lock()  # of what has arrived
        self._work = threading.RLock()  # of all else: who holds it steps
        self._news = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._is_closed = self.is_ready = False
        self._num_prompt_tokens = self._num_tokens = self._num_done = 0

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        adapter: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        quantize: Kind | None = None,
        say: Callable[[str], object] = warnings.warn,
        cache_tokens: int | None = None,
        max_running: int = MAX_RUNNING,
        max_queued: int = MAX_QUEUED,
    ) -> Engine:
        """Of a released model, a checkpoint, or the newest checkpoint of a run.

        Args:    adapter: a folder of adapters for all requests (model/lora.py), or a run's that trained some; where a
                     processor lies beside them, it is taken instead of the model's. Others: `add_adapter`.
                 device: None is the GPU where there is one, else the CPU.  dtype: None is bf16 on a GPU, fp32 on a CPU.
                 quantize: weights of the language model in "int8" or "int4" (model/quantize.py); needs torchao.
                 say: is told of damaged checkpoints that were passed over for an older one, and what quantizing costs.
                 cache_tokens, max_running, max_queued: as of Engine.
        Raises:  FileNotFoundError or ValueError when there is no model that can be read, or an adapter does not fit it.
        """
        model, processor = read_model(folder, adapter=adapter, dtype=dtype, device=device, quantize=quantize, say=say)
        return cls(model, processor, cache_tokens=cache_tokens, max_running=max_running, max_queued=max_queued)

    def submit(
        self,
        messages: Items[dict] | Sample,
        sampling: Sampling = GREEDY,
        *,
        root: str | Path | None = None,
        tiles: int | None = None,
        frames: int | None = None,
        fps: float | None = None,
        adapter: str | None = None,
    ) -> Request:
        """Asks for the answer to a conversation. What is shown is planned before this returns; no pixel is read.

        Args:    messages, root: as for `Processor`: who writes messages may read any file unless `root` is given. A
                     Sample, as rows.parse_sample makes them, is taken as it is.
                 tiles, frames, fps: the most tiles an image, frames a video and frames a second; None: the processor's.
                 adapter: a name that `add_adapter` gave.
        Raises:  DataError when the messages or a file are unusable, or do not fit. QueueFull. ValueError for numbers
                 out of range, a schema that is none, an adapter that is not there, or an engine that is closed.
        """
        if adapter is not None and adapter not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise ValueError(f"submit: adapter is {adapter!r}; this engine has {known}.")
        num_new = sampling.max_new_tokens or min(DEFAULT_NEW_TOKENS, self.context_tokens // 4)
        prompt = self._prompts.make(
            messages,
            num_new=num_new,
            context_tokens=self.context_tokens,
            root=root,
            tiles=tiles,
            frames=frames,
            fps=fps,
        )
        request = Request(sampling, prompt, drive=self._drive)
        active = self._activate(request, prompt, num_new, adapter)
        with self._news:
            self._check_open()
            if self._num_queued >= self._max_queued:
                raise QueueFull(f"{self._num_queued} requests wait already, and no more may; try again later.")
            self._arrived.append(active)
            self._news.notify()
        return request

    def add_adapter(self, name: str, folder: str | Path) -> None:
        """Low-rank adapters that requests may ask for by `name`. They share the model's weights.

        Raises FileNotFoundError or ValueError where `lora.load_adapter` does, ValueError for a name that is taken.
        """
        if name in self._adapters:
            raise ValueError(f"add_adapter: {name!r} is there already; take another name.")
        model = shared_copy(self.model)
        load_adapter(model, folder)
        self._adapters[name] = model

    # -- work

    def warm_up(self) -> None:
        """Answers a question about a picture, so that what is made once is there when the first request comes: kernels
        are compiled, graphs of decode steps captured, files of weights read. `is_ready` from then on."""
        question: list[dict[str, Any]] = [{"type": "text", "text": "?"}]
        each = self.processor.config.tokens_per_tile
        if self.context_tokens > 2 * each:
            question.insert(0, {"type": "image", "image": Image.new("RGB", (28, 28))})
        num_new = min(WARM_UP_TOKENS, self.context_tokens // 4)
        with contextlib.suppress(DataError):  # of a context so small that not even this fits
            self.submit([{"role": "user", "content": question}], Sampling(max_new_tokens=num_new), tiles=1).result()
        self.is_ready = True

    def start(self) -> Engine:
        """Lets a thread of the engine's own do the work from now on; `close` ends it. `with engine.start(): ...`"""
        self._check_open()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
        return self

    def step(self) -> bool:
        """Does one step's work; waits for pixels where nothing else is to be done. Returns whether there was any."""
        with self._work:
            self._take_in()
            works = self._scheduler.next()
            if not works and not self._wait_for_pixels():
                return bool(self._active)
            for model, group in self._by_model(works):
                self._compute(model, group)
            return True

    def close(self) -> None:
        """Ends all: requests that are not answered yet end with finish_reason "cancelled"."""
        with self._news:
            self._is_closed = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._work:
            self._take_in()
            for active in list(self._active.values()):
                self._end(active, "cancelled")
            self._encoded.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> Stats:
        scheduler, blocks = self._scheduler, self._scheduler.blocks
        return Stats(
            queued=self._num_queued,
            running=len(scheduler.running),
            blocks=blocks.num_blocks,
            blocks_used=blocks.num_blocks - blocks.num_free,
            blocks_free=blocks.num_free,
            blocks_found=blocks.num_named,
            prefix_hits=scheduler.num_found,
            prompt_tokens=self._num_prompt_tokens,
            tokens_done=self._num_tokens,
            requests_done=self._num_done,
            preemptions=scheduler.num_preempted,
            tiles_encoded=self._encoded.num_encoded,
        )

    # -- requests

    @property
    def _num_queued(self) -> int:
        return len(self._arrived) + len(self._scheduler.waiting)

    @cached_property
    def _guides(self) -> Guides:
        return Guides(self.processor, vocab_size=self.model.cfg.text.vocab_size)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is answered any more: it was closed, or its thread failed."""
        return self._is_closed

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("Engine: it is closed; make another one.")

    def _activate(self, request: Request, prompt: Prompt, num_new: int, adapter: str | None) -> _Active:
        model = self.model if adapter is None else self._adapters[adapter]
        root = (adapter or "").encode()
        if model.llm.needs_lengths:  # then keys depend on how long the prompt is
            root += len(prompt.token_ids).to_bytes(8, "little")
        sequence = Sequence(
            list(prompt.token_ids),
            len(prompt.token_ids),
            root=root,
            tile_digests=prompt.tile_digests,
            visual_positions=prompt.visual_positions_N.tolist(),
            tokens_per_tile=self.processor.config.tokens_per_tile,
        )
        schema, vocab_size = request.sampling.json_schema, model.cfg.text.vocab_size
        guide = None if schema is None else self._guides.of_schema(schema)
        sampler = Sampler(request.sampling, prompt.token_ids, vocab_size=vocab_size, guide=guide)
        text = TextStream(self.processor, request.sampling.stop)
        loader = self._encoded.loader(prompt, root=(adapter or "").encode()) if prompt.tile_digests else None
        return _Active(request, sequence, sampler, text, loader, model, num_new)

    def _take_in(self) -> None:
        """Those that arrived come into the queue, cancelled ones leave."""
        with self._lock:
            arrived, self._arrived = self._arrived, []
            for active in arrived:
                self._active[active.sequence] = active
                self._scheduler.waiting.append(active.sequence)
        for active in list(self._active.values()):
            if active.request._is_cancelled:
                self._end(active, "cancelled")

    def _drive(self) -> bool:
        if self._thread is not None or self._is_closed:
            return False
        self.step()
        return True

    def _run(self) -> None:
        while not self._is_closed:
            try:
                is_busy = self.step()
            except BaseException as error:  # all who wait are told; then it is the program's to know
                with self._news:
                    self._is_closed = True
                with self._work:
                    self._take_in()
                    for active in list(self._active.values()):
                        self._fail(active, RuntimeError(f"the engine failed: {error}"))
                raise
            if not is_busy:
                with self._news:
                    self._news.wait_for(lambda: self._arrived or self._is_closed)

    # -- a step

    def _ready(self, sequence: Sequence, first: int, end: int) -> int:
        loader = self._active[sequence].loader
        begin, stop = sequence.visual_range(first, end)
        if loader is None or begin == stop:
            return end
        each = sequence.tokens_per_tile
        tiles = begin // each, (stop - 1) // each + 1
        num_ready = loader.num_ready(*tiles)
        if num_ready == tiles[1] - tiles[0]:
            return end
        return max(sequence.visual_positions[max((tiles[0] + num_ready) * each, begin)], first)

    def _wait_for_pixels(self) -> bool:
        """Where running prompts wait for pixels, until the first one has some. False: none does."""
        for sequence in self._scheduler.running:
            loader, first = self._active[sequence].loader, sequence.num_computed
            if loader is not None and not sequence.is_decoding:
                begin, _ = sequence.visual_range(first, len(sequence.token_ids))
                loader.wait(begin // sequence.tokens_per_tile)
                return True
        return False

    def _by_model(self, works: list[Work]) -> list[tuple[Eagle, list[Work]]]:
        groups: dict[int, tuple[Eagle, list[Work]]] = {}
        for work in works:
            model = self._active[work.sequence].model
            groups.setdefault(id(model), (model, []))[1].append(work)
        return list(groups.values())

    def _compute(self, model: Eagle, works: list[Work]) -> None:
        works = [work for work in works if self._has_pixels(work)]
        if not works:
            return
        works.sort(key=lambda work: work.end - work.first > 1)  # those of one token first; stable
        actives = [self._active[work.sequence] for work in works]
        logits_SV = self._forward(model, [(w, a.loader) for w, a in zip(works, actives, strict=True)])
        self._scheduler.done(works)
        self._num_prompt_tokens += sum(max(min(end, s.num_prompt) - first, 0) for s, first, end in works)
        answering = [active for work, active in zip(works, actives, strict=True) if work.is_last]
        plain_ids: list[int] | None = None
        if all(active.sampler.sampling.is_plain for active in answering):
            plain_ids = logits_SV.argmax(dim=1).tolist()  # at once: one copy from the device
        for i, active in enumerate(answering):
            try:
                self._say(active, active.sampler.choose(logits_SV[i]) if plain_ids is None else Chosen(plain_ids[i]))
            except Exception as error:  # of its own wishes: the others' answers go on
                self._fail(active, RuntimeError(f"the next token could not be chosen: {error}"))

    def _has_pixels(self, work: Work) -> bool:
        """Whether its tiles could be loaded; else the request ends with the error."""
        active = self._active[work.sequence]
        begin, stop = work.sequence.visual_range(work.first, work.end)
        if active.loader is None or begin == stop:
            return True
        each = work.sequence.tokens_per_tile
        error = active.loader.error(begin // each, (stop - 1) // each + 1)
        if error is not None:
            self._fail(active, error)
        return error is None

    def _say(self, active: _Active, chosen: Chosen) -> None:
        active.num_said += 1
        self._num_tokens += 1
        active.sequence.token_ids.append(chosen.token_id)
        logprobs = None if chosen.logprob is None else (active.text.logprob(chosen),)
        reason: FinishReason | None = None
        if chosen.token_id in self.processor.encoder.stop_token_ids:
            text, reason = active.text.end(), "stop"
        else:
            text, is_stop = active.text.add(chosen.token_id)
            if is_stop:
                reason = "stop"
            elif active.num_said == active.num_new:
                text, reason = text + active.text.end(), "length"
        event = Event(text, (chosen.token_id,), logprobs, reason)
        active.request._add(event, num_cached=active.sequence.num_cached)
        if reason is not None:
            self._leave(active)

    def _fail(self, active: _Active, error: Exception) -> None:
        active.request.error = error
        self._end(active, "error")

    def _end(self, active: _Active, reason: FinishReason) -> None:
        active.request._add(Event(active.text.end(), (), None, reason), num_cached=active.sequence.num_cached)
        self._leave(active)

    def _leave(self, active: _Active) -> None:
        self._num_done += 1
        self._scheduler.finish(active.sequence)
        del self._active[active.sequence]
        if active.loader is not None:
            active.loader.close()


def read_model(
    folder: str | Path,
    *,
    adapter: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    quantize: Kind | None = None,
    say: Callable[[str], object] = warnings.warn,
) -> tuple[Eagle, Processor]:
    """A model and its processor, both from the same checkpoint. Arguments and errors as of `Engine.from_folder`."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)

    def read(checkpoint: Path) -> tuple[Processor, Eagle]:
        processor = Processor.from_pretrained(checkpoint)  # before the model, which takes longer
        if quantize is None:
            return processor, Eagle.from_pretrained(checkpoint, dtype=dtype, device=device)
        model, convert = build(read_model_config(checkpoint)), Quantize(quantize)
        load(model, checkpoint, dtype=dtype, device=device, convert=convert)
        say(str(convert))
        return processor, model

    def adapt(checkpoint: Path) -> Processor:
        own = Processor.from_pretrained(checkpoint) if (checkpoint / CONFIG_FILE).is_file() else processor
        load_adapter(model, checkpoint)
        return own

    processor, model = read_newest(Path(folder), read, say)
    if adapter is not None:
        processor = read_newest(Path(adapter), adapt, say)
    return model, processor


def shared_copy(model: Eagle) -> Eagle:
    """Another model with the same parameters: what replaces modules or parameters of it leaves the first as it is."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo)


def _default_cache_tokens(model: Eagle, context_tokens: int) -> int:
    text, weight = model.cfg.text, model.llm.embed_tokens.weight
    if weight.device.type != "cuda":
        return CONTEXTS_ON_CPU * context_tokens
    free_bytes, _ = torch.cuda.mem_get_info(weight.device)
    each = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * weight.element_size()
    each += text.hidden_size * weight.element_size()  # of the encoder's tokens that are kept
    return int(SHARE_OF_GPU * free_bytes) // each
