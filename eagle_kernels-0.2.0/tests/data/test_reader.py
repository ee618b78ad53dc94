"""What is read of a row: tokens and pixels in order, without gaps where a sample fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch

from eagle_model.data.index import plan_recipe
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.processor import Processor
from eagle_model.data.reader import ReadOptions, Wanted, read_part
from tests.data.conftest import chat_row

Recipe = Callable[..., Path]
ROWS = [chat_row(image="wide.png"), chat_row(image="cut.png"), chat_row(video="clip.mp4"), chat_row()]


def wanted(recipe: Path, processor: Processor) -> list[Wanted]:
    with Prefetch(2) as prefetch:
        plans = [plan_recipe(recipe, processor, prefetch).plan(i) for i in range(len(ROWS))]
    return [Wanted(k, plan, (0, plan.num_tiles)) for k, plan in enumerate(plans)]


def test_what_can_be_read_stands_without_gaps_and_the_rest_says_why(recipe: Recipe, processor: Processor) -> None:
    asked, begun = wanted(recipe(ROWS), processor), list[int]()
    part = read_part(processor, asked, ReadOptions(), stop=threading.Event(), begin=begun.append)
    assert begun == [0, 1, 2, 3]
    assert list(part.failed) == [1] and "cut.png cannot be decoded" in str(part.failed[1])
    assert [one.place for one in part.samples] == [0, 2, 3]
    for place, tokens, tiles in part.samples:
        own = processor.load_sample(asked[place].plan)
        assert torch.equal(own.tokens.token_ids_T, tokens.token_ids_T)
        assert torch.equal(own.patches_IPK, part.patches_IPK[slice(*tiles)])
    assert len(part.patches_IPK) == part.samples[-1].tiles[1]


def test_nothing_is_read_after_a_failure_where_it_ends_the_row(recipe: Recipe, processor: Processor) -> None:
    asked, begun = wanted(recipe(ROWS), processor), list[int]()
    part = read_part(
        processor, asked, ReadOptions(), stop=threading.Event(), begin=begun.append, first_failure_ends=True
    )
    assert begun == [0, 1] and list(part.failed) == [1]


def test_a_seed_shows_images_as_jpegs(recipe: Recipe, processor: Processor) -> None:
    noise = wanted(recipe([chat_row(image="noise.png"), *ROWS[1:]]), processor)[:1]

    def pixels(seed: int | None) -> torch.Tensor:
        asked = [one._replace(jpeg_seed=seed) for one in noise]
        return read_part(processor, asked, ReadOptions(), stop=threading.Event()).patches_IPK

    assert torch.equal(pixels(1), pixels(1))
    assert not torch.equal(pixels(1), pixels(None)) and not torch.equal(pixels(1), pixels(2))
