"""What a machine without a GPU can say about the kernels of csrc/: run them, and read what the compiler made of them.

`build`: a .cu file built by the C++ compiler, so that its kernels run where there is no GPU: every thread of a block
is a thread of the machine, __syncthreads() a barrier, __shared__ memory static. Blocks run one after another.
`resources`: registers, spills and shared memory of a kernel in the built module; `machine_code`: its instructions."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest

from eagle_kernels import native

ARCHITECTURES = ["sm_80", "sm_90a", "sm_100"]
CSRC = Path(__file__).parents[2] / "csrc"
FAKE_CUDA = """
#include <algorithm>
#include <barrier>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>
#define __global__
#define __device__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
using cudaStream_t = void*;
struct Index { unsigned x; };
static thread_local Index blockIdx, threadIdx, gridDim;
static std::unique_ptr<std::barrier<>> block_barrier;
inline void __syncthreads() { block_barrier->arrive_and_wait(); }
namespace eagle {
using std::min;
inline void check_launch(const char*) {}
struct DeviceGuard { explicit DeviceGuard(int) {} };
template <class Kernel, class... Args>
void launch(Kernel kernel, unsigned blocks, unsigned threads, Args... args) {
  block_barrier = std::make_unique<std::barrier<>>(threads);
  std::vector<std::jthread> workers;
  for (unsigned thread = 0; thread < threads; ++thread) {
    workers.emplace_back([=] {
      gridDim.x = blocks;
      threadIdx.x = thread;
      for (unsigned block = 0; block < blocks; ++block) {
        blockIdx.x = block;
        kernel(args...);
        __syncthreads();  // the next block has the same shared memory
      }
    });
  }
}
}
"""


def build(
    folder: Path,
    name: str,
    num_launches: int,
    entry_point: str,
    others: Sequence[str],
    constants: Mapping[str, str] = MappingProxyType({}),
) -> ctypes.CDLL:
    """csrc/<name>.cu, whose launches must be `num_launches`, with `entry_point` after it and csrc's files `others`;
    `constants` get other values, so that small cases reach their limits."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    source, num_found = re.subn(
        r"(\w+_kernel(?:<[^<>]+>)?)<<<(.+?), (\w+), 0, stream>>>\(",
        r"launch([](auto... args) { \1(args...); }, \2, \3, ",
        (CSRC / f"{name}.cu").read_text(),
        flags=re.DOTALL,
    )
    assert num_found == num_launches
    for constant, value in constants.items():
        source, num_found = re.subn(rf"(constexpr \w+ {constant}) = [^;]+;", rf"\1 = {value};", source)
        assert num_found == 1
    (folder / "kernels.cpp").write_text(FAKE_CUDA + source + entry_point)
    library = folder / "kernels.so"
    files = [folder / "kernels.cpp", *(CSRC / other for other in others)]
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wno-psabi", "-shared", "-fPIC", "-pthread", f"-I{CSRC}"]
    subprocess.run([compiler, *flags, *files, "-o", library], check=True)
    return ctypes.CDLL(str(library))


def resources(kernel: str, architecture: str) -> list[dict[str, int]]:
    """REG, STACK, SHARED and LOCAL (bytes a thread has spilled) of each instance of the kernel, for one GPU."""
    usages = re.findall(rf"Function \S*{kernel}\S*:\s*(.*)", _cuobjdump(architecture, "-res-usage"))
    return [{name: int(n) for name, n in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)} for usage in usages]


def machine_code(kernel: str, architecture: str) -> str:
    """The instructions, for one GPU, of the one kernel whose mangled name the pattern finds."""
    [name] = re.findall(rf"Function (\S*{kernel}\S*):", _cuobjdump(architecture, "-res-usage"))
    return _cuobjdump(architecture, "-sass", "-fun", name)


def _cuobjdump(architecture: str, *options: str) -> str:
    import triton

    if not native.build_info()["has_cuda"]:
        pytest.skip("built without nvcc: CPU code only")
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [str(cuobjdump), *options, "-arch", architecture, str(native.load().__file__)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
