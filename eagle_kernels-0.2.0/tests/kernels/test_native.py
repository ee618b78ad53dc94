"""The native core's edge: what was built, how tensors are handed over, and what is refused before memory is touched."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from eagle_kernels import native


@pytest.fixture
def unloaded() -> Iterator[None]:
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def test_build_info():
    info = native.build_info()
    assert set(info) == {"has_cuda", "cuda_architectures", "cuda_version", "compiler", "simd", "num_threads"}
    assert info["num_threads"] >= 1
    assert info["simd"] in {"avx512", "avx2", ""}
    assert info["compiler"].split()[0] in {"GNU", "Clang", "AppleClang"}
    if info["has_cuda"]:
        assert info["cuda_architectures"] == "sm_80 sm_90a sm_100 compute_80"
        assert int(info["cuda_version"].split(".")[0]) >= 12
    else:
        assert (info["cuda_architectures"], info["cuda_version"]) == ("", "")


def test_what_a_missing_build_says(monkeypatch, unloaded):
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=r"No module named 'eagle_kernels._native'.*pip install -e \. --no-build-iso"):
        native.load()


def test_view_of_a_strided_tensor():
    base = torch.zeros(4, 10, dtype=torch.bfloat16)
    view = base[1:, 2:8:2]
    address, shape, strides, dtype, num_bytes = native.view(view)
    assert address == base.data_ptr() + (10 + 2) * 2
    assert (shape, strides, dtype) == ((3, 3), (10, 2), "bfloat16")
    assert num_bytes == (4 * 10 - 12) * 2


def tiling(**change: object) -> object:
    arguments = {"cols": 1, "rows": 1, "tile_px": 2, "patch_px": 1, "thumbnail": False, "pass_order": "horizontal"}
    return native.load().Tiling(**{**arguments, "mean": (0.5,) * 3, "std": (0.5,) * 3, **change})


FRAMES = torch.zeros(1, 4, 5, 3, dtype=torch.uint8)
OUT = torch.full((1, 4, 3), float("nan"))
ADDRESS, SHAPE, STRIDES, DTYPE, NUM_BYTES = range(5)


@pytest.mark.parametrize(
    ("which", "field", "value", "message"),
    [
        ("frames", ADDRESS, 0, "frames lies at address 0; needs one divisible by 1"),
        ("frames", SHAPE, (1, 4, 5), "frames has 3 dims and 4 strides"),
        ("frames", SHAPE, (1, 4, 4, 4), r"frames need uint8 of shape \(L, Y, X, 3\)"),
        ("frames", SHAPE, (1, 5, 5, 3), "frames reaches element 74, and its memory holds 60"),
        ("frames", SHAPE, (-1, 4, 5, 3), "frames: dim 0 has size -1 and stride 60; needs both >= 0"),
        ("frames", STRIDES, (60, -15, 3, 1), "frames: dim 1 has size 4 and stride -15"),
        ("frames", STRIDES, (60, 2**62, 3, 1), r"frames reaches past 2\*\*63 elements in dim 1"),
        ("frames", STRIDES, (60, 15, 1, 5), r"frames' last strides are \(1, 5\); needs \(3, 1\)"),
        ("frames", DTYPE, "int8", "dtype is int8; needs uint8, int32, int64, float16, bfloat16 or float32"),
        ("frames", DTYPE, "float32", "frames reaches element 59, and its memory holds 15"),
        ("frames", NUM_BYTES, 59, "frames reaches element 59, and its memory holds 59"),
        ("out", SHAPE, (1, 4, 2), r"out needs contiguous \(1, 4, 3\)"),
        ("out", STRIDES, (12, 1, 4), r"out needs contiguous \(1, 4, 3\)"),
        ("out", DTYPE, "float16", "out's dtype is float16; needs uint8, bfloat16 or float32"),
        ("out", ADDRESS, OUT.data_ptr() + 2, "out lies at address .*; needs one divisible by 4"),
        ("out", NUM_BYTES, 44, "out reaches element 11, and its memory holds 11"),
    ],
    ids=lambda value: "address" if isinstance(value, int) and value > 2**20 else None,  # the same in every process
)
def test_refuses_views_that_do_not_hold(which, field, value, message):
    views = {"frames": list(native.view(FRAMES)), "out": list(native.view(OUT))}
    views[which][field] = value
    with pytest.raises(ValueError, match=message):
        native.load().frames_to_tiles_cpu(tuple(views["frames"]), tuple(views["out"]), tiling(), 1)
    assert OUT.isnan().all()


def test_refuses_tilings_that_make_no_sense():
    views = native.view(FRAMES), native.view(OUT)
    with pytest.raises(ValueError, match="pass_order is 'diagonal'; needs 'horizontal' or 'pillow'"):
        tiling(pass_order="diagonal")
    for change, message in [
        ({"cols": 0}, r"grid is \(0, 1\)"),
        ({"patch_px": 0}, "patch_px 0; needs a tile_px"),
        ({"std": (1, 0, 1)}, "std of channel 1 are 0.5 and 0; needs finite numbers and std != 0"),
        ({"mean": (1, 1, float("inf"))}, "mean and std of channel 2 are inf"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.load().frames_to_tiles_cpu(*views, tiling(**change), 1)
    with pytest.raises(ValueError, match="num_threads is -1"):
        native.load().frames_to_tiles_cpu(*views, tiling(), -1)


def test_other_python_threads_run_meanwhile():
    """The interpreter's lock is given back: this thread never waits as long as the call takes."""
    frames = torch.zeros(1, 2000, 2000, 3, dtype=torch.uint8).expand(200, -1, -1, -1)
    out = torch.empty(200, 1, 3 * 448 * 448, dtype=torch.uint8)
    arguments = native.view(frames), native.view(out), tiling(tile_px=448, patch_px=448), 1
    seconds: list[float] = []

    def call() -> None:
        start = time.perf_counter()
        native.load().frames_to_tiles_cpu(*arguments)
        seconds.append(time.perf_counter() - start)

    thread = threading.Thread(target=call)
    thread.start()
    longest_gap, last = 0.0, time.perf_counter()
    while thread.is_alive():
        now = time.perf_counter()
        longest_gap, last = max(longest_gap, now - last), now
    thread.join()
    assert seconds[0] > 0.1, "the call is too short to show anything"
    assert longest_gap < seconds[0] / 2
