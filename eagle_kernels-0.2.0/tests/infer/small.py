"""A small model with an engine, and what it should say: the model alone, one prompt at a time, without a cache."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

from eagle_model.batch import PackedBatch
from eagle_model.data.packing import pack_row
from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import train_tokenizer
from eagle_model.infer.prompts import Prompt, Prompts
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle
from tests.model.samples import small_model

CONTEXT = 512
SAID = "Where is it? What happens then? A cat, a red dog and two birds are on the left."


@lru_cache
def processor(context_tokens: int = CONTEXT) -> Processor:
    sampling = SamplingConfig(context_tokens=context_tokens, min_frames=2)
    return Processor(train_tokenizer([SAID], 300), ProcessorConfig(tile_px=28, patch_px=7, sampling=sampling))


@lru_cache
def model(seed: int = 0) -> Eagle:
    ours = processor()
    vocab_size = ours.tokenizer.get_vocab_size()
    return small_model(tiny(vocab_size=vocab_size, image_token_id=ours.encoder.context_id), seed=seed).eval()


def noise(seed: int, width_px: int = 60, height_px: int = 40) -> Image.Image:
    pixels = torch.randint(0, 256, (height_px, width_px, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy())


def ask(text: str, *images: Image.Image) -> list[dict]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def some_messages(rng: random.Random) -> list[dict]:
    """A conversation of one turn or three: texts of many lengths, some that begin alike, none or some of few images."""
    words = SAID.split()
    first = " ".join(words[: rng.randrange(1, len(words))]) + rng.choice(["", " " + rng.choice(words)])
    images = [noise(rng.randrange(4)) for _ in range(rng.choice([0, 0, 1, 2]))]
    messages = ask(first, *images)
    if rng.random() < 0.3:
        messages += [{"role": "assistant", "content": "A cat."}, *ask(rng.choice(words))]
    return messages


def batch_of(prompt: Prompt) -> PackedBatch:
    tokens = prompt.processor.tokenize(prompt.plan)
    patches_IPK = prompt.load(0, len(prompt.tile_digests))
    return pack_row([tokens], patches_IPK).to("cpu", dtype=torch.float32)


def prompt_of(messages: Sequence[dict], num_new: int, ours: Processor | None = None) -> Prompt:
    return Prompts(ours or processor()).make(messages, num_new=num_new)


@torch.no_grad()
def logits_after(model: Eagle, prompt: Prompt, token_ids: Sequence[int]) -> Tensor:
    """Of the token that follows the prompt and these, computed at once."""
    batch = batch_of(prompt)
    num = batch.num_tokens + len(token_ids)
    whole = PackedBatch(
        token_ids_T=torch.cat([batch.token_ids_T, torch.tensor(token_ids, dtype=torch.int64)]),
        labels_T=torch.full((num,), -100),
        positions_T=torch.arange(num, dtype=torch.int32),
        cu_seqlens=torch.tensor([0, num], dtype=torch.int32),
        patches_IPK=batch.patches_IPK,
        visual_rows_N=batch.visual_rows_N,
        sample_ids=("whole",),
    )
    return model.lm_head(model.hidden(whole)[-1:])[0]


def alone(model: Eagle, prompt: Prompt, num_new: int) -> list[int]:
    """Greedy, by the model's own `generate`."""
    stops = prompt.processor.encoder.stop_token_ids
    return model.generate(batch_of(prompt), max_new_tokens=num_new, stop_token_ids=stops)[0]


def check_same(model: Eagle, prompt: Prompt, got: Sequence[int], want: Sequence[int]) -> None:
    """The same tokens, or from where they part, two that are almost equally likely: then it says so."""
    if list(got) == list(want):
        return
    at = next(i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b)
    best = logits_after(model, prompt, want[:at]).topk(2)
    margin = float(best.values[0] - best.values[1])
    assert margin < 1e-4, f"token {at}: {got[at]} and {want[at]}, whose margin is {margin}"
    assert {got[at], want[at]} == set(best.indices.tolist())
    print(f"token {at}: {got[at]} in place of {want[at]}, margin {margin:.1e}")
