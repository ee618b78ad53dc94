"""README and docs: their Python parses and imports what exists, what is marked `run` runs, quoted messages are in the
source, pictures and pages made from the code are those of this code."""

import ast
import importlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from docs.generate import api, docstrings, files, performance, pictures
from tests.docs.messages import HOLE, ROOT, all_messages

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "generated" not in p.parts),
]
NOT_HERE = {"eagle_model.hf": "transformers"}  # imported only where this package is


def python_blocks(text: str) -> list[tuple[str, str]]:
    """(info, code) of fenced blocks of Python, and of indented ones that import something of ours."""
    fenced = re.findall(r"^```(python[^\n]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^    .*\n|^\n(?=    ))+", rest, re.MULTILINE)
    ours = [
        ("python", textwrap.dedent(b)) for b in indented if re.search(r"^    (from|import) eagle_", b, re.MULTILINE)
    ]
    return fenced + ours


def imported(code: str) -> list[tuple[str, str | None]]:
    """(module, name) of everything of ours that a block imports; None for a module itself."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eagle_"):
            found += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names if alias.name.startswith("eagle_")]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_in_it_parses_and_names_what_exists(page: Path) -> None:
    for _, code in python_blocks(page.read_text()):
        for module, name in imported(code):
            if module in NOT_HERE:
                pytest.importorskip(NOT_HERE[module])
            there = importlib.import_module(module)
            if name is not None and not hasattr(there, name):
                importlib.import_module(f"{module}.{name}")  # a module of the package, or an error that says it


def test_blocks_are_found_and_what_is_wrong_in_them_is() -> None:
    text = (
        "```python\nfrom eagle_kernels import no_such_op\n```\n\n    from eagle_model import Eagle\n    Eagle(\n\nend\n"
    )
    (_, fenced), (_, indented) = python_blocks(text)
    assert imported(fenced) == [("eagle_kernels", "no_such_op")]
    with pytest.raises(SyntaxError):
        imported(indented)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("eagle_kernels.no_such_op")


def test_blocks_marked_run_run() -> None:
    blocks = [code for page in PAGES for info, code in python_blocks(page.read_text()) if info.split()[1:] == ["run"]]
    assert blocks
    for code in blocks:
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def quoted(text: str) -> list[str]:
    return [line.removeprefix("> ").strip() for line in text.splitlines() if line.startswith("> ")]


def is_said(message: str, messages: list[str]) -> bool:
    return any(message in text for text in messages)


def test_messages_of_troubleshooting_are_in_the_source() -> None:
    messages = [" ".join(text.split()) for text in all_messages()]
    quotes = quoted((ROOT / "docs/troubleshooting.md").read_text())
    assert len(quotes) > 20
    assert [quote for quote in quotes if not is_said(quote, messages)] == []
    assert all(max(map(len, quote.split(HOLE))) >= 6 for quote in quotes)  # words to search for
    assert not is_said("the film is too long for this model", messages)


def test_the_reference_has_all_that_packages_export_and_pages_name() -> None:
    entries = [entry for group in api.groups() for entry in group.entries]
    known = {entry.name for entry in entries}
    for package in ("eagle_kernels", "eagle_kernels.video", "eagle_model", "eagle_model.model", "eagle_model.infer"):
        missing = set(importlib.import_module(package).__all__) - known
        assert all(not callable(getattr(importlib.import_module(package), name)) for name in missing), missing
    assert {"choose_grid", "plan", "pack", "parallelize", "build", "load"} <= known
    assert all(entry.summary for entry in entries)
    for entry in entries:
        assert hasattr(importlib.import_module(entry.home), entry.name) or entry.module in NOT_HERE


def test_a_name_without_a_docstring_is_no_public_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "GROUPS", {"x": ("", {"eagle_model.data.index": ("_no_such",)})})
    with pytest.raises(ValueError, match="has no _no_such"):
        api.groups()
    silent = ast.parse("def silent(): ...").body[0]
    monkeypatch.setattr(api, "find", lambda module, name: (module, silent))
    with pytest.raises(ValueError, match="is public and has no docstring"):
        api.groups()


def test_signatures_and_docstrings_become_markdown() -> None:
    code = "def f(self, a: int, *, b: str = 'x', **more: int) -> None: ..."
    (node,) = ast.parse(code).body
    assert isinstance(node, ast.FunctionDef)
    assert api.signature(node, is_method=True) == "(a: int, *, b: str = 'x', **more: int) -> None"
    said = docstrings.to_markdown(
        """x ** 2 of each, `as_is`.

        y = f(x)

    Args:    x: (T,), of a_b.  y, z: two.
             w: on another line,
             and the next.
    Returns: <something>
    """
    )
    assert said.splitlines()[0] == r"x \*\* 2 of each, `as_is`."
    items = [r"- `x`: (T,), of a\_b.", "- `y, z`: two.", "- `w`: on another line, and the next."]
    assert [line for line in said.splitlines() if line.startswith("- ")] == items
    assert said.splitlines()[-1] == r"**Returns:** \<something\>"


def test_every_result_is_on_the_performance_page_with_machine_and_commit() -> None:
    page = performance.performance_page()
    for path in (ROOT / "bench/results").rglob("*.json"):
        name = str(path.relative_to(ROOT / "bench/results"))
        if name.removesuffix(".json") in performance.TABLES and "attention" not in name:
            continue  # a table of its own
        line = next(line for line in page.splitlines() if f"]({'../../bench/results/'}{name})" in line)
        assert re.search(r"commit [0-9a-f]{7}|commit not recorded", line), line
        if "machine" in json.loads(path.read_text()):
            assert "Python 3." in line and ("cores" in line or "Processor" in line), line


def test_a_new_result_is_shown_as_it_comes(tmp_path: Path) -> None:
    case = {"group": "swiglu", "name": "b", "params": {"way": "ours"}, "stats": {"median": 0.00123}}
    about = {"machine_info": {"python_version": "3.12", "gpu": "H100"}, "commit_info": {"id": "abcdef0123"}}
    (tmp_path / "h100-swiglu.json").write_text(json.dumps({**about, "benchmarks": [case]}))
    page = performance.performance_page(tmp_path)
    assert "| swiglu | 1.23 |" in page and "H100, Python 3.12, commit abcdef01" in page


def test_predictions_say_that_they_are() -> None:
    page = performance.performance_page()
    for title in ("Memory of the 8B's step", "Attention on an H100"):
        assert f"## {title}\n\n**Predicted**" in page


def test_pictures_are_what_the_code_decides() -> None:
    for name, text in pictures.pictures().items():
        assert (pictures.FOLDER / name).read_text() == text, "python -m docs.generate.pictures draws them again"


def test_links_out_of_docs_lead_to_pages_of_the_site() -> None:
    text = "[a](../CHANGELOG.md#x) [b](training.md) [c](../bench/results/static/static_table.md) [d](../examples/a.py)"
    here = "[a](generated/files/CHANGELOG.md#x) [b](training.md) [c](generated/files/static_table.md)"
    assert files.on_the_site("training", text) == f"{here} [d](../examples/a.py)"
    assert files.on_the_site("notes/x", "[a](../../SECURITY.md)") == "[a](../generated/files/SECURITY.md)"
    moved = files.moved("[a](docs/data.md) [b](bench/x.json) [c](https://x.org) [d](SECURITY.md) [e](#there)")
    assert moved == "[a](../../data.md) [b](../../../bench/x.json) [c](https://x.org) [d](SECURITY.md) [e](#there)"
