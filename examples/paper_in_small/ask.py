"""What a trained model answers: for each question of a held-out set, whether the likeliest of four digits is right.

    right = ask({"stage2": load(run)}, samples, limits)["stage2"]      # {"signs": "1101...", "told": "0111..."}

All questions about a film stand in one conversation, as in training, each after the true answers to those before it;
these say nothing about it. So one pass over the film answers them all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from eagle_model.batch import PackedBatch
from eagle_model.data.packing import pack_row
from eagle_model.data.processor import Processor
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.data.sample import Sample
from eagle_model.data.sampling import SamplingConfig
from eagle_model.model.eagle import Eagle
from examples.paper_in_small.sets import DIGITS, LONG_PAGES

ROW_TOKENS = 4096  # about so many at a time


class Answerer(NamedTuple):
    eagle: Eagle
    processor: Processor


def load(run: Path) -> Answerer:
    return Answerer(Eagle.from_pretrained(run, dtype=torch.float32).eval(), Processor.from_pretrained(run))


def read_set(path: Path) -> list[Sample]:
    (source,) = read_recipe(path)
    return list(read_samples(source))


def groups_of(sample: Sample, plan_of_pages: Mapping[str, str]) -> list[str]:
    """Of each question, what it is counted with: the told digit, a film's signs, or the shape of the page."""
    asked = [turn.text for turn in sample.turns if turn.role == "user"]
    return ["told" if "told?" in text else plan_of_pages.get(sample.id, "signs") for text in asked]


def page_shapes(samples: Sequence[Sample]) -> dict[str, str]:
    from PIL import Image

    shapes = {}
    for sample in samples:
        for image in sample.images:
            with Image.open(image.path) as picture:
                shapes[sample.id] = "long" if picture.size in LONG_PAGES else "square"
    return shapes


def rows_of(processor: Processor, samples: Sequence[Sample], limits: SamplingConfig) -> Iterator[PackedBatch]:
    """Packed rows of all samples, in their order."""
    tokens, patches, num_tokens = [], [], 0
    for sample in samples:
        loaded = processor.load_sample(processor.plan_sample(sample, limits=limits))
        length = loaded.tokens.token_ids_T.numel()
        if tokens and num_tokens + length > ROW_TOKENS:
            yield pack_row(tokens, torch.cat(patches).float())
            tokens, patches, num_tokens = [], [], 0
        tokens.append(loaded.tokens)
        patches.append(loaded.patches_IPK)
        num_tokens += length
    if tokens:
        yield pack_row(tokens, torch.cat(patches).float())


@torch.inference_mode()
def right_answers(eagle: Eagle, batch: PackedBatch, option_ids: Sequence[int]) -> list[bool]:
    """Of each answer in the row: whether its digit is the likeliest of the options."""
    options = torch.tensor(option_ids)
    is_digit = torch.isin(batch.labels_T, options)
    logits_NO = F.linear(eagle.hidden(batch)[is_digit], eagle.lm_head.weight[options])
    return (options[logits_NO.argmax(dim=1)] == batch.labels_T[is_digit]).tolist()


def ask(
    answerers: Mapping[str, Answerer], samples: Sequence[Sample], limits: SamplingConfig
) -> dict[str, dict[str, str]]:
    """Of each model and group of questions a "1" for a right answer and a "0" for a wrong one, film by film.

    The models share a tokenizer and sizes of tiles: films are decoded once for all of them.
    """
    processor = next(iter(answerers.values())).processor
    encoded = [processor.tokenizer.encode(f" {digit}").ids for digit in DIGITS]
    if any(len(ids) != 1 for ids in encoded):
        raise ValueError(f"ask: the digits {DIGITS} take {[len(ids) for ids in encoded]} tokens; needs one each.")
    found: dict[str, list[bool]] = defaultdict(list)
    for batch in rows_of(processor, samples, limits):
        for name, (eagle, _) in answerers.items():
            found[name] += right_answers(eagle, batch, [ids[0] for ids in encoded])
    shapes = page_shapes(samples)
    groups = [group for sample in samples for group in groups_of(sample, shapes)]
    answers: dict[str, dict[str, str]] = {}
    for name, right in found.items():
        bits: dict[str, str] = defaultdict(str)
        for group, is_right in zip(groups, right, strict=True):
            bits[group] += "01"[is_right]
        answers[name] = dict(bits)
    return answers
