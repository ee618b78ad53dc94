"""One name in every world: each source file has its test, each op its bench, each test its source."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = [p for p in (ROOT / "eagle_kernels").glob("*.py") if p.stem not in {"__init__", "checks"}]
MIRRORS = [(p, ROOT / "tests/kernels" / f"test_{p.stem}.py") for p in KERNELS] + [
    (p, ROOT / "tests" / folder / p.relative_to(ROOT / source).with_name(f"test_{p.name}"))
    for source, folder in [
        ("eagle_kernels/video", "video"),
        ("eagle_model/data", "data"),
        ("eagle_model/model", "model"),
        ("eagle_model/train", "train"),
    ]
    for p in (ROOT / source).rglob("*.py")
    if p.stem != "__init__"
]


@pytest.mark.parametrize(("source", "test"), MIRRORS, ids=lambda p: p.name)
def test_a_source_file_has_its_test(source: Path, test: Path) -> None:
    assert test.is_file(), f"{source.relative_to(ROOT)} needs {test.relative_to(ROOT)}"


@pytest.mark.parametrize("op", sorted(p.stem for p in KERNELS if p.stem != "native"))
def test_an_op_has_its_bench(op: str) -> None:
    assert (ROOT / "bench" / f"bench_{op}.py").is_file()
