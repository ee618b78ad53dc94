"""Streams: every sample once, gone on with at any row, endless, shares as the weights say; bad ones are listed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from eagle_model.data.loader import DataConfig, Loader
from eagle_model.data.processor import Processor
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DataError, Sample
from eagle_model.data.schedule import Place
from eagle_model.data.stream import ROUND_SAMPLES, Incoming, StreamedRows, recipe_stream
from tests.data.conftest import chat_row, tiny_config
from tests.data.test_loader import assert_same

Recipe = Callable[..., Path]


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, tiny_config(context_tokens=400, max_frames=8))


def sample(i: int) -> Sample:
    return parse_sample(chat_row("word " * (i % 40), f"Answer {i}."), root=Path(), where=f"stream:{i}")


def endless(start: int) -> Iterator[Incoming]:
    """Every tenth cannot be read."""
    for i in count(start):
        yield (f"stream:{i}", "no sample") if i % 10 == 7 else sample(i), None


def rows_of(processor: Processor, stream: Callable[[int], Iterator[Incoming]] = endless, **options) -> StreamedRows:
    def plan(one: Sample, source: object):
        return processor.plan_sample(one)

    options = {"seed": 0, "block_samples": 40, "skip_bad": True} | options
    return StreamedRows(stream, plan, processor.config, **options)


def test_blocks_of_an_endless_stream_show_each_sample_once_and_go_on_from_any_row(processor: Processor) -> None:
    rows = rows_of(processor, rows_per_step=4)
    found, seen = [], Counter[int]()
    for row in rows.rows_from(Place()):
        if row.place.block == 3:
            break
        found.append(row)
        seen.update(row.samples)
        assert sum(rows.plan(i).num_tokens for i in row.samples) <= 400
        assert {i // 40 for i in row.samples} == {row.place.block}
        assert rows.num_tiles(row.samples) == 0
    assert seen == Counter({i: 1 for i in range(120) if i % 10 != 7})
    assert [entry for row in found for entry in row.skipped] == [
        (f"stream:{i}", "no sample") for i in range(7, 120, 10)
    ]
    rows.close()
    for k in (0, 1, len(found) // 2, len(found) - 2):
        again = rows_of(processor, rows_per_step=4)
        assert list(islice(again.rows_from(found[k].place), len(found) - k)) == found[k:]
        assert list(islice(again.rows_from(found[k].after), len(found) - k - 1)) == found[k + 1 :]
        again.close()


def test_a_stream_that_ends_begins_again_in_another_order(processor: Processor) -> None:
    rows = rows_of(processor, lambda start: islice(endless(start), 100 - start))
    epochs: dict[int, list[list[int]]] = {0: [], 1: []}
    for row in rows.rows_from(Place()):
        if row.place.epoch == 2:
            break
        epochs[row.place.epoch].append(row.samples)
    rows.close()
    whole = sorted(i for i in range(100) if i % 10 != 7)
    assert [sorted(i for row in epochs[e] for i in row) for e in (0, 1)] == [whole, whole]
    assert epochs[0] != epochs[1]
    with pytest.raises(ValueError, match=r"nobody knows how long a stream is\. Set max_steps in place of num_epochs"):
        rows.rows_left(Place(), 1)


def test_what_cannot_be_streamed(processor: Processor) -> None:
    with pytest.raises(DataError, match="no sample"):
        next(rows_of(processor, skip_bad=False).rows_from(Place()))
    bad = rows_of(processor, lambda start: iter([("stream:0", "no sample"), None] for _ in range(3 - start)))
    with pytest.raises(
        DataError, match="the stream has no sample to train on from number 0 on; the first that was skipped: no sample"
    ):
        next(bad.rows_from(Place()))
    with pytest.raises(ValueError, match=r"temperature is 2\.0 with streaming=true; needs 1"):
        DataConfig(recipe="", streaming=True, temperature=2.0)


def test_a_recipe_is_streamed_in_shares_and_from_anywhere(tmp_path: Path) -> None:
    fields = {}
    for name, num, weight in (("many", 30, 1), ("few", 7, 3)):
        rows = [chat_row(id=f"{name}{i}") for i in range(num)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{no json\n")
        fields[name] = {"root": ".", "annotation": f"{name}.jsonl", "weight": weight}
    (tmp_path / "recipe.json").write_text(json.dumps(fields))
    stream = recipe_stream(read_recipe(tmp_path / "recipe.json"), seed=0)
    first = list(islice(stream(0), 2 * ROUND_SAMPLES))
    assert Counter(source.name for _, source in first if source) == {"many": 500, "few": 1500}
    few = [one.id if isinstance(one, Sample) else one[0] for one, source in first if source and source.name == "few"]
    assert few[:16] == [*(f"few{i}" for i in range(7)), f"{tmp_path / 'few.jsonl'}:8"] * 2
    for start in (1, 999, 1000, 1234):
        assert list(islice(stream(start), 50)) == first[start : start + 50]
    (tmp_path / "few.jsonl").write_text("")
    with pytest.raises(DataError, match="source 'few' has no rows; a stream needs some"):
        list(islice(recipe_stream(read_recipe(tmp_path / "recipe.json"), seed=0)(0), 20))


def test_a_loader_of_a_stream_resumes_and_substitutes(recipe: Recipe, processor: Processor) -> None:
    rows = [chat_row("word " * i, id=f"s{i}", **({"image": "cut.png"} if i % 9 == 4 else {})) for i in range(30)]
    config = DataConfig(recipe=str(recipe(rows)), streaming=True, on_bad_sample="substitute")
    with Loader(config, processor) as loader:
        batches, states = [], []
        for batch in islice(loader, 12):
            batches.append(batch)
            states.append(json.loads(json.dumps(loader.state_dict())))
        assert any("In its place" in reason for _, reason in loader.skipped)
    with Loader(config, processor) as loader:
        loader.load_state_dict(states[5])
        for k, batch in enumerate(islice(loader, 6), start=6):
            assert_same(batch, batches[k])
            assert loader.state_dict() == states[k]
