"""What a checkpoint holds of training: written by any number of processes, taken up by any other number, to the bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from eagle_model.checkpoints import CheckpointError, verify
from eagle_model.fields import override
from eagle_model.model import lora
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle, build, load
from eagle_model.model.lora_config import LoraConfig
from eagle_model.model.shards import rows_of
from eagle_model.train import state
from eagle_model.train import trainer as trainer_module
from eagle_model.train.config import OptimizerConfig
from eagle_model.train.layout import Layout
from eagle_model.train.metrics import read_metrics
from eagle_model.train.optimizer import Optimizer
from eagle_model.train.parallel import parallelize
from eagle_model.train.precision import Masters
from eagle_model.train.ranks import Ranks, start
from eagle_model.train.recipes import debug
from eagle_model.train.saver import Saver
from eagle_model.train.slices import read_index, read_rows
from eagle_model.train.start import new_model
from eagle_model.train.trainer import Trainer
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, small_model
from tests.ranks import run
from tests.train.chats import assert_equal, quiet, without_report, write_chats

CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)  # 97 rows of embeddings: no two processes' are alike
STEPS = 2
CONFIG = override(debug(), ["data.recipe=chats.jsonl"])


class NoProcessor:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def new(base: str, ranks: Ranks, dtype: torch.dtype) -> tuple[Eagle, Optimizer]:
    model = build(CFG)
    parallelize(model, ranks, dtype=dtype)
    load(model, base, dtype=torch.float32)
    return model, Optimizer(Masters(model, dtype), OptimizerConfig(learning_rate=1e-2))


def take_steps(model: Eagle, optimizer: Optimizer, steps: range) -> None:
    """With gradients that are the same however many processes there are."""
    for step in steps:
        for number, (name, parameter) in enumerate(model.named_parameters()):
            generator = torch.Generator().manual_seed(1000 * step + number)
            whole = torch.randn(parameter.shape, generator=generator)
            optimizer.masters.by_name[name].grad = whole[slice(*rows_of(parameter))].clone()
        optimizer.step(1e-2)


def write(folder: str, model: Eagle, optimizer: Optimizer, ranks: Ranks, dtype: torch.dtype) -> list[str]:
    """The checkpoint of step STEPS; which files this process wrote."""
    saver, written = Saver(Path(folder), "run", ranks, in_background=True), []

    def take(staging):
        share = state.share_of(model, optimizer, dtype=dtype, step=STEPS, ranks=ranks, staging=staging)
        written.extend(share.files)
        return share

    def rest(at, share, rows):
        about = state.state_text("run", STEPS, loader={})
        at_step = {"processor": NoProcessor(), "dtype": dtype, "step": STEPS}
        state.write_rest(at, share, rows, config=CONFIG, state=about, **at_step)

    saver.begin(STEPS, take, rest=rest, then=lambda: None)
    saver.copied()
    take_steps(model, optimizer, range(STEPS, STEPS + 2))  # what is written is a copy
    saver.wait()
    saver.close()
    assert ranks.gather(saver.saved_step) == [STEPS] * ranks.layout.processes
    return written


def train_and_write(base: str, folder: str, layout: dict[str, int], dtype: str) -> list[str]:
    """Two steps, a checkpoint, two more steps; which files this process wrote."""
    ranks, kind = start(Layout(**layout), "cpu"), getattr(torch, dtype)
    torch.manual_seed(100 + ranks.rank)
    model, optimizer = new(base, ranks, kind)
    take_steps(model, optimizer, range(STEPS))
    written = write(f"{folder}/checkpoints", model, optimizer, ranks, kind)
    note(f"{folder}/straight", model, optimizer, ranks)
    return written


def resume(folder: str, layout: dict[str, int], dtype: str) -> float:
    """Takes up the checkpoint, and takes two more steps; a random number in between."""
    ranks, kind = start(Layout(**layout), "cpu"), getattr(torch, dtype)
    at = state.newest(Path(folder) / "checkpoints", ranks, must_not_speak)
    assert at is not None and at.name == f"step-{STEPS:06d}"
    assert state.read_state(at)["step"] == STEPS
    model, optimizer = new(str(at), ranks, kind)
    tensors, rng = read_rows(read_index(at / "training", STEPS), dict(model.named_parameters()), ranks)
    optimizer.load_state_dict(tensors)
    state.set_rng_state(rng, ranks.device)
    drawn = torch.rand(1).item()
    note(f"{folder}/read", model, optimizer, ranks)
    take_steps(model, optimizer, range(STEPS, STEPS + 2))
    note(f"{folder}/resumed", model, optimizer, ranks)
    return drawn


def note(folder: str, model: Eagle, optimizer: Optimizer, ranks: Ranks) -> None:
    """What this process holds: masters and the optimizer's state, and which rows."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    held = {f"master.{name}": master for name, master in optimizer.masters.by_name.items()} | optimizer.state_dict()
    firsts = {f"first.{name}": torch.tensor(rows_of(parameter)[0]) for name, parameter in model.named_parameters()}
    state.weights.write_tensors(Path(folder) / f"{ranks.rank}.safetensors", held | firsts)


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """What all processes noted, put together; replicas must have noted the same."""
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for path in folder.glob("*.safetensors"):
        held = load_file(path)
        for key, tensor in held.items():
            kind, _, name = key.partition(".")
            if kind != "first" and len(tensor.reshape(-1)):
                first = 0 if kind == "step" else int(held[f"first.{name}"])
                same = parts.setdefault(key, {}).setdefault(first, tensor)
                assert torch.equal(same, tensor), (path, key)
    return {
        key: torch.cat([rows[first] for first in sorted(rows)]) if key.partition(".")[0] != "step" else rows[0]
        for key, rows in parts.items()
    }


