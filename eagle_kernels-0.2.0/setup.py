"""Builds eagle_kernels._native with CMake and Ninja; everything else about the package is in pyproject.toml.

Needs neither torch nor a GPU. With nvcc the module holds CUDA code, without it the CPU code alone; CMake prints which.
Options for CMake go through its usual variable:  CMAKE_ARGS="-DEAGLE_CUDA=OFF" pip install .
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
COMPILERS = ("c++", "CC", "g++", "clang++", "icpx", "nvc++")  # what CMake looks for


def find_tool(name: str) -> str:
    """The program beside this Python first (a virtual environment that is not activated), then on PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise CompileError(
            f"{name} was not found. Install it with `pip install {name}`, or build without --no-build-isolation."
        )
    return found


def find_compiler() -> None:
    """CMake's own message about a missing compiler is ten lines long and names none to install."""
    is_named = "CXX" in os.environ or "CMAKE_CXX_COMPILER" in os.environ.get("CMAKE_ARGS", "")
    if not is_named and not any(shutil.which(name) for name in COMPILERS):
        raise CompileError(
            f"no C++ compiler was found ({', '.join(COMPILERS)}); needs one of C++20. Debian, Ubuntu: apt install g++; "
            "Fedora: dnf install gcc-c++; elsewhere name one: CXX=/path/to/compiler."
        )


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        find_compiler()
        cmake = find_tool("cmake")
        configure = [
            cmake,
            "--fresh",  # no option of an earlier build, and no path of an isolated one, stays behind
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DEAGLE_OUTPUT_DIRECTORY={target.parent}",
            f"-DEAGLE_OUTPUT_NAME={target.name}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        self.run_or_stop(configure)
        self.run_or_stop([cmake, "--build", str(build)])

    def run_or_stop(self, command: list[str]) -> None:
        """CMake has said what is wrong; setuptools prints what is raised here as one line after it, no traceback."""
        if code := subprocess.run(command).returncode:
            raise CompileError(f"eagle_kernels: {command[0]} ended with {code}; its reason stands above.")


setup(ext_modules=[Extension("eagle_kernels._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
