"""Kernels of Eagle 2.5 as single ops: import one, call it in your own training code.

    from eagle_kernels import rms_norm
    y = rms_norm(x, weight, 1e-6)  # differentiable, on a CPU and on a GPU, in torch.compile and under torch.autocast

`__all__` lists them; help() of each says shapes, dtypes and errors.
"""

from eagle_kernels.attention import flash_attn_varlen_func, varlen_attention
from eagle_kernels.attention_plan import AttentionPlan
from eagle_kernels.decode_attention import decode_attention
from eagle_kernels.decode_tiles import DecodedTiles, decode_tiles
from eagle_kernels.frames_to_tiles import frames_to_tiles, images_to_tiles
from eagle_kernels.gelu_bias import gelu_bias
from eagle_kernels.layer_norm import layer_norm
from eagle_kernels.linear_cross_entropy import TokenStats, linear_cross_entropy, vocab_parallel_linear_cross_entropy
from eagle_kernels.merge_2x2 import merge_2x2
from eagle_kernels.merge_2x2_layer_norm import merge_2x2_layer_norm
from eagle_kernels.merge_attention import merge_attention
from eagle_kernels.qkv_rope import qkv_rope
from eagle_kernels.rms_norm import add_rms_norm, rms_norm
from eagle_kernels.rope import rope
from eagle_kernels.scatter_visual import scatter_visual
from eagle_kernels.swiglu import swiglu
from eagle_kernels.tiles import Tiling
from eagle_kernels.yuv_to_tiles import yuv_to_tiles

__version__ = "0.2.0"  # the one place: pyproject.toml reads it here; tests hold CITATION.cff and CHANGELOG.md to it

__all__ = [
    "AttentionPlan",
    "DecodedTiles",
    "Tiling",
    "TokenStats",
    "add_rms_norm",
    "decode_attention",
    "decode_tiles",
    "flash_attn_varlen_func",
    "frames_to_tiles",
    "gelu_bias",
    "images_to_tiles",
    "layer_norm",
    "linear_cross_entropy",
    "merge_2x2",
    "merge_2x2_layer_norm",
    "merge_attention",
    "qkv_rope",
    "rms_norm",
    "rope",
    "scatter_visual",
    "swiglu",
    "varlen_attention",
    "vocab_parallel_linear_cross_entropy",
    "yuv_to_tiles",
]
