"""ADS: the golden plans; and for random samples: fits, text whole, frames maximal, then tiles maximal."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_model.data import sampling
from eagle_model.data.sampling import (
    DoesNotFit,
    SamplingConfig,
    VisualPlan,
    max_frames_of,
    sample_times,
    split_frames,
)
from eagle_model.data.tiling import choose_grid

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ads.json").read_text())


def config(**fields) -> SamplingConfig:
    return SamplingConfig(**({"context_tokens": 32_768} | fields))


def plan(cfg: SamplingConfig, *, tile_px: int = 448, tokens_per_tile: int = 256, **seen) -> VisualPlan:
    return sampling.plan(cfg, tile_px=tile_px, tokens_per_tile=tokens_per_tile, **seen)


def clip(num_frames: int, fps: float = 2.0, start_seconds: float = 0.0) -> np.ndarray:
    return start_seconds + np.arange(num_frames) / fps


def no_labels(num_tokens: int) -> Callable[[Sequence[Sequence[float]]], int]:
    return lambda times: num_tokens


def labelled(num_tokens: int) -> Callable[[Sequence[Sequence[float]]], int]:
    """Every character of a frame's label is a token, as digits are; <img> and </img> are one each."""

    def count(times):
        labels = [f"Frame {k} sample at {t:.2f}s: " for video in times for k, t in enumerate(video, 1)]
        return num_tokens + sum(len(label) + 2 for label in labels)

    return count


def merging(num_tokens: int) -> Callable[[Sequence[Sequence[float]]], int]:
    """As a byte-pair tokenizer: some times are shorter than others, so more frames may even need fewer tokens."""
    return lambda times: num_tokens + sum(10 + round(t * 1000) * 7919 % 5 for video in times for t in video)


# Golden rows and edges


@pytest.mark.parametrize("row", GOLDEN["samples"], ids=lambda r: f"{r['context_tokens']}-{len(r['images'])}")
def test_golden_plans(row):
    def planned():
        return plan(
            config(context_tokens=row["context_tokens"], max_frames=2400),
            images=row["images"],
            videos=[clip(row["max_frames"])] if row["max_frames"] else [],
            text_tokens=no_labels(row["text_tokens"]),
        )

    want = row["plan"]
    if want is None:
        with pytest.raises(DoesNotFit):
            planned()
        return
    got = planned()
    num_frames = sum(map(len, got.timestamps_seconds))
    assert num_frames == want["num_frames"]
    assert got.max_tiles == want["max_tiles"]
    assert 256 * sum(grid.num_tiles for grid in got.grids) == want["image_tokens"]
    assert got.num_visual_tokens == want["image_tokens"] + 256 * num_frames
    assert got.num_tokens == want["num_tokens"]


def test_labels_take_their_share():
    """500 tokens of text in 32,768: 126 frames if labels were free, 112 with labels of about 30 tokens."""
    counts = []
    for text in (no_labels(500), labelled(500)):
        got = plan(config(), images=[], videos=[clip(1200)], text_tokens=text)
        counts.append(len(got.timestamps_seconds[0]))
        assert got.num_text_tokens == text(got.timestamps_seconds)
        assert got.num_tokens <= 32_768
    assert counts == [126, 112]


def test_text_alone():
    seen = []
    got = plan(config(context_tokens=900), images=[], videos=[], text_tokens=lambda times: seen.append(times) or 900)
    assert (got.grids, got.timestamps_seconds, got.num_visual_tokens, got.num_tokens) == ((), (), 0, 900)
    assert seen == [()]  # tokenized once


def test_max_tiles_is_the_first_step():
    def steps(max_tiles: int, context_tokens: int) -> int:
        cfg = config(context_tokens=context_tokens, max_tiles=max_tiles)
        return plan(cfg, images=[(4000, 4000)] * 2, videos=[], text_tokens=no_labels(0)).max_tiles

    assert steps(24, 100_000) == 24
    assert steps(5, 100_000) == 5  # not one of the paper's steps, but the caller's limit
    assert steps(1, 100_000) == 1
    assert steps(12, 2 * 5 * 256) == 8  # 2x2 and thumbnail is what a square takes at 8, at 6 and at 4
    assert steps(12, 2 * 5 * 256 - 1) == 2  # a square takes 1x1 at 2


