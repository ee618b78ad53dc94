"""FLOPs of a training step, counted from its rows: tiles, packed documents and causal attention, each as it is.

    meter = FlopMeter(model)                     # once; which parameters are trained is known by then
    flops = meter.step(batches)                  # of batches on the CPU: a GPU is not asked for numbers
    flops.model / seconds / peak                 # model FLOPs utilization, MFU

What is counted  Products of matrices, a multiply and an add as two FLOPs. A linear layer takes one product forward and
                 two backward, for its input's gradient and its weight's, each only where it is needed: behind frozen
                 towers nothing flows back, and a frozen weight has no gradient. Of attention the pairs of tokens that
                 see each other take two products forward and four backward. The head meets the supervised tokens alone.
What is not      Norms, activations, biases, the optimizer; DoRA's norms of weights.
Apart            `recomputed`: what backward computes a second time. Attention's scores, always, and the layers where
                 activations are recomputed. It is no part of `model`, by which MFU is reckoned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import nn

from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.model.eagle import Eagle
from eagle_model.model.sizes import causal_pairs

_AFTER_ATTENTION = ("out_proj", "o_proj")  # the projection that reads what attention gives
_ATTENTION_FORWARD, _ATTENTION_BACKWARD = 2, 4  # products: scores and values; gradients of both of each
_LORA = ".lora."

Activations = Literal["none", "block", "selective", "offload"]


@dataclass(frozen=True, slots=True)
class Flops:
    """Add them up, and multiply them by a number of rows."""

    forward: int = 0
    backward: int = 0
    recomputed: int = 0  # forward's, once more during backward

    @property
    def model(self) -> int:
        """What the step needs, however it is computed."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward, self.recomputed + other.recomputed)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.forward * times, self.backward * times, self.recomputed * times)


class FlopMeter:
    """Of one model: built, with its adapters, and what is frozen frozen. It may be on "meta"."""

    def __init__(self, model: Eagle, *, activations: Activations = "none") -> None:
        """activations: as MemoryConfig has it. Layers that backward computes again it does but for their last product,
        and with "selective" but for attention. What chunks of tokens or tiles compute again is not counted."""
        cfg, vision, llm = model.cfg, model.vision, model.llm
        P, patch_width = vision.num_patches, cfg.vision.hidden_size
        layers = vision.layers[: vision.num_layers_run]

        walk = _Walk(activations)
        walk.products(vision.patch_embedding, rows=P)
        walk.products(vision.position_embedding, rows=P)
        walk.layers(layers, rows=P, pairs=P * P, width=patch_width)
        if vision.takes_norm:
            walk.products(vision.post_layernorm, rows=P)
        walk.products(model.connector, rows=model.tokens_per_tile)
        self._tokens_per_tile = model.tokens_per_tile
        self._tile, visual_tokens_flow = walk.flops, walk.flows

        self._text = {}  # by whether a row has tiles
        for has_tiles in (False, True):
            begins = llm.embed_tokens.weight.requires_grad or (has_tiles and visual_tokens_flow)
            token, pair = _Walk(activations, begins), _Walk(activations, begins)
            token.layers(llm.layers, rows=1, pairs=0, width=0)
            pair.layers(llm.layers, rows=0, pairs=1, width=cfg.text.qkv_sizes[0])
            label = _Walk(activations, token.flows)
            label.products(llm.norm, rows=1)
            label.products(model.lm_head, rows=1)
            self._text[has_tiles] = token.flops, pair.flops, label.flops

    def row(self, *, num_tiles: int, document_lengths: Sequence[int], num_labelled: int) -> Flops:
        """Of one packed row. num_labelled: its supervised tokens."""
        token, pair, label = self._text[num_tiles > 0]
        num_pairs = sum(causal_pairs(length) for length in document_lengths)
        return self._tile * num_tiles + token * sum(document_lengths) + pair * num_pairs + label * num_labelled

    def step(self, batches: Iterable[PackedBatch]) -> Flops:
        """Of all rows of a step."""
        rows = (
            self.row(
                num_tiles=len(batch.visual_rows_N) // self._tokens_per_tile,  # of which this process may have a part
                document_lengths=batch.cu_seqlens.diff().tolist(),
                num_labelled=int((batch.labels_T != IGNORE_INDEX).sum()),
            )
            for batch in batches
        )
        return sum(rows, Flops())


class _Walk:
    """Follows a forward through its parameters, in the order in which it meets them.

    A product's input needs a gradient where anything before it is trained: `flows`.
    """

    def __init__(self, activations: Activations, flows: bool = False) -> None:
        self.flops, self.flows = Flops(), flows
        self._activations = activations

    def layers(self, layers: Iterable[nn.Module], *, rows: int, pairs: int, width: int) -> None:
        """Of one tower. pairs: of rows that see each other.  width: of all heads together."""
        for layer in layers:
            before = self.flops.forward
            last = self.products(layer, rows=rows, pair_product=2 * pairs * width)
            if self._activations != "none" and self.flows:
                kept = last
                if self._activations == "selective":
                    kept += 2 * pairs * width * _ATTENTION_FORWARD
                self.flops += Flops(recomputed=self.flops.forward - before - kept)

    def products(self, module: nn.Module, *, rows: int, pair_product: int = 0) -> int:
        """Of the matrices of a module, and of attention where it has some; returns what recomputing leaves out: the
        last product, whose result nothing waits for."""
        last, projection, enters, A_is_trained = 0, "", self.flows, False
        for name, parameter in module.named_parameters():
            owner, trained = (
                (name.partition(_LORA) if _LORA in name else name.rpartition("."))[0],
                parameter.requires_grad,
            )
            if owner != projection:
                projection, enters = owner, self.flows
                if owner.endswith(_AFTER_ATTENTION):
                    backward = pair_product * self.flows
                    self.flops += Flops(
                        pair_product * _ATTENTION_FORWARD, backward * _ATTENTION_BACKWARD, recomputed=backward
                    )
            if parameter.ndim == 2 and not isinstance(module, nn.Embedding):
                flows = enters
                if name.endswith(".A.weight"):
                    A_is_trained = trained
                elif name.endswith(".B.weight"):
                    flows = enters or A_is_trained
                product = 2 * prod(parameter.shape) * rows
                self.flops += Flops(product, product * (flows + trained))
                last = 0 if _LORA in name else product  # an adapter's is scaled, and that waits for it
            self.flows = self.flows or trained
        return last
