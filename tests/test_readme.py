"""The README is true: its code runs, its commands and files exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from eagle_model import cli
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import parse_sample

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MADE = ROOT / "docs/generated"  # pages of the site that are made from the code: tests/docs
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if MADE not in page.parents),
]


def test_its_python_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True, cwd=ROOT, timeout=120)


def test_its_commands_exist() -> None:
    commands = set(get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"^    eagle (\w+)", README, re.MULTILINE)) == commands
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make (\w+)`|^    make (\w+)", page.read_text(), re.MULTILINE)) <= {
            pair for t in targets for pair in ((t, ""), ("", t))
        }, page


def test_its_extras_exist() -> None:
    extras = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    named = set(re.findall(r"pip install '\.\[(\w+)\]'", README))
    further = re.search(r"Further extras: (.*)\.\n", README)
    assert further is not None
    assert named | set(re.findall(r"`([\w-]+)`", further[1])) <= extras


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_files_it_names_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        made = re.fullmatch(r"generated/(tutorials/)?(\w+)\.md", link)  # by make docs, whose test follows it
        sources = "examples/tutorials" if made and made[1] else "docs/generate"
        assert (page.parent / link if made is None else ROOT / sources / f"{made[2]}.py").exists(), link
    for path in re.findall(
        r"(?:^|[\s`(])((?:eagle_kernels|eagle_model|bench|tests|docs|examples|csrc)/[\w/.-]+\w)", text
    ):
        assert (ROOT / path).exists(), path


def test_the_rows_of_the_data_page_are_read(tmp_path: Path) -> None:
    examples = [
        json.loads(line) for line in re.findall(r"^    (\{.*\})$", (ROOT / "docs/data.md").read_text(), re.MULTILINE)
    ]
    rows = [e for e in examples if "conversations" in e or "messages" in e]
    assert len(rows) == 7
    for row in rows:
        sample = parse_sample(row, root=tmp_path, where="docs/data.md")
        assert len(sample.media) == 1
        assert sample.turns[-1].role == "assistant"

    (recipe,) = [e for e in examples if e not in rows]
    for source in recipe.values():
        (tmp_path / source["root"]).mkdir()
        names = source["annotation"] if isinstance(source["annotation"], list) else [source["annotation"]]
        for name in names:
            (tmp_path / name).touch()
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert [source.name for source in read_recipe(tmp_path / "recipe.json")] == ["pages", "films"]


def test_one_video_is_followed_as_a_trace_finds_it() -> None:
    """`python -m tests.follow_one_video --write` puts it right."""
    pytest.importorskip("av", reason="needs PyAV (the extra `video`)")
    seen = subprocess.run([sys.executable, "-m", "tests.follow_one_video"], capture_output=True, text=True, cwd=ROOT)
    assert seen.returncode == 0, seen.stderr
    block = re.search(r"## Follow one video\n\n```\n(.*?)```\n", README, re.DOTALL)
    assert block is not None
    assert seen.stdout.partition("\n\n")[0] == block[1].rstrip()
