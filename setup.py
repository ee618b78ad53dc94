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

ROOT = Path(__file__).parent.resolve()


def find_tool(name: str) -> str:
    """The program beside this Python first (a virtual environment that is not activated), then on PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise RuntimeError(
            f"{name} was not found. Install it with `pip install {name}`, or build without --no-build-isolation."
        )
    return found


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
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
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build)], check=True)


setup(ext_modules=[Extension("eagle_kernels._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
