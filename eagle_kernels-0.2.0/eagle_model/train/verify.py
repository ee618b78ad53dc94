"""eagle verify: proves that many processes compute what one computes: the loss and every gradient of every tower.

    eagle verify                                                 # 32 processes on this machine's CPU, in fp64
    torchrun --nproc-per-node 8 -m eagle_model.cli verify        # your GPUs, in bf16

A small Eagle computes a step of rows that break things, in one process (the oracle) and then in every layout:
context ranks x shards, gathered keys, a ring, inner Ulysses, with and without activations computed again. Every rank
compares what it has with its part of the oracle's, stage by stage in the order of computation, so that the first wrong
stage and the ranks where it is wrong have names. Then faults are planted, one after another, into the exchanges that
training uses; each of them must be found.

On a CPU the processes of each layout are forked from this one. Under torchrun its processes are taken, and the layouts
of exactly as many.

Bounds   fp64: BOUND of the largest number of a tensor. bf16: NARROW_BOUND, of the 2-norm of an error in that of the
         tensor, which the oracle has in fp64.
Dims     T tokens of a row, R those of a rank, N visual tokens.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from eagle_model.batch import IGNORE_INDEX, PackedBatch, tile_range
from eagle_model.files import read_json, write_json
from eagle_model.model.config import EagleConfig, tiny
from eagle_model.model.context import Context
from eagle_model.model.eagle import Eagle, build, load
from eagle_model.model.loss import sqrt_mass, token_weights
from eagle_model.model.recompute import RunLayer, attention_kept, recomputed
from eagle_model.train.context_parallel import share
from eagle_model.train.faults import FAULTS
from eagle_model.train.forks import fork
from eagle_model.train.layout import Layout
from eagle_model.train.parallel import parallelize
from eagle_model.train.parts import PARTS, part_of
from eagle_model.train.ranks import Ranks, leave, start

BOUND = 1e-12  # fp64: a hundred additions in another order differ by 1e-14
NARROW_BOUND = 0.07  # bf16: rounding came to 0.043 at most on a CPU, the planted faults to 0.14 and more
NUM_PROCESSES = 32
PATIENCE = timedelta(minutes=2)  # of a process that waits for others
ROWS = {  # name: documents of (tokens before, tiles, tokens after)
    "one document": [(61, 2, 40)],
    "many documents": [(9, 0, 0), (3, 1, 7), (1, 0, 0), (0, 2, 5), (17, 0, 0), (2, 1, 30), (31, 0, 0)],
    "a document across every boundary": [(1, 0, 0), (50, 3, 50), (2, 0, 0)],
    "an image on every cut": [(2, 17, 3)],
    "ranks without an image": [(20, 0, 0), (30, 1, 12)],
    "text alone": [(40, 0, 0), (25, 0, 0)],
}
KEEP: dict[str, RunLayer | None] = {"all": None, "block": recomputed, "attention": attention_kept}
STAGES = (  # in the order of computation; what is wrong first is wrong by itself
    "normaliser",
    "visual tokens",
    "embeddings",
    "layer 1's input",
    "hidden states",
    "loss",
    "gradient of hidden states",
    "gradient of layer 1's input",
    "gradient of embeddings",
    "gradient of visual tokens",
    *(f"gradients of {part}" for part in reversed(PARTS)),
)
TOWER = {  # of each stage: what computes it
    "normaliser": "the sum over data ranks",
    "visual tokens": "vision",
    "embeddings": "the exchange of visual tokens",
    "layer 1's input": "the language model",
    "hidden states": "the language model",
    "loss": "the head",
    "gradient of hidden states": "the head, backward",
    "gradient of layer 1's input": "the language model, backward",
    "gradient of embeddings": "the language model, backward",
    "gradient of visual tokens": "the exchange of visual tokens, backward",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One step of one layout; data rank d of D has every D-th of the rows."""

    layout: Layout
    rows: tuple[str, ...]
    keep: str = "all"
    chunk_tiles: int | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Errors by stage, the largest of all ranks, and the first stage that is wrong."""

    case: Case
    errors: dict[str, float]
    stage: str | None = None
    ranks: tuple[int, ...] = ()

    @property
    def is_right(self) -> bool:
        """Equal; where a fault was planted, wrong where that shows first."""
        return self.stage == (FAULTS[self.case.fault].stage if self.case.fault else None)

    def __str__(self) -> str:
        if self.stage is None:
            return "equal"
        where = f"rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}"
        tower = TOWER.get(self.stage, self.stage.removeprefix("gradients of "))
        return f"{self.stage} ({tower}) on {where}, an error of {self.errors[self.stage]:.1e}"


def layouts(num_processes: int) -> list[Layout]:
    """Every degree of context with every number of shards; other methods without shards; a cut head; replicas."""
    found = []
    for context in (1, 2, 4, 8, 16):
        found += [Layout(context=context, shard=shard) for shard in (1, 2, 4)]
        for ulysses in (1, 2, 4):
            if 1 < ulysses <= context:
                found.append(Layout(context=context, ulysses=ulysses))
            if ulysses < context:
                found.append(Layout(context=context, ulysses=ulysses, method="ring"))
    found += [Layout(shard=2, context=2, vocab_parallel=True), Layout(replicate=2, shard=2, context=2)]
    return [layout for layout in found if 1 < layout.processes <= num_processes]


def cases(num_processes: int, *, short: bool = False) -> list[Case]:
    """What is proved with so many processes; short: one step of each layout."""
    of_layouts = [list(_of_layout(layout)) for layout in layouts(num_processes)]
    if short:
        return [its[i % len(its)] for i, its in enumerate(of_layouts)]
    return [case for its in of_layouts for case in its]


def _of_layout(layout: Layout) -> Iterator[Case]:
    """Steps of as many rows as there are data ranks. Of the default method every row, with activations kept and with
    layers computed again; of other methods in turns with all but attention; of many ranks then, and of 16, three."""
    names, is_whole = list(ROWS), layout.method == "gather" and layout.ulysses == 1 and layout.context <= 8
    if not is_whole and layout.context > 4:
        names = names[1:4]
    for number, first in enumerate(range(0, len(names), layout.data)):
        rows = tuple(names[(first + i) % len(names)] for i in range(layout.data))
        for keep in ("all", "block") if is_whole else (("all", "attention")[number % 2],):
            yield Case(layout, rows, keep=keep)
    if is_whole:
        yield Case(layout, tuple(names[2 + i % 2] for i in range(layout.data)), chunk_tiles=1)


def faults(num_processes: int = 2) -> list[Case]:
    """A planted fault each, in a layout of so many processes."""
    return [
        Case(layout, tuple(islice(cycle(fault.rows), layout.data)), fault=name)
        for name, fault in FAULTS.items()
        for layout in [Layout(shard=num_processes) if fault.is_of_shards else Layout(context=num_processes)]
    ]


@functools.cache
def config() -> EagleConfig:
    """Heads that two levels of Ulysses can share, a width for the kernels, every kind of parameter."""
    base = tiny(vocab_size=97, image_token_id=96)
    text = replace(base.text, num_attention_heads=8, num_key_value_heads=4, head_dim=16, num_hidden_layers=2)
    return replace(base, text=replace(text, hidden_size=64, intermediate_size=160))


@functools.cache
def row(name: str) -> PackedBatch:
    """A packed row of `ROWS`: random text, of which all is supervised but what comes before a tile."""
    cfg, generator = config(), torch.Generator().manual_seed(list(ROWS).index(name))
    ids, labels, positions, visual_rows, ends = [], [], [], [], [0]
    num_tiles = 0
    for before, tiles, after in ROWS[name]:
        num_visual, start_row = tiles * cfg.tokens_per_tile, ends[-1]
        ids_T = torch.randint(0, cfg.image_token_id, (before + num_visual + after,), generator=generator)
        ids_T[before : before + num_visual] = cfg.image_token_id
        labels_T = torch.cat([ids_T[1:], torch.tensor([IGNORE_INDEX])])
        ids.append(ids_T)
        labels.append(labels_T.masked_fill(labels_T == cfg.image_token_id, IGNORE_INDEX))
        positions.append(torch.arange(len(ids_T), dtype=torch.int32))
        visual_rows.append(start_row + before + torch.arange(num_visual))
        ends.append(start_row + len(ids_T))
        num_tiles += tiles
    shape = (num_tiles, cfg.vision.num_patches, cfg.vision.num_patch_values)
    return PackedBatch(
        token_ids_T=torch.cat(ids),
        labels_T=torch.cat(labels),
        positions_T=torch.cat(positions),
        cu_seqlens=torch.tensor(ends, dtype=torch.int32),
        patches_IPK=torch.randn(shape, generator=generator),
        visual_rows_N=torch.cat(visual_rows),
        sample_ids=tuple(f"{name} {i}" for i in range(len(ids))),
    )


def prepare(folder: Path, dtype: torch.dtype) -> None:
    """Writes the model, and what one process computes of each row at a mass of 1, for all processes to compare with."""
    cfg = config()
    torch.manual_seed(0)
    model = Eagle(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # all of them large enough to show
            parameter.normal_(std=0.1)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    model = model.to(dtype).double()  # the numbers that all have, whatever they compute in
    model.save_pretrained(folder / "model")
    one = torch.ones(())
    for index, name in enumerate(ROWS):
        batch = row(name)
        batch = replace(batch, patches_IPK=batch.patches_IPK.to(dtype).double())
        model.zero_grad()
        with Watch(model) as watch:
            model(batch, one).backward()
        found = watch.found(token_weights(batch.labels_T, batch.cu_seqlens, one))
        found |= {f"grad/{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
        save_file({key: value.contiguous() for key, value in found.items()}, folder / f"{index}.safetensors")


@functools.cache
def oracle(folder: Path) -> list[dict[str, Tensor]]:
    """What `prepare` wrote, row by row."""
    return [load_file(folder / f"{index}.safetensors") for index in range(len(ROWS))]


class Watch:
    """What passes between the towers of a model in one forward and backward."""

    def __init__(self, model: Eagle) -> None:
        self._model, self._seen = model, dict[str, Tensor]()
        self._handles: list[Any] = []

    def __enter__(self) -> Watch:
        def see(name: str, x: Tensor) -> None:
            self._seen[name] = x.detach().double().cpu()
            if x.requires_grad:
                x.register_hook(lambda grad: self._seen.update({f"gradient of {name}": grad.double().cpu()}))

        model = self._model
        self._handles = [
            model.connector.register_forward_hook(lambda _, __, out: see("visual tokens", out)),
            model.llm.register_forward_pre_hook(lambda _, inputs: see("embeddings", inputs[0])),
            model.llm.layers[1].register_forward_pre_hook(lambda _, inputs: see("layer 1's input", inputs[0])),
            model.llm.register_forward_hook(lambda _, __, out: see("hidden states", out)),
        ]
        model.lm_head.on_losses = lambda losses_T: self._seen.update(loss=losses_T.detach().double().cpu())
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._model.lm_head.on_losses = None

    def found(self, weights_T: Tensor) -> dict[str, Tensor]:
        """By stage; of losses each token's, with its weight."""
        return {**self._seen, "loss": self._seen["loss"] * weights_T.double().cpu()}


