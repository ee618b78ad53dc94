"""The demo's video set: its movement question cannot be answered without the order of the frames. The other examples,
in small: what they say they do, they do."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits
from torch.distributed.run import get_args_parser

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import annotate_and_train
import digit_videos
import lora
import video_digits

from eagle_kernels.video import probe
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.fields import override
from eagle_model.train.layout import check_layout
from eagle_model.train.recipes import recipe

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def places(hops_HYX3: np.ndarray) -> list[tuple[int, int]]:
    """Upper left corner of what is brighter than the ground, of each hop."""
    found = []
    for hop_YX in hops_HYX3[..., 0]:
        ys, xs = np.nonzero(hop_YX > 60)
        found.append((int(xs.min()), int(ys.min())))
    return found


def test_a_digit_advances_its_way_and_visits_a_permutation_on_both_axes(digits) -> None:
    rng = np.random.default_rng(0)
    ways = Counter()
    for _ in range(60):
        hops, [(question, way)] = digit_videos.movement_clip(rng, digits.images, digits.target)
        assert question == digit_videos.ASK_MOVEMENT
        xs, ys = zip(*places(hops), strict=True)
        dx, dy = digit_videos.WAYS[way]
        steps = np.diff(xs) * dx + np.diff(ys) * dy
        assert (steps > 0).all()
        assert len(set(xs)) == len(set(ys)) == len(hops)
        # The same places on both axes, up to the digit's own outline: what the frames show as a set names no axis.
        assert sorted(np.subtract(xs, min(xs))) == sorted(np.subtract(ys, min(ys)))
        ways[way] += 1
    assert set(ways) == set(digit_videos.WAYS)


def test_a_needle_clip_asks_of_every_frame_once(digits) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        hops, turns = digit_videos.needle_clip(rng, digits.images, digits.target)
        assert sorted(q for q, _ in turns) == [f"Which digit is in frame {k + 1}?" for k in range(len(hops))]


def test_the_set_is_real_video_in_eagles_format_and_held_out_digits_are_unseen(tmp_path: Path, monkeypatch) -> None:
    seen: dict[bool, set[bytes]] = {True: set(), False: set()}
    for kind, make in list(digit_videos.KINDS.items()):

        def spy(rng, pictures, labels, make=make):
            seen[len(pictures) < 1000] |= {p.tobytes() for p in pictures}
            return make(rng, pictures, labels)

        monkeypatch.setitem(digit_videos.KINDS, kind, spy)
    folder = tmp_path / "videos"
    files = list(digit_videos.build(folder, num_train=8, num_test=4))
    assert len(files) == 12
    assert seen[True]
    assert not seen[True] & seen[False]

    (source,) = read_recipe(folder / "recipe.json")
    samples = list(read_samples(source))
    assert len(samples) == 8
    info = probe(samples[0].videos[0].path)
    assert (info.codec, info.frames_per_second) == ("h264", 8.0)
    assert info.num_frames % digit_videos.FRAMES_PER_HOP == 0


def test_an_interrupted_build_leaves_no_half_made_set(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    making = digit_videos.build(folder, num_train=8, num_test=4)
    next(making)
    making.close()
    assert not folder.exists()
    list(digit_videos.build(folder, num_train=8, num_test=4))
    rows = (folder / "train.jsonl").read_text().splitlines()
    assert len({json.loads(row)["id"] for row in rows}) == len(rows) == 8


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE])
def test_a_stopped_demo_exits_by_its_signal(how: signal.Signals, tmp_path: Path, monkeypatch) -> None:
    class Stopped:
        stopped_by = how

        def __init__(self, config, run, *, say) -> None:
            assert run == tmp_path / "training"

        def train(self) -> bool:
            return False

    (tmp_path / "videos").mkdir()
    monkeypatch.setattr(video_digits, "Trainer", Stopped)
    monkeypatch.setattr(video_digits, "show_plan", lambda folder: None)
    monkeypatch.setattr(sys, "argv", ["video_digits.py", "--run", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        video_digits.main()
    assert stopped.value.code == 128 + how


def test_lora_trains_asks_and_merges(tmp_path: Path, capsys) -> None:
    lora.main(tmp_path, None, max_steps=2)
    printed = capsys.readouterr().out
    for colour in lora.COLOURS:
        assert f"{colour}: without adapters" in printed
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000002"
    sizes = [
        (tmp_path / "model/model.safetensors").stat().st_size,
        (checkpoint / "adapter_model.safetensors").stat().st_size,
    ]
    assert sizes[1] < sizes[0] / 3
    picture = tmp_path / "data" / "red.png"
    answers = [
        lora.ask(tmp_path / "model", picture),
        lora.ask(tmp_path / "model", picture, tmp_path / "run"),
        lora.ask(tmp_path / "merged", picture),
    ]
    assert answers[0] != answers[1] == answers[2]


@pytest.mark.slow
def test_what_was_annotated_teaches(tmp_path: Path) -> None:
    """The loss falls, and the model answers the needle's question about films that it was not trained on in the words
    of the rows. Whether it answers right takes more steps than a test has."""
    annotate_and_train.make_films(tmp_path / "films", 40)
    with annotate_and_train.rule_annotator() as url:
        annotate_and_train.annotate(tmp_path, url, "rules")
    annotate_and_train.train(tmp_path, 100)
    losses = annotate_and_train.losses(tmp_path)
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:5])
    answers = annotate_and_train.ask_needles(tmp_path)
    assert answers and all(said.startswith("It is at the") for _, said, _ in answers)


def torchrun_words(name: str) -> tuple[list[str], int]:
    """The words of an example after `torchrun`, and its number of nodes."""
    text = (ROOT / "examples" / name).read_text()
    if name.endswith(".yaml"):
        job = yaml.safe_load(text)["spec"]
        replicas = job["pytorchReplicaSpecs"]
        (pod,) = replicas["Worker"]["template"]["spec"]["containers"]
        assert pod == replicas["Master"]["template"]["spec"]["containers"][0]
        num_nodes = sum(replica["replicas"] for replica in replicas.values())
        return [f"--nnodes={num_nodes}", f"--nproc-per-node={job['nprocPerNode']}", *pod["command"][1:]], num_nodes
    num_nodes = int(re.search(r"#SBATCH --nodes=(\d+)", text)[1])
    command = re.search(r"^srun .*?torchrun (.*?[^\\])\n", text, re.S | re.M)[1]
    command = re.sub(r"\\\n", " ", command).replace('"$SLURM_JOB_NUM_NODES"', str(num_nodes))
    return shlex.split(re.sub(r"\$(\w+)", r"/some/\1", command)), num_nodes


@pytest.mark.parametrize("name", ["slurm.sbatch", "pytorchjob.yaml"])
def test_launchers_give_commands_that_torchrun_and_eagle_take(name: str) -> None:
    words, num_nodes = torchrun_words(name)
    given = get_args_parser().parse_args(words)
    assert (int(given.nnodes), given.module, given.training_script) == (num_nodes, True, "eagle_model.cli")
    command, recipe_name, *rest = given.training_script_args
    assert command == "train" and rest[0] == "--run-folder"
    assert rest[2::2] == ["--set"] * len(rest[2::2])
    config = override(recipe(recipe_name), rest[3::2])
    num_processes = num_nodes * int(given.nproc_per_node)
    check_layout(config.layout, num_processes=num_processes, rows_per_step=config.rows_per_step, num_heads=28)
    assert given.max_restarts > 0 and config.data.recipe and config.model


def test_the_batch_script_is_one_that_bash_reads() -> None:
    subprocess.run(["bash", "-n", str(ROOT / "examples/slurm.sbatch")], check=True)


@pytest.mark.parametrize(
    ("job", "is_submitted"),
    [
        ("mkdir -p $RUN/checkpoints/step-000002; echo '{}' > $RUN/run.json", True),
        ("echo 'eagle: a wrong setting'; exit 2", False),
        ("mkdir -p $RUN/checkpoints/step-000002.partial", False),
        ("mkdir -p $RUN/checkpoints/step-000002; echo '{\"done\": true}' > $RUN/run.json", False),
    ],
    ids=["stopped", "refused", "killed", "done"],
)
def test_the_batch_script_submits_itself_while_it_gets_on(tmp_path: Path, job: str, is_submitted: bool) -> None:
    """Not where every job would end as this one did: that would go on for ever."""
    for name, line in {
        "scontrol": "echo node1",
        "srun": f'echo "$@" > $RUN.given; {job}',
        "sbatch": "touch $RUN.submitted",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run/checkpoints/step-000001").mkdir(parents=True)
    places = {"RUN": f"{tmp_path}/run", "MODEL": "m", "RECIPE": "r", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    slurm = {"SLURM_JOB_NODELIST": "n", "SLURM_JOB_NUM_NODES": "8", "SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "64"}
    subprocess.run(["bash", str(ROOT / "examples/slurm.sbatch")], env=os.environ | places | slurm, check=False)
    assert (tmp_path / "run.submitted").exists() == is_submitted
    assert (tmp_path / "run.given").read_text().startswith("--cpus-per-task 64 torchrun ")  # srun does not know it else


def test_preparing_by_datatrove_is_preparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Two tasks, one of which is lost at first: what is missing is said, and the next call goes on with it."""
    import prepare_cluster
    from datatrove.executor import LocalPipelineExecutor

    from eagle_model.data import prepare
    from eagle_model.data.processor import Processor
    from eagle_model.data.sample import DataError
    from eagle_model.data.tokenizer import train_tokenizer
    from eagle_model.files import read_json
    from tests.data.conftest import TEXTS, chat_row, tiny_config

    monkeypatch.setattr(prepare, "PART_BYTES", 300)
    monkeypatch.setattr(prepare, "_READ_BYTES", 200)
    rows = [chat_row(f"Question {i}?", id=f"s{i}") for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Processor(train_tokenizer(TEXTS, 400), tiny_config()).save_pretrained(tmp_path / "model")
    words = [str(tmp_path / name) for name in ("rows.jsonl", "out", "model")]
    plain = LocalPipelineExecutor.__init__

    def one_of_two(self: object, *, local_tasks: int = 1, **options: object) -> None:
        plain(self, local_tasks=local_tasks, **options)

    monkeypatch.setattr(LocalPipelineExecutor, "__init__", one_of_two)
    with pytest.raises(DataError, match=r"parts are missing, the first 1\."):
        prepare_cluster.main([*words, "--tasks", "2", "--workers", "1"])
    monkeypatch.setattr(LocalPipelineExecutor, "__init__", plain)
    prepare_cluster.main([*words, "--tasks", "2", "--workers", "1"])
    assert "12 rows, 0 of them bad, in " in capsys.readouterr().out
    assert read_json(tmp_path / "out/prepared.json")["rows"] == 12
