"""annotate/similar.py: search by blocks finds what comparing all with all finds."""

import numpy as np
import pytest

from eagle_model.annotate.similar import Joined, calibration, largest_cosines, repeats


def features(seed: int, number: int, width: int = 16) -> np.ndarray:
    array = np.random.default_rng(seed).normal(size=(number, width))
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("block_rows", [1, 7, 64, 1000])
def test_largest_cosines_are_those_of_all_pairs(block_rows: int) -> None:
    pool, references = features(0, 50), [features(1, 30), features(2, 0), features(3, 71)]
    every = np.concatenate(references).astype(np.float64)
    found = largest_cosines(pool, references, block_rows=block_rows)
    np.testing.assert_allclose(found, (pool.astype(np.float64) @ every.T).max(1), atol=1e-6)


def test_joined_arrays_are_sliced_as_one() -> None:
    arrays = [features(0, 3), features(1, 0), features(2, 5), features(3, 1)]
    joined, whole = Joined(arrays), np.concatenate(arrays)
    assert len(joined) == 9
    for start in range(9):
        for stop in range(start + 1, 12):
            np.testing.assert_array_equal(joined[start:stop], whole[start:stop])
    np.testing.assert_array_equal(largest_cosines(joined, [whole], block_rows=4), largest_cosines(whole, [whole]))


def test_without_a_reference_everything_is_new() -> None:
    assert (largest_cosines(features(0, 3), []) == -1).all()


def by_brute_force(pool: np.ndarray, video: np.ndarray, threshold: float) -> list[bool]:
    again: list[bool] = []
    for i in range(len(pool)):
        stays = [j for j in range(i) if not again[j] and video[j] != video[i]]
        again.append(any(float(pool[i].astype(np.float32) @ pool[j].astype(np.float32)) >= threshold for j in stays))
    return again


@pytest.mark.parametrize("block_rows", [1, 5, 16, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_repeats_are_those_of_brute_force(seed: int, block_rows: int) -> None:
    chance = np.random.default_rng(seed)
    pool = features(seed, 60, width=3)  # few dimensions: chains of neighbours, where the order matters
    video = np.sort(chance.integers(0, 20, 60))
    found = repeats(pool, video, threshold=0.9, block_rows=block_rows)
    assert found.tolist() == by_brute_force(pool, video, 0.9) and 5 < found.sum() < 55


def test_a_histogram_tells_what_each_threshold_keeps() -> None:
    lines = calibration(np.array([0.1, 0.12, 0.47, 0.62]), threshold=0.5)
    assert lines[0] == "largest cosine to the reference, 4 clips"
    assert next(line for line in lines if "<- threshold" in line).split()[:2] == ["0.50", "75.0%"]
