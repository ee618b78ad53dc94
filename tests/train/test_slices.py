"""Rows in files: read back by any number of processes, and nothing believed that a file or an index says of itself."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle_model.checkpoints import CheckpointError
from eagle_model.model.weights import write_tensors
from eagle_model.train import adamw8bit, slices
from eagle_model.train.layout import Layout
from eagle_model.train.ranks import Ranks, start
from eagle_model.train.slices import Index, about, file_name, index_of, read_index, read_rows

STEP = 7
CUTS = {"a.weight": (0, 3, 5), "a.bias": (0, 5, 5), "b.weight": (0, 1, 2)}  # of two processes: where each begins
SHAPES = {"a.weight": (5, 3), "a.bias": (5,), "b.weight": (2, 4)}


def whole_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    kinds = ("exp_avg", "exp_avg_sq", "master")
    state = {f"{kind}.{name}": torch.randn(shape) for name, shape in SHAPES.items() for kind in kinds}
    return state | {f"step.{name}": torch.tensor(float(STEP)) for name in SHAPES}


def write(folder: Path) -> dict[str, Tensor]:
    """training/ as two processes write it."""
    state, rows = whole_state(), []
    for rank in range(2):
        cut = {name: (at[rank], at[rank + 1]) for name, at in CUTS.items() if at[rank] < at[rank + 1]}
        held = {
            f"{kind}.{name}": state[f"{kind}.{name}"] if kind == "step" else state[f"{kind}.{name}"][slice(*at)]
            for name, at in cut.items()
            for kind in ("exp_avg", "exp_avg_sq", "master", "step")
        }
        held["rng.torch_cpu"] = torch.full((4,), rank, dtype=torch.uint8)
        write_tensors(folder / file_name(rank, 2), held, about(STEP, rank, 2))
        rows.append({name: [first, end - first] for name, (first, end) in cut.items()})
    (folder / "slices.json").write_text(json.dumps(index_of(STEP, SHAPES, rows)))
    return state


def parameters() -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}


def read(folder: Path, ranks: Ranks | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return read_rows(read_index(folder, STEP), parameters(), ranks or start(Layout(), "cpu"))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_any_number_of_processes_reads_its_rows(tmp_path, monkeypatch, size):
    state = write(tmp_path)
    for rank in range(size):

        def rows_of(parameter: Tensor, rank: int = rank) -> tuple[int, int]:
            most = -(-len(parameter) // size)
            return min(len(parameter), rank * most), min(len(parameter), (rank + 1) * most)

        monkeypatch.setattr(slices, "rows_of", rows_of)
        ranks = Ranks(Layout(), torch.device("cpu"), rank=rank)
        found, rng = read(tmp_path, ranks)
        assert found.keys() == state.keys()
        for key, tensor in state.items():
            at = slice(*rows_of(torch.empty(SHAPES[key.partition(".")[2]])))
            assert torch.equal(found[key], tensor if tensor.ndim == 0 else tensor[at]), key
        assert rng["torch_cpu"].tolist() == [rank % 2] * 4


@pytest.mark.parametrize("rows", [(0, 40), (8, 32), (3, 37), (0, 0)], ids=str)
def test_moments_of_8_bits_are_read_by_any_rows(tmp_path, monkeypatch, rows):
    """Of two processes, the second has too few numbers for 8 bits. Read again, blocks begin elsewhere."""
    torch.manual_seed(0)
    moments = {"exp_avg": torch.randn(40, 256), "exp_avg_sq": torch.rand(40, 256)}
    cuts, read_back = (0, 32, 40), {}
    for rank in range(2):
        held = {"step.w": torch.tensor(1.0)}
        for kind, moment in moments.items():
            parts = adamw8bit.rounded(kind, moment[cuts[rank] : cuts[rank + 1]].clone())
            assert len(parts) == (2 if rank == 0 else 1)
            held |= {f"{name}.w": tensor for name, tensor in parts.items()}
            read_back.setdefault(kind, []).append(adamw8bit.plain(kind, parts))
        write_tensors(tmp_path / file_name(rank, 2), held, about(STEP, rank, 2))
    index = Index(tmp_path, STEP, 2, {"w": (40, 256)}, {"w": (slices.Slice(0, 0, 32), slices.Slice(1, 32, 8))})
    monkeypatch.setattr(slices, "rows_of", lambda parameter: rows)
    found, _ = read_rows(index, {"w": torch.empty(40, 256)}, Ranks(Layout(), torch.device("cpu")))
    for kind, parts in read_back.items():
        held = {key.removesuffix(".w"): tensor for key, tensor in found.items()}
        ours, theirs = adamw8bit.plain(kind, held), torch.cat(parts)[slice(*rows)]
        assert ours.shape == theirs.shape
        if rows == (8, 32):  # whole blocks stay what they were; else all is rounded once more
            assert torch.equal(ours, theirs)
        assert not len(theirs) or (ours - theirs).abs().max() < 0.02 * theirs.abs().max()

    monkeypatch.setattr(slices, "rows_of", lambda parameter: (0, 32))  # as it was written: to the bit
    found, _ = read_rows(index, {"w": torch.empty(40, 256)}, Ranks(Layout(), torch.device("cpu")))
    written = load_file(tmp_path / file_name(0, 2))
    assert found.keys() == written.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in written.items())


# ---- what is not believed


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        raw = json.loads((folder / "slices.json").read_text())
        change(raw)
        (folder / "slices.json").write_text(json.dumps(raw))

    return damage


def text(content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "slices.json").write_text(content)  # type: ignore[return-value]


def slices_of(name: str, *at: list) -> Callable[[Path], None]:
    return edit(lambda raw: raw["parameters"][name].update(slices=list(at)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "slices.json").unlink(), r"is no file"),
        (text("[" * 100_000), r"maximum recursion depth"),
        (text(" " * (slices.MAX_INDEX_BYTES + 1)), rf"has more than {slices.MAX_INDEX_BYTES} bytes"),
        (text("[]"), r"TypeError"),
        (edit(lambda raw: raw.update(step=STEP + 1)), r"it is of step 8, needs 7"),
        (edit(lambda raw: raw.update(step=True)), r"it is of step True, needs 7"),
        (edit(lambda raw: raw.update(num_ranks=0)), r"num_ranks is 0, needs 1 to"),
        (edit(lambda raw: raw.update(num_ranks=1 << 40)), r"num_ranks is 1099511627776, needs 1 to"),
        (edit(lambda raw: raw.update(num_ranks="../../secret")), r"num_ranks is '\.\./\.\./secret'"),
        (edit(lambda raw: raw["parameters"]["a.bias"].update(shape=[])), r"'a\.bias' has shape \[\]"),
        (edit(lambda raw: raw["parameters"]["a.bias"].update(shape=[-5])), r"'a\.bias' has shape \[-5\]"),
        (edit(lambda raw: raw["parameters"].update(c=3)), r"TypeError"),
        (slices_of("a.weight", [0, 0, 3]), r"'a\.weight' has 3 rows in its slices; its shape has 5"),
        (slices_of("a.weight", [0, 0, 3], [1, 2, 3]), r"'a\.weight' has row 2 twice"),
        (slices_of("a.weight", [0, 0, 2], [1, 3, 2]), r"'a\.weight' has row 2 not at all"),
        (slices_of("a.weight", [0, 1, 4]), r"'a\.weight' has row 0 not at all"),
        (slices_of("a.weight", [0, 0, 5], [1, 5, 5]), r"'a\.weight' has 10 rows in its slices"),
        (slices_of("a.weight", [0, 0, 3], [2, 3, 2]), r"has slice \[2, 3, 2\] of 2 ranks"),
        (slices_of("a.weight", [0, 0, -1], [1, -1, 6]), r"has slice \[0, 0, -1\] of 2 ranks"),
        (slices_of("a.weight", [0, 0, 0], [0, 0, 5]), r"has slice \[0, 0, 0\] of 2 ranks"),
        (slices_of("a.weight", [0, 0, 3], [0, 3, 2]), r"'a\.weight' has two slices of rank 0"),
        (slices_of("a.weight", [0, 0, 1e999]), r"has slice \[0, 0, inf\]"),
        (slices_of("a.weight", [0, 0]), r"not enough values to unpack"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, damage, message):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=rf"slices\.json is no index of slices: .*{message}") as caught:
        read_index(tmp_path, STEP)
    assert len(str(caught.value)) < 500


def rewrite(rank: int, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        held = load_file(folder / file_name(rank, 2))
        change(held)
        write_tensors(folder / file_name(rank, 2), held, about(STEP, rank, 2))

    return damage


def swap(folder: Path) -> None:
    first, second = (folder / file_name(rank, 2) for rank in range(2))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)


def lie_in_header(old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / file_name(0, 2)
        content = path.read_bytes()
        assert old in content and len(old) == len(new)
        path.write_bytes(content.replace(old, new, 1))

    return damage


def bomb(folder: Path) -> None:
    """A header that promises a petabyte."""
    header = json.dumps(
        {"exp_avg.a.weight": {"dtype": "F32", "shape": [1 << 48], "data_offsets": [0, 1 << 50]}}
    ).encode()
    (folder / file_name(0, 2)).write_bytes(len(header).to_bytes(8, "little") + header)


def pickled(folder: Path) -> None:
    """What torch.save would begin with, under our name; who unpickles it makes a file."""
    marker = folder / "executed"
    (folder / file_name(0, 2)).write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode() + bytes(200))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / file_name(1, 2)).unlink(),
            r"rank-00001-of-00002\.safetensors is missing; slices\.json",
        ),
        (pickled, r"rank-00000-of-00002\.safetensors is damaged or cut short: SafetensorError"),
        (bomb, r"rank-00000-of-00002\.safetensors is damaged or cut short: SafetensorError"),
        (lambda folder: (folder / file_name(0, 2)).write_bytes(b"\xff" * 200), r"is damaged or cut short"),
        (lambda folder: (folder / file_name(0, 2)).write_bytes(b""), r"is damaged or cut short"),
        (swap, r"is another's file: it says 'step 7, process 1 of 2'; needs 'step 7, process 0 of 2'"),
        (
            lambda folder: save_file(load_file(folder / file_name(0, 2)), folder / file_name(0, 2)),
            r"is another's file: it says None",
        ),
        (
            rewrite(0, lambda held: held.update({"exp_avg.c": torch.zeros(3)})),
            r"holds 'exp_avg\.c', of which slices\.json",
        ),
        (
            rewrite(0, lambda held: held.update({"../x": torch.zeros(3)})),
            r"holds '\.\./x', of which slices\.json says no",
        ),
        (
            rewrite(0, lambda held: held.update({"exp_avg.a.weight": torch.zeros(4, 3)})),
            r"holds exp_avg\.a\.weight as \(4, 3\) of F32; needs \(3, 3\) of F32 or BF16",
        ),
        (
            rewrite(0, lambda held: held.update({"exp_avg.a.weight": torch.zeros(3, 3, dtype=torch.int64)})),
            r"holds exp_avg\.a\.weight as \(3, 3\) of I64",
        ),
        (rewrite(0, lambda held: held.update({"rng.torch_cpu": torch.zeros(2, 2)})), r"needs one dimension of U8"),
        (
            rewrite(0, lambda held: held.pop("exp_avg.a.weight")),
            r"of a\.weight there is .*; needs step and both moments",
        ),
        (
            rewrite(0, lambda held: held.pop("master.a.weight")),
            r"one slice of a\.weight has a master, and another has none",
        ),
        (
            rewrite(1, lambda held: held.pop("master.a.weight")),
            r"one slice of a\.weight has a master, and another has none",
        ),
        (rewrite(0, lambda held: held.pop("step.a.bias")), r"of a\.bias there is .*; needs step and both moments"),
        (
            rewrite(0, lambda held: held.pop("exp_avg_sq.a.bias")),
            r"of a\.bias there is .*; needs step and both moments",
        ),
        (lie_in_header(b'"shape":[3,3]', b'"shape":[9,1]'), r"as \(9, 1\) of F32; needs \(3, 3\)"),
        (lie_in_header(b'"shape":[3,3]', b'"shape":[3,9]'), r"is damaged or cut short"),
    ],
)
def test_a_file_that_lies_is_refused(tmp_path, damage, message):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tmp_path)
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "executed").exists()


def test_what_is_trained_must_be_what_was_saved(tmp_path):
    write(tmp_path)
    index, ranks = read_index(tmp_path, STEP), start(Layout(), "cpu")
    with pytest.raises(CheckpointError, match=r"what is trained of this model differ in b\.weight"):
        read_rows(index, {name: p for name, p in parameters().items() if name != "b.weight"}, ranks)
    with pytest.raises(CheckpointError, match=r"differ in c"):
        read_rows(index, parameters() | {"c": torch.empty(3)}, ranks)
    with pytest.raises(CheckpointError, match=r"a\.bias has shape \(5,\); needs \(6,\)"):
        read_rows(index, parameters() | {"a.bias": torch.empty(6)}, ranks)


def test_names_of_files_are_made_not_read(tmp_path):
    """Nothing in an index names a file."""
    write(tmp_path)
    raw = json.loads((tmp_path / "slices.json").read_text())
    assert set(raw) == {"step", "num_ranks", "parameters"}
    assert re.fullmatch(r"rank-\d{5}-of-\d{5}\.safetensors", file_name(3, 4))
    index = replace(read_index(tmp_path, STEP), num_ranks=3)
    with pytest.raises(CheckpointError, match=r"rank-00000-of-00003\.safetensors is missing"):
        read_rows(index, parameters(), start(Layout(), "cpu"))
