"""The built extension, `eagle_kernels._native`, and how it gets a tensor: as numbers, since it knows no torch.

native.view(torch.zeros(2, 3))          # (address, (2, 3), (3, 1), "float32", 24 bytes from there on)
native.build_info()["has_cuda"]         # whether CUDA code is in it
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

from torch import Tensor

View = tuple[int, tuple[int, ...], tuple[int, ...], str, int]


@functools.cache
def load() -> ModuleType:
    """The extension. Raises ImportError, with what to run, when it is not built or does not load."""
    try:
        return importlib.import_module("eagle_kernels._native")
    except ImportError as error:
        raise ImportError(
            f"eagle_kernels._native, the compiled part of the package, does not load: {error}. Build it with "
            "`pip install .`, or for development `pip install -e . --no-build-isolation`; both need a C++20 compiler."
        ) from error


def build_info() -> dict[str, Any]:
    """What was built and what this CPU offers.

    has_cuda: bool; cuda_architectures, cuda_version: str, empty without CUDA; compiler: str;
    simd: str, the widest instructions that the CPU code takes here; num_threads: int, CPUs of this process.
    """
    return dict(load().build_info())


def require_cuda(op: str) -> None:
    """Raises RuntimeError, with what to do, when `op` was given CUDA tensors and the extension has CPU code alone."""
    if not build_info()["has_cuda"]:
        raise RuntimeError(
            f"{op}: the tensors are on a CUDA device, and eagle_kernels was built without CUDA. Put nvcc on PATH and "
            "install it again, or pass CPU tensors."
        )


def view(tensor: Tensor) -> View:
    """(address, shape, strides in elements, dtype name, bytes of memory from the address on)."""
    bytes_left = int(tensor.untyped_storage().nbytes()) - int(tensor.storage_offset()) * tensor.element_size()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), dtype, bytes_left
