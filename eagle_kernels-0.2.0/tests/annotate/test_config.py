"""annotate/config.py: a run's file, its paths, and what is wrong with it."""

import json
from pathlib import Path

import pytest

from eagle_model.annotate.config import read_config
from eagle_model.fields import ConfigError

TOML = 'out = "run"\nvideos = "films"\n[annotator]\nurl = "http://h/v1"\nmodel = "m"\n'


def write(tmp_path: Path, text: str, name: str = "run.toml") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    config = read_config(write(tmp_path, TOML), ["select.encoder=clip", "segment.vitt=v.json", "budget.max_dollars=5"])
    assert config.out == str(tmp_path / "run") and config.media_root == tmp_path / "films"
    assert config.select.encoder == str(tmp_path / "clip") and config.segment.vitt == str(tmp_path / "v.json")
    assert config.budget.max_dollars == 5.0 and config.prompts is None


def test_a_list_of_videos_lies_in_the_folder_of_the_media(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, TOML.replace('"films"', '"films/list.jsonl"')))
    assert config.media_root == tmp_path / "films"
    config = read_config(write(tmp_path, TOML.replace("[annotator]", 'root = "media"\n[annotator]')))
    assert config.media_root == tmp_path / "media"


def test_json_does_as_well(tmp_path: Path) -> None:
    raw = {"out": "run", "videos": "films", "annotator": {"url": "http://h/v1", "model": "m"}}
    assert read_config(write(tmp_path, json.dumps(raw), "run.json")) == read_config(write(tmp_path, TOML))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("out = ", "is not TOML"),
        ('out = "run"\nvideos = "films"\n', "annotator is missing"),
        (TOML + "retries = 3\n", "there is no field retries"),
        (TOML.replace("http://h/v1", "h"), "annotator.url is h"),
        (TOML + "[clip]\nwithout = ['faces']\n", "clip.without"),
        (TOML + "[segment]\nmax_seconds = 12.0\n", "twice min_seconds"),
        (TOML + '[select]\nreference = "old"\n', "encoder"),
    ],
    ids=range(7),
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_config(write(tmp_path, text))


def test_a_mark_of_byte_order_is_passed_over(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, "\ufeff" + TOML)) == read_config(write(tmp_path, TOML, "plain.toml"))
