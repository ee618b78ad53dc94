"""The built module and its wheel: no torch inside, no CUDA library to find, three architectures, a portable wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import eagle_kernels
from eagle_kernels import native
from tests.wheels import GLIBC, check_floor, load

ROOT = Path(__file__).parent.parent
SYSTEM_LIBRARIES = re.compile(r"^(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|ld-linux.*)\.so\.\d+$")
FOREIGN_SYMBOL = re.compile(r"torch|THP|_ZNK?(St\d+)?\d*(3c10|2at)\d|3c10|N2at\d|^_?cu[A-Z]|^_?cuda[A-Z]")


def module_file() -> Path:
    spec = importlib.util.find_spec("eagle_kernels._native")
    assert spec is not None, "eagle_kernels._native is not built: pip install -e . --no-build-isolation"
    assert spec.origin is not None
    return Path(spec.origin)


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(c) for c in command], text=True, capture_output=True, **options)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def elf(path: Path) -> tuple[set[str], set[str]]:
    """The libraries that the file asks for, and every name in its symbol tables."""
    elffile = pytest.importorskip("elftools.elf.elffile", reason="needs pyelftools (the extra `dev`)")
    with path.open("rb") as stream:
        sections = list(elffile.ELFFile(stream).iter_sections())
        tags = [tag for s in sections if s.name == ".dynamic" for tag in s.iter_tags()]
        needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
        names = {symbol.name for s in sections if s.name in {".dynsym", ".symtab"} for symbol in s.iter_symbols()}
    return needed, names


def test_the_pattern_of_foreign_symbols_finds_them():
    for name in [
        "_ZN3c105ErrorC1ENS_14SourceLocationE",
        "_ZNK2at6Tensor4sizeEl",
        "_ZN5torch8autogradE",
        "THPVariable_Wrap",
        "cuLaunchKernel",
        "cudaMalloc",
    ]:
        assert FOREIGN_SYMBOL.search(name), name
    for name in ["PyInit__native", "_ZN5eagle19frames_to_tiles_cpuE", "_ZNSt6vectorIiE", "_ZNSt11char_traitsIcE"]:
        assert not FOREIGN_SYMBOL.search(name), name


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_the_module_knows_no_torch_and_needs_no_cuda_library():
    needed, names = elf(module_file())
    assert [library for library in needed if not SYSTEM_LIBRARIES.match(library)] == []
    assert "PyInit__native" in names
    assert [name for name in names if FOREIGN_SYMBOL.search(name)] == []
    text = module_file().read_bytes()
    assert b"libtorch" not in text
    assert b"libcudart.so" not in text


def import_alone(module: Path) -> str:
    """Imports that file in a Python without site-packages (-S): no torch, no numpy. Prints has_cuda."""
    code = f"""
