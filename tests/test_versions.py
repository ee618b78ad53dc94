"""`eagle doctor --versions`: each row of its table, where it holds and beside that; what packages ask of others."""

from __future__ import annotations

import platform
import re
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from eagle_kernels import attention_sm90, native
from eagle_model import versions
from eagle_model.versions import CLASHES, FACTS, holds, installed, unmet, warnings

ROOT = Path(__file__).parent.parent
CASES: dict[str, tuple[dict[str, str], list[dict[str, str]]]] = {  # what clashes; what does not
    "torchvision for CUDA, torch for CPUs": (
        {"torchvision-cuda": "0.28.0", "torch-cpu": "2.13.0+cpu"},
        [{"torch-cpu": "2.13.0+cpu"}, {"torchvision-cuda": "0.28.0", "torch-cuda": "13.0"}],
    ),
    "filelock 4, lmms-eval": (
        {"filelock": "4.3.1", "lmms-eval": "0.7.2"},
        [{"filelock": "4.3.1"}, {"filelock": "3.29.0", "lmms-eval": "0.7.2"}],
    ),
    "PyAV 16 or later, lmms-eval": (
        {"av": "18.1.0", "lmms-eval": "0.7.2"},
        [{"av": "18.1.0"}, {"av": "15.1.0", "lmms-eval": "0.7.2"}],
    ),
    "another vLLM than the plug-in's": ({"vllm": "0.34.0"}, [{"vllm": "0.33.0"}, {"vllm": "0.33.1"}]),
    "Triton 3.6": ({"triton": "3.6.0"}, [{"triton": "3.7.1"}, {"triton": "3.5.1"}]),
    "a Triton whose Gluon is not tested": (
        {"triton": "3.8.0", "gpu": "9.0"},
        [{"triton": "3.7.1", "gpu": "9.0"}, {"triton": "3.8.0", "gpu": "10.0"}, {"triton": "3.8.0"}],
    ),
    "torch for CUDA 13, an older driver": (
        {"torch-cuda": "13.0", "cuda-driver": "12.9"},
        [{"torch-cuda": "13.0", "cuda-driver": "13.0"}, {"torch-cuda": "12.8", "cuda-driver": "12.8"}],
    ),
    "our CUDA code for CUDA 13, an older driver": (
        {"native-cuda": "13.0.88", "cuda-driver": "12.8"},
        [{"native-cuda": "12.9.86", "cuda-driver": "12.8"}, {"native-cuda": "13.0.88"}],
    ),
    "DALI for CUDA 13, an older driver": (
        {"nvidia-dali-cuda130": "2.4.0", "cuda-driver": "12.8"},
        [{"nvidia-dali-cuda130": "2.4.0"}, {"nvidia-dali-cuda130": "2.4.0", "cuda-driver": "13.1"}],
    ),
    "Transformer Engine for CUDA 13, torch for CUDA 12": (
        {"transformer-engine-cu13": "2.20.2", "torch-cuda": "12.8"},
        [{"transformer-engine-cu13": "2.20.2", "torch-cuda": "13.0"}, {"torch-cuda": "12.8"}],
    ),
    "flash-attn, torch for CPUs": (
        {"flash-attn": "2.8.3", "torch-cpu": "2.13.0"},
        [{"flash-attn": "2.8.3", "torch-cuda": "13.0"}],
    ),
    "a Blackwell GPU, torch for an older CUDA": (
        {"gpu": "12.0", "torch-cuda": "12.6"},
        [{"gpu": "12.0", "torch-cuda": "12.8"}, {"gpu": "9.0", "torch-cuda": "12.6"}],
    ),
    "CPython 3.15 or later": ({"python": "3.15.0"}, [{"python": "3.14.10"}, {"python": "3.11.7"}]),
}


def test_each_row_has_its_case():
    assert CASES.keys() == CLASHES.keys()


@pytest.mark.parametrize("name", CLASHES)
def test_a_row_holds_where_it_should_and_nowhere_else(name):
    clashing, others = CASES[name]
    assert clashing.keys() == CLASHES[name].has.keys(), "the case names other things than the row"
    assert holds(CLASHES[name], clashing | {"numpy": "2.4.6"})
    assert not [other for other in others if holds(CLASHES[name], other)]
    told = warnings(clashing)
    assert told[0] == f"{name} ({', '.join(f'{part} {clashing[part]}' for part in CLASHES[name].has)})"
    assert told[1:3] == [f"    breaks   {CLASHES[name].breaks}", f"    instead  {CLASHES[name].instead}"]


def test_the_rows_ask_for_facts_that_are_gathered_or_for_packages():
    """A misspelt fact would never hold. Packages are named as pip normalises them."""
    names = {name for clash in CLASHES.values() for name in clash.has}
    packages = names - set(FACTS)
    assert packages == {
        "av",
        "filelock",
        "flash-attn",
        "lmms-eval",
        "nvidia-dali-cuda130",
        "transformer-engine-cu13",
    } | {
        "triton",
        "vllm",
    }
    assert names & set(FACTS) == set(FACTS)


def test_rows_and_the_code_that_they_speak_of_agree():
    gluon = SpecifierSet(CLASHES["a Triton whose Gluon is not tested"].has["triton"])
    assert not any(gluon.contains(f"{minor}.1") for minor in attention_sm90.TESTED)
    assert gluon.contains("3.8.0") and "3.8" not in attention_sm90.TESTED
    assert " and ".join(attention_sm90.TESTED) in CLASHES["a Triton whose Gluon is not tested"].breaks
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(text.startswith("nvidia-dali-cuda130") for text in asked["dali"])
    assert "core_cu13" in asked["fp8"][0]
    vllm = re.search(r"vllm==([\d.]+)", CLASHES["another vLLM than the plug-in's"].instead)
    assert vllm and f"pip install vllm=={vllm[1]} " in (ROOT / "docs/runtimes.md").read_text()