def test_pages_of_a_document_are_frames():
    """A document of N pages as a video whose times are page numbers: all N where they fit, one tile each."""
    got = plan(config(frames_per_second=1), images=[], videos=[np.arange(30.0)], text_tokens=labelled(50))
    assert got.timestamps_seconds == (tuple(map(float, range(30))),)
    assert plan(config(), images=[], videos=[np.arange(30)], text_tokens=labelled(50)) == got  # whole numbers do
    got = plan(config(context_tokens=4096), images=[], videos=[np.arange(30.0)], text_tokens=labelled(50))
    assert len(got.timestamps_seconds[0]) == 14
    assert got.num_tokens <= 4096


def test_a_long_search_asks_for_few_tokenizations():
    calls = []

    def text(times):
        calls.append(len(times[0]))
        return labelled(30_000)(times)

    got = plan(config(context_tokens=131_072, max_frames=2400), images=[], videos=[clip(9000)], text_tokens=text)
    assert len(calls) <= 12
    assert len(set(calls)) == len(calls)
    more = sample_times(clip(9000), len(got.timestamps_seconds[0]) + 1)
    assert labelled(30_000)([more]) + 256 * len(more) > 131_072


def test_without_ads_all_that_the_limits_allow_is_taken_or_refused():
    seen = {"images": [(4000, 4000)], "videos": [clip(60)], "text_tokens": no_labels(100)}
    whole = plan(config(max_tiles=6, ads=False), **seen)
    assert whole == plan(config(max_tiles=6), **seen)
    assert plan(config(max_tiles=6, context_tokens=16_000), **seen).is_reduced
    with pytest.raises(DoesNotFit, match="needs at least 15716 tokens and context_tokens is 15000"):
        plan(config(max_tiles=6, context_tokens=15_000, ads=False), **seen)
    with pytest.raises(DoesNotFit, match="needs 16740 tokens with all of its tiles and context_tokens is 16000"):
        plan(config(max_tiles=6, context_tokens=16_000, ads=False), **seen)


def test_uniform_frames_do_not_go_by_the_clip_s_length():
    def num_frames(**fields) -> int:
        return len(
            plan(config(**fields), images=[], videos=[clip(300, 30.0)], text_tokens=no_labels(9)).timestamps_seconds[0]
        )

    assert num_frames(max_frames=64) == 20
    assert num_frames(max_frames=64, frames="uniform") == 64


def test_the_tiling_rule_is_the_config_s():
    image = {"images": [(600, 600)], "videos": [], "text_tokens": no_labels(9)}
    assert plan(config(tiling="closest_ratio"), **image).grids == ((1, 1),)
    assert plan(config(), **image).grids == ((2, 2),)


@pytest.mark.parametrize("field", ["tiling", "frames"])
def test_unknown_switches_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 'other'; needs '"):
        config(**{field: "other"})


# Properties


@dataclass
class Case:
    cfg: SamplingConfig
    tile_px: int
    tokens_per_tile: int
    images: list[tuple[int, int]]
    videos: list[np.ndarray]
    text: Callable[[Sequence[Sequence[float]]], int]

    def fewest_and_most(self) -> tuple[list[int], list[int]]:
        most = [max_frames_of(video, self.cfg) for video in self.videos]
        return [min(self.cfg.min_frames, n) for n in most], most

    def total(self, num_frames: int) -> int:
        """Tokens with num_frames frames and every image at one tile, counted anew."""
        least, most = self.fewest_and_most()
        shares = split_frames(num_frames, most, least)
        times = [sample_times(video, n) for video, n in zip(self.videos, shares)]
        return self.tokens_per_tile * (num_frames + len(self.images)) + self.text(times)


