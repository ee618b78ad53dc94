"""`eagle data`: reports, exit codes, a recipe that training reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle_model.data.processor import Processor
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.data.tokenizer import train_tokenizer
from tests.data.conftest import TEXTS, tiny_config, write_video
from tests.data.formats.conftest import picture
from tests.data.formats.test_check import turns, write_rows
from tests.data.formats.test_tars import write_tar
from tests.data.http_files import serving
from tests.test_cli import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(picture())
    return tmp_path


def test_check_of_a_good_set(monkeypatch, capsys, folder: Path) -> None:
    path = write_rows(folder / "rows.jsonl", [{**turns(), "image": "a.png"}])
    assert run(monkeypatch, "data", "check", path) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [f"{path}: 1 rows, 1 good", "Media shown: 1 images"]


def test_check_says_what_is_wrong_and_exits_with_3(monkeypatch, capsys, folder: Path) -> None:
    path = write_rows(folder / "rows.jsonl", [{**turns(), "image": "gone.png"}, turns()])
    assert run(monkeypatch, "data", "check", path) == 3
    assert "1 rows with a medium that is missing:" in capsys.readouterr().out
    assert run(monkeypatch, "data", "check", path, "--json") == 3
    assert json.loads(capsys.readouterr().out)["problems"]["missing"]["rows"] == 1


def test_check_of_no_path_is_a_users_mistake(monkeypatch, capsys, tmp_path: Path) -> None:
    assert run(monkeypatch, "data", "check", tmp_path / "gone") == 2
    assert capsys.readouterr().err == f"eagle: {tmp_path}/gone does not exist, or is no file or folder.\n"


def test_convert_writes_a_recipe(monkeypatch, capsys, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.png", picture()), ("a.txt", b"A."), ("b.png", b"?"), ("b.txt", b"B.")])
    assert run(monkeypatch, "data", "convert", path, tmp_path / "out") == 2
    assert "x.tar: b: 1 bytes that begin with" in capsys.readouterr().err
    assert run(monkeypatch, "data", "convert", path, tmp_path / "out", "--skip") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 rows; 1 skipped") and printed.endswith(f"Written: {tmp_path}/out/recipe.json\n")
    (source,) = read_recipe(tmp_path / "out/recipe.json")
    assert len(list(read_samples(source))) == 1


def test_convert_by_a_layout(monkeypatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.json").write_text(json.dumps([{"id": "1", "label": "pushing"}]))
    assert (
        run(monkeypatch, "data", "convert", tmp_path / "in", tmp_path / "out", "--layout", "something_something_v2")
        == 0
    )
    assert run(monkeypatch, "data", "convert", tmp_path / "in", tmp_path / "o", "--layout", "nothing") == 2
    assert "no layout is named 'nothing'; there are activitynet_captions" in capsys.readouterr().err


def test_sources(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "data", "sources", "multi-page") == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["SlideVQA", "DUDE", "MP-DocVQA"]
    assert run(monkeypatch, "data", "sources", "no such set") == 2


def test_the_group_alone_says_what_is_missing(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "data") == 2
    assert capsys.readouterr().err == "eagle: Missing command. See eagle data --help.\n"


def test_proxies_of_a_recipe_and_again(monkeypatch, capsys, tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4")
    path = write_rows(tmp_path / "rows.jsonl", [{**turns(), "video": "film.mp4"}])
    command = ("data", "proxies", path, tmp_path / "out", "--tile", "56")
    assert run(monkeypatch, *command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("1 videos; 4 frames, ")
    assert "MB an hour of film, at least" in second
    assert run(monkeypatch, *command) == 0
    assert capsys.readouterr().out == "1 videos, 1 of them there before; 0 frames, 0.0 MB written\n"
    write_rows(tmp_path / "rows.jsonl", [{**turns(), "video": "gone.mp4"}])
    assert run(monkeypatch, *command) == 3
    assert "1 could not be made, listed in" in capsys.readouterr().out
    assert run(monkeypatch, *command[:-1], "112") == 2
    assert "has proxies of other settings" in capsys.readouterr().err


def test_prepare_and_report(monkeypatch, capsys, folder: Path) -> None:
    Processor(train_tokenizer(TEXTS, 400), tiny_config()).save_pretrained(folder / "model")
    path = write_rows(folder / "rows.jsonl", [{**turns(), "image": "a.png"}, turns(), {**turns(), "image": "gone.png"}])
    options = ("--processor", folder / "model")
    assert run(monkeypatch, "data", "prepare", path, folder / "out", *options) == 0
    assert capsys.readouterr().out == f"3 rows, 1 of them bad; 1 images, 0 videos\nWritten: {folder}/out\n"
    page = folder / "page.html"
    assert run(monkeypatch, "data", "report", folder / "out", *options, "--out", page, "--context-tokens", 500) == 0
    assert capsys.readouterr().out == f"2 samples, 1 left out\nWritten: {page}\n"
    assert "context 500 tokens" in page.read_text()
    assert run(monkeypatch, "data", "prepare", path, folder / "out", *options, "--workers", 0) == 2
    assert capsys.readouterr().err == "eagle: --workers is 0; needs at least 1.\n"


def test_report_of_media_that_lie_elsewhere(monkeypatch, capsys, folder: Path) -> None:
    Processor(train_tokenizer(TEXTS, 400), tiny_config()).save_pretrained(folder / "model")
    with serving(folder) as server:
        url = server.url("")
        path = write_rows(folder / "rows.jsonl", [{**turns(), "image": f"{url}a.png"}])
        remote = ("--remote", json.dumps({"prefixes": [url], "cache_folder": str(folder / "cache")}))
        options = ("--processor", folder / "model", *remote)
        assert run(monkeypatch, "data", "prepare", path, folder / "out", *options) == 0
        page = ("--out", folder / "page.html")
        assert run(monkeypatch, "data", "report", folder / "out", *options[:2], *page) == 2
        assert run(monkeypatch, "data", "report", folder / "out", *options, *page) == 0
    assert "1 samples, 0 left out" in capsys.readouterr().out
