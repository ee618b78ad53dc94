"""Packages that break each other, told before they do: `eagle doctor --versions`.

    print("\\n".join(warnings(installed())))

Two kinds of warnings. What the installed packages themselves ask of each other and do not find: vLLM's pins are such,
and the bounds of our extras; read from their metadata, so nothing here grows old. And `CLASHES`, a table of what no
metadata says. Each of its rows has been seen, or is a rule of its maker's; docs/compatibility.md says which. Nothing is
imported to find out: a package that would not load is named all the same.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from importlib import metadata

import torch
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from eagle_kernels import native

# Beside packages, what a version may be of. Absent where the machine has no such thing.
FACTS = (
    "python",
    "cuda-driver",  # the newest CUDA that the driver serves
    "gpu",  # compute capability, of the oldest GPU
    "native-cuda",  # which CUDA our native module was built with
    "torch-cpu",  # torch's own version, where it is a build for CPUs alone
    "torch-cuda",  # the CUDA of torch's build
    "torchvision-cuda",  # torchvision's version, unless it is a build for CPUs alone
)


@dataclass(frozen=True, kw_only=True)
class Clash:
    has: dict[str, str]  # packages or FACTS, all of them within these ranges; "": any version
    breaks: str
    instead: str


CLASHES: dict[str, Clash] = {
    "torchvision for CUDA, torch for CPUs": Clash(
        has={"torchvision-cuda": "", "torch-cpu": ""},
        breaks="`import torchvision` ends with 'operator torchvision::nms does not exist', and what imports it, too: "
        "lmms-eval, vLLM. PyPI has torchvision for CUDA alone",
        instead="pip uninstall torchvision (nothing here needs it), or take both from one index of PyTorch's",
    ),
    "filelock 4, lmms-eval": Clash(
        has={"filelock": ">=4", "lmms-eval": "<=0.7.2"},
        breaks="`import lmms_eval.evaluator` ends with No module named 'filelock._api'",
        instead="pip install 'filelock<4' in an environment for lmms-eval alone; examples/lmms_plugin/README.md has it",
    ),
    "PyAV 16 or later, lmms-eval": Clash(
        has={"av": ">=16", "lmms-eval": "<=0.7.2"},
        breaks="lmms-eval's own video reading is written for av<16. Ours needs av>=18, and the plug-in uses ours alone",
        instead="keep av, and install lmms-eval without its pins: examples/lmms_plugin/README.md",
    ),
    "another vLLM than the plug-in's": Clash(
        has={"vllm": "!=0.33.*"},
        breaks="the plug-in's pixels and token ids are compared with vLLM 0.33; its classes change with each version",
        instead="pip install vllm==0.33.0, or compare again: python -m tests.golden.make_vllm",
    ),
    "Triton 3.6": Clash(
        has={"triton": "==3.6.*"},
        breaks="nothing; some kernels keep more of a thread on the stack than 3.7's (docs/notes/ptx.md, Two Tritons): "
        "times may differ from those measured with 3.7",
        instead="Triton belongs to torch: a newer torch brings 3.7",
    ),
    "a Triton whose Gluon is not tested": Clash(
        has={"triton": ">=3.8", "gpu": "==9.0"},
        breaks="attention falls to Triton's kernels on this GPU: its Gluon kernels are tested with Triton 3.6 and 3.7",
        instead="a torch that brings Triton 3.7, where attention's speed matters",
    ),
    "torch for CUDA 13, an older driver": Clash(
        has={"torch-cuda": ">=13", "cuda-driver": "<13"},
        breaks="torch sees no GPU: CUDA 13 needs a driver of branch 580 or later",
        instead="a newer driver, or torch's build for CUDA 12 from PyTorch's own index",
    ),
    "our CUDA code for CUDA 13, an older driver": Clash(
        has={"native-cuda": ">=13", "cuda-driver": "<13"},
        breaks="frames_to_tiles, decode_attention and the native module's other CUDA ops end with 'CUDA driver version "
        "is insufficient for CUDA runtime version'",
        instead="a newer driver, or build again with an nvcc of CUDA 12.8 or 12.9 first on PATH",
    ),
    "DALI for CUDA 13, an older driver": Clash(
        has={"nvidia-dali-cuda130": "", "cuda-driver": "<13"},
        breaks="no video is decoded on the GPU: this DALI is for CUDA 13, which needs a driver of branch 580 or later",
        instead='a newer driver, or decode on the CPU, which is the default: video_decoder="cpu"',
    ),
    "Transformer Engine for CUDA 13, torch for CUDA 12": Clash(
        has={"transformer-engine-cu13": "", "torch-cuda": "<13"},
        breaks="Transformer Engine's library looks for CUDA 13's cuBLAS and cuDNN; torch brings those of CUDA 12",
        instead="torch's build for CUDA 13, then Transformer Engine compiled again: docs/fp8.md",
    ),
    "flash-attn, torch for CPUs": Clash(
        has={"flash-attn": "", "torch-cpu": ""},
        breaks="`import flash_attn` ends with a missing libc10_cuda.so or libtorch_cuda.so",
        instead="pip uninstall flash-attn; on a CPU attention needs no backend",
    ),
    "a Blackwell GPU, torch for an older CUDA": Clash(
        has={"gpu": ">=10", "torch-cuda": "<12.8"},
        breaks="torch's own kernels end with 'no kernel image is available': CUDA knows these GPUs from 12.8 on",
        instead="torch's build for CUDA 12.8 or later",
    ),
    "CPython 3.15 or later": Clash(
        has={"python": ">=3.15"},
        breaks="nothing that is known; no wheel is made and no test is run for it",
        instead="CPython 3.11 to 3.14",
    ),
}


def installed() -> dict[str, str]:
    """The version of each installed package, by its normalised name, and of each of `FACTS` that this machine has."""
    versions = {
        canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions() if d.metadata["Name"]
    }
    facts = {"python": platform.python_version(), "cuda-driver": _driver_cuda(), "native-cuda": _native_cuda()}
    if torch.version.cuda:
        facts["torch-cuda"] = torch.version.cuda
    elif not torch.version.hip:
        facts["torch-cpu"] = torch.__version__
    if "torchvision" in versions and Version(versions["torchvision"]).local != "cpu":
        facts["torchvision-cuda"] = versions["torchvision"]
    if torch.cuda.is_available():
        capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        facts["gpu"] = ".".join(map(str, min(capabilities)))
    return versions | {name: version for name, version in facts.items() if version}


def warnings(versions: dict[str, str]) -> list[str]:
    """The lines of `eagle doctor --versions`: first CLASHES, then what packages ask of each other and do not find."""
    found = [(name, clash) for name, clash in CLASHES.items() if holds(clash, versions)]
    lines = []
    for name, clash in found:
        have = ", ".join(f"{part} {versions[part]}" for part in clash.has)
        lines += [f"{name} ({have})", f"    breaks   {clash.breaks}", f"    instead  {clash.instead}"]
    lines += unmet(versions)
    return lines or [f"{len(versions.keys() - set(FACTS))} packages, and no combination that is known to break."]


def holds(clash: Clash, versions: dict[str, str]) -> bool:
    return all(name in versions and _within(versions[name], range_) for name, range_ in clash.has.items())


def unmet(versions: dict[str, str]) -> list[str]:
    """A line for each installed package that another one asks for in another version. What is missing altogether is not
    told: optional parts may be, and `pip check` lists them."""
    lines = []
    for asker in sorted(versions.keys() - set(FACTS)):
        for text in _requires(asker):
            try:
                asked = Requirement(text)
            except InvalidRequirement:
                continue  # of an old package, in a form that pip does not read either
            name = canonicalize_name(asked.name)
            if name not in versions or _within(versions[name], str(asked.specifier)):
                continue
            extra = _extra_of(asked)
            if extra is None or (
                extra and asker != "eagle-kernels"
            ):  # an extra of others: nobody may have asked for it
                continue
            wanted = f"{asker}[{extra}]" if extra else f"{asker} {versions[asker]}"
            lines.append(f"{wanted} asks for {name}{asked.specifier}; {versions[name]} is installed")
    return lines


def _requires(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []


def _extra_of(asked: Requirement) -> str | None:
    """ "" for what a package always asks for here, the extra's name for what one brings, None for another system's."""
    if asked.marker is None or asked.marker.evaluate({"extra": ""}):
        return ""
    words = str(asked.marker).split('extra == "')
    extra = words[1].split('"')[0] if len(words) > 1 else ""
    return extra if extra and asked.marker.evaluate({"extra": extra}) else None


def _within(version: str, range_: str) -> bool:
    return SpecifierSet(range_).contains(Version(version), prereleases=True)


def _native_cuda() -> str:
    try:
        return str(native.build_info()["cuda_version"])
    except ImportError:
        return ""  # `eagle doctor` tells why


def _driver_cuda() -> str:
    """Asked of the driver itself, so that a torch for CPUs, or one that cannot use the driver, does not hide it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)):
        return ""
    return f"{number.value // 1000}.{number.value % 1000 // 10}"
