"""Vision tower and connector in other runtimes: the same numbers as the model's, for any number of tiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eagle_model.infer.export import INPUT, OUTPUT, VisionTokens, export_onnx, export_package, exported
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle

NUM_TILES = (1, 2, 5)


def model(**changes) -> Eagle:
    torch.manual_seed(0)
    return Eagle(replace(tiny(vocab_size=300, image_token_id=5), **changes)).eval()


def tiles_of(eagle: Eagle, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, and the model's own tokens of them."""
    side, patch = eagle.cfg.vision.tile_px, eagle.cfg.vision.patch_px
    pixels_I3YX = torch.randn(num, 3, side, side)
    patches_IKP = torch.nn.functional.unfold(pixels_I3YX, patch, stride=patch)
    with torch.no_grad():
        want_ND = eagle.encode_tiles(patches_IKP.transpose(1, 2).contiguous())
    return pixels_I3YX, want_ND.unflatten(0, (num, -1))


@pytest.mark.parametrize(
    "changes", [{}, {"select_layer": -2}, {"mlp_connector_layers": 1}, {"use_pixel_shuffle": False}], ids=str
)
def test_the_graph_has_the_models_numbers(changes):
    eagle = model(**changes)
    pixels_I3YX, want_IQD = tiles_of(eagle, 3)
    with torch.no_grad():
        torch.testing.assert_close(VisionTokens(eagle)(pixels_I3YX), want_IQD, rtol=0, atol=1e-5)
    names = {str(node.target) for node in exported(eagle).graph.nodes if node.op == "call_function"}
    assert not [name for name in names if name.startswith("eagle")]  # no op of ours, which no other runtime has


def test_onnxruntime_gives_the_same(tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra `dev`)")
    pytest.importorskip("onnxscript", reason="needs onnxscript (the extra `export`)")
    eagle = model()
    export_onnx(eagle, tmp_path / "vision.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "vision.onnx", providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == [INPUT]
    for num in NUM_TILES:
        pixels_I3YX, want_IQD = tiles_of(eagle, num)
        (got_IQD,) = session.run([OUTPUT], {INPUT: pixels_I3YX.numpy()})
        torch.testing.assert_close(torch.from_numpy(got_IQD), want_IQD, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_compiled_package_gives_the_same(tmp_path: Path):
    eagle = model()
    export_package(eagle, tmp_path / "vision.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["vision.pt2"]
    run = torch._inductor.aoti_load_package(str(tmp_path / "vision.pt2"))
    for num in NUM_TILES:
        pixels_I3YX, want_IQD = tiles_of(eagle, num)
        torch.testing.assert_close(run(pixels_I3YX), want_IQD, rtol=0, atol=1e-5)


def test_what_cannot_be_exported_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"the model is torch\.bfloat16 on cpu; exports need float32 on the CPU"):
        exported(model().bfloat16())
    with pytest.raises(ValueError, match=r"vision\.so does not end in \.pt2"):
        export_package(model(), tmp_path / "vision.so")
