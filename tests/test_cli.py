"""The command line: what it prints, and that a user's mistake is one sentence and exit code 2."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.main import get_command

from eagle_model import cli
from eagle_model.fields import override
from eagle_model.model.config import eagle2_5_8b
from eagle_model.train import verify
from eagle_model.train.first import FirstFailed
from eagle_model.train.recipes import recipe
from eagle_model.train.trainer import LostProcess, TrainingError
from tests.data.make_pdf import gray, write_pdf
from tests.video.make import draw, write_video

ROOT = Path(__file__).parent.parent


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["eagle", *map(str, arguments)])
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
    for part in ("native module", "torch", "GPU", "triton", "pip install 'eagle-kernels[flash-attn]'"):
        assert part in printed


def test_doctor_warns_of_combinations(monkeypatch, capsys) -> None:
    monkeypatch.setattr("eagle_model.versions.installed", lambda: {"filelock": "4.3.1", "lmms-eval": "0.7.2"})
    assert run(monkeypatch, "doctor", "--versions") == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "filelock 4, lmms-eval (filelock 4.3.1, lmms-eval 0.7.2)"
    assert any(line.startswith("    instead  pip install 'filelock<4'") for line in rest)


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


def test_plan_of_a_document(monkeypatch, capsys, tmp_path) -> None:
    path = write_pdf(tmp_path / "paper.pdf", [gray(0), gray(200)])
    assert run(monkeypatch, "plan", path, "--out", tmp_path / "s.png") == 0
    assert "paper.pdf: 2 pages: 2 seen: 1, 2" in capsys.readouterr().out


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
        (["plan", "."], r"\. is a folder; needs an image or a video"),
        (["plan", "https://example.com/a.mp4"], r"is a URL; nothing is fetched here"),
        (["plan", "nowhere.mp4", "--out", "none/sheet.png"], r"--out is none/sheet\.png; needs a file that ends in"),
        (["plan", "nowhere.mp4", "--out", "sheet.txt"], r"--out is sheet\.txt; needs a file that ends in"),
        (["plan", "nowhere.mp4", "--out", "."], r"--out is \.; needs a file"),
        (["plan", "a.mp4", "--model", "nowhere"], "nowhere is no folder; needs that of a checkpoint or of a run"),
        (["train", "tiny", "--run", "r"], "data.recipe is empty; needs .* --set data.recipe=FILE"),
        (["train", "tiny"], "--run is missing; needs the run's folder"),
        (["train", "--run", "r"], r"Give a recipe \(tiny, debug, lora, stage1, .*\) or --config FILE: one of the two"),
        (["train", "progressive"], "--run is missing; needs the folder of the stages' runs"),
        (["train", "progressive", "--run", "r"], r"data\.recipe of stage2, stage3, stage4 is empty"),
        (["train", "progressive", "--stages", "stage9", "--run", "r"], "no recipe 'stage9'"),
        (["train", "tiny", "--stages", "stage2", "--run", "r"], "--stages goes with progressive"),
        (["train", "tiny", "--config", "c.json", "--run", "r"], "or --config FILE: one of the two"),
        (["train", "--config", "c.json", "--run", "r"], r"c\.json does not exist\. Runs of version 4 have that file"),
        (["train", "tiny", "--max-steps", "5"], r"No such option: --max-steps\. Did you mean --set max_steps=5\?"),
        (["train", "tiny", "--max-steps=5"], r"Did you mean --set max_steps=5\?"),
        (["train", "tiny", "--lr", "1e-3"], r"Did you mean --set optimizer\.learning_rate=1e-3\?"),
        (["train", "tiny", "--learning-rate"], r"Did you mean --set optimizer\.learning_rate=VALUE\?"),
        (["train", "tiny", "--data.context-tokens", "9"], r"--set processor\.sampling\.context_tokens=9\?"),
        (["train", "tiny", "--zzz"], r"No such option: --zzz\. See eagle train --help\."),
        (["train", "tiny", "--run", "r", "--set", "lr=1"], r"Did you mean optimizer\.learning_rate\?"),
        (["trian"], r"No such command 'trian'\. Did you mean 'train'\? See eagle --help"),
        (["plan"], r"Missing argument 'files'\. See eagle plan --help"),
        (["train", "huge", "--run", "r"], r"no recipe 'huge'; the recipes are tiny, debug, lora"),
        (
            ["train", "tiny", "--run", "r", "--set", "processor.sampling.contxt_tokens=9"],
            r"Did you mean processor\.sampling\.context_tokens\?",
        ),
        (["train", "tiny", "--run", "r", "--set", "max_steps=many"], "max_steps is 'many'; needs a whole number"),
        (["train", "tiny", "--run", "r", "--set", "data.recipe=none.json"], r"none\.json"),
        (["chat", "no_folder", "--ask", "?"], "no_folder"),
        (["report", "no_run"], "no_run"),
        (["bench", "swigloo", "--out", "o"], r"no bench of swigloo; there are .*rms_norm.*swiglu"),
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


def test_bench_writes_results_table_and_plot(monkeypatch, capfd, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)  # a worker's of pytest-xdist, under which nothing is measured
    assert run(monkeypatch, "bench", "sum_partials", "--out", tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"bench.json", "bench.md", "bench.png"}
    table = (tmp_path / "out" / "bench.md").read_text()
    assert re.search(r"\| sum_partials \| (ours|torch) \| [\d.]+ [mu]s \|", table)
    machine = json.loads((tmp_path / "out" / "bench.json").read_text())["machine_info"]
    assert "torch" in machine and "node" not in machine  # what the machine is, not its name
    assert "Results: " in capfd.readouterr().out


def test_bench_outside_a_checkout_says_what_to_do(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages/eagle_model/cli.py"))
    assert run(monkeypatch, "bench", "--out", tmp_path / "out") == cli.USAGE_ERROR
    assert "not part of the installed package" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bench_names_the_packages_it_lacks(monkeypatch, capsys, tmp_path: Path) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda n: None if n == "pytest_benchmark" else find_spec(n))
    assert run(monkeypatch, "bench", "--out", tmp_path / "out") == cli.USAGE_ERROR
    assert "the benches need pytest_benchmark: pip install 'eagle-kernels[bench]'" in capsys.readouterr().err


def test_a_plan_never_overwrites_what_it_looks_at(monkeypatch, capsys, picture: Path) -> None:
    before = picture.read_bytes()
    assert run(monkeypatch, "plan", picture, "--out", picture) == cli.USAGE_ERROR
    assert "it would be overwritten" in capsys.readouterr().err
    assert picture.read_bytes() == before


def test_a_file_is_an_image_or_a_video_by_its_content(monkeypatch, capsys, film, picture, tmp_path) -> None:
    unnamed, animation = tmp_path / "scan.HEIC", tmp_path / "loop.gif"
    Image.open(picture).convert("RGB").save(unnamed, format="JPEG")
    frames = [Image.new("L", (64, 48), level) for level in (0, 80, 160, 240)]
    frames[0].save(animation, save_all=True, append_images=frames[1:], duration=500)
    assert run(monkeypatch, "plan", unnamed, animation, "--out", tmp_path / "s.png") == 0
    printed = capsys.readouterr().out
    assert "scan.HEIC: 3 x 4 tiles" in printed
    assert re.search(r"loop\.gif: gif 64 x 48, .* 4 frames: [34] seen", printed)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "plan", film) == 0
    assert "Contact sheet: film.mp4.plan.png" in capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `eagle train tiny` on the README's pattern: its context is small."""
    folder = tmp_path_factory.mktemp("train")
    talk = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A number."}]
    row = {"id": "a", "video": film.name, "conversations": talk}
    (film.parent / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        recipe = f"data.recipe={film.parent / 'rows.jsonl'}"
        assert run(patch, "train", "tiny", "--run", folder / "run", "--set", recipe, "--set", "max_steps=2") == 0
    return folder / "run"


def test_train_then_chat_then_plan_with_its_model(monkeypatch, capsys, trained: Path, film: Path, tmp_path) -> None:
    assert run(monkeypatch, "chat", trained, film, "--ask", "What?") == 0
    assert run(monkeypatch, "plan", film, "--model", trained, "--context", 512, "--out", tmp_path / "s.png") == 0
    assert "8 tiles x 4" in capsys.readouterr().out
    assert run(monkeypatch, "chat", trained, film, "--ask", "What?", "--max-new-tokens", 9999) == cli.USAGE_ERROR
    assert "max_new_tokens is 9999; the model's context is 512" in capsys.readouterr().err
    assert run(monkeypatch, "report", trained) == 0


def test_adapters_are_trained_on_a_run_and_asked_with_it(monkeypatch, capsys, trained, film, tmp_path: Path) -> None:
    processor = recipe("tiny").processor
    settings = [
        f"model={trained}",
        f"data.recipe={film.parent / 'rows.jsonl'}",
        "max_steps=1",
        "dtype=float32",
        f"processor.sampling.context_tokens={processor.sampling.context_tokens}",
        *(f"processor.{name}={getattr(processor, name)}" for name in ("tile_px", "patch_px")),
    ]
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert run(monkeypatch, "train", "lora", "--run", tmp_path / "lora", *arguments) == 0
    assert "parameters: adapters of" in capsys.readouterr().out
    asked = ("chat", trained, film, "--ask", "What?", "--max-new-tokens", 8)
    assert run(monkeypatch, *asked, "--adapter", tmp_path / "lora") == 0
    assert run(monkeypatch, *asked, "--adapter", tmp_path) == cli.USAGE_ERROR
    assert "adapter_config.json is missing; an adapter's folder needs it" in capsys.readouterr().err
    assert run(monkeypatch, "chat", tmp_path / "lora", "--ask", "What?") == cli.USAGE_ERROR
    assert "It holds an adapter: load the model under it first" in capsys.readouterr().err


def test_a_checkpoint_says_how_the_images_it_was_trained_on_were_prepared(trained: Path) -> None:
    """The names that other programs read: of the trained limits, not of the released model's."""
    about = json.loads((trained / "checkpoints/step-000002/config.json").read_text())
    limit = recipe("tiny").processor.sampling.max_tiles
    assert limit != 12
    assert [about[key] for key in ("max_dynamic_tiles", "max_dynamic_patch", "min_dynamic_tiles")] == [limit, limit, 1]
    assert about["use_thumbnail"] is about["dynamic_image_size"] is True


def test_a_run_is_a_model_to_start_from(monkeypatch, capsys, trained: Path, film: Path, tmp_path: Path) -> None:
    """Its newest checkpoint, checked as it is read."""
    shutil.copytree(trained, tmp_path / "base")
    settings = [f"model={tmp_path / 'base'}", f"data.recipe={film.parent / 'rows.jsonl'}", "max_steps=1"]
    start = [part for setting in settings for part in ("--set", setting)]
    assert run(monkeypatch, "train", "tiny", "--run", tmp_path / "run", *start) == 0
    weights = tmp_path / "base/checkpoints/step-000002/model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    capsys.readouterr()
    assert run(monkeypatch, "train", "tiny", "--run", tmp_path / "again", *start) == cli.USAGE_ERROR
    assert "model.safetensors" in capsys.readouterr().err


def test_a_damaged_run_is_named_and_reported(monkeypatch, capsys, tmp_path: Path) -> None:
    for name in ("run.json", "config.json"):
        (tmp_path / name).write_text("{")
    assert run(monkeypatch, "report", tmp_path) == 0
    assert re.search(r"config\.json is not JSON: .*\nReport: .*report\.html\n$", capsys.readouterr().out)


def test_show_lists_every_field_and_trains_nothing(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "train", "tiny", "--show", "--set", "max_steps=7", "--set", "data.seed=3") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^max_steps=7 +# of the whole run, .*\(a whole number or none\)$", printed, re.M)
    assert re.search(r"^# optimizer: AdamW, its learning rate warmed up", printed, re.M)
    shown = [line.partition("  # ")[0].rstrip() for line in printed.splitlines() if re.match(r"[\w.]+=", line)]
    assert not any(line.startswith("recipe_name=") for line in shown)  # what a run began as is no setting
    again = replace(override(recipe("debug"), shown), recipe_name="tiny")
    assert again == override(recipe("tiny"), ["max_steps=7", "data.seed=3"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("processes", "ends", "code"),
    [
        (1, "stopped", 128 + signal.SIGTERM),
        (2, "stopped", 0),  # else torchrun would start it anew
        (2, "the first failed", cli.USAGE_ERROR),
        (2, "done", 0),
        (2, "another is lost", 75),
        (1, "not finite", 1),
    ],
)
def test_how_training_ends_is_the_exit_code(monkeypatch, capsys, tmp_path, processes, ends, code) -> None:
    class Fake:
        stopped_by = signal.SIGTERM if ends == "stopped" else None

        def __init__(self, config, run, *, say, profile) -> None:
            assert run == tmp_path
            if ends == "the first failed":
                raise FirstFailed("the first process failed: it says why itself")

        def train(self) -> bool:
            if ends == "another is lost":
                raise LostProcess(ends)
            if ends == "not finite":
                raise TrainingError(ends)
            return ends == "done"

    monkeypatch.setattr("eagle_model.train.trainer.Trainer", Fake)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert run(monkeypatch, "train", "debug", "--run-folder", tmp_path) == code
    assert capsys.readouterr().err == (f"eagle: {ends}\n" if code in (1, 75) else "")


def test_the_config_of_a_run_is_a_config_file(monkeypatch, capsys, trained: Path) -> None:
    assert run(monkeypatch, "train", "--config", trained / "config.json", "--show", "--set", "max_steps=9") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^max_steps=9 ", printed, re.M) and re.search(r"^data\.recipe=\S+rows\.jsonl ", printed, re.M)
    assert run(monkeypatch, "train", "--config", trained / "config.json", "--run", trained) == 0  # resumes: all is done
    assert "nothing to train" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_do_not_wait_for_torch(argument: str) -> None:
    code = f"import sys; sys.argv = ['eagle', {argument!r}]; from eagle_model.cli import main\ntry: main()\n"
    code += "finally: print({'torch', 'numpy', 'eagle_kernels'} & set(sys.modules), file=sys.stderr)"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (got.returncode, got.stderr) == (0, "set()\n")
    assert got.stdout


def test_the_shell_completes_commands() -> None:
    environment = os.environ | {"_EAGLE_COMPLETE": "complete_bash", "COMP_WORDS": "eagle tr", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['eagle']; from eagle_model.cli import main; main()"
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (got.stdout.split(), got.stderr) == (["train"], "")


def program(*arguments: object, folder: Path | None = None) -> subprocess.Popen:
    """`eagle` as a process of its own; `folder` holds modules that are found before all others."""
    path = os.pathsep.join(map(str, filter(None, [folder, ROOT])))
    command = [sys.executable, "-m", "eagle_model.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_ctrl_c_while_it_starts_is_no_traceback(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt")
    process = program("doctor", folder=tmp_path)
    assert process.communicate() == ("", "")
    assert process.returncode == cli.INTERRUPTED


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 1, "there is not enough memory."),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            1,
            "there is not enough memory (CUDA out of memory. Tried).",
        ),
        (RecursionError("maximum recursion depth"), cli.USAGE_ERROR, "a file is nested too deeply to be read."),
        (ImportError("eagle_kernels._native does not load"), cli.USAGE_ERROR, "eagle_kernels._native does not load"),
        (ModuleNotFoundError(name="triton"), cli.USAGE_ERROR, "triton is not installed: pip install triton"),
        (PermissionError(13, "Permission denied", "a.mp4"), cli.USAGE_ERROR, "[Errno 13] Permission denied: 'a.mp4'"),
    ],
)
def test_what_the_machine_lacks_is_one_sentence(monkeypatch, capsys, error: Exception, code: int, message: str) -> None:
    def fail() -> list[str]:
        raise error

    monkeypatch.setattr("eagle_model.doctor.examine", fail)
    assert run(monkeypatch, "doctor") == code
    assert capsys.readouterr() == ("", f"eagle: {message}\n")


