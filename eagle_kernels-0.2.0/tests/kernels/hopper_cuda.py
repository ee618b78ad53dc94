"""csrc's CUDA code, its host side built by the C++ compiler and its kernels run as nvcc's PTX for sm_90a by tests/ptx.

    code = CudaCode(folder, "merge_attention", 1, ENTRY_POINT, ["merge_attention.cpp"])
    code.run("run_kernels", pointers_and_numbers, tensors=[...], schedule=Schedule(seed=1))

The host side computes grids and packs arguments as it does for a GPU; where it would launch, it calls back here.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from tests.kernels.cuda_on_cpu import CSRC
from tests.ptx.launch import launch_packed
from tests.ptx.machine import Schedule
from tests.ptx.memory import HostMemory
from tests.ptx.parse import parse
from tests.ptx.translate import Program

NVCC_FLAGS = ["-std=c++20", "-O3", "--fmad=false", "-arch=sm_90a"]  # as CMakeLists.txt
FAKE_CUDA = """
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>
#define __global__
#define __device__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
using cudaStream_t = void*;
struct Index { unsigned x; };
static Index blockIdx, threadIdx, gridDim;
inline void __syncthreads() {}
static void (*called)(const char* kernel, unsigned blocks, unsigned threads, int count, const void** data,
                      const int64_t* sizes);
static int num_launches;
extern "C" void on_launch(decltype(called) function) { called = function; }
namespace eagle {
using std::min;
inline void check_launch(const char*) {}
struct DeviceGuard { explicit DeviceGuard(int) {} };
template <auto kernel> struct Launch;
template <class... P, void (*kernel)(P...)>
struct Launch<kernel> {
  template <class... Args>
  static void run(unsigned blocks, unsigned threads, const Args&... args) {
    pass(blocks, threads, static_cast<const std::remove_cvref_t<P>&>(args)...);
  }
  static void pass(unsigned blocks, unsigned threads, const std::remove_cvref_t<P>&... args) {
    const void* data[] = {&args...};
    const int64_t sizes[] = {static_cast<int64_t>(sizeof(args))...};
    ++num_launches;
    called(__PRETTY_FUNCTION__, blocks, threads, sizeof...(P), data, sizes);
  }
};
}
"""
CALLBACK = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.c_uint,
    ctypes.c_uint,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_int64),
)


class CudaCode:
    """csrc/<name>.cu, whose launches must be `num_launches`, with `entry_point` after it and csrc's files `others`."""

    def __init__(
        self, folder: Path, name: str, num_launches: int, entry_point: str, others: Sequence[str],
        constants: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        compiler = shutil.which("c++")
        if compiler is None or shutil.which("nvcc") is None:
            pytest.skip("needs a C++ compiler and nvcc")
        source = (CSRC / f"{name}.cu").read_text()
        for constant, value in constants.items():
            source, num_found = re.subn(rf"(constexpr \w+ {constant}) = [^;]+;", rf"\1 = {value};", source)
            assert num_found == 1
        (folder / "kernels.cu").write_text(source)
        command = ["nvcc", *NVCC_FLAGS, "-ptx", f"-I{CSRC}", "-o", folder / "kernels.ptx", folder / "kernels.cu"]
        subprocess.run(command, check=True)
        host, num_found = re.subn(
            r"(\w+_kernel(?:<[^<>]+>)?)<<<(.+?), (\w+), 0, stream>>>\(",
            r"Launch<\1>::run(\2, \3, ",
            source,
            flags=re.DOTALL,
        )
        assert num_found == num_launches
        (folder / "kernels.cpp").write_text(FAKE_CUDA + host + entry_point)
        files = [folder / "kernels.cpp", *(CSRC / other for other in others)]
        flags = ["-std=c++20", "-O0", "-Wno-psabi", "-shared", "-fPIC", f"-I{CSRC}"]
        subprocess.run([compiler, *flags, *files, "-o", folder / "kernels.so"], check=True)
        self.library = ctypes.CDLL(str(folder / "kernels.so"))
        self.ptx = (folder / "kernels.ptx").read_text()
        self.programs: dict[str, Program] = {}
        self.callback = CALLBACK(self._launched)
        self.library.on_launch(self.callback)
        self.failed: BaseException | None = None

    @cached_property
    def names(self) -> dict[str, str]:
        """The PTX's name of each kernel by its C++ name."""
        demangle = getattr(ctypes.CDLL("libstdc++.so.6"), "__cxa_demangle")  # else Python changes the name
        demangle.restype = ctypes.c_char_p
        return {_plain(demangle(name.encode(), None, None, None).decode()): name for name in parse(self.ptx).kernels}

    def run(self, function: str, *args: Any, tensors: Sequence[torch.Tensor], schedule: Schedule | None = None) -> Any:
        """Calls the entry point. The kernels may touch the memory of `tensors` alone."""
        arrays = [(t.untyped_storage(), t) for t in tensors]
        self.memory = HostMemory([(_array(storage), True) for storage, _ in arrays])
        self.schedule = schedule or Schedule(order="together")
        self.failed, self.ran = None, []
        result = getattr(self.library, function)(*args)
        if self.failed is not None:
            raise self.failed
        return result

    def _launched(self, kernel: bytes, blocks: int, threads: int, count: int, data: Any, sizes: Any) -> None:
        if self.failed is not None:
            return
        try:
            name = self.names[_plain(kernel.decode().rpartition(" = ")[2].rstrip("]"))]
            if name not in self.programs:
                self.programs[name] = Program(self.ptx, name)
            program = self.programs[name]
            block = bytearray(program.kernel.param_bytes)
            for i, param in enumerate(program.kernel.params):
                assert sizes[i] == param.size, (param, sizes[i])
                block[param.offset : param.offset + param.size] = ctypes.string_at(data[i], sizes[i])
            self.ran.append(name)
            launch_packed(
                program, self.memory, bytes(block), {}, grid=(blocks,), num_threads=threads, schedule=self.schedule
            )
        except BaseException as error:  # an exception cannot pass through C++
            self.failed = error


def _array(storage: torch.UntypedStorage) -> Any:
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()  # type: ignore[call-overload]


def _plain(name: str) -> str:
    """Without namespaces and argument types, as the C++ compiler and the demangler agree."""
    for text in ("eagle::", "(anonymous namespace)::", "{anonymous}::", "void "):
        name = name.replace(text, "")
    name = name.replace("short unsigned int", "unsigned short")
    return re.sub(r"\(.*", "", name).strip()
