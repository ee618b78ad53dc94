"""AdamW on fp32 values, whatever the model computes in; cosine learning rate with warm-up; clipping by the global norm.

A model in bf16 cannot be trained in place: with 8 bits of mantissa an update below 1/256 of a weight rounds to nothing.
So every trainable parameter has an fp32 master here. In an fp32 model the parameter is its own master. In a bf16 model
each gradient moves to its master, in fp32, the moment autograd has finished it: rows of a step are then added up in
fp32 and no bf16 gradient outlives its own backward. After the update the masters are rounded into the model.

Numbers  masters, gradients, moments: fp32; 16 bytes a parameter, 18 for a bf16 model.
Source   Loshchilov and Hutter 2019, arXiv:1711.05101; fp32 masters: Micikevicius et al. 2018, arXiv:1710.03740.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from eagle_model.train.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The learning rate of step 0, 1, ..., max_steps - 1.

    Rises linearly for W = ceil(warmup_ratio * max_steps) steps, to the peak in step W - 1, then falls by a half cosine
    towards min_lr_ratio of the peak, which it would reach in step max_steps. The rise starts at peak / W, not at 0: a
    step with learning rate 0 does nothing.
    """
    warmup_steps = math.ceil(config.warmup_ratio * max_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


class Optimizer:
    """AdamW over the trainable parameters of a model. Matrices decay; norms and biases, all of them vectors, do not."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, *, dtype: torch.dtype) -> None:
        """Takes an fp32 model and leaves it in `dtype`: the masters keep what the cast would lose.

        Raises: ValueError when a parameter is not fp32, or nothing is trainable.
        """
        self.config = config
        self.params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        if not self.params:
            raise ValueError(
                "optimizer: no parameter is trainable. Set one of train_vision, train_connector, train_llm."
            )
        for name, param in model.named_parameters():
            if param.dtype != torch.float32:
                raise ValueError(f"optimizer: {name} is {param.dtype}; needs torch.float32 to take masters from.")

        self.masters: dict[str, Tensor] = dict(self.params)
        if dtype != torch.float32:
            self.masters = {name: param.detach().clone() for name, param in self.params.items()}
            for param in model.parameters():
                param.data = param.data.to(dtype)
            for name, param in self.params.items():
                param.register_post_accumulate_grad_hook(_move_grad_to(self.masters[name]))

        decayed = [master for master in self.masters.values() if master.ndim >= 2]
        others = [master for master in self.masters.values() if master.ndim < 2]
        self.adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )

    def clip(self) -> Tensor:
        """Scales the gradients down to a global norm of max_grad_norm; returns the norm they had, fp32 scalar."""
        return nn.utils.clip_grad_norm_(self.masters.values(), self.config.max_grad_norm)

    def step(self, lr: float) -> None:
        """One update with learning rate `lr`; the gradients are then gone."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self._round_masters_into_model()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next update depends on beside the model, by name: `exp_avg.<parameter>`,
        `exp_avg_sq.<parameter>`, `step.<parameter>`, and `master.<parameter>` for a bf16 model."""
        state = {
            f"{key}.{name}": value
            for name, master in self.masters.items()
            for key, value in self.adamw.state.get(master, {}).items()
        }
        if self._has_own_masters:
            state |= {f"master.{name}": master for name, master in self.masters.items()}
        return {key: value.detach() for key, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up exactly where `state_dict` was called.

        Raises: ValueError when a name or a shape is not the model's, or a master is missing.
        """
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if kind not in ("exp_avg", "exp_avg_sq", "step", "master") or name not in self.masters:
                raise ValueError(f"optimizer state: {key} belongs to no trainable parameter of this model.")
            need = () if kind == "step" else tuple(self.masters[name].shape)
            if tuple(value.shape) != need:
                raise ValueError(f"optimizer state: {key} has shape {tuple(value.shape)}; the model needs {need}.")
        for name, master in self.masters.items():
            if self._has_own_masters != (f"master.{name}" in state):
                has, needs = ("no master", "one") if self._has_own_masters else ("a master", "none")
                raise ValueError(f"optimizer state: {name} has {has}; training in this dtype needs {needs}.")
            if self._has_own_masters:
                master.copy_(state[f"master.{name}"])
            moments = {
                key: state[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in state
            }
            if moments:  # a parameter that never had a gradient, as vision in a run on text alone, has none
                self.adamw.state[master] = {key: value.to(master.device).clone() for key, value in moments.items()}
        self._round_masters_into_model()

    @property
    def _has_own_masters(self) -> bool:
        return any(self.masters[name] is not param for name, param in self.params.items())

    @torch.no_grad()
    def _round_masters_into_model(self) -> None:
        if self._has_own_masters:
            for name, param in self.params.items():
                param.copy_(self.masters[name])


def _move_grad_to(master: Tensor) -> Callable[[Tensor], None]:
    def move(param: Tensor) -> None:
        assert param.grad is not None
        if master.grad is None:
            master.grad = param.grad.float()
        else:
            master.grad += param.grad
        param.grad = None

    return move