import importlib.util
assert importlib.util.find_spec("torch") is None
spec = importlib.util.spec_from_file_location("eagle_kernels._native", {str(module)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.build_info()["has_cuda"])
"""
    return run(sys.executable, "-I", "-S", "-c", code).strip()


def test_the_module_imports_where_there_is_no_torch():
    """And, on a machine without a GPU, where there is no driver."""
    assert import_alone(module_file()) == str(native.build_info()["has_cuda"])


@pytest.mark.skipif(not native.build_info()["has_cuda"], reason="built without nvcc: CPU code only")
def test_the_module_holds_code_for_three_architectures_and_ptx():
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    assert set(re.findall(r"sm_\w+(?=\.cubin)", run(cuobjdump, "--list-elf", module_file()))) == {
        "sm_80",
        "sm_90a",
        "sm_100",
    }
    num_sources = len(list((ROOT / "csrc").glob("*.cu")))  # each has its own PTX
    assert re.findall(r"sm_\w+(?=\.ptx)", run(cuobjdump, "--list-ptx", module_file())) == ["sm_80"] * num_sources


def test_a_missing_compiler_is_one_sentence(tmp_path):
    """As with `pip install .` on a machine that has none; pip shows what the build printed last."""
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "CMAKE_ARGS")} | {"PATH": str(tmp_path)}
    folders = ("--build-temp", tmp_path / "temporary", "--build-lib", tmp_path / "lib")
    command = (sys.executable, "setup.py", "-q", "build_ext", *folders)
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: no C\+\+ compiler was found \(c\+\+, .*\); needs one of C\+\+20\. .*apt install g\+\+.*\n", done.stderr
    )


def make_sdist(folder: Path) -> Path:
    """The source distribution, unpacked."""
    command = ("setup.py", "-q", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder)
    run(sys.executable, *command, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_the_source_distribution_is_complete(tmp_path):
    """With its tests and all that they read; a part of the tests, as setuptools packs by itself, does not collect."""
    root = make_sdist(tmp_path)
    names = {"bench", "csrc", "docs", "eagle_kernels", "eagle_model", "examples", "tests", ".ci", ".github"}
    wanted = {p for name in names for p in (ROOT / name).rglob("*") if p.is_file() and p.suffix not in (".pyc", ".so")}
    passed_over = {".git", ".gitignore"}  # of a checkout alone
    wanted |= {p for p in ROOT.iterdir() if p.is_file() and p.name not in passed_over and p.suffix != ".png"}
    packed = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    assert sorted({path.relative_to(ROOT) for path in wanted} - packed) == []
    assert not [path for path in packed if path.suffix in (".pyc", ".so")]


@pytest.mark.slow
def test_the_tests_of_the_source_distribution_collect(tmp_path):
    root = make_sdist(tmp_path)
    shutil.copy(module_file(), root / "eagle_kernels")
    collect = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests", "bench")
    told = run(*collect, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    assert "error" not in told.splitlines()[-1]


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (the extra `dev`)")
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel checks Linux wheels")
def test_a_wheel_without_nvcc_is_portable(tmp_path):
    """Builds from the files that git has, with neither nvcc nor torch in sight, in two minutes at most: the build says
    so, and the wheel stands alone."""
    auditwheel, patchelf = tool("auditwheel"), tool("patchelf")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("csrc", "eagle_kernels", "eagle_model"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    compilers = {str(Path(found).parent) for found in map(shutil.which, ("c++", "g++", "cc")) if found}
    folders = [Path(patchelf).parent, Path(sys.executable).parent, *sorted(compilers), "/usr/bin", "/bin"]
    if any((Path(folder) / "nvcc").exists() for folder in folders):
        pytest.skip("nvcc lies in the compiler's own folder")
    left_out = {"CUDACXX", "CUDA_HOME", "CUDA_PATH", "CMAKE_ARGS"}
    (tmp_path / "no_torch").mkdir()
    (tmp_path / "no_torch/torch.py").write_text("raise ImportError('the build must not need torch')\n")
    environment = {k: v for k, v in os.environ.items() if k not in left_out} | {
        "PATH": os.pathsep.join(map(str, folders)),
        "PYTHONPATH": str(tmp_path / "no_torch"),
    }
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = (*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-v", "-w", tmp_path)
    log = run(*build, env=environment, timeout=120)
    assert "eagle_kernels: no nvcc on PATH, so CPU code only." in log

    (wheel,) = tmp_path.glob("eagle_kernels-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        p.relative_to(ROOT).as_posix() for f in ("eagle_kernels", "eagle_model") for p in (ROOT / f).rglob("*.py")
    }
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    extras = set(re.findall(r"^Provides-Extra: (\S+)", zipfile.ZipFile(wheel).read(metadata).decode(), re.MULTILINE))
    assert extras >= {"train", "video", "dali", "fp8", "flash-attn", "bench", "serve", "demo", "dev"}
    about = zipfile.ZipFile(wheel).read(metadata).decode()
    assert f"\nVersion: {eagle_kernels.__version__}\n" in about
    assert "\nRequires-Python: >=3.11\n" in about and "\nLicense-Expression: Apache-2.0\n" in about
    assert metadata.replace("METADATA", "licenses/LICENSE") in names
    (binary,) = {name for name in names if name.endswith(".so")}
    assert binary == f"eagle_kernels/{module_file().name}"
    installed = {name for name in names if ".dist-info/" not in name}
    others = {"eagle_kernels/py.typed", "eagle_model/py.typed", "eagle_model/train/report.html.jinja"}
    others |= {"eagle_model/infer/page.html"}
    prompts = {p.relative_to(ROOT).as_posix() for p in (ROOT / "eagle_model/annotate/prompts").iterdir()}
    assert installed == sources | others | prompts | {binary}

    run(auditwheel, "repair", wheel, "-w", tmp_path / "repaired", env=environment)
    (repaired,) = (tmp_path / "repaired").glob("*.whl")
    check_floor(repaired, GLIBC)
    assert {n for n in zipfile.ZipFile(repaired).namelist() if n.endswith(".so") or ".libs/" in n} == {binary}
    target = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--no-index", "--target", target, repaired)
    assert import_alone(target / binary) == "False"
    assert load(repaired, sys.executable).startswith("CPU code alone by ")


@pytest.mark.parametrize(
    ("tag", "glibc", "wrong"),
    [
        ("manylinux_2_34_x86_64", "2.34", None),
        ("manylinux_2_27_x86_64.manylinux_2_28_x86_64", "2.28", None),
        ("manylinux_2_36_x86_64", "2.34", r"asks for glibc 2\.36; needs at most 2\.34\. Build on an older system"),
        ("manylinux_2_9_x86_64", "2.28", None),  # as numbers, not as letters
        ("linux_x86_64", "2.34", "no manylinux_X_Y in its name"),
    ],
)
def test_a_wheel_that_asks_for_a_newer_c_library_is_refused(tag, glibc, wrong):
    wheel = Path(f"eagle_kernels-0.2.0-cp311-cp311-{tag}.whl")
    if wrong is None:
        check_floor(wheel, glibc)
    else:
        with pytest.raises(SystemExit, match=wrong):
            check_floor(wheel, glibc)