class Prover:
    """One process's part in all cases."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device | str) -> None:
        self._folder, self._dtype, self._device = folder, dtype, device
        self._oracle = oracle(folder)
        self._bound = BOUND if dtype == torch.float64 else NARROW_BOUND
        self._laid: tuple[Layout, Ranks, Eagle] | None = None

    def prove(self, case: Case) -> Outcome:
        ranks, model = self._model(case.layout)
        with FAULTS[case.fault].plant() if case.fault else contextlib.nullcontext():
            errors = self._errors(case, ranks, model)
        together = ranks.gather(errors)
        worst = {stage: _largest([rank[stage] for rank in together]) for stage in STAGES}
        for stage in STAGES:
            wrong = [rank for rank, its in enumerate(together) if not its[stage] <= self._bound]  # nan is wrong too
            if wrong:
                return Outcome(case, worst, stage, tuple(wrong))
        return Outcome(case, worst)

    def _model(self, layout: Layout) -> tuple[Ranks, Eagle]:
        """Laid over the processes, once for all cases of a layout in a row."""
        if self._laid is None or self._laid[0] != layout:
            ranks = start(layout, self._device)
            model = build(config())
            parallelize(model, ranks, dtype=self._dtype, vision_at_once=True)
            masters = torch.float64 if self._dtype == torch.float64 else torch.float32
            load(model, self._folder / "model", dtype=masters, device=ranks.device)
            self._laid = layout, ranks, model
        return self._laid[1:]

    def _errors(self, case: Case, ranks: Ranks, model: Eagle) -> dict[str, float]:
        """Of this rank, by stage."""
        index = list(ROWS).index(case.rows[ranks.data_rank])
        batch = row(case.rows[ranks.data_rank])
        if ranks.num_context > 1:  # as the loader hands it out
            first, end = tile_range(len(batch.patches_IPK), ranks.context_rank, ranks.num_context)
            batch = replace(batch, patches_IPK=batch.patches_IPK[first:end], tiles=(first, end))
        mass = ranks.total(_mass(batch).to(ranks.device))
        context = share(batch, model, ranks)
        batch = batch.to(ranks.device, dtype=self._dtype)
        model.vision_chunk_tiles = case.chunk_tiles
        model.zero_grad()
        one = torch.ones((), device=ranks.device)
        with Watch(model) as watch:  # as the trainer does: of mass x loss, divided when all is summed
            model(batch, one, run_layer=KEEP[case.keep], context=context).backward()
        weights_T = token_weights(batch.labels_T, batch.cu_seqlens, one)
        found = watch.found(weights_T if context is None else weights_T[context.rows_R])
        step_mass = sum(float(_mass(row(name))) for name in case.rows)
        errors = dict.fromkeys(STAGES, 0.0)
        errors["normaliser"] = abs(float(mass) / step_mass - 1)
        errors |= self._stage_errors(found, self._oracle[index], batch, context, case)
        return errors | self._gradient_errors(model, ranks, case)

    def _stage_errors(
        self,
        found: dict[str, Tensor],
        oracle: dict[str, Tensor],
        batch: PackedBatch,
        context: Context | None,
        case: Case,
    ) -> dict[str, float]:
        errors = {}
        num_rows = len(context.rows_R) if context else batch.num_tokens
        for stage, got in found.items():
            if stage.endswith("visual tokens"):
                if case.chunk_tiles is not None:
                    continue  # chunk by chunk, and once more in backward: what comes of it is compared
                first, end = batch.tiles or (0, len(batch.patches_IPK))
                got, want = got[: end - first], oracle[stage][first:end] if stage in oracle else got[:0]
            else:
                want = oracle[stage]
                got, want = got[:num_rows], want[context.rows_R.cpu()] if context else want
            errors[stage] = self._error(got, want, oracle.get(stage, got))
        return errors

    def _gradient_errors(self, model: Eagle, ranks: Ranks, case: Case) -> dict[str, float]:
        errors = {f"gradients of {part}": 0.0 for part in PARTS}
        indices = [list(ROWS).index(name) for name in case.rows]
        for name, parameter in model.named_parameters():
            nothing = torch.zeros(parameter.shape, dtype=torch.float64)  # as of a tower that no row has a token for
            whole = sum((self._oracle[i].get(f"grad/{name}", nothing) for i in indices), nothing)
            got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            want = whole
            if isinstance(got, DTensor):
                want = _its_rows(whole, ranks)
                got = got.to_local()
            stage = f"gradients of {part_of(name)}"
            errors[stage] = _largest([errors[stage], self._error(got.double().cpu(), want, whole)])
        return errors

    def _error(self, got: Tensor, want: Tensor, whole: Tensor) -> float:
        """In parts of the whole tensor's largest number, or norms; of what is 0 everywhere, itself."""
        if not got.numel():
            return 0.0
        if self._dtype == torch.float64:
            size = float(whole.abs().max()) if whole.numel() else 0.0
            return float((got - want).abs().max()) / (size or 1.0)
        size = float(whole.norm()) * (want.numel() / max(1, whole.numel())) ** 0.5
        return float((got - want).norm()) / (size or 1.0)


