"""From video files to a checkpoint: real H.264, the real loader, model and trainer; killed, resumed, and the same.

The videos show a bright square that moves left, right, up or down on noise; the question is which way.
"""

import base64
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eagle_model import checkpoints
from eagle_model.data.processor import Processor
from eagle_model.data.sample import DataError
from eagle_model.data.tokenizer import train_tokenizer
from eagle_model.fields import override, to_json
from eagle_model.model.eagle import Eagle
from eagle_model.train.config import TrainConfig
from eagle_model.train.metrics import read_metrics
from eagle_model.train.recipes import debug
from eagle_model.train.trainer import Trainer

ROOT = Path(__file__).parents[1]
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
QUESTION = "<video>Which way does the square move?"


def draw_video(path: Path, direction: str, seed: int, *, side_px: int = 64, num_frames: int = 8) -> None:
    noise = np.random.default_rng(seed)
    x, y = noise.integers(18, 30, size=2)
    dx, dy = DIRECTIONS[direction]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=4)
        stream.width = stream.height = side_px
        stream.pix_fmt = "yuv420p"
        for k in range(num_frames):
            frame = noise.integers(0, 40, size=(side_px, side_px, 3), dtype=np.uint8)
            left, top = x + 3 * k * dx - 10 * dx, y + 3 * k * dy - 10 * dy
            frame[max(top, 0) : top + 16, max(left, 0) : left + 16] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """24 videos of 2 s and their questions, and a tokenizer of the questions' own text."""
    folder = tmp_path_factory.mktemp("dataset")
    rows = []
    for i in range(24):
        direction = list(DIRECTIONS)[i % 4]
        draw_video(folder / f"{i:02d}.mp4", direction, seed=i)
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": f"It moves {direction}."}]
        rows.append({"id": f"square-{i}", "video": f"{i:02d}.mp4", "conversations": turns})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.json").write_text(json.dumps({"squares": {"root": ".", "annotation": "train.jsonl"}}))
    texts = [turn["value"] for row in rows for turn in row["conversations"]]
    texts += [f"The first video sampled with 2.00 fps: Frame {k} sample at {k / 2:.2f}s: " for k in range(1, 5)]
    train_tokenizer(texts, 400).save(str(folder / "tokenizer.json"))
    return folder


def config_of(dataset: Path, *assignments: str) -> TrainConfig:
    base = [f"data.recipe={dataset / 'recipe.json'}", f"tokenizer={dataset / 'tokenizer.json'}"]
    base += ["processor.sampling.context_tokens=400", "max_steps=8", "save_every_steps=4", "log_every_steps=1"]
    return override(debug(), [*base, *assignments])


def quiet(message: str) -> None:
    pass


def run_here(config: TrainConfig, folder: Path) -> Trainer:
    trainer = Trainer(config, folder, say=quiet)
    assert trainer.train()
    return trainer


TRAIN = """
import json, os, signal, sys
from eagle_model.fields import from_json
from eagle_model.train.config import TrainConfig
from eagle_model.train.trainer import Trainer
import torch
torch.set_num_threads(1)
trainer = Trainer(from_json(TrainConfig, json.loads(sys.argv[1])), sys.argv[2])
kill_after = int(sys.argv[3])
take_step = trainer._train_step
def step():
    if trainer.step == kill_after:
        trainer.saver.wait()  # a save goes on beside the steps: without this, whether step 4 is on the disk is luck
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step()
trainer._train_step = step
sys.exit(0 if trainer.train() else 3)
"""


def run_in_process(config: TrainConfig, folder: Path, *, kill_after: int = -1) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", TRAIN, json.dumps(to_json(config)), str(folder), str(kill_after)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=240)


def tensors_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a checkpoint."""
    path = folder / "checkpoints" / f"step-{step:06d}"
    checkpoints.verify(path)
    return load_file(path / "model.safetensors") | load_file(path / "training" / "rank-00000-of-00001.safetensors")


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Weights, optimizer state, the loader's place and the losses of all steps: equal to the last bit."""
    ours, theirs = tensors_of(one, step), tensors_of(other, step)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    states = [
        json.loads((f / "checkpoints" / f"step-{step:06d}/training/state.json").read_text()) for f in (one, other)
    ]
    assert states[0]["loader"] == states[1]["loader"]
    losses = [[(m["step"], m["loss"], m["grad_norm"]) for m in read_metrics(f / "metrics.jsonl")] for f in (one, other)]
    assert losses[0] == losses[1]
    assert [m[0] for m in losses[0]] == list(range(1, step + 1))


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes that are killed: sums are split by threads, so bits depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_killed_and_resumed_is_the_same_run_bit_for_bit(dataset, tmp_path, dtype):
    config = config_of(dataset, f"dtype={dtype}", "rows_per_step=2")
    run_here(config, tmp_path / "straight")

    killed = run_in_process(config, tmp_path / "killed", kill_after=6)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(checkpoints.steps(tmp_path / "killed" / "checkpoints")) == [4]
    assert len(read_metrics(tmp_path / "killed" / "metrics.jsonl")) == 6
    run_here(config, tmp_path / "killed")
    assert_same_run(tmp_path / "straight", tmp_path / "killed", 8)
    weights = load_file(tmp_path / "killed" / "checkpoints" / "step-000008" / "model.safetensors")
    assert {str(w.dtype) for w in weights.values()} == {f"torch.{dtype}"}


