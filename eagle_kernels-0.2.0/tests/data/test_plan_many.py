"""Many plans at once are those that are made one by one: random samples of every kind, tight and wide contexts."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from eagle_model.data.clips import Clip, document_clip
from eagle_model.data.frame_times import EvenTimes
from eagle_model.data.plan_many import Facts, plan_many
from eagle_model.data.processor import Processor, ProcessorConfig, SamplePlan
from eagle_model.data.sample import ImageRef, Sample, Turn, VideoRef
from eagle_model.data.sampling import DoesNotFit, SamplingConfig
from eagle_model.data.tokenizer import train_tokenizer
from tests.data.conftest import TEXTS

PROCESSOR = Processor(train_tokenizer(TEXTS, 400), ProcessorConfig(tile_px=56))


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    kind = draw(st.sampled_from(["even", "even", "uneven", "document"]))
    num = draw(st.integers(1, 400))
    if kind == "document":
        return document_clip(num)
    frames_a_key, frame_px = draw(st.sampled_from([1.0, 12.0, 250.0])), draw(st.sampled_from([3072, 2_073_600]))
    if kind == "even":
        step, tick = draw(st.sampled_from([(512, 1 / 15_360), (1001, 1 / 30_000), (1, 1 / 24), (125, 1e-3), (2, 1.0)]))
        times: EvenTimes | np.ndarray = EvenTimes(num, step, tick, draw(st.integers(0, 50)))
    else:
        times = np.cumsum(draw(st.lists(st.integers(1, 90), min_size=num, max_size=num))) * 1e-3
    seconds = float(times[-1] - times[0]) * num / (num - 1) if num > 1 else 0.04
    return Clip(times, seconds, None, num, frames_a_key, frame_px)


@st.composite
def samples(draw: st.DrawFn) -> tuple[Sample, list[tuple[int, int]], list[Clip]]:
    sizes = draw(st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), max_size=3))
    shown = draw(st.lists(clips(), max_size=draw(st.sampled_from([0, 1, 1, 2]))))
    parts: list = [ImageRef(Path("a.png"), k + 1, draw(st.sampled_from([None, None, 1, 5]))) for k in range(len(sizes))]
    parts += [VideoRef(Path("a.mp4"), number=k + 1) for k in range(len(shown))]
    text = "What moves? " * draw(st.integers(1, 30))
    sample = Sample("s", (Turn("user", (*parts, text)), Turn("assistant", ("A digit.",))))
    return sample, sizes, shown


def facts_of(drawn: list[tuple[Sample, list[tuple[int, int]], list[Clip]]]) -> Facts:
    count = PROCESSOR.frame_tokens
    limits = [image.max_tiles or 0 for sample, *_ in drawn for image in sample.images]
    bases = [count.base(sample, [c.duration_seconds is None for c in shown]) for sample, _, shown in drawn]
    return Facts(
        base_tokens=np.array(bases, np.int64),
        num_images=np.array([len(sizes) for _, sizes, _ in drawn], np.int64),
        image_sizes=np.array([size for _, sizes, _ in drawn for size in sizes], np.int64).reshape(-1, 2),
        image_limits=np.array(limits, np.int64),
        clips={i: shown for i, (_, _, shown) in enumerate(drawn) if shown},
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(samples(), min_size=1, max_size=6),
    st.builds(
        SamplingConfig,
        context_tokens=st.sampled_from([100, 300, 700, 1500, 6000, 100_000]),
        max_tiles=st.sampled_from([1, 3, 6, 12]),
        min_frames=st.integers(1, 8),
        max_frames=st.integers(8, 300),
        frames_per_second=st.sampled_from([0.5, 2.0, 30.0]),
        ads=st.sampled_from([True, True, False]),
        tiling=st.sampled_from(["iap", "iap", "closest_ratio"]),
        frames=st.sampled_from(["rate", "rate", "uniform"]),
    ),
)
def test_numbers_are_those_of_each_plan(drawn: list, limits: SamplingConfig) -> None:
    processor = Processor(PROCESSOR.tokenizer, ProcessorConfig(tile_px=56, sampling=limits))
    numbers = plan_many(processor.config, PROCESSOR.frame_tokens, facts_of(drawn))
    for i, (sample, sizes, shown) in enumerate(drawn):
        want, refusal = (0, 0, 0), ""
        try:
            plan = processor.plan_known(sample, images=sizes, clips=shown)
            want = (plan.num_tokens, plan.num_tiles, np.float32(plan.decode_seconds))
        except DoesNotFit as error:
            refusal = str(error)
        assert str(numbers.refused.get(i, "")) == refusal
        assert (numbers.tokens[i], numbers.tiles[i], numbers.decode_seconds[i]) == want


def test_hour_long_videos_that_are_cut_down_by_many_steps(tokenizer: Tokenizer) -> None:
    """512 frames are too many for 131,072 tokens by their labels alone: the search takes about ten steps for each."""
    processor = Processor(tokenizer, ProcessorConfig(sampling=SamplingConfig(context_tokens=131_072)))
    sample = Sample("s", (Turn("user", (VideoRef(Path("a.mp4")), "What?")), Turn("assistant", ("A film.",))))
    films = [Clip(EvenTimes(n, 512, 1 / 15_360), n / 30, None, n, 250.0, 1) for n in (40_000, 108_000, 107_999, 90_001)]
    base = processor.frame_tokens.base(sample, [False])
    facts = Facts(
        base_tokens=np.full(4, base),
        num_images=np.zeros(4, np.int64),
        image_sizes=np.empty((0, 2), np.int64),
        image_limits=np.empty(0, np.int64),
        clips={i: [film] for i, film in enumerate(films)},
    )
    numbers = plan_many(processor.config, processor.frame_tokens, facts)
    plans: list[SamplePlan] = [processor.plan_known(sample, images=[], clips=[film]) for film in films]
    assert numbers.tokens.tolist() == [plan.num_tokens for plan in plans]
    assert numbers.tiles.tolist() == [plan.num_tiles for plan in plans]
    assert all(400 < plan.num_tiles < 512 for plan in plans)


def test_nothing_is_planned_of_nothing() -> None:
    numbers = plan_many(PROCESSOR.config, PROCESSOR.frame_tokens, facts_of([]))
    assert [len(array) for array in numbers] == [0, 0, 0, 0]
