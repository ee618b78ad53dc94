"""cli_annotate.py: the command, its budget and its share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eagle_model.annotate.config import AnnotateConfig
from tests.annotate.conftest import annotator, films, make_config  # noqa: F401  # a fixture
from tests.test_cli import run


@pytest.fixture
def config(tmp_path: Path, make_config: Callable[..., AnnotateConfig]) -> Callable[[str], Path]:  # noqa: F811
    def write(url: str) -> Path:
        films(tmp_path / "films")
        make_config(url)
        return tmp_path / "run.toml"

    return write


def test_steps_one_by_one(
    tmp_path: Path, config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with annotator(tmp_path / "log.jsonl", faults=False) as url:
        path = config(url)
        assert run(monkeypatch, "annotate", "story", "--config", path) == 2
        assert "run `eagle annotate select` first" in capsys.readouterr().err
        assert run(monkeypatch, "annotate", "select", "--config", path) == 0
        assert run(monkeypatch, "annotate", "segment", "--config", path) == 0
        assert capsys.readouterr().out.splitlines() == [
            "select: 3 rows, 0 left out; 0 requests and 0.00 dollars so far",
            "segment: 5 rows, 0 left out; 0 requests and 0.00 dollars so far",
        ]
        assert run(monkeypatch, "annotate", "story", "--config", path, "--max-requests", 2) == 2
        assert "max_requests is 2. Raise it to go on from here." in capsys.readouterr().err
        assert run(monkeypatch, "annotate", "story", "--config", path, "--part", "1/2") == 0
        assert "story: 0 rows" in capsys.readouterr().out


def test_an_estimate(
    config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "annotate", "estimate", "--config", config("http://none/v1")) == 0
    assert capsys.readouterr().out.startswith("3 videos of 600 s")
    arguments = ("--config", config("http://none/v1"), "--videos", 110_000, "--mean-seconds", 300)
    assert run(monkeypatch, "annotate", "estimate", *arguments) == 0
    assert capsys.readouterr().out.startswith("110,000 videos of 300 s, 3,300,000 clips of 10 s")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["stories"], "there is no step 'stories'"),
        (["clip", "--part", "2/2"], "needs I/N with I from 0 to N - 1"),
        (["clip", "--set", "clip.types=3"], "there is no field types"),
    ],
    ids=range(3),
)
def test_mistakes_are_one_sentence(
    config: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments,
    problem,
) -> None:
    path = config("http://none/v1")
    assert run(monkeypatch, "annotate", arguments[0], "--config", path, *arguments[1:]) == 2
    assert problem in capsys.readouterr().err
