"""The loader on several ranks: together they see the rows of one process, and agree on what is bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Literal

import pytest
import torch
from tokenizers import Tokenizer

from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.data import processor as processor_module
from eagle_model.data.index import plan_recipe
from eagle_model.data.loader import IDLE_TOKENS, DataConfig, Loader, StepRow
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.processor import Processor
from eagle_model.data.sample import DataError, Sample
from eagle_model.data.share import ALONE, Share
from tests.data.conftest import chat_row, tiny_config
from tests.data.together import together

Recipe = Callable[..., Path]
LAYOUTS = [(1, 3), (2, 2)]  # data ranks, context ranks
MEDIA = [{}, {"image": "wide.png"}, {"video": "clip.mp4"}, {"image": "square.png", "video": "long.mp4"}]
ROWS = [chat_row(f"Question {i}?", f"Answer {i}.", id=f"s{i}", **MEDIA[i % 4]) for i in range(22)]
BAD = [  # its header can be read: found when it is loaded
    chat_row("word " * 40, image="cut.png", id="cut image"),
    chat_row(image=["cut.png", "wide.png"], video="clip.mp4", id="cut and whole"),
    chat_row(image="none.png", id="missing"),
]
NUMBERS = ("token_ids_T", "labels_T", "positions_T", "cu_seqlens", "visual_rows_N")


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, tiny_config(context_tokens=400, max_frames=8))


Steps = tuple[list[list[StepRow]], list[dict]]


def steps_of(
    path: Path,
    processor: Processor,
    share: Share,
    *,
    num_steps: int,
    rows: int = 4,
    state: dict | None = None,
    on_bad_sample: Literal["skip", "substitute"] = "skip",
) -> Steps:
    """The rows of some steps, and the state after each."""
    config = DataConfig(recipe=str(path), on_bad_sample=on_bad_sample)
    with Loader(config, processor, share=share) as loader:
        if state is not None:
            loader.load_state_dict(state)
        found: Steps = ([], [])
        for _ in range(num_steps):
            found[0].append(list(loader.step(rows)))
            found[1].append(loader.state_dict())
        return found


def assert_one_row(shares: list[PackedBatch], whole: PackedBatch) -> None:
    """The context ranks' parts of a row are the row of one process."""
    for part in shares:
        assert part.sample_ids == whole.sample_ids and part.datasets == whole.datasets
        for name in NUMBERS:
            assert torch.equal(getattr(part, name), getattr(whole, name)), name
    assert torch.equal(torch.cat([part.patches_IPK for part in shares]), whole.patches_IPK)
    if len(shares) > 1:
        num_tiles, ends = len(whole.patches_IPK), [0]
        for part in shares:
            assert part.tiles is not None and part.tiles[0] == ends[-1]
            assert part.tiles[1] - part.tiles[0] == len(part.patches_IPK)
            ends.append(part.tiles[1])
        assert ends[-1] == num_tiles
        sizes = [len(part.patches_IPK) for part in shares]
        assert max(sizes) - min(sizes) <= 1


def assert_same_steps(many: list[Steps], one: Steps, num_data: int, num_context: int) -> None:
    for k, whole in enumerate(one[0]):
        rows = {row.number: row.batch for row in whole}
        seen: set[int] = set()
        for d in range(num_data):
            mine = [steps[k] for steps, _ in many[d * num_context : (d + 1) * num_context]]
            for parts in zip(*mine, strict=True):
                number = parts[0].number
                assert number % num_data == d and {part.number for part in parts} == {number}
                if number in rows:
                    assert_one_row([part.batch for part in parts], rows[number])
                    seen.add(number)
                else:
                    assert {part.batch.sample_ids for part in parts} == {()}
        assert seen == set(rows)
        assert {len(steps[k]) for steps, _ in many} == {len(many[0][0][k])}  # all compute as often
    for _, states in many:
        assert states == one[1]


