"""JPEG augmentation: qualities in their range, each seed's own; the picture stays about what it was."""

import io

import numpy as np
import torch
from PIL import Image

from eagle_model.data.augment import as_jpeg, jpeg_quality


def test_qualities_are_75_to_100_and_follow_from_the_seed() -> None:
    found = [jpeg_quality(seed, 1) for seed in range(600)]
    assert set(found) == set(range(75, 101))
    assert [jpeg_quality(seed, 1) for seed in range(600)] == found
    assert [jpeg_quality(7, number) for number in range(4)] == [83, 92, 100, 81]


def test_it_is_the_picture_that_a_file_of_that_quality_shows() -> None:
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 200, 40 * 33 * 3).reshape(40, 33, 3) + rng.normal(0, 4, (40, 33, 3))
    image = smooth.astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=80)
    got = as_jpeg(torch.from_numpy(image), 80)
    assert np.array_equal(got.numpy(), np.array(Image.open(file)))
    worse = (got.int() - torch.from_numpy(image)).abs().float().mean()
    better = (as_jpeg(torch.from_numpy(image), 100).int() - torch.from_numpy(image)).abs().float().mean()
    assert 0 < better < worse < 20


def test_a_picture_that_no_jpeg_can_hold_is_left_alone() -> None:
    image = torch.zeros(2, 65_501, 3, dtype=torch.uint8)
    assert as_jpeg(image, 80) is image
