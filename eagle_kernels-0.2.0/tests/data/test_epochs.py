"""The rows of an index: mixed as the recipe says, known by a fingerprint of all that decides them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest

from eagle_model.data.epochs import Epochs
from eagle_model.data.index import Index, open_index
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.processor import Processor
from eagle_model.data.sample import DataError
from eagle_model.data.schedule import Place
from tests.data.conftest import chat_row, write_image


@pytest.fixture
def indexed(tmp_path: Path, processor: Processor) -> Callable[..., Index]:
    """indexed(weight=..., ...): of 12 text samples and 4 images, the latter with these fields of a recipe."""

    def make(**fields: object) -> Index:
        write_image(tmp_path / "wide.png", 168, 56)
        sources = {"texts": [chat_row("word " * i, id=f"t{i}") for i in range(12)]}
        sources["pages"] = [chat_row("word " * i, image="wide.png", id=f"p{i}") for i in range(4)]
        for name, rows in sources.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = {name: {"root": ".", "annotation": f"{name}.jsonl"} for name in sources}
        recipe["pages"] |= fields  # type: ignore[arg-type]
        (tmp_path / "recipe.json").write_text(json.dumps(recipe))
        with Prefetch(2) as prefetch:
            return open_index(tmp_path / "recipe.json", processor, prefetch)

    return make


def epochs_of(index: Index, processor: Processor, **options: float) -> Epochs:
    return Epochs(index, processor.config, **{"seed": 0, "temperature": 1.0, "rows_per_step": 4} | options)  # type: ignore[arg-type]


def shown(epochs: Epochs) -> Counter[str]:
    rows = islice(epochs.rows_from(Place()), epochs.num_rows(0))
    return Counter(epochs.plan(i).sample.id for row in rows for i in row.samples)


def test_samples_come_as_often_as_their_source_says(indexed: Callable[..., Index], processor: Processor) -> None:
    assert set(shown(epochs_of(indexed(), processor)).values()) == {1}
    often = epochs_of(indexed(repeat_time=2), processor)
    assert often.num_samples == 20 and shown(often)["p3"] == 2
    heavy = shown(epochs_of(indexed(weight=3), processor))
    assert sum(heavy.values()) == 16 and sum(heavy[f"p{i}"] for i in range(4)) == 8
    even = shown(epochs_of(indexed(), processor, temperature=1e6))
    assert sum(even[f"p{i}"] for i in range(4)) == 8


def test_repeats_that_show_nothing_are_refused(indexed: Callable[..., Index], processor: Processor) -> None:
    index = indexed()
    sources = tuple(replace(source, repeat_time=Fraction("0.01")) for source in index.sources)
    with pytest.raises(DataError, match=r"none of the 16 samples.* repeat_time is: texts 0\.01, pages 0\.01\. Raise"):
        epochs_of(replace(index, sources=sources), processor)


def test_places_substitutes_and_rows_left(indexed: Callable[..., Index], processor: Processor) -> None:
    epochs = epochs_of(indexed(data_augment=True), processor)
    rows = list(islice(epochs.rows_from(Place()), epochs.num_rows(0)))
    assert epochs.rows_left(Place(), 2) == epochs.num_rows(0) + epochs.num_rows(1)
    assert epochs.rows_left(rows[0].after, 1) == len(rows) - 1
    assert epochs.rows_left(Place(epoch=2), 2) == 0
    by_id = {epochs.plan(i).sample.id: i for row in rows for i in row.samples}
    assert epochs.substitute(by_id["p3"], 0) == by_id["p2"]
    assert epochs.is_augmented(by_id["p3"]) and not epochs.is_augmented(by_id["t3"])
    assert epochs.num_tiles([by_id["p3"], by_id["t3"], by_id["p1"]]) == 8


def test_the_fingerprint_tells_apart_what_gives_other_rows(indexed: Callable[..., Index], processor: Processor) -> None:
    same = epochs_of(indexed(), processor).fingerprint
    assert epochs_of(indexed(), processor).fingerprint == same
    others = [
        epochs_of(indexed(weight=2), processor),
        epochs_of(indexed(data_augment=True), processor),
        epochs_of(indexed(repeat_time=2), processor),
        epochs_of(indexed(), processor, seed=1),
        epochs_of(indexed(), processor, temperature=2.0),
        epochs_of(indexed(), processor, rows_per_step=1),
    ]
    assert len({same, *(epochs.fingerprint for epochs in others)}) == 7
