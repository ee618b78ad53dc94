"""Slices: the rows of a parameter that a process holds, and how they lie in a checkpoint's files, one file a process.

    here = own_rows(moment, ranks)               # Rows(local, first_row=12), or None: another process writes the same
    whole = gathered(weight, 3)                  # the whole of it for process 3, its shape alone for the others
    rows = read_index(training, 400)              # which rows of which parameter lie in which file
    state = read_rows(rows, masters, ranks)      # those that this process needs, whoever wrote them

    training/slices.json                         {"step": 400, "num_ranks": 4, "parameters": {
                                                  "lm_head.weight": {"shape": [512, 64], "slices": [[0, 0, 128], ...]}}}
    training/rank-00000-of-00004.safetensors     "exp_avg.lm_head.weight" (128, 64), ...; it says whose it is

A slice is [rank, first row, number of rows]. Nothing here is believed: slices must cover each parameter once, and the
header of a file must hold what the index says of it and no more, before a number is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eagle_model.checkpoints import CheckpointError
from eagle_model.fields import few, shown
from eagle_model.files import read_json
from eagle_model.model.shards import group_of, is_cut, own, rows_of
from eagle_model.train.adamw8bit import BLOCK, PARTS, plain, rounded, shapes
from eagle_model.train.optimizer import MOMENTS
from eagle_model.train.ranks import Ranks

INDEX = "slices.json"
MAX_INDEX_BYTES = 1 << 25  # 20 bytes a slice: 700 parameters over 2,000 processes
MAX_RANKS = 1 << 20  # beyond, a number in an index is no count of processes
KINDS = (*MOMENTS, "master")
RNG = ("rng.torch_cpu", "rng.torch_cuda")
_DTYPES = {"codes": ("U8",), "rng": ("U8",), "number": ("F32", "BF16")}  # as safetensors spells them


# ---- of a process


def own_rows(parameter: Tensor, ranks: Ranks) -> tuple[int, int] | None:
    """The first row of a parameter that this process is to write, and how many; None where it has none, or another
    process has the same."""
    first, end = rows_of(parameter)
    is_ours = place(ranks)[0] == 0 if is_cut(parameter) else ranks.is_first
    return (first, end - first) if is_ours and end > first else None


def place(ranks: Ranks) -> tuple[int, int]:
    """In which replica of a cut model this process is, and which of its shares it has."""
    return divmod(ranks.rank, num_shares(ranks))


def num_shares(ranks: Ranks) -> int:
    """Over how many processes a model is cut."""
    return ranks.layout.shard * ranks.layout.context


def gathered(parameter: Tensor, writer: int, dtype: torch.dtype, ranks: Ranks) -> Tensor:
    """The whole of a parameter in a dtype, for the process with share `writer` in the first replica, on its device; a
    meta tensor of the same shape for the others, who all call this too, in the same order."""
    parameter = parameter.detach()
    replica, share = place(ranks)
    if not is_cut(parameter):
        return parameter.to(dtype) if ranks.is_first else parameter.to(device="meta", dtype=dtype)
    nothing = torch.empty(parameter.shape, dtype=dtype, device="meta")
    if replica:
        return nothing
    local, size, num_rows = own(parameter).to(dtype), num_shares(ranks), len(parameter)
    most, (first, end) = -(-num_rows // size), rows_of(parameter)
    padded = local.new_zeros(most, *parameter.shape[1:])
    padded[: end - first] = local
    whole = padded.new_empty(size * most, *parameter.shape[1:]) if share == writer else None
    parts = None if whole is None else list(whole.chunk(size))
    dist.gather(padded, parts, group=group_of(parameter), group_dst=writer)
    return nothing if whole is None else whole[:num_rows]


# ---- in files


def file_name(rank: int, num_ranks: int) -> str:
    """Of a process's file, inside `training/`."""
    return f"rank-{rank:05d}-of-{num_ranks:05d}.safetensors"


def about(step: int, rank: int, num_ranks: int) -> tuple[str, str]:
    """What the header of a process's file says, so that another's in its place is known."""
    return "slices", f"step {step}, process {rank} of {num_ranks}"


def index_of(step: int, shapes: Mapping[str, Sequence[int]], rows: Sequence[Mapping[str, Any]]) -> Any:
    """What slices.json holds. rows: of each rank, [first row, number of rows] by the parameter's name."""
    slices: dict[str, list[list[int]]] = {name: [] for name in shapes}
    for rank, of_rank in enumerate(rows):
        for name, (first, number) in of_rank.items():
            slices[name].append([rank, first, number])
    parameters = {
        name: {"shape": list(shapes[name]), "slices": sorted(at, key=lambda s: s[1])} for name, at in slices.items()
    }
    return {"step": step, "num_ranks": len(rows), "parameters": parameters}