def _largest(errors: Sequence[float]) -> float:
    """nan where one of them is: max may pass it over."""
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _mass(batch: PackedBatch) -> Tensor:
    return sqrt_mass(batch.labels_T, batch.cu_seqlens).double()


def _its_rows(whole: Tensor, ranks: Ranks) -> Tensor:
    """The rows of a parameter that FSDP gives this process."""
    num_shards = ranks.layout.shard * ranks.layout.context
    parts, place = whole.chunk(num_shards), ranks.rank % num_shards
    return parts[place] if place < len(parts) else whole[:0]


def verify(num_processes: int = NUM_PROCESSES, *, short: bool = False, say: Callable[[str], None] = print) -> bool:
    """Proves all cases and finds all planted faults, and says so in a table; whether all is well.

    num_processes: the most that a layout may have. Under torchrun it is as many as there are, on GPUs where there are
    any, and only the first of them says something.
    Raises ValueError for fewer than 2 processes, RuntimeError where a process fails.
    """
    world = int(os.environ.get("WORLD_SIZE", 0))
    if (world or num_processes) < 2:
        raise ValueError(f"verify: {world or num_processes} process; needs at least 2, to compare with one.")
    if world:
        return _under_torchrun(world, short, say)
    say(_head())
    outcomes = prove(cases(num_processes, short=short), lambda its: _say_layout(its, say))
    say("Planted faults:")
    outcomes += prove(faults(), lambda its: _say_faults(its, say))
    return _verdict(outcomes, say)


