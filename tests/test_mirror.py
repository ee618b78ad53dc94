"""One name in every world: a source file, its test, its bench and its native code are found by one name, either way."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = {  # tests/<name> mirrors these folders
    "kernels": ("eagle_kernels/*.py",),
    "video": ("eagle_kernels/video/**/*.py",),
    "data": ("eagle_model/data/**/*.py",),
    "model": ("eagle_model/model/**/*.py",),
    "train": ("eagle_model/train/**/*.py",),
}
HELPERS = {"kernels": ("bench/static_table.py", "tests/kernels/conftest.py")}  # no source of the package, tested too
WHOLE = {"test_whole_model"}  # tests of a folder's files together
UNTESTED = {"__init__", "checks"}  # checks: by the tests of every op, and its own
PARTS = {"attention_triton", "library", "native", "tiles"}  # what ops are made of: no bench of their own
SHARED = {  # native code that serves several ops, or the module
    "attention_heads", "bindings", "device", "error", "number_types", "parallel", "tensor_view",
}  # fmt: skip
BENCHES = {"decode", "decode_dali"}  # benches of what is no op: decoding


def stems(*patterns: str) -> set[str]:
    return {path.stem for pattern in patterns for path in ROOT.glob(pattern)}


OPS = stems("eagle_kernels/*.py") - UNTESTED - PARTS


@pytest.mark.parametrize("name", TREES)
def test_sources_and_tests_have_each_other(name: str) -> None:
    sources = stems(*TREES[name])
    tests = {stem.removeprefix("test_") for stem in stems(f"tests/{name}/**/test_*.py") - WHOLE}
    assert not sources - UNTESTED - tests, "source files without a test"
    assert not tests - sources - stems(*HELPERS.get(name, ())), "tests without a source file"


def test_ops_and_benches_have_each_other() -> None:
    assert stems("bench/bench_*.py") == {f"bench_{name}" for name in OPS | BENCHES}


def test_native_code_is_named_as_its_python() -> None:
    """`csrc/x.*` is the code of x.py, and whoever calls the native module has such code."""
    native = {path.stem.removesuffix("_cpu") for path in (ROOT / "csrc").iterdir()} - SHARED
    assert native <= stems("eagle_kernels/**/*.py")
    callers = {p.stem for p in (ROOT / "eagle_kernels").rglob("*.py") if "native.load()" in p.read_text()}
    assert callers - PARTS <= native
