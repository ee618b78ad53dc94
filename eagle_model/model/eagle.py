"""Eagle 2.5: vision encoder, connector and decoder on one packed row of documents.

Dims     T tokens, D LLM width, I tiles, P patches a tile, K numbers a patch, C vision width, Q = P / 4 tokens a tile,
         N = I * Q visual tokens, V vocabulary.
Weights  vision: `vision_model.vision_model.*`, connector: `mlp1.*`, llm: `language_model.model.*`,
         lm_head: `language_model.lm_head.weight` (weights.py).
Source   Chen et al. 2025, arXiv:2504.15271.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from eagle_kernels.attention import AttentionPlan
from eagle_kernels.scatter_visual import scatter_visual
from eagle_model.batch import PackedBatch
from eagle_model.files import write_json
from eagle_model.model import generate, weights
from eagle_model.model.config import EagleConfig
from eagle_model.model.connector import Connector
from eagle_model.model.llm import Decoder
from eagle_model.model.vision import VisionEncoder


class Eagle(nn.Module):
    """New weights come from torch's global generator, in the default dtype; the parameters' dtype decides the
    computation's. Under `torch.device("meta")` nothing is allocated.

    New linear layers keep the variance of what they read (standard deviation fan_in ** -0.5, about 0.02 at Eagle's
    widths), so that narrow models learn as well; embeddings and lm_head take `cfg.initializer_range`.
    """

    def __init__(self, cfg: EagleConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.vision = VisionEncoder(cfg)
        self.connector = Connector(cfg)
        self.llm = Decoder(cfg.text, attention_backend=cfg.attention_backend)
        self.lm_head = nn.Linear(cfg.text.hidden_size, cfg.text.vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.lm_head:
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=cfg.initializer_range)
        self._tie()

    def _tie(self) -> None:
        if self.cfg.text.tie_word_embeddings:
            self.lm_head.weight = self.llm.embed_tokens.weight

    def encode_tiles(self, patches_IPK: Tensor, *, checkpoint_activations: bool = False) -> Tensor:
        """(I, P, K), normalised pixels -> (N, D) visual tokens, tile by tile. I may be 0."""
        patches_IPC = self.vision(patches_IPK, checkpoint_activations=checkpoint_activations)
        return self.connector(patches_IPC).flatten(0, 1)

    def embed(self, batch: PackedBatch, *, checkpoint_activations: bool = False) -> Tensor:
        """(T, D): token embeddings, with the visual tokens in the rows `visual_rows_N`.

        Raises ValueError, before anything is computed, unless there is one row for each visual token.

        A batch without tiles still runs the vision tower, on one zero tile of which no token is taken. So every
        parameter has a gradient (exactly zero) on every rank, which collective operations on gradients rely on.
        """
        num_tiles, num_rows = batch.patches_IPK.shape[0], batch.visual_rows_N.numel()
        num_visual = num_tiles * self.cfg.tokens_per_tile
        if num_rows != num_visual:
            raise ValueError(
                f"Eagle: the batch has {num_rows} rows for visual tokens, but its {num_tiles} tiles give {num_visual} "
                f"({self.cfg.tokens_per_tile} a tile). Samples: {', '.join(batch.sample_ids)}. Their placeholder "
                f"tokens and their pixels must come from the same plan."
            )
        embeddings_TD = self.llm.embed_tokens(batch.token_ids_T)
        patches_IPK = batch.patches_IPK
        if num_tiles == 0:
            vision = self.cfg.vision
            patches_IPK = embeddings_TD.new_zeros(1, vision.num_patches, vision.num_patch_values)
        visual_ND = self.encode_tiles(patches_IPK, checkpoint_activations=checkpoint_activations)[:num_visual]
        return scatter_visual(embeddings_TD, visual_ND, batch.visual_rows_N)

    def forward(self, batch: PackedBatch, *, checkpoint_activations: bool = False) -> Tensor:
        """Hidden states after the final norm, (T, D); the loss multiplies them by `lm_head.weight`.

        checkpoint_activations: keep only each layer's input and compute the layer again in backward; the gradients are
        the same numbers. Raises ValueError where `embed` does.
        """
        embeddings_TD = self.embed(batch, checkpoint_activations=checkpoint_activations)
        plan = AttentionPlan.from_cu_seqlens(batch.cu_seqlens, num_tokens=batch.num_tokens)
        return self.llm(embeddings_TD, batch.positions_T, plan, checkpoint_activations=checkpoint_activations)

    def generate(
        self, batch: PackedBatch, *, max_new_tokens: int, stop_token_ids: Collection[int] = ()
    ) -> list[list[int]]:
        """The likeliest continuation of each document, token by token: `generate.greedy`."""
        return generate.greedy(self, batch, max_new_tokens=max_new_tokens, stop_token_ids=stop_token_ids)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Eagle:
        """From a folder with config.json and safetensors under the released names; dtype None keeps the files' own.

        Raises FileNotFoundError or ValueError where `EagleConfig.read` and `weights.load` do.
        """
        cfg = EagleConfig.read(Path(folder) / "config.json")
        with torch.device("meta"):
            model = cls(cfg)
        tensors = weights.load(Path(folder), dict(model.named_parameters()), dtype=dtype, device=device)
        model.load_state_dict(tensors, strict=False, assign=True)  # weights.load has checked the names
        model._tie()
        return model

    def save_pretrained(self, folder: Path | str, *, max_shard_bytes: int = weights.MAX_SHARD_BYTES) -> None:
        """Writes safetensors and then config.json, each file whole or not at all. Creates `folder`.

        Raises FileExistsError where `weights.save` does.
        """
        folder = Path(folder)
        weights.save(folder, dict(self.named_parameters()), max_shard_bytes=max_shard_bytes)
        dtype = str(self.lm_head.weight.dtype).removeprefix("torch.")
        write_json(folder / "config.json", {**self.cfg.to_dict(), "torch_dtype": dtype})