def prove(cases: Iterable[Case], tell: Callable[[list[Outcome]], None] = lambda outcomes: None) -> list[Outcome]:
    """Outcomes of cases on this machine's CPU, in fp64; layout after layout, which `tell` is told.

    This process must not have computed gradients: others are forked from it. Raises RuntimeError where one fails.
    """
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="eagle-verify-") as name:
        folder = Path(name)
        _fork(1, lambda rank: prepare(folder, torch.float64), folder)
        oracle(folder)  # once here, for all processes that are forked
        for row_name in ROWS:
            row(row_name)
        for layout, its in _by_layout(cases).items():
            found = _in_processes(layout, its, folder)
            tell(found)
            outcomes += found
    return outcomes


def _by_layout(cases: Iterable[Case]) -> dict[Layout, list[Case]]:
    found: dict[Layout, list[Case]] = {}
    for case in cases:
        found.setdefault(case.layout, []).append(case)
    return found


def _under_torchrun(world: int, short: bool, say: Callable[[str], None]) -> bool:
    """The layouts of exactly these processes."""
    mine = [case for case in cases(world, short=short) if case.layout.processes == world]
    if not mine:
        raise ValueError(f"verify: no layout here has {world} processes; start 2, 4, 8, 16 or 32 of them.")
    ranks = start(Layout(context=world))
    dtype = torch.bfloat16 if ranks.device.type == "cuda" else torch.float64
    # Each machine prepares for itself: they need share no disk.
    with tempfile.TemporaryDirectory(prefix="eagle-verify-") as own:
        is_first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        said = ranks.gather([platform.node(), own, is_first_here])
        folder = next(Path(path) for node, path, is_first in said if is_first and node == platform.node())
        if is_first_here:
            prepare(folder, dtype)
        ranks.barrier()
        mine += faults(world)
        prover = Prover(folder, dtype, ranks.device)
        outcomes = [prover.prove(case) for case in mine]
        ranks.close()
    if not ranks.is_first:
        return all(o.is_right for o in outcomes)
    say(_head())
    for layout in _by_layout(mine):
        _say_layout([o for o in outcomes if o.case.layout == layout and not o.case.fault], say)
    say("Planted faults:")
    _say_faults([o for o in outcomes if o.case.fault], say)
    return _verdict(outcomes, say)