FILL_DISK = """
set -u
mount -t tmpfs -o size="$SIZE" none "$DISK"
"$PYTHON" -m eagle_model.cli train debug --run "$DISK/run" "$@" > "$DISK.out" 2> "$DISK.error"; echo "$?"
ls "$DISK/run/checkpoints" 2> /dev/null | grep -v '^step-[0-9]*$'
mount -o remount,size=100m "$DISK"
"$PYTHON" -m eagle_model.cli train debug --run "$DISK/run" "$@" > "$DISK.out" 2> /dev/null; echo "$?"
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "32k", "400k", "3m", "12m"])
def test_a_disk_that_is_full_is_one_sentence_and_the_run_goes_on_with_room(dataset, tmp_path, size):
    """A file system of its own, which an ordinary user may mount where user namespaces are on."""
    may = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f"mount -t tmpfs none {tmp_path}"]
    if subprocess.run(may, capture_output=True).returncode:
        pytest.skip("user namespaces, or mounts in them, are off on this machine")
    (tmp_path / "disk").mkdir()
    base = [f"data.recipe={dataset / 'recipe.json'}", f"tokenizer={dataset / 'tokenizer.json'}", "keep_last=100"]
    base += ["processor.sampling.context_tokens=400", "max_steps=6", "save_every_steps=1"]
    settings = [part for assignment in base for part in ("--set", assignment)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment |= {"SIZE": size, "DISK": str(tmp_path / "disk")}
    done = subprocess.run([*may[:5], "-c", FILL_DISK, "sh", *settings], capture_output=True, text=True, env=environment)
    first, *others, again = done.stdout.split()
    error = (tmp_path / "disk.error").read_text()
    assert (first, others, again) == ("2" if "cannot be used" in error else "1", [], "0"), error + done.stderr
    assert re.fullmatch(r"eagle: [^\n]*No space left on device[^\n]*\n", error)
    assert "Report: " in (tmp_path / "disk.out").read_text()


def test_a_run_told_to_stop_saves_and_resumes(dataset, tmp_path):
    """SIGTERM in the middle: the step ends, is saved, and the process ends well; then the run goes on."""
    config = config_of(dataset, "save_every_steps=1000", "max_steps=200")
    folder = tmp_path / "run"
    command = [sys.executable, "-c", TRAIN, json.dumps(to_json(config)), str(folder), "-1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    log, deadline = folder / "metrics.jsonl", time.monotonic() + 200
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    (saved,) = checkpoints.steps(folder / "checkpoints")
    assert 3 <= saved < 200
    assert "SIGTERM: stopping after this step, then saving. Once more stops at once." in err
    assert f"Stopped after step {saved} of 200; it is saved. The same command resumes." in out
    assert (folder / "report.html").exists()

    said: list[str] = []
    resumed = Trainer(replace(config, max_steps=saved + 2), folder, say=said.append)
    assert resumed.step == saved
    assert resumed.train()
    assert f"Changed since step-{saved:06d}: max_steps: 200 -> {saved + 2}" in said
    assert [m["step"] for m in read_metrics(log)] == list(range(1, saved + 3))


def test_it_learns_and_the_report_shows_it(dataset, tmp_path):
    folder = tmp_path / "run"
    run_here(config_of(dataset, "max_steps=50", "save_every_steps=25", "keep_last=1"), folder)
    losses = [m["loss"] for m in read_metrics(folder / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.35 * np.mean(losses[:3]), losses

    # The checkpoint is a model that answers in the form that it was taught.
    newest = checkpoints.latest(folder / "checkpoints", quiet)
    assert newest is not None
    assert newest.name == "step-000050"
    assert list(checkpoints.steps(newest.parent)) == [50]  # keep_last
    model, processor = Eagle.from_pretrained(newest), Processor.from_pretrained(newest)
    parts = [
        {"type": "video", "video": str(dataset / "00.mp4")},
        {"type": "text", "text": "Which way does the square move?"},
    ]
    prompt = processor([{"role": "user", "content": parts}])
    stop = processor.encoder.turn_end_id
    ((*answer, _),) = model.generate(prompt, max_new_tokens=12, stop_token_ids=[stop])
    assert re.fullmatch(r"It moves (left|right|up|down)\.", processor.tokenizer.decode(answer)), answer

    page = (folder / "report.html").read_text()
    curves = re.findall(r'<img class="curve"[^>]*src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(curves) == 6
    assert all("<svg" in base64.b64decode(curve).decode() for curve in curves)
    tiles = re.findall(r'<img class="tile"[^>]*src="data:image/png;base64,([^"]+)"', page)
    assert len(tiles) >= 4
    assert "<mark>It moves " in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is loaded from elsewhere


def test_a_broken_video_is_skipped_and_reported_or_stops_the_run(dataset, tmp_path):
    rows = [json.loads(line) for line in (dataset / "train.jsonl").read_text().splitlines()[:8]]
    (dataset / "broken.mp4").write_bytes((dataset / "00.mp4").read_bytes()[:200])
    rows[3] |= {"id": "broken & bad", "video": "broken.mp4"}
    (dataset / "broken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(dataset, f"data.recipe={dataset / 'broken.jsonl'}", "max_steps=2")
    with pytest.raises(DataError, match=r"sample broken & bad: video .*broken\.mp4 cannot be read"):
        Trainer(config, tmp_path / "raise", say=quiet)

    config = override(config, ["data.on_bad_sample=skip"])
    run_here(config, tmp_path / "skip")
    assert [m["num_skipped_samples"] for m in read_metrics(tmp_path / "skip" / "metrics.jsonl")] == [1, 1]
    ((name, reason),) = json.loads((tmp_path / "skip" / "skipped.json").read_text())
    assert name == "broken & bad"
    page = (tmp_path / "skip" / "report.html").read_text()
    assert "<td>broken &amp; bad</td>" in page
    assert html.escape(reason) in page