@st.composite
def variable_rate_clips(draw) -> np.ndarray:
    gaps = draw(st.lists(st.sampled_from([1 / 60, 0.04, 0.1, 0.5, 7.0]), min_size=0, max_size=60))
    return draw(st.floats(0, 4000)) + np.cumsum([0.0, *gaps])


CLIPS = st.one_of(
    st.builds(clip, st.integers(1, 80), st.sampled_from([1.0, 2.0, 8.0, 23.976]), st.sampled_from([0.0, 3.7, 995.0])),
    variable_rate_clips(),
)


@st.composite
def cases(draw) -> Case:
    text_of, tile_sizes = draw(st.sampled_from([(no_labels, (1, 4, 256)), (labelled, (4, 256)), (merging, (16, 256))]))
    min_frames = draw(st.integers(1, 8))
    case = Case(
        SamplingConfig(
            context_tokens=1,
            max_tiles=draw(st.sampled_from([1, 5, 12])),
            frames_per_second=draw(st.sampled_from([0.5, 2.0, 8.0])),
            min_frames=min_frames,
            max_frames=min_frames + draw(st.integers(0, 50)),
        ),
        draw(st.sampled_from([56, 448])),
        draw(st.sampled_from(tile_sizes)),
        draw(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_size=4)),
        draw(st.lists(CLIPS, max_size=4)),
        text_of(draw(st.integers(0, 3000))),
    )
    # Contexts around all that matters: from just too small to more than everything takes.
    least, most = case.fewest_and_most()
    low, high = case.total(sum(least)), case.total(sum(most)) + 13 * len(case.images) * case.tokens_per_tile
    context = draw(st.integers(max(1, low - 5), max(low, high) + 5))
    case.cfg = replace(case.cfg, context_tokens=context)
    return case


@settings(max_examples=300, deadline=None)
@given(cases())
def test_a_plan_fits_keeps_the_text_and_is_maximal(case):
    cfg, tokens_per_tile = case.cfg, case.tokens_per_tile
    seen = {"images": case.images, "videos": case.videos, "text_tokens": case.text}
    seen |= {"tile_px": case.tile_px, "tokens_per_tile": tokens_per_tile}
    least, most = case.fewest_and_most()
    fits = [n for n in range(sum(least), sum(most) + 1) if case.total(n) <= cfg.context_tokens]
    if not fits:
        with pytest.raises(DoesNotFit):
            plan(cfg, **seen)
        return
    got = plan(cfg, **seen)

    # Within the budget, by a count from the plan's own frames and grids; no text cut, no image or video lost.
    num_frames = sum(map(len, got.timestamps_seconds))
    assert got.num_text_tokens == case.text(got.timestamps_seconds)
    assert got.num_visual_tokens == tokens_per_tile * (num_frames + sum(g.num_tiles for g in got.grids))
    assert got.num_tokens == got.num_visual_tokens + got.num_text_tokens <= cfg.context_tokens
    assert len(got.grids) == len(case.images)
    assert len(got.timestamps_seconds) == len(case.videos)

    # First frames, by a scan of every number; each video within its bounds, frames of its own, none twice.
    assert num_frames == fits[-1]
    for times, video, fewest, all_of_it in zip(got.timestamps_seconds, case.videos, least, most):
        assert fewest <= len(times) <= all_of_it
        assert set(times) <= set(video.tolist())
        assert all(a < b for a, b in itertools.pairwise(times))

    # Then tiles: the grids are those of t, and no larger t fits.
    def tokens_at(t: int) -> int:
        grids = [choose_grid(w, h, tile_px=case.tile_px, max_tiles=t) for w, h in case.images]
        return got.num_text_tokens + tokens_per_tile * (num_frames + sum(g.num_tiles for g in grids))

    allowed = {t for t in (1, 2, 4, 6, 8, 12) if t <= cfg.max_tiles} | {cfg.max_tiles}
    assert got.max_tiles == max(t for t in allowed if tokens_at(t) <= cfg.context_tokens)
    assert got.grids == tuple(choose_grid(w, h, tile_px=case.tile_px, max_tiles=got.max_tiles) for w, h in case.images)

    assert got == plan(cfg, **seen)