def _head() -> str:
    parts = " ".join(f"{part:>10}" for part in PARTS)
    return f"{'layout':30} {'steps':>5} {'loss':>8} {parts}  largest errors against one process: gradients by part"


def _say_layout(outcomes: list[Outcome], say: Callable[[str], None]) -> None:
    """A line a layout, and one for each step that is wrong."""
    if not outcomes:
        return
    layout = outcomes[0].case.layout
    worst = {stage: _largest([o.errors[stage] for o in outcomes]) for stage in STAGES}
    columns = " ".join(f"{worst[f'gradients of {part}']:10.1e}" for part in PARTS)
    name = f"{layout}{' ring' * (layout.method == 'ring')}{' cut head' * layout.vocab_parallel}"
    wrong = [o for o in outcomes if o.stage is not None]
    say(f"{name:30} {len(outcomes):5} {worst['loss']:8.1e} {columns}  {'WRONG' if wrong else 'equal'}")
    for o in wrong:
        say(f"    {', '.join(o.case.rows)}; activations={o.case.keep}: {o}")


def _say_faults(outcomes: list[Outcome], say: Callable[[str], None]) -> None:
    for o in outcomes:
        say(f"    {o.case.fault}: {'found, ' if o.is_right else 'NOT FOUND: '}{o}")


