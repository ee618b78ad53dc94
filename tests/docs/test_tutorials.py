"""Each tutorial runs, as a script and as the notebook that is made of it; the fast ones in every `make test`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate import tutorials

FAST = ("one_op", "your_qwen2", "film_to_tiles", "your_data", "adapters", "annotating", "benchmarks")
SLOW = [name for name in tutorials.NAMES if name not in FAST]
SCRIPTS = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
NOTEBOOKS = ["one_op", *(pytest.param(name, marks=pytest.mark.slow) for name in tutorials.NAMES if name != "one_op")]


def surroundings() -> dict[str, str]:
    """Of a process that runs a tutorial in another folder than the repository."""
    root = tutorials.FOLDER.parent.parent
    path = [str(root), str(tutorials.FOLDER), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in path if p), "MPLBACKEND": "agg"}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_runs(name: str, tmp_path: Path) -> None:
    """What it asserts of its own results holds."""
    command = [sys.executable, str(tutorials.FOLDER / f"{name}.py")]
    ran = subprocess.run(command, cwd=tmp_path, env=surroundings(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel", reason="needs ipykernel and nbclient (the extra `dev`)")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for key, value in surroundings().items():
        monkeypatch.setenv(key, value)
    book = nbformat.read(tutorials.FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=where).execute()
    assert any(cell.get("outputs") for cell in book.cells)


@pytest.mark.parametrize("name", tutorials.NAMES)
def test_the_notebook_is_that_of_the_script(name: str) -> None:
    script = (tutorials.FOLDER / f"{name}.py").read_text()
    made = (tutorials.FOLDER / f"{name}.ipynb").read_text()
    assert made == tutorials.notebook(script), "python -m docs.generate.tutorials writes it again"


def test_every_tutorial_is_listed() -> None:
    there = {path.stem for path in tutorials.FOLDER.glob("*.py")} - {"small"}
    assert there == set(tutorials.NAMES) == {path.stem for path in tutorials.FOLDER.glob("*.ipynb")}
    index = (tutorials.FOLDER.parent.parent / "docs/index.md").read_text()
    assert all(f"generated/tutorials/{name}\n" in index for name in tutorials.NAMES)


def test_cells_are_prose_and_code() -> None:
    script = "# %% [markdown]\n# # Title\n#\n# Text, [there](other.ipynb).\n\n# %%\nx = 1\n\n\n# %%\nprint(x)\n"
    assert tutorials.cells(script) == [
        (True, "# Title\n\nText, [there](other.ipynb)."),
        (False, "x = 1"),
        (False, "print(x)"),
    ]
    page = tutorials.page("it", script)
    assert page.startswith("# Title\n\nText, [there](other.md).\n\n*The same") and page.endswith("print(x)\n```\n")
    with pytest.raises(ValueError, match=r"marked '\[raw\]'"):
        tutorials.cells("# %% [raw]\n# x\n")
