"""Compiles kernels to the PTX of sm_90a on request, in a process where Triton's interpreter is off.

    python -m tests.kernels.hopper_compile      one request a line on stdin (JSON), one answer a line on stdout

A request names a module, a kernel in it, each argument's type and the options of a launch; the answer holds the PTX,
the bytes of shared memory, and the threads. Results stay in Triton's own cache on disk. ptxas does not run.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)


def stop_at_ptx(backend: Any = None, stages: Any = None, *_: Any) -> tuple[str, str] | None:
    """Triton asks this hook for its part of the cache's key, then to change the stages."""
    if stages is None:
        return "ptx", hashlib.sha256(b"ptx").hexdigest()
    stages["cubin"] = lambda ptx, metadata: b"none"
    return None


def source_of(kernel: Any, request: dict[str, Any]) -> Any:
    names = kernel.arg_names
    signature = request["signature"]
    constants = {(names.index(name),): value for name, value in request["constants"].items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in request["divisible"]}
    if type(kernel).__name__ == "GluonJITFunction":
        from triton.experimental.gluon._runtime import GluonASTSource

        return GluonASTSource(kernel, signature, constants, attributes)
    return ASTSource(kernel, signature, constants, attributes)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    kernel = getattr(importlib.import_module(request["module"]), request["kernel"])
    compiled = triton.compile(source_of(kernel, request), target=TARGET, options=request["options"])
    ptx = compiled.asm["ptx"]
    threads = re.search(r"\.reqntid\s+(\d+)", ptx)
    assert threads is not None
    return {
        "ptx": ptx,
        "shared_bytes": compiled.metadata.shared,
        "num_threads": int(threads[1]),
        "cluster": getattr(compiled.metadata, "num_ctas", 1),
        "triton": triton.__version__,
    }


def main() -> None:
    triton.knobs.runtime.add_stages_inspection_hook = stop_at_ptx
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