def test_a_defect_shows_its_traceback(monkeypatch) -> None:
    monkeypatch.setattr("eagle_model.doctor.examine", lambda: 1 / 0)
    monkeypatch.setattr("sys.argv", ["eagle", "doctor"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    process = program("train", "tiny", "--show")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == cli.CLOSED_PIPE


def test_without_a_stdout_it_still_works() -> None:
    command = f'exec "{sys.executable}" -m eagle_model.cli train tiny --show >&-'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("how", ["SIGHUP", "closed stdout"])
def test_a_run_that_is_stopped_saves_and_says_so_by_its_exit_code(how: str, film: Path, tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A number."}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "a", "conversations": talk}) + "\n")
    steps = ["--set", "max_steps=100000", "--set", "log_every_steps=1"]
    process = program(
        "train", "tiny", "--run", tmp_path / "r", "--set", f"data.recipe={tmp_path / 'rows.jsonl'}", *steps
    )
    assert process.stdout is not None and process.stderr is not None
    while not process.stdout.readline().startswith("step 2/"):
        assert process.poll() is None, process.stderr.read()
    if how == "closed stdout":
        process.stdout.close()
        code, said = 128 + signal.SIGPIPE, "The output cannot be written (Broken pipe)"
    else:
        process.send_signal(signal.Signals[how])
        code, said = 128 + signal.Signals[how], f"\n{how}"
    error = process.stderr.read()
    assert (process.wait(), error[: len(said)]) == (code, said)
    assert len(error.strip().splitlines()) == 1
    (saved,) = (path for path in (tmp_path / "r" / "checkpoints").iterdir() if path.name != "step-000100")
    assert saved.name.startswith("step-")
    assert (tmp_path / "r" / "report.html").exists()
    assert (tmp_path / "r" / "run.lock").read_text() == ""


@pytest.mark.parametrize(("module", "command"), [("tokenizers", "plan"), ("matplotlib", "report"), ("typer", "doctor")])
def test_a_missing_package_is_one_sentence_with_its_extra(module: str, command: str, tmp_path: Path) -> None:
    """As after `pip install .` alone."""
    hide = f"import sys; sys.modules[{module!r}] = None; sys.argv = ['eagle', {command!r}, {str(tmp_path)!r}]"
    got = subprocess.run(
        [sys.executable, "-c", f"{hide}; from eagle_model.cli import main; main()"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert got.returncode == cli.USAGE_ERROR
    assert re.fullmatch(rf"eagle: {module} is not installed: pip install 'eagle-kernels\[\w+\]'\n", got.stderr), (
        got.stderr
    )


def test_version(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip()


def test_sizes_of_a_preset_and_of_a_folder(monkeypatch, capsys, tmp_path: Path) -> None:
    assert run(monkeypatch, "sizes", "eagle2_5_8b") == 0
    printed = capsys.readouterr().out
    assert "vision         413,327,088 parameters" in printed
    (tmp_path / "config.json").write_text(json.dumps(eagle2_5_8b().to_dict()))
    assert run(monkeypatch, "sizes", tmp_path) == 0
    assert capsys.readouterr().out == printed
    assert run(monkeypatch, "sizes", "eagle3") == 2
    assert (
        "eagle3 is neither a preset (tiny, eagle2_5_8b, eagle2_2b, eagle2_1b) nor a folder" in capsys.readouterr().err
    )


def test_estimate_of_a_stage_on_gpus_that_are_not_here(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "estimate", "stage4", "--gpus", "64", "--gpu", "h100-80g") == 0
    printed = capsys.readouterr().out
    assert "64 x h100-80g: a step of 128 rows of 131072 tokens and 448 tiles; 8.06 billion parameters" in printed
    assert "The cheapest that fits" in printed
    assert run(monkeypatch, "estimate", "stage4", "--gpu", "v100") == 2
    assert "--gpu is 'v100'; needs one of a100-80g, h100-80g" in capsys.readouterr().err


@pytest.mark.parametrize("is_right", [True, False])
def test_verify_says_by_its_exit_code_whether_all_is_well(monkeypatch, is_right: bool) -> None:
    asked = []
    monkeypatch.setattr(verify, "verify", lambda *given, **options: asked.append((given, options)) or is_right)
    assert run(monkeypatch, "verify", "--processes", 8, "--short") == (0 if is_right else 1)
    assert asked == [((8,), {"short": True})]


def test_every_command_has_an_example() -> None:
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    assert set(commands) == {
        "doctor", "plan", "sizes", "estimate", "train", "chat", "serve", "infer", "export", "convert", "assemble",
        "report", "bench", "verify", "data", "eval", "annotate",
    }  # fmt: skip
    for group in ("data", "eval"):
        commands |= {f"{group} {name}": command for name, command in commands.pop(group).commands.items()}
    for name, command in commands.items():
        assert f"Example:  eagle {name.removesuffix(' run')}" in command.help, name