@dataclass(frozen=True, slots=True)
class Slice:
    rank: int
    first_row: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Index:
    """slices.json, checked: every parameter's slices cover its rows once, in order."""

    folder: Path
    step: int
    num_ranks: int
    shapes: dict[str, tuple[int, ...]]
    slices: dict[str, tuple[Slice, ...]]


def read_index(folder: Path, step: int) -> Index:
    """The index of `training/` of the checkpoint of a step.

    Raises: CheckpointError that names the file and what is wrong in it.
    """
    path = folder / INDEX
    try:
        raw = read_json(path, max_bytes=MAX_INDEX_BYTES)
        num_ranks = raw["num_ranks"]
        if type(raw["step"]) is not int or raw["step"] != step:
            raise ValueError(f"it is of step {shown(raw['step'])}, needs {step}")
        if not _is_count(num_ranks) or not 0 < num_ranks <= MAX_RANKS:
            raise ValueError(f"num_ranks is {shown(num_ranks)}, needs 1 to {MAX_RANKS}")
        index = Index(folder, step, num_ranks, {}, {})
        for name, at in raw["parameters"].items():
            shape, slices = at["shape"], at["slices"]
            if not shape or not all(map(_is_count, shape)):
                raise ValueError(f"{shown(name)} has shape {shown(shape)}")
            index.shapes[name] = tuple(shape)
            index.slices[name] = _covering(name, shape[0], slices, num_ranks)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is no index of slices: {_told(error)}.") from None
    return index


def _told(error: Exception) -> str:
    return str(error).rstrip(".") if type(error) is ValueError else shown(error)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _covering(name: str, length: int, slices: Sequence[Sequence[int]], num_ranks: int) -> tuple[Slice, ...]:
    found: list[Slice] = []
    next_row = 0
    for rank, first, number in slices:
        if not all(map(_is_count, (rank, first, number))) or rank >= num_ranks or number == 0:
            raise ValueError(f"{shown(name)} has slice {shown([rank, first, number])} of {num_ranks} ranks")
        if first != next_row:
            kind = "twice" if first < next_row else "not at all"
            raise ValueError(f"{shown(name)} has row {min(first, next_row)} {kind}")
        if any(at.rank == rank for at in found):  # each has one run of rows, and its file does not say which of two
            raise ValueError(f"{shown(name)} has two slices of rank {rank}")
        found.append(Slice(rank, first, number))
        next_row = first + number
    if next_row != length:
        raise ValueError(f"{shown(name)} has {next_row} rows in its slices; its shape has {length}")
    return tuple(found)


class _Files:
    """The files of a checkpoint's processes, each opened and checked when it is first needed."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._open: dict[int, Any] = {}
        self._held: dict[int, dict[str, int]] = {}  # of each rank, the rows of each parameter
        for name, slices in index.slices.items():
            for at in slices:
                self._held.setdefault(at.rank, {})[name] = at.num_rows

    def __getitem__(self, rank: int) -> Any:
        if rank not in self._open:
            self._open[rank] = self._checked(rank)
        return self._open[rank]

    def _checked(self, rank: int) -> Any:
        index = self._index
        path = index.folder / file_name(rank, index.num_ranks)
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; {INDEX} has slices in it.")
        try:
            file: Any = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or cut short: {shown(error)}.") from None
        name, needs = about(index.step, rank, index.num_ranks)
        if (says := (file.metadata() or {}).get(name)) != needs:
            raise CheckpointError(f"{path} is another's file: it says {shown(says)}; needs {needs!r}.")
        held = self._held.get(rank, {})
        for key in file.keys():  # noqa: SIM118  (not a dict)
            self._check_header(path, key, file.get_slice(key), held)
        return file

    def _check_header(self, path: Path, key: str, header: Any, held: Mapping[str, int]) -> None:
        kind, _, name = key.partition(".")
        shape, dtype = tuple(header.get_shape()), header.get_dtype()
        if key in RNG:
            ok, needs = len(shape) == 1 and dtype in _DTYPES["rng"], "one dimension of U8"
        elif kind in KINDS and name in held:
            need = shapes(kind, (held[name], *self._index.shapes[name][1:]))
            dtypes = _DTYPES["codes" if kind.endswith("_codes") else "number"]
            ok, needs = shape == need and dtype in dtypes, f"{need} of {' or '.join(dtypes)}"
        else:
            raise CheckpointError(f"{path} holds {shown(key)}, of which {INDEX} says nothing.")
        if not ok:
            raise CheckpointError(f"{path} holds {key} as {shape} of {dtype}; needs {needs}.")


def read_rows(
    index: Index, parameters: Mapping[str, Tensor], ranks: Ranks
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What `Optimizer.load_state_dict` takes up, of the rows that this process has of what is trained; and the state of
    its random generators, or of another process's where others wrote it.

    Raises: CheckpointError when the files hold something else than these parameters' state.
    """
    files = _Files(index)
    state: dict[str, Tensor] = {}
    if strange := sorted(index.shapes.keys() ^ parameters.keys()):
        raise CheckpointError(f"{index.folder / INDEX} and what is trained of this model differ in {few(strange)}.")
    for name, parameter in parameters.items():
        if index.shapes[name] != tuple(parameter.shape):
            raise CheckpointError(
                f"{index.folder / INDEX}: {name} has shape {index.shapes[name]}; needs {tuple(parameter.shape)}."
            )
        state |= _state_of(index, files, name, *rows_of(parameter))
    rng = files[ranks.rank % index.num_ranks]
    return state, {key.removeprefix("rng."): rng.get_tensor(key) for key in RNG if key in set(rng.keys())}


