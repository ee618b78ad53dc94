"""The GPU path is not there yet and says so; neither error may pass for a bad file."""

import sys
import types

import pytest
import torch

from eagle_kernels.video import VideoError, decode
from tests.video.make import GoldenSet


def test_without_dali_says_what_to_install(golden: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # as if not installed
    with pytest.raises(ImportError, match=r'pip install "eagle-kernels\[dali\]"') as error:
        decode(golden.good["one_frame.mp4"].path, [0.0], device="cuda")
    assert not isinstance(error.value, VideoError)


def test_with_dali_says_that_it_comes_later(golden: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia, dali = types.ModuleType("nvidia"), types.ModuleType("nvidia.dali")
    monkeypatch.setitem(sys.modules, "nvidia", nvidia)
    monkeypatch.setitem(sys.modules, "nvidia.dali", dali)
    with pytest.raises(NotImplementedError, match=r'device is cuda:1; .* later version.*device="cpu"'):
        decode(golden.good["one_frame.mp4"].path, [0.0], device=torch.device("cuda:1"))
