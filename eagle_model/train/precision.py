"""Precision: which dtype a model computes in, and the fp32 values of its weights that training moves.

    masters = Masters(model, torch.bfloat16)     # the model is bf16 now; its exact weights are masters.by_name
    model(batch, mass).backward()                # gradients are at the masters, in fp32
    ...                                          # an optimizer changes the masters
    masters.round_into_model()

A model in bf16 cannot be trained in place: with 8 bits of mantissa an update below 1/256 of a weight rounds to nothing.
So every trainable parameter has an fp32 master. In an fp32 model the parameter is its own master. In a bf16 model each
gradient moves to its master the moment autograd has finished it: rows of a step are then added up in fp32, and no bf16
gradient outlives its own backward.

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
    are_copies: bool  # False: they are the parameters themselves

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Takes a model and leaves it in `dtype`; the masters keep what that loses, in the memory it had.

        Frozen parameters may be in `dtype` already, or of 4 bits that stand for it.
        Raises: ValueError when a trainable parameter is not fp32, or nothing is trainable.
        """
        self._params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        if not self._params:
            raise ValueError("masters: no parameter is trainable. Set one of train_vision, train_connector, train_llm.")
        for name, param in self._params.items():
            if param.dtype != torch.float32:
                raise ValueError(f"masters: {name} is {param.dtype}; needs torch.float32 to take masters from.")
        self.by_name = dict(self._params)
        self.are_copies = dtype != torch.float32
        if self.are_copies:
            self.by_name = {name: param.detach() for name, param in self._params.items()}
            for param in model.parameters():
                if param.dtype != dtype:
                    param.data = param.data.to(dtype)  # new memory: the old is its master's alone
            for name, param in self._params.items():
                param.register_post_accumulate_grad_hook(_move_grad_to(self.by_name[name]))

    @torch.no_grad()
    def round_into_model(self) -> None:
        """Makes the model compute with what the masters are now."""
        if self.are_copies:
            for name, param in self._params.items():
                param.copy_(self.by_name[name])


def _move_grad_to(master: Tensor) -> Callable[[Tensor], None]:
    def move(param: Tensor) -> None:
        assert param.grad is not None
        if master.grad is None:
            master.grad = param.grad.float()
        else:
            master.grad += param.grad
        param.grad = None

    return move
