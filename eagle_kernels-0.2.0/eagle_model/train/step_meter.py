"""What the steps of a run were like: counts of rows as they come, sums on the device, one look at them a step.

    meter = StepMeter(model, config)
    for batch in meter.rows(rows):               # on the CPU, counted, before they go to the device
        model(batch.to(device), mass).backward() # the head tells the meter each token's loss
    meter.take_gradients(masters, mass)
    loss, grad_norm = meter.read(loss, grad_norm)        # the one time in a step that the host waits for the device
    meter.add_up(ranks)                          # of several processes: what follows is of them all
    metrics = meter.metrics(step=1, loss=loss, grad_norm=grad_norm, ...)

Losses by data set are means over their supervised tokens, each token alike: what a run with one data set has as `loss`
may differ, because there a document counts as the square root of its length.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from math import fsum, isfinite

import torch
from torch import Tensor

from eagle_model.batch import PackedBatch
from eagle_model.model.context import Context
from eagle_model.model.eagle import Eagle
from eagle_model.model.loss import divisor, supervised_counts
from eagle_model.train.config import TrainConfig
from eagle_model.train.flops import FlopMeter
from eagle_model.train.gpu_peaks import peak_flops
from eagle_model.train.metrics import StepMetrics, peak_rss_bytes
from eagle_model.train.parts import PARTS, part_of
from eagle_model.train.precision import Masters
from eagle_model.train.ranks import Ranks


class StepMeter:
    """Of one run. It listens to the model's head from when it is made."""

    def __init__(self, model: Eagle, config: TrainConfig) -> None:
        """What is trained must be known: frozen parameters are no longer to be counted."""
        self._device = model.lm_head.weight.device
        self._row_tokens = config.processor.sampling.context_tokens
        self._flops = FlopMeter(model, activations=config.memory.activations)
        self._peak = peak_of(self._device, config.dtype)
        self._row: PackedBatch | None = None  # the one whose loss comes next
        self.context: Context | None = None  # this rank's share of it, where others have one too
        self._ends_S1: Tensor | None = None
        model.lm_head.on_losses = self._take_losses
        self.begin()

    def begin(self) -> None:
        """Of a step: forgets the one before."""
        self._begin, self.wait_seconds = time.perf_counter(), 0.0
        self._counts: Counter[str] = Counter()
        self._datasets: list[str] = []  # of the documents whose losses are in `_losses`, in their order
        self._tokens: Counter[str] = Counter()
        self._losses: list[Tensor] = []
        self._ids: list[str] = []  # of those documents too
        self.not_finite_ids: list[str] = []  # of those whose loss is not finite
        self._num_ranks, self._peak_rss, self._peak_device = 1, 0, 0
        self._norms: dict[str, Tensor] = {}
        self.grad_norms: dict[str, float] = {}
        self._dataset_sums: dict[str, float] = {}
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def see(self, batch: PackedBatch) -> None:
        """A row, on the CPU still, whose loss comes next."""
        flops = self._flops.step([batch])
        counts = supervised_counts(batch.labels_T, batch.cu_seqlens).tolist()
        self._counts.update(
            rows=1,
            tokens=batch.num_tokens,
            supervised=sum(counts),
            documents=len(batch.sample_ids),
            reduced=batch.num_reduced,
            not_in_proxies=batch.num_not_in_proxies,
            model_flops=flops.model,
        )
        self._row = batch
        for dataset, count in zip(batch.datasets, counts, strict=False):
            self._tokens[dataset] += count

    def _take_losses(self, losses_T: Tensor) -> None:
        """Keeps the sum of each document, in fp64: differences of running sums of a row lose nothing that shows."""
        row, self._row = self._row, None
        if row is None or not row.datasets:  # held-out rows, or rows that nobody named
            return
        if self.context is not None:
            losses_T = self.context.whole(losses_T, row.num_tokens)
        running = torch.zeros(len(losses_T) + 1, dtype=torch.float64, device=losses_T.device)
        torch.cumsum(losses_T.detach().double(), dim=0, out=running[1:])
        self._losses.append(running[row.cu_seqlens.long().to(losses_T.device, non_blocking=True)].diff())
        self._datasets += row.datasets
        self._ids += row.sample_ids

    def take_gradients(self, masters: Masters, mass: Tensor) -> None:
        """Norms of each part of the model; parameters without a gradient are left out.

        mass: what the masters' gradients are yet to be divided by.
        """
        grads = defaultdict(list)
        for name, parameter in masters.by_name.items():
            if parameter.grad is not None:
                grads[part_of(name)].append(parameter.grad)
        scale = divisor(mass).reciprocal()
        parts = [part for part in PARTS if grads[part]]
        if parts:
            norms = masters.norms([grads[part] for part in parts]).to(scale.device, torch.float32) * scale
            self._norms = dict(zip(parts, norms.unbind(), strict=True))

    def read(self, loss: Tensor, grad_norm: Tensor) -> tuple[float, float]:
        """Both as numbers; everything else that waits on the device comes with them."""
        waiting = [loss, grad_norm, *self._norms.values(), *self._losses]
        numbers = torch.cat([tensor.detach().double().to(self._device).flatten() for tensor in waiting]).tolist()
        end = 2 + len(self._norms)
        self.grad_norms = dict(zip(self._norms, numbers[2:end], strict=True))
        sums = defaultdict(list)
        for dataset, value in zip(self._datasets, numbers[end:], strict=True):
            sums[dataset].append(value)
        self._dataset_sums = {dataset: fsum(values) for dataset, values in sums.items()}
        self.not_finite_ids = [name for name, x in zip(self._ids, numbers[end:], strict=True) if not isfinite(x)]
        return numbers[0], numbers[1]

    def add_up(self, ranks: Ranks) -> None:
        """Makes counts and losses those of all ranks together; after `read`. All ranks call it."""
        mine = [dict(self._counts), dict(self._tokens), self._dataset_sums, self.wait_seconds, peak_rss_bytes()]
        told = ranks.gather([*mine, self._peak_device_bytes()])
        counts, tokens, sums, waits, rss, on_device = zip(*told, strict=True)
        rows = slice(None, None, ranks.num_context)  # context ranks of a row have counted the same
        self._counts, self._tokens = _added(counts[rows]), _added(tokens[rows])
        self._dataset_sums = dict(_added(sums))  # of their own tokens
        self.wait_seconds, self._peak_rss, self._peak_device = max(waits), max(rss), max(on_device)
        self._num_ranks = len(told)

    def _peak_device_bytes(self) -> int:
        """0 without a GPU."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0

    def metrics(
        self,
        *,
        step: int,
        epoch: int,
        loss: float,
        learning_rate: float,
        grad_norm: float,
        num_skipped_samples: int,
        num_left_out_steps: int = 0,
    ) -> StepMetrics:
        """Of the step since `begin`, which ends now."""
        seconds, counts = time.perf_counter() - self._begin, self._counts
        losses = {d: self._dataset_sums[d] / self._tokens[d] for d in self._dataset_sums if self._tokens[d]}
        is_gpu = self._device.type == "cuda"
        flops, peak = counts["model_flops"], self._peak and self._peak * self._num_ranks
        return StepMetrics(
            step=step,
            epoch=epoch,
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            num_tokens=counts["tokens"],
            num_supervised_tokens=counts["supervised"],
            tokens_per_second=counts["tokens"] / seconds,
            step_seconds=seconds,
            data_wait_seconds=self.wait_seconds,
            num_skipped_samples=num_skipped_samples,
            num_left_out_steps=num_left_out_steps,
            peak_rss_bytes=max(self._peak_rss, peak_rss_bytes()),
            grad_norms={part: norm for part, norm in self.grad_norms.items() if isfinite(norm)},
            model_flops=flops,
            mfu=flops / seconds / peak if peak else None,
            padding_share=1 - counts["tokens"] / (counts["rows"] * self._row_tokens) if counts["rows"] else 0.0,
            truncation_share=counts["reduced"] / max(1, counts["documents"]),
            num_frames_not_in_proxies=counts["not_in_proxies"],
            peak_device_bytes=max(self._peak_device, self._peak_device_bytes()) if is_gpu else None,
            dataset_losses={dataset: loss for dataset, loss in losses.items() if isfinite(loss)},
            dataset_tokens={dataset: self._tokens[dataset] for dataset in losses},
        )

    def rows(self, rows: Iterator[PackedBatch]) -> Iterator[PackedBatch]:
        """The rows of a step, counted and their wait timed as they are asked for. A row without samples, of a rank that
        has none while others do, does not count."""
        while True:
            begin = time.perf_counter()
            try:
                batch = next(rows)
            except StopIteration:
                return
            finally:
                self.wait_seconds += time.perf_counter() - begin
            if batch.sample_ids:
                self.see(batch)
            yield batch


def _added(parts: Iterable[Mapping[str, float]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


def peak_of(device: torch.device, dtype: str) -> float | None:
    """FLOP/s that a share is taken of: of a GPU that is known, computing in bf16; None elsewhere."""
    if device.type != "cuda" or dtype != "bfloat16":
        return None
    return peak_flops(torch.cuda.get_device_name(device))