@pytest.mark.parametrize(("num_data", "num_context"), LAYOUTS)
def test_ranks_see_together_what_one_process_sees(
    recipe: Recipe, processor: Processor, num_data: int, num_context: int
) -> None:
    """Through two epochs, with samples that fail while planning and while loading, and from a state on."""
    path = recipe([*ROWS[:9], *BAD, *ROWS[9:]], repeat_time=1.5)
    one = steps_of(path, processor, ALONE, num_steps=6)
    assert one[1][-1]["epoch"] >= 1
    assert {name for name, _ in one[1][-1]["skipped"]} == {"cut image", "cut and whole", "missing"}
    many = together(num_data, num_context, lambda share: steps_of(path, processor, share, num_steps=6))
    assert_same_steps(many, one, num_data, num_context)
    state = json.loads(json.dumps(one[1][2]))
    rest = (one[0][3:], one[1][3:])
    on = together(num_data, num_context, lambda share: steps_of(path, processor, share, num_steps=3, state=state))
    assert_same_steps(on, rest, num_data, num_context)


@pytest.mark.parametrize(("num_data", "num_context"), [(3, 1), (3, 2)])
def test_a_step_may_have_a_last_round_with_fewer_rows_than_ranks(
    recipe: Recipe, processor: Processor, num_data: int, num_context: int
) -> None:
    path = recipe(ROWS)
    one = steps_of(path, processor, ALONE, num_steps=2)
    many = together(num_data, num_context, lambda share: steps_of(path, processor, share, num_steps=2))
    assert_same_steps(many, one, num_data, num_context)
    idle = many[-1][0][0][1].batch
    assert (idle.num_tokens, idle.sample_ids, idle.num_labelled) == (IDLE_TOKENS, (), 0)
    assert bool((idle.labels_T == IGNORE_INDEX).all())


def test_a_row_of_nothing_is_left_out_of_its_step_and_a_step_of_nothing_is_passed_over(
    recipe: Recipe, processor: Processor
) -> None:
    """Samples that fill a row each: whichever rows of a step are left, they keep their numbers."""
    long = [chat_row("word " * 55, **({"image": "cut.png"} if i % 3 else {}), id=f"s{i}") for i in range(12)]
    path = recipe(long)
    config = DataConfig(recipe=str(path), on_bad_sample="skip")
    with Loader(config, processor) as loader:
        assert loader.num_rows == 12
        orders = [[long[i]["id"] for row in loader._rows.schedule.rows(epoch) for i in row] for epoch in range(2)]
    order = [name for names in orders for name in names]
    fine = {f"s{i}" for i in range(0, 12, 3)}
    steps = [order[first : first + 2] for first in range(0, 24, 2)]
    want = [[(k, name) for k, name in enumerate(step) if name in fine] for step in steps]
    assert [] in want and any(len(rows) == 1 for rows in want)
    want = [rows for rows in want if rows]
    for num_data in (1, 2):
        found = together(num_data, 1, lambda share: steps_of(path, processor, share, num_steps=len(want), rows=2)[0])
        for k, rows in enumerate(want):
            given = [(row.number, *row.batch.sample_ids) for steps in found for row in steps[k]]
            assert sorted(row for row in given if len(row) == 2) == rows


@pytest.mark.parametrize(("num_data", "num_context"), LAYOUTS)
def test_a_bad_sample_is_raised_on_every_rank(
    recipe: Recipe, processor: Processor, num_data: int, num_context: int
) -> None:
    path = recipe([*ROWS[:6], chat_row(image="cut.png", id="cut image")])

    def work(share: Share) -> str:
        with Loader(DataConfig(recipe=str(path)), processor, share=share) as loader:
            for _ in range(9):
                try:
                    list(loader.step(2))
                except DataError as error:
                    return str(error)
        return ""

    (said,) = set(together(num_data, num_context, work))
    assert said.startswith("sample cut image: image ") and "cut.png cannot be decoded" in said