def _state_of(index: Index, files: _Files, name: str, first: int, end: int) -> dict[str, Tensor]:
    """The state of some rows of a parameter, by its keys."""
    slices = index.slices[name]
    used = [at for at in slices if at.first_row < end and first < at.first_row + at.num_rows] or slices[:1]
    kinds = [_kinds(index, files, name, at) for at in used]
    if len({"master" in of_slice for of_slice in kinds}) > 1:
        raise CheckpointError(f"{index.folder}: one slice of {name} has a master, and another has none.")
    cuts = [(files[at.rank], max(0, first - at.first_row), max(0, min(end - at.first_row, at.num_rows))) for at in used]

    def rows(kind: str, numbers: int = 1, per: int = 1) -> Tensor:
        """Of all slices, of something that has `numbers` for every `per` rows."""
        return torch.cat([f.get_slice(f"{kind}.{name}")[a * numbers // per : b * numbers // per] for f, a, b in cuts])

    found = {"master": rows("master")} if "master" in kinds[0] else {}
    width = math.prod(index.shapes[name][1:])
    is_at_blocks = end > first and not any(row * width % BLOCK for _, a, b in cuts for row in (a, b))
    for moment in ("exp_avg", "exp_avg_sq"):
        codes, scale = (f"{moment}_{part}" for part in PARTS)
        if all(moment in of_slice for of_slice in kinds):
            found[moment] = rows(moment)
        elif is_at_blocks and all(codes in of_slice for of_slice in kinds):
            found |= {codes: rows(codes), scale: rows(scale, width, BLOCK)}
        else:  # blocks of 256 numbers begin anew in each process: those of these rows are others
            parts = [_in_fp32(f, name, moment)[a:b] for f, a, b in cuts]
            found |= rounded(moment, torch.cat(parts))
    found["step"] = files[slices[0].rank].get_tensor(f"step.{name}")
    return {f"{kind}.{name}": tensor for kind, tensor in found.items()}


def _in_fp32(file: Any, name: str, moment: str) -> Tensor:
    keys, forms = set(file.keys()), (moment, *(f"{moment}_{part}" for part in PARTS))
    return plain(moment, {kind: file.get_tensor(f"{kind}.{name}") for kind in forms if f"{kind}.{name}" in keys})


def _kinds(index: Index, files: _Files, name: str, at: Slice) -> list[str]:
    """What a slice of a parameter's state is made of: both moments, in 8 bits or not, the step, and maybe a master."""
    keys = set(files[at.rank].keys())
    held = [kind for kind in KINDS if f"{kind}.{name}" in keys]
    for moment in ("exp_avg", "exp_avg_sq"):
        forms = ({moment}, {f"{moment}_{part}" for part in PARTS})
        if {kind for kind in held if kind in set.union(*forms)} not in forms or "step" not in held:
            raise CheckpointError(
                f"{index.folder / file_name(at.rank, index.num_ranks)}: of {name} there is {few(held) or 'nothing'}; "
                "needs step and both moments."
            )
    return held
