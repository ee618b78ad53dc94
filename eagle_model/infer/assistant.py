"""Assistant: a model's folder and a conversation in, an answer out, piece by piece. What `eagle chat` does.

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
from tokenizers.decoders import DecodeStream

from eagle_model.batch import PackedBatch
from eagle_model.checkpoints import read_newest
from eagle_model.data.processor import CONFIG_FILE, Processor
from eagle_model.model.eagle import Eagle
from eagle_model.model.lora import load_adapter

DEFAULT_NEW_TOKENS = 512  # of an answer: about a page of text


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

        Args:    adapter: a folder of adapters on the model (model/lora.py), or a run's that trained some; where a
                     processor lies beside them, it is taken instead of the model's.
                 max_new_tokens: the longest answer; None is 512, or a quarter of a small context.
                 device: None is the GPU where there is one, else the CPU.  dtype: None is bf16 on a GPU, fp32 on a CPU.
                 say: is told of damaged checkpoints that were passed over for an older one.
        Raises:  FileNotFoundError or ValueError when there is no model that can be read, an adapter does not fit it, or
                 there is no room for a question.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        self._device = device

        def read(checkpoint: Path) -> tuple[Processor, Eagle]:
            processor = Processor.from_pretrained(checkpoint)
            processor, self.max_new_tokens = _with_room(processor, max_new_tokens)  # before the model is loaded
            return processor, Eagle.from_pretrained(checkpoint, dtype=self._dtype, device=device)

        def adapt(checkpoint: Path) -> Processor:
            if not (checkpoint / CONFIG_FILE).is_file():
                load_adapter(self.model, checkpoint)
                return self.processor
            processor, self.max_new_tokens = _with_room(Processor.from_pretrained(checkpoint), max_new_tokens)
            load_adapter(self.model, checkpoint)
            return processor

        self.processor, self.model = read_newest(Path(folder), read, say)
        if adapter is not None:
            self.processor = read_newest(Path(adapter), adapt, say)

    def stream(self, messages: Sequence[dict], *, root: str | Path | None = None) -> Iterator[str]:
        """The answer to a conversation, in pieces of text as they come; it ends where the assistant's turn does.

        Markup, as in `<ref>cat</ref><box>[[1,2,3,4]]</box>`, is part of the text; control tokens are not. The pieces
        joined are the `content` of the assistant's message when the conversation goes on.

        Args:    messages, root: as for `Processor`: who writes messages may read any file unless `root` is given.
        Example: "".join(assistant.stream([{"role": "user", "content": "Hello"}]))
        Raises:  DataError, at once, when the messages or a file are unusable, or do not fit.
        """
        batch = self.processor(messages, root=root).to(self._device, dtype=self._dtype)
        return self._pieces(batch)

    def _pieces(self, batch: PackedBatch) -> Iterator[str]:
        encoder, tokenizer = self.processor.encoder, self.processor.tokenizer
        decoder = DecodeStream(skip_special_tokens=False)
        ids: list[int] = []
        num_chars = 0
        steps = self.model.stream(batch, max_new_tokens=self.max_new_tokens, stop_token_ids=encoder.stop_token_ids)
        for ((_, token_id),) in steps:
            for spoken_id in encoder.spoken_ids([token_id]):
                ids.append(spoken_id)
                if piece := decoder.step(tokenizer, spoken_id):  # None in the middle of a character
                    num_chars += len(piece)
                    yield piece
        if rest := tokenizer.decode(ids, skip_special_tokens=False)[num_chars:]:  # a character that was cut short
            yield rest


def _with_room(processor: Processor, max_new_tokens: int | None) -> tuple[Processor, int]:
    """A processor that leaves room for an answer, and how long that may be."""
    config = processor.config
    context = config.sampling.context_tokens
    num_new = min(DEFAULT_NEW_TOKENS, context // 4) if max_new_tokens is None else max_new_tokens
    if not 1 <= num_new < context:
        raise ValueError(f"max_new_tokens is {num_new}; the model's context is {context}. Needs 1 to {context - 1}.")
    sampling = replace(config.sampling, context_tokens=context - num_new)
    return Processor(processor.tokenizer, replace(config, sampling=sampling)), num_new