def test_all_ranks_say_the_same_of_a_sample_of_which_each_finds_another_part_bad(
    recipe: Recipe, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_sample(self: Processor, plan: object, *, tiles: tuple[int, int], **options: object) -> None:
        raise DataError(f"tiles {tiles} cannot be decoded")

    monkeypatch.setattr(Processor, "load_sample", load_sample)
    path = recipe([chat_row(image="wide.png", id="s")])

    def work(share: Share) -> str:
        with Loader(DataConfig(recipe=str(path)), processor, share=share) as loader:
            with pytest.raises(DataError) as caught:
                list(loader.step(1))
            return str(caught.value)

    assert together(1, 2, work) == ["tiles (0, 2) cannot be decoded"] * 2


def test_a_video_is_decoded_by_whom_it_is_encoded_by(
    recipe: Recipe, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each frame once over all ranks; an image on the boundary by both its ranks."""
    asked: list[tuple[float, ...]] = []
    images: list[str] = []
    decode, load = processor_module.decode_tiles, processor_module.load_image

    def counted(video: object, times: tuple[float, ...], *rest: object, **options: object) -> object:
        asked.append(times)
        return decode(video, times, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(processor_module, "decode_tiles", counted)
    monkeypatch.setattr(
        processor_module, "load_image", lambda source, **options: images.append(source.name) or load(source, **options)
    )
    path = recipe([chat_row(image="wide.png", video="long.mp4", id="s")])  # 4 tiles and 8 frames
    config = DataConfig(recipe=str(path), num_workers=1)  # nothing is loaded ahead

    def work(share: Share) -> None:
        with Loader(config, processor, share=share) as loader:
            next(loader)

    together(1, 4, work)
    assert images == ["wide.png"] * 2
    assert sorted(len(times) for times in asked) == [2, 3, 3]
    assert len({time for times in asked for time in times}) == 8


def test_planning_is_shared_out_and_told(recipe: Recipe, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*ROWS, *BAD, chat_row("<image>", id="no image"), chat_row(image="none.png", id="missing too")]
    path = recipe([*rows[::2], *rows[1::2]], repeat_time=1.5, max_dynamic_tiles=2)
    planned: list[str] = []
    plan_sample = Processor.plan_sample

    def counted(self: Processor, sample: Sample, **options: object) -> object:
        planned.append(sample.id)
        return plan_sample(self, sample, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Processor, "plan_sample", counted)
    monkeypatch.setattr("eagle_model.data.index._PLANNED_AT_ONCE", 2)  # in several parts

    def work(share: Share) -> object:
        with Prefetch(2) as prefetch:
            return plan_recipe(path, processor, prefetch, skip_bad=True, share=share)

    alone = work(ALONE)
    num_planned = len(planned)
    for index in together(2, 2, work):
        plans = [[own.plan(i) for i in range(own.num_samples)] for own in (index, alone)]
        assert plans[0] == plans[1] and index.skipped == alone.skipped and index.contents() == alone.contents()
        assert index.fingerprint(processor.config, 0) == alone.fingerprint(processor.config, 0)
    assert len(planned) == 2 * num_planned  # once more, over all ranks

    bad = recipe([*ROWS[:5], rows[-1]])

    def fails(share: Share) -> str:
        with Prefetch(2) as prefetch, pytest.raises(DataError, match=r"none\.png") as caught:
            plan_recipe(bad, processor, prefetch, share=share)
        return str(caught.value)

    assert len(set(together(3, 1, fails))) == 1


def test_next_is_for_one_data_rank(recipe: Recipe, processor: Processor) -> None:
    path = recipe(ROWS)

    def work(share: Share) -> list[tuple[str, ...]]:
        with Loader(DataConfig(recipe=str(path)), processor, share=share) as loader:
            return [batch.sample_ids for batch in islice(loader, 3)]

    assert together(1, 2, work) == [work(ALONE)] * 2
    with pytest.raises(ValueError, match=r"next is for one data rank; there are 2\. Use step"):
        together(2, 1, work)