def test_filelock_has_no_such_module_as_lmms_eval_imports():
    """The break itself, where the newer filelock is what torch brought along."""
    version = installed()["filelock"]
    if int(version.split(".")[0]) < 4:
        pytest.skip(f"filelock is {version}; the row is about 4")
    with pytest.raises(ModuleNotFoundError, match=r"filelock\._api"):
        __import__("filelock._api")


def test_what_is_installed_here():
    found = installed()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__ and found["typing-extensions"], "by normalised names"
    assert ("torch-cuda" in found) == bool(torch.version.cuda)
    assert ("torch-cpu" in found) == (not torch.version.cuda and not torch.version.hip)


def test_facts_of_a_machine_with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: [(9, 0), (8, 9)][i])
    monkeypatch.setattr(native, "build_info", lambda: {"cuda_version": "13.0.88"})

    class Driver:
        @staticmethod
        def cuDriverGetVersion(number) -> int:
            number._obj.value = 12080
            return 0

    monkeypatch.setattr(versions.ctypes, "CDLL", lambda name: Driver)
    found = installed()
    assert {name: found.get(name) for name in FACTS if name not in ("python", "torchvision-cuda")} == {
        "cuda-driver": "12.8",
        "gpu": "8.9",
        "native-cuda": "13.0.88",
        "torch-cpu": None,
        "torch-cuda": "13.0",
    }
    assert any(line.startswith("torch for CUDA 13, an older driver") for line in warnings(found))


@pytest.mark.parametrize(("version", "is_for_cuda"), [("0.28.0", True), ("0.28.0+cu130", True), ("0.28.0+cpu", False)])
def test_which_torchvision_is_for_cuda(monkeypatch, version, is_for_cuda):
    torchvision = type("D", (), {"metadata": {"Name": "TorchVision"}, "version": version})
    monkeypatch.setattr(versions.metadata, "distributions", lambda: [torchvision])
    assert ("torchvision-cuda" in installed()) == is_for_cuda


REQUIRES = {
    "vllm": [  # some of 0.33.0's own lines
        "torch==2.14.0",
        "transformers<5.21.0,>=5.16.1",
        'xgrammar==0.2.8; platform_machine == "x86_64" or platform_machine == "aarch64"',
        'protobuf==7.36.1; platform_machine == "s390x"',
        "apache-tvm-ffi==0.1.11",
        "numpy",
        'ray==2.0; extra == "ray"',
    ],
    "eagle-kernels": [
        "torch>=2.10",
        'av>=18; extra == "video"',
        'pywin32>=1; sys_platform == "win32" and extra == "x"',
    ],
    "ancient": ["torch (>=1.0", "av>=1"],
}


def test_what_packages_ask_of_each_other(monkeypatch):
    """Pins of others are read from their metadata; their extras are not asked for, ours may have been."""
    monkeypatch.setattr(versions, "_requires", lambda package: REQUIRES.get(package, []))
    have = {"vllm": "0.33.0", "eagle-kernels": "0.2.0", "ancient": "1", "torch": "2.13.0+cpu", "av": "15.1"}
    have |= {"transformers": "5.23.0", "xgrammar": "0.2.9", "ray": "2.1", "pywin32": "0.1", "numpy": "2.4.6"}
    have |= {"protobuf": "7.36.2"}
    assert unmet(have) == [
        "eagle-kernels[video] asks for av>=18; 15.1 is installed",
        "vllm 0.33.0 asks for torch==2.14.0; 2.13.0+cpu is installed",
        "vllm 0.33.0 asks for transformers<5.21.0,>=5.16.1; 5.23.0 is installed",
        "vllm 0.33.0 asks for xgrammar==0.2.8; 0.2.9 is installed",
    ]
    assert unmet(have | {"torch": "2.14.0+cu130", "av": "18.1", "transformers": "5.20.1", "xgrammar": "0.2.8"}) == []
    assert warnings({"numpy": "2.4.6", "python": "3.11.7"}) == [
        "1 packages, and no combination that is known to break."
    ]


def test_a_build_of_torch_meets_a_pin_of_its_version():
    """`torch==2.13.0` is met by 2.13.0+cpu, and pre-releases are compared as what they are."""
    assert versions._within("2.13.0+cpu", "==2.13.0")
    assert versions._within("2.14.0rc1", ">=2.13") and not versions._within("2.13.0rc1", ">=2.13")


def test_our_bounds_are_read_from_our_metadata(monkeypatch):
    """pyproject's own lines, as a wheel carries them: a package of an extra that is too old is told with its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = [f'{text}; extra == "video"' for text in project["optional-dependencies"]["video"]] + project["dependencies"]
    monkeypatch.setattr(versions, "_requires", lambda package: ours if package == "eagle-kernels" else [])
    names = [Requirement(text).name for text in ours]
    told = unmet({"eagle-kernels": "0.2.0"} | dict.fromkeys(names, "0.0.1"))
    assert len(told) == len(names)
    assert any(line.startswith("eagle-kernels[video] asks for av>=") for line in told)
    assert any(line.startswith("eagle-kernels 0.2.0 asks for torch>=") for line in told)
