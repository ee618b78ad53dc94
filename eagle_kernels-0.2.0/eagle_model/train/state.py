"""State: what a checkpoint holds of training, each process its share of it, and how training takes it up again.

    share = share_of(model, optimizer, dtype=torch.bfloat16, step=400, ranks=ranks, staging=staging)
    staging.finish()                             # in a thread: now it is a copy, and the optimizer may step
    share.write(partial)                         # there too: this process's files

    step-000400/
        model-00001-of-00004.safetensors, ...    whole weights under the released names; one file and no index
                                                 where one process trains; adapter_model.safetensors with adapters
        config.json, tokenizer.json, ...         beside them, as Eagle.from_pretrained reads them
        training/rank-00000-of-00004.safetensors the optimizer's rows of each process, its random generators
        training/slices.json                     where which rows lie (slices.py)
        training/state.json, config.json         the loader's place, the run and step; the configuration

Weights are gathered one parameter at a time, each by the process that writes it; nobody holds the whole model or the
whole optimizer. Rows are read back by any number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle_model.checkpoints import CheckpointError, latest, steps, verify
from eagle_model.data.processor import CONFIG_FILE, TOKENIZER_FILE, Processor
from eagle_model.fields import few, shown
from eagle_model.files import read_json, write_json, write_text
from eagle_model.model import lora, weights
from eagle_model.model.config import EagleConfig
from eagle_model.model.eagle import Eagle, write_config
from eagle_model.train import config as train_config
from eagle_model.train.config import TrainConfig
from eagle_model.train.optimizer import Optimizer
from eagle_model.train.ranks import Ranks
from eagle_model.train.slices import INDEX, about, file_name, gathered, index_of, num_shares, own_rows
from eagle_model.train.staging import Staging

TRAINING = "training"
STATE, CONFIG = f"{TRAINING}/state.json", f"{TRAINING}/config.json"
MAX_STATE_BYTES = 1 << 26  # of state.json: the loader lists skipped samples there
READ_ON_RESUME = (  # beside the files of the processes, whose names are in no list
    "config.json",
    lora.CONFIG_FILE,
    lora.WEIGHTS_FILE,
    CONFIG_FILE,
    TOKENIZER_FILE,
    CONFIG,
    f"{TRAINING}/{INDEX}",
    STATE,
)


@dataclass(kw_only=True)
class Share:
    """What one process writes of a checkpoint."""

    files: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # tensors by file, inside the checkpoint
    about: dict[str, tuple[str, str]] = field(default_factory=dict)  # for a file's header
    rows: dict[str, list[int]] = field(default_factory=dict)  # [first row, number of rows] by parameter
    shapes: dict[str, list[int]] = field(default_factory=dict)  # of whole parameters
    shards: dict[str, dict[str, int]] = field(default_factory=dict)  # of all processes: bytes by tensor, by file
    config: EagleConfig  # of the weights as they are saved
    carried: tuple[str, ...]  # tensors beside the model's
    adapter_config: str | None  # the text of adapter_config.json, where adapters alone are saved

    def write(self, folder: Path) -> list[str]:
        """Writes the files, each on the disk when this returns their names. Raises OSError."""
        (folder / TRAINING).mkdir(exist_ok=True)
        for name, tensors in self.files.items():
            weights.write_tensors(folder / name, tensors, self.about.get(name, weights.FORMAT))
        return list(self.files)


def share_of(
    model: Eagle,
    optimizer: Optimizer,
    *,
    dtype: torch.dtype,
    step: int,
    ranks: Ranks,
    staging: Staging | None,
) -> Share:
    """This process's share of a checkpoint; all processes call this together.

    dtype: of the weights as they are saved, the model's arithmetic.  staging: what is copied into, the optimizer's part
    by `staging.finish`, before which no weight may change; without it the share refers to the tensors as they are, and
    is to be written before that.
    """
    adapter_config = None if model.adapter is None else lora.adapter_config(model)
    share = Share(config=model.saved_config(), carried=tuple(model.carried), adapter_config=adapter_config)
    _Weights(share, dtype, ranks, staging).take(model)
    num_ranks = ranks.layout.processes
    name = f"{TRAINING}/{file_name(ranks.rank, num_ranks)}"
    here: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for key, tensor in optimizer.state_dict().items():
        parameter = key.partition(".")[2]
        share.shapes[parameter] = list(parameters[parameter].shape)
        if (rows := own_rows(parameters[parameter], ranks)) is not None:
            here[key] = tensor
            share.rows[parameter] = list(rows)
    here |= {f"rng.{kind}": state for kind, state in rng_state(ranks.device).items()}
    share.files[name] = {key: t if staging is None else staging.copy(t, later=True) for key, t in here.items()}
    share.about[name] = about(step, ranks.rank, num_ranks)
    return share


class _Weights:
    """Puts the model's weights, or its adapters', into the shares of the processes that write them."""

    def __init__(self, share: Share, dtype: torch.dtype, ranks: Ranks, staging: Staging | None) -> None:
        self.share, self.dtype, self.ranks, self.staging = share, dtype, ranks, staging

    def take(self, model: Eagle) -> None:
        ranks, share = self.ranks, self.share
        if model.adapter is not None:
            tensors = lora.adapter_tensors(model, whole=lambda p: gathered(p, 0, p.dtype, ranks))
            mine = {key: self._kept(tensor) for key, tensor in tensors.items() if not tensor.is_meta}
            if ranks.is_first:
                share.files[lora.WEIGHTS_FILE] = mine
            return
        parameters, rules, size = dict(model.named_parameters()), weights.rules(share.config), num_shares(ranks)
        writers = _shared_out({name: parameter.numel() for name, parameter in parameters.items()}, size)
        num_bytes: list[dict[str, int]] = [{} for _ in range(size)]
        num_bytes[0] = {key: tensor.nbytes for key, tensor in model.carried.items()}
        mine = dict(model.carried) if ranks.is_first else {}
        for name, parameter in parameters.items():
            whole = gathered(parameter, writers[name], self.dtype, ranks)
            for key, tensor in weights.released({name: whole}, rules).items():
                num_bytes[writers[name]][key] = tensor.nbytes
                if not tensor.is_meta:
                    mine[key] = self._kept(tensor)
        shards = [keys for sizes in num_bytes if sizes for keys in weights.in_shards(sizes)]
        for name, keys in zip(weights.shard_names(len(shards)), shards, strict=True):
            share.shards[name] = {key: sizes[key] for sizes in num_bytes for key in keys if key in sizes}
            if keys[0] in mine:
                share.files[name] = {key: mine[key] for key in keys}

    def _kept(self, tensor: Tensor) -> Tensor:
        if self.staging is not None:
            return self.staging.copy(tensor)
        # What was gathered is this share's alone, and not to stay on a GPU; a process's own weights are there anyway.
        return tensor if self.ranks.layout.processes == 1 else tensor.cpu()


def _shared_out(sizes: Mapping[str, int], num_writers: int) -> dict[str, int]:
    """Which writer gets which parameter: neighbours stay together, and each writer has about as much."""
    total, done, found = sum(sizes.values()), 0, {}
    for name, size in sizes.items():
        found[name] = min(num_writers - 1, (2 * done + size) * num_writers // max(1, 2 * total))
        done += size
    return found


def write_rest(
    folder: Path,
    share: Share,
    rows: Sequence[Mapping[str, Any]],
    *,
    processor: Processor,
    dtype: torch.dtype,
    config: TrainConfig,
    state: str,
    step: int,
) -> None:
    """What the first process writes beside all shares, once they are there. rows: of every process.

    state: what state.json holds, as text that was made when the share was taken. Nothing else here changes in a run.
    """
    if share.adapter_config is not None:
        write_text(folder / lora.CONFIG_FILE, share.adapter_config)
    else:
        write_config(folder, share.config, dtype, share.carried)
    if len(share.shards) > 1:
        num_bytes = {key: size for shard in share.shards.values() for key, size in shard.items()}
        weights.write_index(folder, num_bytes, share.shards)
    processor.save_pretrained(folder)
    write_json(folder / TRAINING / INDEX, index_of(step, share.shapes, rows))
    (folder / STATE).write_text(state, encoding="utf-8")
    train_config.write_config(folder / CONFIG, config)


def state_text(run: str, step: int, **parts: Any) -> str:
    """What state.json holds. parts: JSON-able; what is None is left out."""
    about = {"run": run, "step": step, "torch": torch.__version__}
    return json.dumps(about | {name: part for name, part in parts.items() if part is not None})


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What state.json of a checkpoint holds. Raises CheckpointError when that is not what a trainer writes."""
    path = checkpoint / STATE
    try:
        state = read_json(path, max_bytes=MAX_STATE_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    kinds = {"run": str, "step": int, "loader": dict}
    if not isinstance(state, dict) or any(type(state.get(name)) is not kind for name, kind in kinds.items()):
        got = shown(state) if not isinstance(state, dict) else few(f"{n}: {shown(state.get(n))}" for n in kinds)
        raise CheckpointError(f"{path} is no state of training: it has {got}; needs run, step and loader.")
    return state


def newest(folder: Path, ranks: Ranks, say: Callable[[str], None]) -> Path | None:
    """`checkpoints.latest`, whose bytes the processes check together, each a share of the files; all call this."""
    names = ranks.gather(list(steps(folder)))
    if any(others != names[0] for others in names):
        raise CheckpointError(
            f"{folder} holds {few(names[0]) or 'no checkpoint'} for process 0, and something else for others. All "
            "machines of a run must see its folder."
        )

    def check(checkpoint: Path) -> None:
        problem = None
        try:
            verify(checkpoint, share=(ranks.rank, ranks.layout.processes))
        except CheckpointError as error:
            problem = str(error)
        for told in ranks.gather(problem):
            if told is not None:
                raise CheckpointError(told)

    return latest(folder, say, check=check)


# ---- random generators


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Of the generators that dropout and stochastic rounding draw from."""
    on_gpu = {"torch_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"torch_cpu": torch.get_rng_state(), **on_gpu}


def set_rng_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Raises CheckpointError for what is no generator's state."""
    setters: dict[str, Callable[[Tensor], None]] = {"torch_cpu": torch.set_rng_state}
    if device.type == "cuda":
        setters["torch_cuda"] = lambda tensor: torch.cuda.set_rng_state(tensor, device)
    for kind, setter in setters.items():
        try:
            if kind in state:
                setter(state[kind])
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(f"rng.{kind} is no state of a random generator: {shown(error)}.") from None