@st.composite
def splits(draw) -> tuple[int, list[int], list[int]]:
    most = draw(st.lists(st.integers(1, 600), min_size=1, max_size=8))
    floor = draw(st.integers(1, 40))
    least = [min(floor, n) for n in most]
    return draw(st.integers(sum(least), sum(most))), most, least


@given(splits())
def test_a_split_is_whole_bounded_fair_and_monotone(split):
    num_frames, most, least = split
    shares = split_frames(num_frames, most, least)
    assert sum(shares) == num_frames
    assert all(low <= share <= high for low, share, high in zip(least, shares, most))
    for (a, share_a), (b, share_b) in itertools.permutations(zip(most, shares), 2):
        assert share_a >= share_b if a > b else True  # a longer video never gets less
        assert abs(share_a - share_b) <= 1 if a == b else True
    free = [(n, share) for n, share, low in zip(most, shares, least) if share > low]
    for (a, share_a), (b, share_b) in itertools.combinations(free, 2):
        assert abs(share_a / a - share_b / b) < 1 / a + 1 / b  # in proportion, but for whole frames


def test_splits_by_hand():
    assert split_frames(0, [], []) == []
    assert split_frames(16, [20, 20], [8, 8]) == [8, 8]
    assert split_frames(17, [20, 20], [8, 8]) == [9, 8]  # equal remainders: the earlier
    assert split_frames(30, [100, 10], [8, 8]) == [22, 8]  # 2.7 would be its share; it has its floor
    assert split_frames(30, [200, 100, 50], [1, 1, 1]) == [17, 9, 4]  # 17.14, 8.57, 4.29
    assert split_frames(350, [200, 100, 50], [8, 8, 8]) == [200, 100, 50]


# Frame numbers and times


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"),
    [(300, 30, 20), (1, 30, 1), (2, 30, 1), (60, 30, 4), (90, 30, 6), (5, 1, 5), (20_000, 25, 512), (44, 29.97, 2)],
)
def test_frames_at_two_a_second(num_frames, fps, expected):
    assert max_frames_of(clip(num_frames, fps), config()) == expected


def test_times_rounded_to_milliseconds_lose_no_frame():
    for fps in (24, 25, 29.97, 30, 59.94):
        for seconds in (1, 2, 10, 60, 3600):
            num_frames = math.ceil(fps * seconds)
            for rounded in (np.round, np.floor):
                times = rounded(clip(num_frames, fps) * 1000) / 1000
                assert max_frames_of(times, config(max_frames=100_000)) == 2 * seconds


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8, 9, 10_000])
@pytest.mark.parametrize("start_seconds", [0.0, 612.5])
def test_constant_rate_takes_linspace_of_frame_numbers(num_frames, start_seconds):
    """As the released processor's linspace(0, T - 1, n).round(), but for ties, which here take the earlier frame."""
    times = clip(num_frames, 29.97, start_seconds)
    for n in {1, 2, 3, 7, 8, 9, 100, 512} - set(range(num_frames + 1, 513)):
        got = np.searchsorted(times, sample_times(times, n))
        want = np.linspace(0, num_frames - 1, n)
        np.testing.assert_array_equal(got, np.ceil(want - 0.5 - 1e-6))  # half down
        assert np.abs(got - want.round()).max() <= 1
        assert (got[0], got[-1]) == (0, num_frames - 1 if n > 1 else 0)


