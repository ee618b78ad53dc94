"""`eagle doctor` says what really runs, in lines that can be copied."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton

from eagle_kernels import attention_sm90, native
from eagle_model import doctor

BUILD = {"has_cuda": True, "cuda_architectures": "sm_80 sm_90a", "cuda_version": "13.0", "compiler": "GNU 12.2"}
BUILD |= {"simd": "avx2", "num_threads": 2}


@pytest.fixture(autouse=True)
def built_with_cuda(monkeypatch):
    monkeypatch.setattr(native, "build_info", lambda: BUILD)


def gpus(monkeypatch: pytest.MonkeyPatch, *sms: tuple[int, int]) -> list[str]:
    """The lines about GPUs of these compute capabilities."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(sms))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sms))
    properties = [SimpleNamespace(name=f"G{a}", major=a, minor=b, total_memory=80 * 2**30) for a, b in sms]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties[i])
    return [line for line in doctor.examine() if line.startswith("GPU")]


def test_an_old_gpu_runs_nothing(monkeypatch):
    (line,) = gpus(monkeypatch, (7, 5))
    assert line.endswith("sm_75 needs sm_80 or later: no kernel runs on it")


def test_a_hopper_gpu_with_a_triton_that_is_not_tested(monkeypatch):
    monkeypatch.setattr(attention_sm90, "TESTED", ("2.1",))
    hopper, *_ = gpus(monkeypatch, (9, 0))
    assert hopper.endswith("sm_90, 80 GiB: Triton's kernels run; the native module's too")


def test_gpus_run_what_was_built(monkeypatch):
    monkeypatch.setattr(attention_sm90, "TESTED", (triton.__version__.rpartition(".")[0],))
    ampere, hopper, *attention = gpus(monkeypatch, (8, 0), (9, 0))
    assert ampere.endswith("sm_80, 80 GiB: Triton's kernels run; the native module's too")
    assert hopper.endswith("sm_90, 80 GiB: Triton's kernels run, attention's as Gluon kernels; the native module's too")
    assert len(attention) == len(attention_sm90.table()) - 1  # but for the line of other chips
    assert all(line.startswith("GPU 1, attention") for line in attention)
    assert "Triton" in attention[1] and attention[1].endswith("the dtype is neither bfloat16 nor float16")
    monkeypatch.setattr(native, "build_info", lambda: BUILD | {"has_cuda": False})
    (line,) = gpus(monkeypatch, (8, 0))
    assert line.endswith("Triton's kernels run; the native module's do not: it has no CUDA code")
    (line,) = (line for line in doctor.examine() if line.startswith("native module"))
    assert "built without CUDA: attention_plan, decode_attention, " in line
    assert line.endswith("take CPU tensors alone; for the rest install it again with nvcc on PATH")


def test_no_gpu_says_whose_doing_that_is(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gpus(monkeypatch)[0].endswith("torch is for CPUs alone: ops run their CPU code")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert gpus(monkeypatch)[0].endswith("none that torch's CUDA 13.0 can use: ops run their CPU code")


def test_a_native_module_that_does_not_load_is_named_and_the_rest_is_said(monkeypatch):
    def refuse() -> None:
        raise ImportError("eagle_kernels._native does not load: no such symbol")

    monkeypatch.setattr(native, "build_info", refuse)
    lines = doctor.examine()
    assert any(re.match(r"native module +missing +eagle_kernels\._native does not load", line) for line in lines)
    assert any(line.startswith("tokenizers") for line in lines)


def test_every_command_is_a_line_of_its_own(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: None)
    lines = doctor.examine()
    commands = lines[lines.index("To install what is missing:") + 1 :]
    assert commands[0] == "pip install triton"
    assert "pip install 'eagle-kernels[flash-attn]'" in commands
    assert len(commands) == len(doctor.PACKAGES)


def test_the_ops_of_the_native_module_are_those_that_ask_for_it():
    sources = Path(native.__file__).parent.glob("*.py")
    asking = {path.stem for path in sources if "native.require_cuda(" in path.read_text()}
    assert asking == set(doctor.NATIVE_CUDA_OPS)
