"""Eagle 2.5: vision encoder, connector and decoder on one packed row of documents.

    model = Eagle.from_pretrained("Eagle2.5-8B", dtype=torch.bfloat16, device="cuda")
    loss = model(batch, mass)                                        # training; mass: see loss.py
    new_ids = model.generate(batch, max_new_tokens=64)               # or what follows each document

    model = build(read_model_config("Eagle2.5-8B"))                        # the same model in steps: names and shapes,
    load(model, "Eagle2.5-8B", dtype=torch.bfloat16, device="cuda")  # then weights; between them, its place is chosen

Dims     T tokens, D LLM width, I tiles, P patches a tile, K numbers a patch, C vision width, Q = P / 4 tokens a tile,
         N = I * Q visual tokens, V vocabulary.
Weights  vision: `vision_model.vision_model.*`, connector: `mlp1.*`, llm: `language_model.model.*`,
         lm_head: `language_model.lm_head.weight` (weights.py).
Source   Chen et al. 2025, arXiv:2504.15271.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagle_kernels.attention_plan import AttentionPlan
from eagle_kernels.scatter_visual import scatter_visual
from eagle_model.batch import PackedBatch, tile_range
from eagle_model.checkpoints import read_newest
from eagle_model.fields import few
from eagle_model.files import write_json
from eagle_model.model import weights
from eagle_model.model.attend import KERNEL_HEAD_WIDTHS, Attend, Packed
from eagle_model.model.config import EagleConfig
from eagle_model.model.connector import Connector
from eagle_model.model.context import Context
from eagle_model.model.generate import greedy, tokens
from eagle_model.model.linear import FusedLinear, Linear
from eagle_model.model.llm import Decoder, document_lengths
from eagle_model.model.loss import LMHead, LossPer, token_weights
from eagle_model.model.recompute import RunLayer, in_chunks
from eagle_model.model.shards import fill, is_cut, put, rows_of
from eagle_model.model.vision import GeluBias, VisionEncoder

if TYPE_CHECKING:
    from eagle_model.model.lora import Attached

_HEAD = "lm_head.weight"  # a second name of tied embeddings
MAX_TIMES_STORED = 2  # parameters of a config to numbers in its files: beyond, they are of different models


class Eagle(nn.Module):
    """New weights come from torch's global generator, in the default dtype; the parameters' dtype decides the
    computation's. Under `torch.device("meta")` nothing is allocated.

    New linear layers keep the variance of what they read (standard deviation fan_in ** -0.5, about 0.02 at Eagle's
    widths), so that narrow models learn as well; embeddings and lm_head take `cfg.initializer_range`.
    """

    def __init__(self, cfg: EagleConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.row_multiple = 1  # the language model gets such a number of rows: what FP8 products need (fp8.py)
        self.adapter: Attached | None = None  # what lora.py has added
        self.tokens_per_tile = cfg.tokens_per_tile
        self.vision_chunk_tiles: int | None = None  # seen so many at a time, and again in backward; None: all at once
        self.vision = VisionEncoder(cfg)
        self.connector = Connector(cfg)
        self.llm = Decoder(cfg.text)
        self.lm_head = LMHead(cfg.text.hidden_size, cfg.text.vocab_size)
        self.carried: dict[str, Tensor] = {}  # what the files held and the model does not use, to be saved with it
        draw(self, cfg.initializer_range)
        self._tie()

    def _tie(self) -> None:
        if self.cfg.text.tie_word_embeddings:
            self.lm_head.weight = self.llm.embed_tokens.weight

    def untie(self) -> None:
        """Gives an output head that shares its weight with the embeddings one of its own, of the same numbers."""
        self.cfg = replace(self.cfg, text=replace(self.cfg.text, tie_word_embeddings=False))
        weight = self.lm_head.weight
        self.lm_head.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)

    def encode_tiles(self, patches_IPK: Tensor, *, run_layer: RunLayer | None = None) -> Tensor:
        """(I, P, K), normalised pixels -> (N, D) visual tokens, tile by tile. I may be 0."""

        def encode(patches_IPK: Tensor, run_layer: RunLayer | None = None) -> Tensor:
            return self.connector(self.vision(patches_IPK, run_layer=run_layer)).flatten(0, 1)

        if self.vision_chunk_tiles is None:
            return encode(patches_IPK, run_layer)
        # Of layers within a chunk all is kept: it is gone before the next one.
        return in_chunks((self.vision, self.connector), encode, patches_IPK, self.vision_chunk_tiles)

    def embed(self, batch: PackedBatch, *, run_layer: RunLayer | None = None, context: Context | None = None) -> Tensor:
        """(T, D): token embeddings, with the visual tokens in the rows `visual_rows_N`. With a context, this rank's
        rows alone, (R, D).

        Raises ValueError, before anything is computed, unless there is one row for each visual token.

        Where several processes train, a batch without tiles still runs the vision tower, on one zero tile of which no
        token is taken. So every parameter has a gradient (exactly zero) on every rank, which collective operations on
        gradients rely on.
        """
        patches_IPK, num_rows = self._tiles(batch, context), batch.visual_rows_N.numel()
        num_tiles = patches_IPK.shape[0]
        num_visual = num_tiles * self.tokens_per_tile
        embeddings_TD = self.llm.embed_tokens(
            batch.token_ids_T if context is None else batch.token_ids_T[context.rows_R]
        )
        if num_tiles == 0:
            is_shared = context is not None or (torch.is_grad_enabled() and _num_processes() > 1)
            if not (is_shared or is_cut(next(self.vision.parameters()))):  # to gather weights, all run the tower
                return embeddings_TD
            patches_IPK = embeddings_TD.new_zeros(1, self.vision.num_patches, self.vision.num_patch_values)
        visual_ND = self.encode_tiles(patches_IPK, run_layer=run_layer)[:num_visual]
        if context is None:
            return scatter_visual(embeddings_TD, visual_ND, batch.visual_rows_N)
        if num_rows:  # of the whole row: all ranks agree
            visual_ND = context.visual(visual_ND)
        return scatter_visual(embeddings_TD, visual_ND, context.visual_rows_M)

    def _tiles(self, batch: PackedBatch, context: Context | None) -> Tensor:
        """The tiles that this process encodes."""
        num_tiles, num_rows = batch.patches_IPK.shape[0], batch.visual_rows_N.numel()
        row_tiles, rest = divmod(num_rows, self.tokens_per_tile)
        first, end = tile_range(row_tiles, context.rank, context.num_ranks) if context else (0, row_tiles)
        held = (0, num_tiles) if batch.tiles is None else batch.tiles
        need = (0, row_tiles) if batch.tiles is None else (first, end)
        if rest or held != need or held[1] - held[0] != num_tiles:
            num_visual = num_tiles * self.tokens_per_tile
            its = f"{num_tiles} tiles" if batch.tiles is None else f"{num_tiles} tiles, {held[0]} to {held[1]} of all,"
            share = f" This rank's share of them are tiles {first} to {end}." if context or batch.tiles else ""
            raise ValueError(
                f"Eagle: the batch has {num_rows} rows for visual tokens, but its {its} give {num_visual} "
                f"({self.tokens_per_tile} a tile).{share} Samples: {', '.join(batch.sample_ids)}. Their placeholder "
                f"tokens and their pixels must come from the same plan."
            )
        return batch.patches_IPK[first:end] if batch.tiles is None and context else batch.patches_IPK

    def hidden(
        self, batch: PackedBatch, *, run_layer: RunLayer | None = None, context: Context | None = None
    ) -> Tensor:
        """Hidden states after the final norm, (T, D); `lm_head` makes logits of them. With a context, of this rank's
        rows alone, (R, D).

        run_layer: what of each layer is kept for backward (recompute.py); the gradients are the same numbers.
        context: this rank's share of the row, where several ranks share it (context.py).
        Raises ValueError where `embed` does, and where flash-attn is to attend over several ranks.
        """
        if context is not None and self.cfg.attention_backend != "eagle":
            raise ValueError(
                f"Eagle: attention_backend is {self.cfg.attention_backend}, which attends within one rank; needs "
                f'"eagle" where {context.num_ranks} ranks share a row.'
            )
        embeddings_TD = self.embed(batch, run_layer=run_layer, context=context)
        num_tokens, positions_T = len(embeddings_TD), batch.positions_T
        lengths_T = document_lengths(batch.cu_seqlens, batch.num_tokens) if self.llm.needs_lengths else None
        if context is not None:
            num_added = context.tokens_per_rank - num_tokens
            positions_T = positions_T[context.rows_R]
            lengths_T = None if lengths_T is None else lengths_T[context.rows_R]
        else:
            num_added = -num_tokens % self.row_multiple
        if num_added:  # zeros outside of all documents: attention gives zeros there, and so do all layers
            embeddings_TD = F.pad(embeddings_TD, (0, 0, 0, num_added))
            positions_T = F.pad(positions_T, (0, num_added))
            lengths_T = None if lengths_T is None else F.pad(lengths_T, (0, num_added), value=1)
        attend: Attend
        if context is not None:
            attend = replace(context.attend, is_kept=run_layer is not None)
        elif num_added:
            starts, lengths = batch.cu_seqlens[:-1], batch.cu_seqlens.diff()
            plan = AttentionPlan.from_segments(starts, lengths, starts, lengths, num_tokens=num_tokens + num_added)
            attend = Packed(plan=plan, causal=True, backend=self.cfg.attention_backend)
        else:
            plan = AttentionPlan.from_cu_seqlens(batch.cu_seqlens, num_tokens=num_tokens)
            attend = Packed(plan=plan, causal=True, backend=self.cfg.attention_backend)
        hidden_TD = self.llm(embeddings_TD, positions_T, attend, lengths_T=lengths_T, run_layer=run_layer)
        return hidden_TD[:num_tokens] if num_added else hidden_TD

    def forward(
        self,
        batch: PackedBatch,
        mass: Tensor,
        *,
        loss_per: LossPer = "sample",
        run_layer: RunLayer | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """This row's share of the step's loss, fp32 scalar; the shares of a step's rows add up to the loss, and so do
        those of the ranks that share a row.

        mass: sum of `loss.sqrt_mass` over all rows of the step, per the same. Where nothing is supervised, loss and
        gradients are 0. run_layer, context and errors as in `hidden`.
        """
        hidden_TD = self.hidden(batch, run_layer=run_layer, context=context)
        weights_T = token_weights(batch.labels_T, batch.cu_seqlens, mass, per=loss_per)
        weights_T = weights_T.to(torch.promote_types(hidden_TD.dtype, torch.float32))  # fp64 beside fp64
        if context is None:
            return self.lm_head(hidden_TD, batch.labels_T, weights_T, batch.num_labelled)
        rows_R = context.rows_R
        return self.lm_head(hidden_TD, batch.labels_T[rows_R], weights_T[rows_R], context.num_labelled)

    def generate(
        self, batch: PackedBatch, *, max_new_tokens: int, stop_token_ids: Collection[int] = ()
    ) -> list[list[int]]:
        """The likeliest continuation of each document: `generate.greedy`."""
        return greedy(
            self.embed, self.llm, self.lm_head, batch, max_new_tokens=max_new_tokens, stop_token_ids=stop_token_ids
        )

    def stream(
        self, batch: PackedBatch, *, max_new_tokens: int, stop_token_ids: Collection[int] = ()
    ) -> Iterator[list[tuple[int, int]]]:
        """The same, token by token as they come: `generate.tokens`."""
        return tokens(
            self.embed, self.llm, self.lm_head, batch, max_new_tokens=max_new_tokens, stop_token_ids=stop_token_ids
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        mapped: bool = False,
    ) -> Eagle:
        """From a folder with config.json and safetensors under the released names, or from a run's folder, whose newest
        checkpoint is taken. dtype None keeps the files' own. mapped: weights are read when they are used, as `load`
        says.

        Files that a checkpoint's manifest lists are checked against it. Raises FileNotFoundError or ValueError where
        `read_model_config`, `load` and `checkpoints.read_newest` do.
        """

        def read(checkpoint: Path) -> Eagle:
            model = build(read_model_config(checkpoint))
            load(model, checkpoint, dtype=dtype, device=device, mapped=mapped)
            return model

        return read_newest(Path(folder), read)

    def save_pretrained(
        self, folder: Path | str, *, layout: str = "released", max_shard_bytes: int = weights.MAX_SHARD_BYTES
    ) -> None:
        """Writes safetensors and then config.json, each file whole or not at all. Creates `folder`.

        layout: whose names the tensors and the class have: "released" (transformers 4's, which vLLM reads),
        "transformers5", "groot" or "lerobot"; `from_pretrained` reads them all. SigLIP's pooling head, where the model
        came with one, is saved as it was.

        Raises FileExistsError and ValueError where `weights.save` does, ValueError when the model has adapters.
        """
        if self.adapter is not None:
            raise ValueError(
                "save_pretrained: the model has adapters. lora.merge adds them to the weights first, and "
                "lora.save_adapter writes them alone."
            )
        folder, cfg = Path(folder), self.saved_config()
        parameters, rules = dict(self.named_parameters()), weights.rules(cfg)
        if strange := [name for name in build(cfg).state_dict().keys() ^ parameters.keys() if name != _HEAD]:
            raise ValueError(
                f"save_pretrained: the model and its config differ in {few(sorted(strange))}. Modules were put around "
                f"or into it: PEFT's adapters are saved by its own save_pretrained, or merged by merge_and_unload."
            )
        weights.save(folder, parameters, rules, carried=self.carried, layout=layout, max_shard_bytes=max_shard_bytes)
        write_config(folder, cfg, self.lm_head.weight.dtype, self.carried, layout=layout)

    def saved_config(self) -> EagleConfig:
        """The config of its weights as they are; where tied embeddings were trained apart, as PEFT does with either of
        the two, not tied."""
        text = self.cfg.text
        is_tied = text.tie_word_embeddings and self.lm_head.weight is self.llm.embed_tokens.weight
        return replace(self.cfg, text=replace(text, tie_word_embeddings=is_tied))


def write_config(
    folder: Path, cfg: EagleConfig, dtype: torch.dtype, carried: Collection[str], *, layout: str = "released"
) -> None:
    """Writes config.json beside weights of a dtype; carried: the released names of what they hold besides the model."""
    name = str(dtype).removeprefix("torch.")
    fields = {**cfg.to_dict(), "dtype": name, "torch_dtype": name}  # transformers' name, and its old one
    fields["architectures"] = [weights.LAYOUTS[layout].architecture]
    for part in (fields["vision_config"], fields["text_config"]):
        part.update({key: name for key in ("dtype", "torch_dtype") if key in part})
    fields["vision_config"]["vision_use_head"] = any(key.startswith(weights.POOLING_HEAD) for key in carried)
    write_json(folder / "config.json", fields)


def draw(model: nn.Module, initializer_range: float) -> None:
    """New matrices and embeddings, and biases of 0; norms keep the 1 and 0 of their constructors."""
    for module in model.modules():
        if not next((p.is_meta for p in module.parameters(recurse=False)), True):
            _draw(module, initializer_range)  # else nothing to draw into, and torch does it in Python, slowly


def _draw(module: nn.Module, initializer_range: float) -> bool:
    if isinstance(module, Linear):
        # One projection after another: a seed's numbers are those of layers that are not fused.
        sizes = module.sizes if isinstance(module, FusedLinear) else module.out_features
        for rows in module.weight.detach().split(sizes):
            nn.init.normal_(rows, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True
    if isinstance(module, LMHead | nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
        return True
    return False


def _reset(module: nn.Module) -> bool:
    """As the constructors of layers do off "meta"."""
    has_own = isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | nn.RMSNorm | GeluBias)
    if has_own:
        module.reset_parameters()  # type: ignore[operator]
    return has_own


def _num_processes() -> int:
    dist = torch.distributed
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def read_model_config(folder: Path | str) -> EagleConfig:
    """The config of a model's folder, which has its weights too.

    Raises FileNotFoundError and ValueError where `EagleConfig.read` does, and where it describes a model far larger
    than the files hold: that is known from their headers, before a layer is built.
    """
    cfg, held = EagleConfig.read(Path(folder) / "config.json"), weights.num_stored(Path(folder))
    if cfg.num_parameters > MAX_TIMES_STORED * held:
        raise ValueError(
            f"{folder}: config.json describes a model of {cfg.num_parameters} parameters, but the safetensors files "
            f"hold {held} numbers. They do not belong together."
        )
    return cfg


def build(cfg: EagleConfig, device: torch.device | str = "meta") -> Eagle:
    """The model of a config: on "meta" its names and shapes alone, for `load`; elsewhere with new weights.

    Raises ValueError where `check_device` does.
    """
    check_device(cfg, device)
    with torch.device(device):
        return Eagle(cfg)


def check_device(cfg: EagleConfig, device: torch.device | str) -> None:
    """Raises ValueError for a GPU where attention has no kernel for the heads of a config; a CPU takes any width."""
    if torch.device(device).type != "cuda":
        return
    for name, width in (("vision", cfg.vision.head_dim), ("text", cfg.text.head_dim)):
        if width not in KERNEL_HEAD_WIDTHS:
            raise ValueError(
                f"Eagle: the {name} heads are {width} wide (their head_dim); on a GPU attention "
                f"needs a multiple of 8 from 16 to 256. Use the CPU, or another number of heads."
            )


def load(
    model: Eagle,
    source: Path | str | None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    is_verified: bool = False,
    mapped: bool = False,
    convert: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Gives a model that was built on "meta" its weights, on `device` and in `dtype`; None keeps the source's own.

    source: a folder with safetensors under the released names (a released model or a checkpoint of training), read
    shard by shard: the memory is the weights' and one shard's. None: new weights, drawn on the CPU from torch's global
    generator, so that a seed means the same on every device, and the same as a model that was built on the CPU.

    Of parameters that are cut over processes (shards.py) each process reads, or keeps, its rows alone; the numbers are
    the same. Adapters get none here: lora.draw and lora.load_adapter give them theirs.

    is_verified: a checkpoint's files were checked against its manifest just now; else those that are read are.
    mapped: on a CPU, weights are views of the mapped files, as transformers has them: a model that is only used starts
    at once. The files must not be written to in place meanwhile (weights.read).
    convert: what a parameter of a folder becomes, by its name, one by one as they are read: another dtype, or 4 bits.

    Raises ValueError when the model has weights already and where `check_device` does, FileNotFoundError or ValueError
    where `weights.read` does.
    """
    check_device(model.cfg, device)
    parameters = {name: p for name, p in model.named_parameters() if ".lora." not in name}  # adapters: lora.draw
    if held := [name for name, parameter in parameters.items() if not parameter.is_meta]:
        raise ValueError(f'load: {held[0]} holds numbers already; needs a model from build(cfg, "meta").')
    if source is None and any(is_cut(parameter) for parameter in parameters.values()):
        draws = partial(_draw, initializer_range=model.cfg.initializer_range)
        fill(model, [_reset, draws], dtype=dtype, device=device)
    elif source is None:
        model.to_empty(device="cpu")
        for module in model.modules():
            _reset(module)
        draw(model, model.cfg.initializer_range)
        model.to(device=device, dtype=dtype)
    else:
        tensors = weights.read(
            Path(source),
            parameters,
            weights.rules(model.cfg),
            dtype=dtype,
            device=device,
            is_verified=is_verified,
            carried=model.carried,
            mapped=mapped,
            rows={name: rows_of(parameter) for name, parameter in parameters.items() if is_cut(parameter)},
        )
        for name, tensor in tensors:
            path, _, leaf = name.rpartition(".")
            put(model.get_submodule(path), leaf, tensor if convert is None else convert(name, tensor))
    model._tie()
