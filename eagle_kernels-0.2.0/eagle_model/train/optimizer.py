"""AdamW on a model's fp32 masters; schedules of the learning rate, with warm-up; clipping by the global norm.

    optimizer = Optimizer(Masters(model, torch.bfloat16), config)
    for batch in rows:
        model(batch, ONE).backward()             # gradients of all rows add up, each document by its own weight
    optimizer.clip(mass)                         # sum of loss.sqrt_mass over the rows: what makes weights add up to 1
    optimizer.step(learning_rate(config, step, max_steps))

Numbers  masters, gradients, moments: fp32; 16 bytes a parameter, 18 for a bf16 model (precision.py). With moments of
         8 bits, 2 * (1 + 4 / 256) bytes in place of 8.
Decay    of matrices, tables of embeddings among them; norms and biases, all of them vectors, do not decay.
Source   Loshchilov and Hutter 2019, arXiv:1711.05101; wsd: Hu et al. 2024, arXiv:2404.06395.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from eagle_model.model.loss import divisor
from eagle_model.train.adamw8bit import PARTS, adamw8bit, flat, joined, shapes
from eagle_model.train.config import OptimizerConfig
from eagle_model.train.precision import Masters

MOMENTS = ("step", *(f"{key}{part}" for key in ("exp_avg", "exp_avg_sq") for part in ("", *(f"_{p}" for p in PARTS))))


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The learning rate of step 0, 1, ..., max_steps - 1.

    Rises linearly for W = ceil(warmup_ratio * max_steps) steps, to the peak in step W - 1; then stays there
    ("constant") or falls, by a half cosine ("cosine") or a straight line ("linear"; "wsd": in the last
    ceil(decay_ratio * max_steps) steps), towards min_lr_ratio of the peak, which it would reach in step max_steps. The
    rise starts at peak / W, not at 0: a step with learning rate 0 does nothing.
    """
    warmup_steps = math.ceil(config.warmup_ratio * max_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    falls_from = warmup_steps
    if config.schedule == "wsd":
        falls_from = max(warmup_steps, max_steps - math.ceil(config.decay_ratio * max_steps))
    progress = min(1.0, max(0, step - falls_from) / max(1, max_steps - falls_from))
    left = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)


class Optimizer:
    """AdamW over the masters of a model, in groups of one multiplier of the learning rate and one weight decay."""

    adamw: torch.optim.Optimizer

    def __init__(
        self,
        masters: Masters,
        config: OptimizerConfig,
        *,
        multiplier: Callable[[str], float] = lambda name: 1.0,
        in_8_bits: bool = False,
        stochastic_rounding: bool = False,
    ) -> None:
        """multiplier: of the learning rate, by a parameter's name (parts.py). in_8_bits: the moments;
        stochastic_rounding: then, of masters in bf16 (adamw8bit.py)."""
        self.masters, self.config, self._rounds_at_random = masters, config, stochastic_rounding
        by_kind: dict[tuple[float, float], list[Tensor]] = {}
        for name, master in masters.by_name.items():
            decay = config.weight_decay if master.ndim >= 2 else 0.0
            by_kind.setdefault((multiplier(name), decay), []).append(master)
        groups = [
            {"params": group, "weight_decay": decay, "multiplier": factor} for (factor, decay), group in by_kind.items()
        ]
        lr, betas, eps = config.learning_rate, config.betas, config.eps
        if in_8_bits:
            self.adamw = adamw8bit(groups, lr=lr, betas=betas, eps=eps, stochastic_rounding=stochastic_rounding)
        else:
            self.adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)

    def clip(self, mass: Tensor | None = None) -> Tensor:
        """Divides the gradients by `mass`, then scales them down to a global norm of max_grad_norm.

        mass: fp32 scalar; None for gradients that are those of the loss already. Zero, as of a step in which nothing is
        supervised, counts as 1.
        Returns: the norm they had in between, fp32 scalar, of whole gradients where parameters are cut over processes.
                 No host synchronisation.
        """
        grads = [master.grad for master in self.masters.by_name.values() if master.grad is not None]
        if mass is not None and grads:
            share = divisor(mass).reciprocal()
            torch._foreach_mul_(grads, share.to(grads[0].device))  # masters may be on the host
        (norm,) = self.masters.norms([grads])
        nn.utils.clip_grads_with_norm_(self.masters.by_name.values(), self.config.max_grad_norm, norm)
        return norm

    def leave_out(self) -> None:
        """No update of these gradients, which are then gone."""
        self.adamw.zero_grad(set_to_none=True)

    def step(self, lr: float) -> None:
        """One update with learning rate `lr`; the gradients are then gone.

        A parameter without a gradient, as the vision tower's after rows of text alone, counts as one with a gradient of
        zero, which it has where several processes train: the numbers must not depend on how many do.
        """
        for master in self.masters.by_name.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        for group in self.adamw.param_groups:
            rate = lr * group["multiplier"]
            if isinstance(group["lr"], Tensor):  # torchao's, which compiled code reads
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        with self._drawing_alike():
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self.masters.round_into_model()

    @contextlib.contextmanager
    def _drawing_alike(self) -> Iterator[None]:
        """Replicas of the same rows round them alike: their generators may differ, after dropout or a resume on other
        processes, and weights that drift apart are found by nobody. The seed is the first one's."""
        group = self.masters.replicas
        if group is None or not self._rounds_at_random:
            yield
            return
        device = next(iter(self.masters.by_name.values())).device
        seed = torch.randint(2**62, (1,)).to(device)
        torch.distributed.broadcast(seed, group=group, group_src=0)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next update depends on beside the model, by name: `exp_avg.<parameter>`,
        `exp_avg_sq.<parameter>` (of 8 bits, `..._codes` and `..._scale`), `step.<parameter>`, and `master.<parameter>`
        where the weights in the model's dtype do not tell them. With stochastic rounding, torch's generator beside it.

        Plain tensors. Of a parameter that is cut over processes they are this process's rows (`shards.rows_of` says
        which), `step` and the norms of none; an 8-bit moment's scales are of its own rows, 256 numbers at a time."""
        state = {
            f"{part}.{name}": tensor
            for name, master in self.masters.by_name.items()
            for key, value in self.adamw.state.get(master, {}).items()
            for part, tensor in flat(key, value).items()
        }
        state |= {f"master.{name}": self.masters.by_name[name] for name in self.masters.wider}
        return {key: value.detach() for key, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up exactly where `state_dict` was called.

        Raises: ValueError when a name or a shape is not the model's, or a master is missing.
        """
        masters = self.masters.by_name
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if kind not in (*MOMENTS, "master") or name not in masters:
                raise ValueError(f"optimizer state: {key} belongs to no trainable parameter of this model.")
            need = shapes(kind, tuple(masters[name].shape))
            if tuple(value.shape) != need:
                raise ValueError(f"optimizer state: {key} has shape {tuple(value.shape)}; the model needs {need}.")
        for name, master in masters.items():
            is_wider = name in self.masters.wider
            if is_wider != (f"master.{name}" in state):
                has, needs = ("no master", "one") if is_wider else ("a master", "none")
                raise ValueError(f"optimizer state: {name} has {has}; training in this dtype needs {needs}.")
            if is_wider:
                master.detach().copy_(state[f"master.{name}"])
            moments = {key: state[f"{key}.{name}"] for key in MOMENTS if f"{key}.{name}" in state}
            if moments:  # a parameter that never had a gradient, as vision in a run on text alone, has none
                moments = {key: value.to(master.device).clone() for key, value in moments.items()}
                self.adamw.state[master] = joined(moments)
        self.masters.round_into_model()
