"""Precision: which dtype a model computes in, and the fp32 values of its weights that training moves.

    masters = Masters(model, torch.bfloat16)     # the model is bf16 now; its exact weights are masters.by_name
    model(batch, mass).backward()                # gradients are at the masters, in fp32
    ...                                          # an optimizer changes the masters
    masters.round_into_model()

A model in bf16 cannot be trained in place: with 8 bits of mantissa an update below 1/256 of a weight rounds to nothing.
So every trainable parameter has an fp32 master. In an fp32 model the parameter is its own master. In a bf16 model each
gradient moves to its master the moment autograd has finished it: rows of a step are then added up in fp32, and no bf16
gradient outlives its own backward. Where parameters are cut over processes (parallel.py) the cut weights stay fp32 and
are their own masters; only what is gathered of them is bf16. A master is a plain tensor there: this process's rows.
Masters may be in host memory (`host`): their gradients too then, and the update is the CPU's.

The other way is to round at random (`stochastic`): a weight of bf16 is then its own master, and what an update makes
of it goes to one of the two neighbours in bf16, the nearer the likelier, so that on average nothing is lost. Rows of a
step add up in bf16 then. Vectors, a ten thousandth of all numbers, keep masters: their moments are not 8 bits either.

Source   Micikevicius et al. 2018, arXiv:1710.03740.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from eagle_model.model.shards import cast_, group_of, is_cut, own, replicas_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # `TrainConfig.dtype`


class Masters:
    """The fp32 values of a model's trainable parameters, by name."""

    by_name: dict[str, Tensor]  # of a cut parameter, this process's rows: `shards.rows_of` says which
    copies: frozenset[str]  # which of them hold numbers of their own; the others share the parameters' memory
    wider: frozenset[str]  # which of them a model in its dtype does not tell: copies, and cut weights that stay fp32

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, *, host: torch.device | None = None, stochastic: bool = False
    ) -> None:
        """Takes a model and leaves it in `dtype`; the masters keep what that loses, in the memory it had.

        Frozen parameters may be in `dtype` already, or of 4 bits that stand for it.
        host: where masters are, if not where the model is: the CPU.
        stochastic: matrices have no master but themselves.
        Raises: ValueError when a trainable parameter is not fp32 (fp64 for a dtype of fp64), or nothing is trainable.
        """
        self._params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        if not self._params:
            raise ValueError("masters: no parameter is trainable. Set one of train_vision, train_connector, train_llm.")
        wide = torch.promote_types(dtype, torch.float32)
        for name, param in self._params.items():
            if param.dtype != wide:
                raise ValueError(f"masters: {name} is {param.dtype}; needs {wide} to take masters from.")
        cut = frozenset(name for name, param in self._params.items() if is_cut(param))
        # Cut weights stay wide, for they are the masters, unless these are elsewhere or there are none.
        stay = cut if host is None and not stochastic else frozenset()
        self.group = next((group_of(self._params[name]) for name in cut), None)
        self.replicas = next((replicas_of(self._params[name]) for name in cut), None)  # who has the same rows
        self.copies = frozenset(
            name
            for name, param in self._params.items()
            if name not in stay
            and ((dtype != wide and not (stochastic and param.ndim >= 2)) or host not in (None, param.device))
        )
        self.wider = self.copies | (stay if dtype != wide else frozenset())
        masters = {name: self._params[name].detach() for name in self.copies}
        for name, param in model.named_parameters():
            if dtype not in (param.dtype, wide) and name not in stay:
                cast_(param, dtype)  # new memory: the old is its master's alone
        if cut:
            _settle(model)
        self.by_name = {name: own(param.detach()) if name in cut else param for name, param in self._params.items()}
        for name, master in masters.items():
            self.by_name[name] = own(master) if host is None else own(master).to(host)
        for name in self.copies | cut:
            self._params[name].register_post_accumulate_grad_hook(_move_grad_to(self.by_name[name]))

    def norms(self, groups: Sequence[Sequence[Tensor]]) -> Tensor:
        """The norm of all tensors of each group, (groups,), where a tensor is this process's rows of a gradient."""
        found = torch.stack([nn.utils.get_total_norm(group) for group in groups])
        if self.group is None:
            return found
        squares = found.to(self._device).double().square()
        torch.distributed.all_reduce(squares, group=self.group)
        return squares.sqrt().to(found)

    @property
    def _device(self) -> torch.device:
        return next(iter(self._params.values())).device

    @torch.no_grad()
    def round_into_model(self) -> None:
        """Makes the model compute with what the masters are now."""
        for name in self.copies:
            own(self._params[name]).copy_(self.by_name[name])


def _move_grad_to(master: Tensor) -> Callable[[Tensor], None]:
    def move(param: Tensor) -> None:
        assert param.grad is not None
        grad = own(param.grad).to(master.device)  # before it is made wider: on the host, there
        if master.grad is None:
            master.grad = grad.to(master.dtype)
        else:
            master.grad += grad
        param.grad = None

    return move


def _settle(model: nn.Module) -> None:
    """FSDP moves cut parameters of uneven runs into memory with room for a last row, at first use: before masters are
    taken of them, then."""
    from torch.distributed.fsdp import fully_shard

    fully_shard.state(model)._lazy_init()  # type: ignore[attr-defined]
