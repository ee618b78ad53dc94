"""Augmentation: an image as a JPEG of some quality shows it, another quality for each sample and epoch.

    as_jpeg(image_YX3, jpeg_quality(seed=5, number=1))      # number: of the image in its sample

Source  The public release's `data_augment`: qualities 75 to 100.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eagle_model.data.mixing import seeded

QUALITIES = (75, 100)  # the least and the best
_MAX_SIDE_PX = 65_500  # limit: libjpeg writes no larger picture


def jpeg_quality(seed: int, number: int) -> int:
    """A quality from 75 to 100, each as likely, the same for the same numbers."""
    return int(seeded("jpeg", seed, number).randint(QUALITIES[0], QUALITIES[1] + 1))


def as_jpeg(image_YX3: Tensor, quality: int) -> Tensor:
    """uint8 RGB (Y, X, 3), compressed and decoded again; one too large for a JPEG is left as it is."""
    if max(image_YX3.shape[:2]) > _MAX_SIDE_PX:
        return image_YX3
    file = io.BytesIO()
    Image.fromarray(image_YX3.numpy()).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image))
