"""The planned samples of a recipe: in order, repeated as asked, bad ones named; the fingerprint tells data apart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import pytest

from eagle_model.data import clips
from eagle_model.data import processor as processor_module
from eagle_model.data.index import Index, plan_recipe
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.processor import Processor, SamplePlan
from eagle_model.data.sample import DataError
from tests.data.conftest import chat_row

Recipe = Callable[..., Path]
ROWS = [chat_row(f"Question {i}?", id=f"s{i}", **({"image": "wide.png"} if i % 2 else {})) for i in range(8)]


def index_of(recipe: Path, processor: Processor, **options: bool) -> Index:
    with Prefetch(2) as prefetch:
        return plan_recipe(recipe, processor, prefetch, **options)  # type: ignore[arg-type]


def plans_of(index: Index) -> list[SamplePlan]:
    return [index.plan(i) for i in range(index.num_samples)]


def test_samples_keep_their_order_and_stand_once(recipe: Recipe, processor: Processor) -> None:
    plans = plans_of(index_of(recipe(ROWS, repeat_time=1.5), processor))
    assert [plan.sample.id for plan in plans] == [f"s{i}" for i in range(8)]
    assert [plan.num_tiles for plan in plans[:3]] == [0, 4, 0]


def test_arrays_say_of_each_sample_once_what_its_plan_says(recipe: Recipe, processor: Processor) -> None:
    index = index_of(recipe([*ROWS, chat_row(video="clip.mp4")], repeat_time=1.5), processor)
    plans = plans_of(index)
    assert len(plans) == 9
    assert index.tokens.tolist() == [plan.num_tokens for plan in plans]
    assert index.tiles.tolist() == [plan.num_tiles for plan in plans]
    assert (index.tiles > 0).tolist() == (index.decode_seconds > 0).tolist()
    assert [index.sources[k].name for k in index.source_of] == ["digits"] * 9


def test_a_recipe_s_own_tile_limit_holds(recipe: Recipe, processor: Processor) -> None:
    plans = plans_of(index_of(recipe(ROWS, max_dynamic_tiles=1), processor))
    assert {plan.num_tiles for plan in plans} == {0, 1}


def test_bad_rows_and_samples_raise_or_are_listed_each(recipe: Recipe, processor: Processor) -> None:
    path = recipe([ROWS[0], chat_row("<image>"), *[chat_row(image="none.png", id="gone")] * 2, ROWS[1]])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the text has 1 <image>"):
        index_of(path, processor)
    index = index_of(path, processor, skip_bad=True)
    assert [plan.sample.id for plan in plans_of(index)] == ["s0", "s1"]
    assert [name for name, _ in index.skipped] == [f"{path.parent}/rows.jsonl:2", "gone", "gone"]
    with pytest.raises(DataError, match=r"recipe\.json: no sample to train on; 1 were skipped, the first: .*none\.png"):
        index_of(recipe([chat_row(image="none.png")]), processor, skip_bad=True)
    with pytest.raises(DataError, match=r"recipe\.json: no sample to train on\."):
        index_of(recipe([]), processor)


def test_planning_that_fails_waits_for_no_video(recipe: Recipe, processor: Processor, monkeypatch) -> None:
    begun, ended = threading.Event(), []

    def slow(path: Path, *, stop: threading.Event, **_: object) -> None:
        begun.set()
        ended.append(stop.wait(60))
        raise CancelledError

    def bad(path: Path) -> None:
        assert begun.wait(60)
        raise DataError("bad")

    monkeypatch.setattr(clips.video_files, "open", slow)
    monkeypatch.setattr(processor_module, "image_size", bad)
    with pytest.raises(DataError, match="bad"):
        index_of(recipe([chat_row(image="wide.png"), chat_row(video="clip.mp4")]), processor)
    assert ended == [True]


def test_fingerprints_tell_data_configs_and_seeds_apart(recipe: Recipe, processor: Processor) -> None:
    def fingerprint(rows: list[dict], seed: int = 0, **changes: object) -> str:
        config = replace(processor.config, **changes)  # type: ignore[arg-type]
        return index_of(recipe(rows), Processor(processor.tokenizer, config)).fingerprint(config, seed)

    same = fingerprint(ROWS)
    renamed = [row | {"id": f"other {i}"} for i, row in enumerate(ROWS)]
    assert fingerprint(renamed) == same
    others = [
        fingerprint(ROWS[::-1]),
        fingerprint(ROWS[:-1]),
        fingerprint([*ROWS[:-1], chat_row("Question 9?", image="wide.png")]),
        fingerprint([chat_row("Question 0?", "An answer."), *ROWS[1:]]),
        fingerprint([chat_row("<image> Question 1?", image="wide.png"), ROWS[1]]),
        fingerprint([chat_row("Question 1? <image>", image="wide.png"), ROWS[1]]),
        fingerprint([chat_row(r"\<image> Question 1? <image>", image="wide.png"), ROWS[1]]),
        fingerprint(ROWS, seed=1),
        fingerprint(ROWS, mean=(0.4, 0.5, 0.5)),
        fingerprint(ROWS, system="Answer in rhymes."),
        fingerprint(ROWS, template="demo-1"),
        fingerprint(ROWS, auto_thinking_prompt=True),
        fingerprint([ROWS[0] | {"tools": [{"name": "f"}]}, *ROWS[1:]]),
    ]
    assert len({same, *others}) == len(others) + 1