def _verdict(outcomes: list[Outcome], say: Callable[[str], None]) -> bool:
    good = all(o.is_right for o in outcomes)
    say("All equal, all planted faults found." if good else "Something is wrong: see above.")
    return good


def _in_processes(layout: Layout, cases: list[Case], folder: Path) -> list[Outcome]:
    """Each layout in processes of its own, forked from this one: a few milliseconds each."""
    answers = folder / "outcomes.json"

    def work(rank: int) -> None:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=layout.processes, timeout=PATIENCE)
        prover = Prover(folder, torch.float64, "cpu")
        outcomes = [prover.prove(case) for case in cases]
        if rank == 0:
            write_json(answers, [{"errors": o.errors, "stage": o.stage, "ranks": o.ranks} for o in outcomes])
        leave(rank, layout.processes)

    (folder / "store").unlink(missing_ok=True)
    _fork(layout.processes, work, folder)
    return [
        Outcome(case, o["errors"], o["stage"], tuple(o["ranks"]))
        for case, o in zip(cases, read_json(answers), strict=True)
    ]


def _fork(num_processes: int, work: Callable[[int], None], folder: Path) -> None:
    """work(rank) in so many processes; this one, which computes nothing, returns when they are done."""
    torch.set_num_threads(1)
    failures = fork(work, num_processes, folder, seconds=2 * PATIENCE.total_seconds())
    if failures:
        rank, how, said = failures[0]
        how = how.replace("exit status", "ended with")
        raise RuntimeError(f"verify: process {rank} of {num_processes} {how}.\n{said}")