def test_sample_times_by_hand():
    assert sample_times(np.array([5.0]), 1) == (5.0,)
    assert sample_times(np.array([0.0, 1.0, 2.0, 3.0]), 3) == (0.0, 1.0, 3.0)  # 1.5 is as near to 1 as to 2
    assert sample_times(np.array([0.0, 0.1, 0.2, 6.0, 10.0]), 3) == (0.0, 6.0, 10.0)  # 5 s is nearest to 6
    # The last frame comes after a minute: of 0, 20, 40, 60 s the last two are nearest to it, which is taken once.
    assert sample_times(np.array([0.0, 1.0, 2.0, 3.0, 60.0]), 4) == (0.0, 2.0, 3.0, 60.0)
    assert sample_times(np.array([0.0, 60.0, 61.0, 62.0]), 3) == (0.0, 60.0, 62.0)
    assert sample_times(np.array([0.0, 57.0, 58.0, 59.0, 60.0]), 4) == (0.0, 57.0, 58.0, 60.0)


@given(st.one_of(CLIPS), st.data())
def test_sampled_times_are_as_near_as_distinct_frames_allow(times, data):
    times = np.unique(times)
    n = data.draw(st.integers(1, len(times)))
    got = sample_times(times, n)
    assert len(set(got)) == n
    assert list(got) == sorted(got)
    assert set(got) <= set(times.tolist())
    assert got[0] == times[0]
    targets = np.linspace(times[0], times[-1], n) if n > 1 else times[:1]
    gaps = np.abs(times[None, :] - targets[:, None]).min(axis=1)
    nearest_are_distinct = len({int(np.abs(times - t).argmin()) for t in targets}) == n
    if nearest_are_distinct:
        np.testing.assert_allclose(np.abs(np.array(got) - targets), gaps, atol=1.1e-6)


# Errors


def test_what_does_not_fit_names_every_number():
    with pytest.raises(DoesNotFit) as raised:
        plan(config(context_tokens=2048), images=[(640, 480)] * 2, videos=[clip(40)], text_tokens=labelled(300))
    assert str(raised.value) == (
        "the sample needs at least 3080 tokens and context_tokens is 2048: 520 of text + 2 images x 256 + "
        "8 frames x 256 (min_frames=8 a video). To fit it, raise context_tokens, shorten the text, give fewer images "
        "or lower min_frames."
    )
    with pytest.raises(DoesNotFit) as raised:
        plan(config(context_tokens=100), images=[], videos=[], text_tokens=no_labels(101))
    assert str(raised.value) == (
        "the sample needs at least 101 tokens and context_tokens is 100: 101 of text. "
        "To fit it, raise context_tokens or shorten the text."
    )


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.array([]), r"video 2: its frame times have shape \(0,\); needs \(frames,\), at least one\."),
        (np.zeros((2, 2)), r"video 2: its frame times have shape \(2, 2\); needs \(frames,\), at least one\."),
        (np.array([0.0, np.nan]), r"video 2: frame times hold nan; needs seconds\."),
        (
            np.array([0.0, 2.0, 1.5]),
            r"video 2: frame 2 is at 1\.5 s, before frame 1 at 2\.0 s\. Sort its frame times\.",
        ),
    ],
)
def test_refuses_bad_frame_times(times, message):
    with pytest.raises(ValueError, match=message):
        plan(config(), images=[], videos=[clip(4), times], text_tokens=no_labels(1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context_tokens": 0}, r"context_tokens is 0; needs at least 1\."),
        ({"max_tiles": 0}, r"max_tiles is 0; needs at least 1\."),
        ({"seek": "nearest"}, r"seek is 'nearest'; needs 'exact', 'keyframe' or 'tolerance'\."),
        ({"frames_per_second": 0.0}, r"frames_per_second is 0\.0; needs a number above 0\."),
        ({"frames_per_second": math.nan}, r"frames_per_second is nan; needs a number above 0\."),
        (
            {"min_frames": 9, "max_frames": 8},
            r"min_frames is 9 and max_frames 8\. Lower min_frames or raise max_frames\.",
        ),
    ],
)
def test_refuses_bad_configs(fields, message):
    with pytest.raises(ValueError, match=f"^SamplingConfig: {message}$"):
        config(**fields)
