"""Decoding on the GPU, through NVIDIA DALI: not there yet, and this says so.

The one file of the library that may import `nvidia.dali`.
"""

from __future__ import annotations

from typing import NoReturn

import torch


def refuse(device: torch.device) -> NoReturn:
    """Says why frames cannot be decoded on `device` and what to do.

    Neither error is a VideoError: nothing is wrong with the file, so no policy for bad samples may swallow it.

    Raises: ImportError without DALI; NotImplementedError with it.
    """
    try:
        import nvidia.dali  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            f"video.decode: device is {device}; decoding on a GPU needs NVIDIA DALI, which is not installed: "
            f'`pip install "eagle-kernels[dali]"`. device="cpu" needs none.'
        ) from error
    raise NotImplementedError(
        f"video.decode: device is {device}; decoding on a GPU arrives with a later version of eagle-kernels. "
        f'Use device="cpu" and move the frames.'
    )
