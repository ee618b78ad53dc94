"""What this machine can do, and what to install for the rest: `eagle doctor`.

    print("\\n".join(examine()))

Each line is whole, however narrow the terminal: a command that is wrapped by a table cannot be copied.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

from eagle_kernels import attention_sm90, native

LEAST_SM = 80  # of GPUs: what the kernels are written and compiled for
NATIVE_CUDA_OPS = (  # whose CUDA code is in the native module; the others' is Triton's
    "attention_plan",
    "decode_attention",
    "frames_to_tiles",
    "merge_attention",
    "scatter_visual",
    "yuv_to_tiles",
)
PACKAGES = (  # name, what it gives, how to get it
    ("triton", "the Triton kernels", "triton"),
    ("av", "video on the CPU", "'eagle-kernels[video]'"),
    ("nvidia-dali-cuda130", "video on a GPU", "'eagle-kernels[dali]'"),
    ("tokenizers", "text, eagle plan and eagle chat", "'eagle-kernels[serve]'"),
    ("pyarrow", "eagle data: parquet", "'eagle-kernels[data]'"),
    ("lmdb", "eagle data: LMDB", "'eagle-kernels[data]'"),
    ("matplotlib", "eagle train and its report", "'eagle-kernels[train]'"),
    ("torchao", "eagle train with base_weights=nf4", "'eagle-kernels[qlora]'"),
    ("transformer-engine", "eagle train with fp8 on a GPU", "--no-build-isolation 'eagle-kernels[fp8]'"),
    ("pytest-benchmark", "eagle bench, from a checkout", "'eagle-kernels[bench]'"),
    ("flash-attn", "a rival in the benches", "'eagle-kernels[flash-attn]'"),
    ("liger-kernel", "a rival in the benches", "'eagle-kernels[rivals]'"),
)


def examine() -> list[str]:
    """The lines of `eagle doctor`: parts and what they give, then the commands for what is missing."""
    build, native_row = _native()
    versions = {name: version(name) for name, _, _ in PACKAGES}
    rows = [
        ("eagle-kernels", version("eagle-kernels") or "not installed", f"Python {platform.python_version()}"),
        native_row,
        ("torch", torch.__version__, f"{torch.get_num_threads()} threads on {os.cpu_count()} CPUs"),
        *_gpus(bool(build.get("has_cuda"))),
        *((name, versions[name] or "missing", gives) for name, gives, _ in PACKAGES),
    ]
    part_chars, state_chars = (max(len(row[i]) for row in rows) for i in (0, 1))
    lines = [f"{part:{part_chars}}  {state:{state_chars}}  {gives}" for part, state, gives in rows]
    if missing := [(name, source) for name, _, source in PACKAGES if versions[name] is None]:
        lines += ["", "To install what is missing:", *(f"pip install {source}" for _, source in missing)]
    return lines


def version(package: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _native() -> tuple[dict[str, object], tuple[str, str, str]]:
    try:
        build = native.build_info()
    except ImportError as error:
        return {}, ("native module", "missing", str(error))
    cpu = f"{build['simd'] or 'plain'} CPU code by {build['compiler']}"
    if build["has_cuda"]:
        return build, ("native module", "built", f"{cpu}, CUDA {build['cuda_version']}: {build['cuda_architectures']}")
    without = f"built without CUDA: {', '.join(NATIVE_CUDA_OPS)} take CPU tensors alone; for the rest install it again "
    return build, ("native module", "built", f"{cpu}; {without}with nvcc on PATH")


def _gpus(has_cuda: bool) -> list[tuple[str, str, str]]:
    if not torch.cuda.is_available():
        why = (
            f"none that torch's CUDA {torch.version.cuda} can use" if torch.version.cuda else "torch is for CPUs alone"
        )
        return [("GPU", "none", f"{why}: ops run their CPU code")]
    rows = []
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        sm = 10 * gpu.major + gpu.minor
        if sm < LEAST_SM:
            runs = f"sm_{sm} needs sm_{LEAST_SM} or later: no kernel runs on it"
        else:
            gluon = sm == 90 and attention_sm90.is_tested()
            kernels = "Triton's kernels run, attention's as Gluon kernels" if gluon else "Triton's kernels run"
            natives = "the native module's too" if has_cuda else "the native module's do not: it has no CUDA code"
            runs = f"sm_{sm}, {gpu.total_memory / 2**30:.0f} GiB: {kernels}; {natives}"
        rows.append((f"GPU {i}", gpu.name, runs))
        if sm == 90:  # one attention kernel for each line of its table
            rows += [(f"GPU {i}, attention", taker, f"where {what}") for what, taker in attention_sm90.table()[1:]]
    return rows
