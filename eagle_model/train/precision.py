"""Precision: which dtype a model computes in, and the fp32 values of its weights that training moves.

    masters = Masters(model, torch.bfloat16)     # the model is bf16 now; its exact weights are masters.by_name
    model(batch, mass).backward()                # gradients are at the masters, in fp32
    ...                                          # an optimizer changes the masters
    masters.round_into_model()

A model in bf16 cannot be trained in place: with 8 bits of mantissa an update below 1/256 of a weight rounds to nothing.
So every trainable parameter has an fp32 master. In an fp32 model the parameter is its own master. In a bf16 model each
gradient moves to its master the moment autograd has finished it: rows of a step are then added up in fp32, and no bf16
gradient outlives its own backward. Masters may be in host memory (`host`): their gradients too then, and the
update is the CPU's.

The other way is to round at random (`stochastic`): a weight of bf16 is then its own master, and what an update makes
of it goes to one of the two neighbours in bf16, the nearer the likelier, so that on average nothing is lost. Rows of a
step add up in bf16 then. Vectors, a ten thousandth of all numbers, keep masters: their moments are not 8 bits either.

Source   Micikevicius et al. 2018, arXiv:1710.03740.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # `TrainConfig.dtype`


class Masters:
    """The fp32 values of a model's trainable parameters, by name."""

    by_name: dict[str, Tensor]
    copies: frozenset[str]  # which of them are not the parameters themselves

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, *, host: torch.device | None = None, stochastic: bool = False
    ) -> None:
        """Takes a model and leaves it in `dtype`; the masters keep what that loses, in the memory it had.

        Frozen parameters may be in `dtype` already, or of 4 bits that stand for it.
        host: where masters are, if not where the model is: the CPU.
        stochastic: matrices have no master but themselves.
        Raises: ValueError when a trainable parameter is not fp32, or nothing is trainable.
        """
        self._params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        if not self._params:
            raise ValueError("masters: no parameter is trainable. Set one of train_vision, train_connector, train_llm.")
        for name, param in self._params.items():
            if param.dtype != torch.float32:
                raise ValueError(f"masters: {name} is {param.dtype}; needs torch.float32 to take masters from.")
        self.by_name = dict(self._params)
        self.copies = frozenset(
            name
            for name, param in self._params.items()
            if (dtype != torch.float32 and not (stochastic and param.ndim >= 2)) or host not in (None, param.device)
        )
        for name in self.copies:
            master = self._params[name].detach()
            self.by_name[name] = master if host is None else master.to(host)
        for param in model.parameters():
            if dtype not in (param.dtype, torch.float32):
                param.data = param.data.to(dtype)  # new memory: the old is its master's alone
        for name in self.copies:
            self._params[name].register_post_accumulate_grad_hook(_move_grad_to(self.by_name[name]))

    @torch.no_grad()
    def round_into_model(self) -> None:
        """Makes the model compute with what the masters are now."""
        for name in self.copies:
            self._params[name].copy_(self.by_name[name])


def _move_grad_to(master: Tensor) -> Callable[[Tensor], None]:
    def move(param: Tensor) -> None:
        assert param.grad is not None
        grad = param.grad.to(master.device)  # before it is made wider: on the host, there
        if master.grad is None:
            master.grad = grad.float()
        else:
            master.grad += grad
        param.grad = None

    return move
