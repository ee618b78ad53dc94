"""How large a model is and what it costs, from its config alone: parameters, FLOPs, bytes of cached keys and values.

    sizes = Sizes.of(eagle2_5_8b())
    sizes.tile_flops, sizes.tile_attention_flops      # (844_080_283_648, 130_459_631_616)
    print("\n".join(sizes.lines()))                   # what `eagle sizes` prints

A multiply and an add are two FLOPs. Matrices count as 2 x parameters for each patch or token that meets them, biases
and norms with them; of attention the two products count, over the pairs of tokens that see each other. Forward alone:
what is trained costs more, which train/flops.py counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from eagle_model.model.config import EagleConfig

BYTES = 2  # a number in bf16
ROW_TOKENS, CONTEXT_TOKENS = 32_768, 131_072  # what is shown as an example: the paper's first stage and its last


def causal_pairs(num_tokens: int) -> int:
    """How many (query, key) a document of `num_tokens` has where each token sees itself and those before it."""
    return num_tokens * (num_tokens + 1) // 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Numbers of parameters by part; FLOPs of a forward; bytes in bf16."""

    cfg: EagleConfig
    vision: int
    connector: int
    decoder: int  # with the embeddings
    lm_head: int  # 0 where it is the embeddings
    tile_flops: int  # of the vision tower, without attention's products
    tile_attention_flops: int
    tile_connector_flops: int
    token_flops: int  # of the decoder and its head, without attention's products
    kv_bytes: int  # a token

    @classmethod
    def of(cls, cfg: EagleConfig) -> Sizes:
        vision, text = cfg.vision, cfg.text
        P, C = vision.num_patches, vision.hidden_size
        num_layers_run = cfg.select_layer % (vision.num_hidden_layers + 1)
        met = vision.num_parameters - P * C  # a patch meets one row of the position table
        if cfg.select_layer != -1:
            met -= (vision.num_hidden_layers - num_layers_run) * vision.num_layer_parameters + 2 * C
        table = text.vocab_size * text.hidden_size
        lm_head = 0 if text.tie_word_embeddings else table
        decoder = text.num_parameters - lm_head
        return cls(
            cfg=cfg,
            vision=vision.num_parameters,
            connector=cfg.num_connector_parameters,
            decoder=decoder,
            lm_head=lm_head,
            tile_flops=2 * met * P,
            tile_attention_flops=4 * num_layers_run * P * P * C,
            tile_connector_flops=2 * cfg.num_connector_parameters * cfg.tokens_per_tile,
            token_flops=2 * decoder,  # one row of the embeddings, and all of the head, which is as large
            kv_bytes=2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * BYTES,
        )

    @property
    def total(self) -> int:
        return self.vision + self.connector + self.decoder + self.lm_head

    def causal_attention_flops(self, num_tokens: int) -> int:
        """Of the decoder over one document of `num_tokens`."""
        text = self.cfg.text
        return 4 * text.num_hidden_layers * causal_pairs(num_tokens) * text.num_attention_heads * text.head_dim

    def lines(self) -> list[str]:
        vision, text = self.cfg.vision, self.cfg.text
        parts = {
            "vision": f"{vision.num_hidden_layers} layers, {vision.hidden_size} wide, "
            f"{vision.num_attention_heads} heads of {vision.head_dim}",
            "connector": f"{self.cfg.patches_per_token * vision.hidden_size} -> {text.hidden_size}",
            "decoder": f"{text.model_type}, {text.num_hidden_layers} layers, {text.hidden_size} wide, "
            f"{text.num_attention_heads} heads of {text.head_dim}, {text.num_key_value_heads} of keys",
            "lm_head": "the embeddings" if text.tie_word_embeddings else f"{text.vocab_size} tokens",
            "total": f"{self.total * BYTES / 1e9:.2f} GB in bf16",
        }
        return [
            *(f"{name:10}{getattr(self, name):>16,} parameters   {about}" for name, about in parts.items()),
            f"a tile    {self.tile_flops / 1e12:.3f} TFLOP, {self.tile_attention_flops / 1e12:.3f} of attention, "
            f"{self.tile_connector_flops / 1e12:.3f} of the connector   "
            f"{vision.tile_px} px, {vision.num_patches} patches, {self.cfg.tokens_per_tile} tokens",
            f"a token   {self.token_flops / 1e9:.2f} GFLOP, and "
            f"{self.causal_attention_flops(ROW_TOKENS) / 1e12:.1f} TFLOP of attention in {ROW_TOKENS} tokens",
            f"a cache   {self.kv_bytes} bytes a token in bf16, "
            f"{self.kv_bytes * CONTEXT_TOKENS / 2**30:.2f} GiB in {CONTEXT_TOKENS} tokens",
        ]
