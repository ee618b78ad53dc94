"""Assistant: a model's folder and a conversation in, an answer out, piece by piece. One conversation at a time: for
many, and for all that can be asked of an answer, see engine.py.

assistant = Assistant("runs/first")                              # or a checkpoint's folder, or a released model's
assistant = Assistant("Eagle2.5-8B", adapter="runs/lora")        # with low-rank adapters, of a run or PEFT
parts = [{"type": "video", "video": "film.mp4"}, {"type": "text", "text": "What happens?"}]
for text in assistant.stream([{"role": "user", "content": parts}]):
    print(text, end="", flush=True)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from eagle_model.data.processor import Processor
from eagle_model.infer.engine import DEFAULT_NEW_TOKENS, Engine, read_model
from eagle_model.infer.request import Request
from eagle_model.infer.sampling import Sampling
from eagle_model.infer.schedule import BLOCK_TOKENS


class Assistant:
    """A model and its processor, with room for an answer in the context."""

    def __init__(
        self,
        folder: str | Path,
        *,
        adapter: str | Path | None = None,
        max_new_tokens: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        say: Callable[[str], object] = warnings.warn,
    ) -> None:
        """Loads a released model, a checkpoint, or the newest checkpoint of a run; both halves from the same one.

        Args:    adapter, dtype, device, say: as for `Engine.from_folder`.
                 max_new_tokens: the longest answer; None is 512, or a quarter of a small context.
        Raises:  FileNotFoundError or ValueError when there is no model that can be read, an adapter does not fit it, or
                 there is no room for a question.
        """
        self.model, processor = read_model(folder, adapter=adapter, dtype=dtype, device=device, say=say)
        self.processor, self.max_new_tokens = _with_room(processor, max_new_tokens)
        context = processor.config.sampling.context_tokens
        cache_tokens = -(-context // BLOCK_TOKENS) * BLOCK_TOKENS
        self.engine = Engine(self.model, processor, cache_tokens=cache_tokens, max_running=1)

    def stream(self, messages: Sequence[dict], *, root: str | Path | None = None) -> Iterator[str]:
        """The answer to a conversation, in pieces of text as they come; it ends where the assistant's turn does.

        Markup, as in `<ref>cat</ref><box>[[1,2,3,4]]</box>`, is part of the text; control tokens are not. The pieces
        joined are the `content` of the assistant's message when the conversation goes on. What an earlier question's
        images and videos left in the cache is not computed again.

        Args:    messages, root: as for `Processor`: who writes messages may read any file unless `root` is given.
        Example: "".join(assistant.stream([{"role": "user", "content": "Hello"}]))
        Raises:  DataError, at once, when the messages or a file are unusable, or do not fit; as the answer comes, when
                 a file cannot be decoded.
        """
        return _pieces(self.engine.submit(messages, Sampling(max_new_tokens=self.max_new_tokens), root=root))


def _pieces(request: Request) -> Iterator[str]:
    try:
        for event in request.events():
            if event.text:
                yield event.text
    finally:
        request.cancel()  # of a reader that went away
    if request.error is not None:
        raise request.error


def _with_room(processor: Processor, max_new_tokens: int | None) -> tuple[Processor, int]:
    """A processor that leaves room for an answer, and how long that may be."""
    config = processor.config
    context = config.sampling.context_tokens
    num_new = min(DEFAULT_NEW_TOKENS, context // 4) if max_new_tokens is None else max_new_tokens
    if not 1 <= num_new < context:
        raise ValueError(f"max_new_tokens is {num_new}; the model's context is {context}. Needs 1 to {context - 1}.")
    sampling = replace(config.sampling, context_tokens=context - num_new)
    return Processor(processor.tokenizer, replace(config, sampling=sampling)), num_new
