"""The command line: what it prints, and that a user's mistake is one sentence and exit code 2."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from eagle_model import cli
from tests.video.make import draw, write_video


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["eagle", *map(str, arguments)])
    monkeypatch.setattr(cli.console, "_width", 300)  # no wrapping: the tests look for whole sentences
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return exit_.value.code or 0


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, [draw(i) for i in range(100)], fps=25)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "page.png"
    Image.fromarray(np.full((1754, 1240, 3), 200, np.uint8)).save(path)
    return path


def test_doctor_names_the_parts_and_what_to_install(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "doctor") == 0
    printed = capsys.readouterr().out
    for part in ("native module", "torch", "GPU", "triton", "pip install 'eagle-kernels[dali]'"):
        assert part in printed


def test_plan_of_a_video(monkeypatch, capsys, film: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert run(monkeypatch, "plan", film, "--context", 8192, "--out", sheet) == 0
    printed = capsys.readouterr().out
    assert "2048 visual = 8 tiles x 256" in printed  # 4 s at 2 frames a second
    assert "h264 64 x 48, 25.00 fps, 4.00 s, 100 frames: 8 seen, at 0.00, 0.56," in printed
    with Image.open(sheet) as image:
        assert image.width == 8 * 160


def test_plan_of_an_image_and_a_video_shares_one_context(monkeypatch, capsys, film, picture, tmp_path) -> None:
    assert run(monkeypatch, "plan", picture, film, "--context", 6144, "--out", tmp_path / "s.png") == 0
    printed = capsys.readouterr().out
    assert re.search(r"page\.png: 3 x 4 tiles and a thumbnail, at most 12", printed)
    assert "8 seen" in printed


def test_plan_gives_up_tiles_before_frames_and_says_when_nothing_fits(monkeypatch, capsys, film, picture) -> None:
    assert run(monkeypatch, "plan", picture, film, "--context", 1024) == cli.USAGE_ERROR
    error = capsys.readouterr().err
    assert error.startswith("eagle: ")
    assert "context_tokens is 1024" in error
    assert "raise context_tokens" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "nowhere.mp4"], r"nowhere\.mp4 does not exist"),
        (["plan", "nowhere.png"], r"nowhere\.png does not exist"),
        (["train", "huge", "--run", "r"], r"no recipe 'huge'; the recipes are tiny, debug"),
        (["train", "tiny", "--run", "r", "--set", "data.contxt_tokens=9"], "Did you mean context_tokens"),
        (["train", "tiny", "--run", "r", "--set", "max_steps=many"], "max_steps is 'many'; needs a whole number"),
        (["train", "tiny", "--run", "r", "--set", "data.recipe=none.json"], r"none\.json"),
        (["chat", "no_folder", "--ask", "?"], "no_folder"),
        (["report", "no_run"], "no_run"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == cli.USAGE_ERROR
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_a_broken_video_is_one_sentence(monkeypatch, capsys, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 100)
    assert run(monkeypatch, "plan", broken) == cli.USAGE_ERROR
    assert re.fullmatch(r"eagle: .*broken\.mp4.*\n", capsys.readouterr().err)


def test_every_command_has_an_example() -> None:
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    assert set(commands) == {"doctor", "plan", "train", "chat", "report"}
    for name, command in commands.items():
        assert f"Example:  eagle {name}" in command.help
