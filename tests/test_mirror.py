"""One name in every world: a source file, its test, its bench and its native code are found by one name, either way."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = {  # tests/<name> mirrors these folders
    "kernels": ("eagle_kernels/*.py",),
    "video": ("eagle_kernels/video/**/*.py",),
    "integrations": ("eagle_kernels/integrations/*.py",),
    "data": ("eagle_model/data/**/*.py",),
    "model": ("eagle_model/model/**/*.py",),
    "train": ("eagle_model/train/**/*.py",),
    "infer": ("eagle_model/infer/**/*.py",),
    "evaluate": ("eagle_model/evaluate/**/*.py",),
    "annotate": ("eagle_model/annotate/**/*.py",),
}
HELPERS = {"kernels": ("bench/static_table.py", "tests/kernels/*.py")}  # not of the package, tested too
WHOLE = {
    "bad_media",
    "fp8_training",
    "whole_model",
    "hopper_attention",
    "loader_ranks",
    "peft",
    "released_folders",
    "reported_inputs",
    "served_page",
    "trainer_ranks",
}  # tests of several files together
UNTESTED = {"__init__", "checks"}  # checks: by the tests of every op, and its own
PARTS = {  # what ops are made of: no bench of their own
    "attention_gluon", "attention_gluon_bwd", "attention_sm90", "attention_triton", "autocast", "library",
    "linear_cross_entropy_triton", "native", "tiles",
}  # fmt: skip
SHARED = {  # native code that serves several ops, or the module
    "attention_heads", "bindings", "device", "error", "number_types", "parallel", "tensor_view",
}  # fmt: skip
BENCHES = {
    "checkpoint",
    "data",
    "decode",
    "decode_dali",
    "evaluate",
    "generate",
    "images",
    "loader",
    "media",
    "memory",
    "parallel",
    "progressive",
    "scaling",
    "serve",
    "step",
}  # benches of what is no op: decoding, generation, training


def stems(*patterns: str) -> set[str]:
    return {path.stem for pattern in patterns for path in ROOT.glob(pattern)}


OPS = stems("eagle_kernels/*.py") - UNTESTED - PARTS


def places(pattern: str) -> set[str]:
    """Files without their ending, with the folders that the pattern leaves open: "libav/reader", ..."""
    base = ROOT / pattern.split("*")[0]
    return {str(path.relative_to(base).with_suffix("")) for path in ROOT.glob(pattern) if path.stem != "__init__"}


@pytest.mark.parametrize("name", TREES)
def test_sources_and_tests_have_each_other(name: str) -> None:
    """Folder by folder: tests/video/libav/test_reader.py is the test of eagle_kernels/video/libav/reader.py."""
    sources = set().union(*map(places, TREES[name]))
    tests = {place.replace("test_", "", 1) for place in places(f"tests/{name}/**/test_*.py")} - WHOLE
    assert not sources - UNTESTED - tests, "source files without a test"
    assert not tests - sources - stems(*HELPERS.get(name, ())), "tests without a source file"


def test_sources_beside_the_folders_have_their_tests() -> None:
    assert not stems("eagle_model/*.py") - UNTESTED - {stem.removeprefix("test_") for stem in stems("tests/test_*.py")}


def test_ops_and_benches_have_each_other() -> None:
    assert stems("bench/bench_*.py") == {f"bench_{name}" for name in OPS | BENCHES}


def test_native_code_is_named_as_its_python() -> None:
    """`csrc/x.*` is the code of x.py, and whoever calls the native module has such code."""
    native = {path.stem.removesuffix("_cpu") for path in (ROOT / "csrc").iterdir()} - SHARED
    assert native <= stems("eagle_kernels/**/*.py")
    callers = {p.stem for p in (ROOT / "eagle_kernels").rglob("*.py") if "native.load()" in p.read_text()}
    assert callers - PARTS <= native