def assert_shared_out(checkpoint: Path, written: list[list[str]]) -> None:
    """Nobody writes all, and replicas write nothing twice."""
    assert written == [
        ["model-00001-of-00002.safetensors", "training/rank-00000-of-00004.safetensors"],
        ["model-00002-of-00002.safetensors", "training/rank-00001-of-00004.safetensors"],
        ["training/rank-00002-of-00004.safetensors"],
        ["training/rank-00003-of-00004.safetensors"],
    ]
    sizes = [[(checkpoint / name).stat().st_size for name in names] for names in written]
    assert all(abs(a - b) < 0.2 * a for a, b in zip(sizes[0], sizes[1], strict=True))
    with safe_open(checkpoint / written[2][0], framework="pt") as file:
        assert set(file.keys()) == {"rng.torch_cpu"}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """An update of 16 numbers is not to the last bit that of the same numbers among 64: vectors end elsewhere."""
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-6, msg=key)


def must_not_speak(message: str) -> None:
    raise AssertionError(f"said: {message}")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    small_model(CFG).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory) -> dict[str, Path]:
    """One process's notes, and its checkpoint, by dtype."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        found[dtype] = tmp_path_factory.mktemp(dtype)
        train_and_write(str(base), str(found[dtype]), {}, dtype)
        resume(str(found[dtype]), {}, dtype)
    return found


@pytest.mark.parametrize(
    ("wrote", "reads", "dtype"),
    [
        ({}, {}, "float32"),
        ({"shard": 3}, {}, "bfloat16"),
        ({"shard": 3}, {"shard": 3}, "bfloat16"),
        ({"replicate": 2, "shard": 2}, {"shard": 3}, "float32"),
        pytest.param({}, {"shard": 3}, "bfloat16", marks=pytest.mark.slow),
        pytest.param({"shard": 3}, {"shard": 2}, "float32", marks=pytest.mark.slow),
        pytest.param({"shard": 2}, {"replicate": 2, "context": 2}, "bfloat16", marks=pytest.mark.slow),
    ],
    ids=["1-1", "3-1", "3-3", "2x2-3", "1-3", "3-2", "2-2x2"],
)
def test_taken_up_by_any_number_of_processes(base, alone, tmp_path, wrote, reads, dtype):
    written = run(train_and_write, Layout(**wrote).processes, str(base), str(tmp_path), wrote, dtype)
    checkpoint = tmp_path / "checkpoints" / f"step-{STEPS:06d}"
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    manifest = verify(checkpoint)
    assert {name for names in written for name in names} <= set(manifest.files)
    assert all("handed-in" not in name for name in manifest.files)
    if Layout(**wrote).replicate == 2:
        assert_shared_out(checkpoint, written)

    drawn = run(resume, Layout(**reads).processes, str(tmp_path), reads, dtype)
    read, resumed, straight = (whole(tmp_path / name) for name in ("read", "resumed", "straight"))
    assert_close(read, whole(alone[dtype] / "read"))
    assert_close(resumed, whole(alone[dtype] / "resumed"))
    if wrote == reads:
        assert_equal(resumed, straight)
    as_a_model = Eagle.from_pretrained(checkpoint)  # whole weights, for every reader
    for name, parameter in as_a_model.named_parameters():
        assert parameter.dtype == getattr(torch, dtype)
        assert torch.equal(parameter, read[f"master.{name}"].to(parameter.dtype)), name

    for rank, number in enumerate(drawn):  # each goes on from the random numbers of a process that wrote
        torch.manual_seed(100 + rank % Layout(**wrote).processes)
        assert number == torch.rand(1).item()


# ---- runs of every kind

KINDS = {
    "lora": ["dtype=bfloat16", "lora.rank=4", "lora.dropout=0.1", "lora.modules_to_save=mlp1"],
    "8-bit": ["memory.optimizer=adamw8bit"],
    "host": ["dtype=bfloat16", "memory.optimizer=host"],
    "tied": ["dtype=bfloat16"],
}


def go_on(chats: str, model: str, folder: str, layout: list[str], kind: list[str], max_steps: int) -> list[float]:
    """A run up to so many steps, with a checkpoint after each; the losses of all."""
    settings = [f"data.recipe={chats}/chats.jsonl", "processor.sampling.context_tokens=160", "rows_per_step=2"]
    settings += [f"model={model}", f"max_steps={max_steps}", "save_every_steps=1", "guards.hang_minutes=2"]
    trainer_module.write_report = without_report
    torch.compiler.set_stance("force_eager")  # torchao compiles its update, for a minute
    trainer = Trainer(override(debug(), [*settings, *layout, *kind]), folder, device="cpu", say=quiet)
    assert trainer.train()
    return [m["loss"] for m in read_metrics(Path(folder) / "metrics.jsonl")] if trainer.ranks.is_first else []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_any_kind_goes_on_on_as_many_processes_or_others(tmp_path, kind):
    chats = write_chats(tmp_path)
    model, processor = new_model(override(debug(), [f"data.recipe={chats}/chats.jsonl"]))
    if kind == "tied":
        text = replace(model.cfg.text, tie_word_embeddings=True)
        model = build(replace(model.cfg, text=text), "cpu")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")

    def life(name: str, num_processes: int, max_steps: int) -> list[float]:
        layout = [f"layout.shard={num_processes}"]
        settings = (str(chats), str(tmp_path / "model"), str(tmp_path / name), layout, KINDS[kind], max_steps)
        return run(go_on, num_processes, *settings)[0]

    straight = life("straight", 2, 4)
    life("same", 2, 2)
    assert life("same", 2, 4) == straight
    ours, theirs = (tmp_path / name / "checkpoints/step-000004" for name in ("same", "straight"))
    for path in theirs.rglob("*.safetensors"):
        assert_equal(load_file(ours / path.relative_to(theirs)), load_file(path))
    for first, then in ((2, 1), (1, 2)):
        life(f"{first}-{then}", first, 2)
        losses = life(f"{first}-{then}", then, 4)
        # Dropout draws by process, and moments of 8 bits are rounded by what a process has.
        assert losses == pytest.approx(straight, rel=0.05 if kind in ("lora", "8-bit") else 1e-3)


def test_without_staging_nothing_is_copied(base):
    ranks = start(Layout(), "cpu")
    model, optimizer = new(str(base), ranks, torch.float32)
    take_steps(model, optimizer, range(1))
    share = state.share_of(model, optimizer, dtype=torch.float32, step=1, ranks=ranks, staging=None)
    (weights_file, state_file) = share.files.values()
    head = model.lm_head.weight
    assert weights_file["language_model.lm_head.weight"].data_ptr() == head.data_ptr()
    moments = optimizer.adamw.state[head]
    assert state_file["exp_avg.lm_head.weight"].data_ptr() == moments["exp_avg"].data_ptr()


def test_adapters_are_saved_alone(base, tmp_path):
    ranks = start(Layout(), "cpu")
    model = Eagle.from_pretrained(base)
    lora.add_lora(model, LoraConfig(rank=2, modules_to_save=("mlp1",)), base=str(base))
    optimizer = Optimizer(Masters(model, torch.float32), OptimizerConfig(learning_rate=1e-2))
    optimizer.step(1e-2)
    share = state.share_of(model, optimizer, dtype=torch.float32, step=1, ranks=ranks, staging=None)
    assert list(share.files) == ["adapter_model.safetensors", "training/rank-00000-of-00001.safetensors"]
    share.write(tmp_path)
    (tmp_path / "adapter_config.json").write_text(share.adapter_config)
    lora.save_adapter(model, tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "maximum recursion depth"),
        ("[]", r"it has \[\]; needs run, step and loader"),
        ('{"run": "a", "step": "2", "loader": {}}', r"step: '2'"),
        ('{"run": "a", "step": 2, "loader": [1]}', r"loader: \[1\]"),
    ],
)
def test_a_state_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"state\.json.*{message}"):
        state.read_state(tmp_path)


def test_no_generator_s_state_is_refused():
    before = torch.get_rng_state()
    for wrong in (torch.zeros(3, dtype=torch.uint8), torch.zeros(5056), torch.zeros(5056, dtype=torch.uint8)):
        with pytest.raises(CheckpointError, match=r"rng\.torch_cpu is no state of a random generator"):
            state.set_rng_state({"torch_cpu": wrong}, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def see_other_folders(folder: str) -> str:
    ranks = start(Layout(shard=2), "cpu")
    mine = Path(folder) / str(ranks.rank)
    (mine / f"step-{ranks.rank:06d}").mkdir(parents=True)
    try:
        state.newest(mine, ranks, must_not_speak)
    except CheckpointError as error:
        return str(error)
    return ""


def test_machines_that_do_not_share_the_folder_are_told(tmp_path):
    for told in run(see_other_folders, 2, str(tmp_path)):
        assert "holds 0 for process 0, and something else for others" in told
