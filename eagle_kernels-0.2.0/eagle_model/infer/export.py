"""The vision tower and connector for other runtimes: an ONNX file, or a compiled package of torch's AOTInductor.

    export_onnx(Eagle.from_pretrained("my-eagle"), Path("vision.onnx"))      # eagle export my-eagle --onnx vision.onnx
    onnxruntime.InferenceSession("vision.onnx").run(None, {"pixel_values": tiles_I3YX})

Both take `pixel_values` (I, 3, tile_px, tile_px), float32, normalised as the model's processor does, any number of
tiles, and give `visual_tokens` (I, Q, D): what stands in the places of <IMG_CONTEXT> in the language model's input. The
language model itself is left to runtimes that have one: `eagle convert` writes the folder that they read.

Dims    I tiles, P patches a tile, K = 3 * patch_px**2, C vision width, Q tokens a tile, D LLM width, R = I * P rows.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle_model.files import write_whole
from eagle_model.model.eagle import Eagle

OPSET = 20  # the first with Gelu; TensorRT 10 and onnxruntime 1.17 read it
INPUT, OUTPUT = "pixel_values", "visual_tokens"
MAX_TILES = 4096  # of a call: what compilers are told; 512 frames and images of 12 tiles are well below


@dataclass(frozen=True, slots=True)
class _PerTile:
    """Each tile attends to itself alone, whatever their number: plans hold lists, which an export would fix."""

    num_patches: int

    def __call__(self, layer: int, q_RHW: Tensor, k_RHW: Tensor, v_RHW: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (-1, self.num_patches)).transpose(1, 2) for x in (q_RHW, k_RHW, v_RHW))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)


class VisionTokens(nn.Module):
    """Tiles in, visual tokens out: the same modules and weights as the model's, in plain torch."""

    def __init__(self, model: Eagle) -> None:
        super().__init__()
        self.vision, self.connector = model.vision, model.connector
        self.patch_px = model.cfg.vision.patch_px

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(I, 3, Y, X) -> (I, Q, D)."""
        vision, side = self.vision, self.patch_px
        blocks = pixel_values.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # I, 3, rows, y, columns, x
        patches_IPK = blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x_IPC = vision.patch_embedding(patches_IPK) + vision.position_embedding.weight
        x_RC, attend = x_IPC.flatten(0, 1), _PerTile(vision.num_patches)
        for layer in vision.layers[: vision.num_layers_run]:
            x_RC = layer(x_RC, attend)
        if vision.takes_norm:
            x_RC = vision.post_layernorm(x_RC)
        return self.connector(x_RC.unflatten(0, (-1, vision.num_patches)))


def exported(model: Eagle) -> torch.export.ExportedProgram:
    """The graph of VisionTokens for any number of tiles. Needs a model in float32 on the CPU.

    Raises ValueError for another dtype or device.
    """
    weight = model.lm_head.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise ValueError(f"the model is {weight.dtype} on {weight.device}; exports need float32 on the CPU.")
    tile_px = model.cfg.vision.tile_px
    example = torch.zeros(2, 3, tile_px, tile_px)
    tiles = torch.export.Dim("tiles", min=1, max=MAX_TILES)
    with torch.no_grad():
        return torch.export.export(VisionTokens(model).eval(), (example,), dynamic_shapes={INPUT: {0: tiles}})


def export_onnx(model: Eagle, path: Path) -> None:
    """Writes an ONNX file; weights beyond 2 GB lie beside it, in `path` with `.data` after it.

    Raises ValueError where `exported` does.
    """
    program = exported(model)
    tiles = torch.export.Dim("tiles", min=1, max=MAX_TILES)
    with _quiet():
        onnx = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: tiles}},
            opset_version=OPSET,
            verbose=False,
        )
    assert onnx is not None
    onnx.save(str(path))


def export_package(model: Eagle, path: Path) -> None:
    """Writes a .pt2 that torch, or its C++ runtime without Python, loads: code compiled for this machine's CPU.

    Takes a C++ compiler and a minute. Raises ValueError for a name that does not end in .pt2, and where `exported`
    does.
    """
    if path.suffix != ".pt2":
        raise ValueError(f"{path} does not end in .pt2; torch names such packages so.")
    program = exported(model)
    write_whole(path, lambda beside: _compile(program, beside))


def _compile(program: torch.export.ExportedProgram, beside: Path) -> None:
    named = beside.with_suffix(".pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=str(named))
    named.replace(beside)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print a line for every pass, and warn about what they do to names."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        yield
