"""Makes vllm.json: what vLLM 0.33's own input processing makes of prompts with the plug-in, and without it.

    python -m tests.golden.make_vllm          # from the repository; no GPU is used

It ran in an environment of its own, with torch 2.13 where vLLM 0.33.0 asks for another: `pip install --no-deps
vllm==0.33.0`, the packages that its input processing imports, and `pip install --no-deps -e .`. So that torchvision
could be imported there, its operators nms and qnms were stubs, and vLLM's compiled code, `vllm._C`, was not loaded;
processing calls neither. vLLM's kernels and its engine were not run.

The cases are those of tests/infer/vllm/cases.py.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.infer.vllm.cases import CASES, folder_of, media_of

OUT = Path(__file__).parent / "vllm.json"


def processor_of(folder: Path) -> Any:
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    model = ModelConfig(
        str(folder),
        dtype="float32",
        max_model_len=512,
        limit_mm_per_prompt={"image": 4, "video": 2},
        skip_tokenizer_init=False,
    )
    return MULTIMODAL_REGISTRY.create_processor(model)


def result(processor: Any, case: Any, cache: Any = None) -> dict[str, Any]:
    from vllm.multimodal.processing import TimingContext
    from vllm.multimodal.processing.inputs import ProcessorInputs

    tokenizer = processor.info.get_tokenizer()
    prompt = tokenizer.apply_chat_template(case["messages"], tokenize=False, add_generation_prompt=True)
    items = processor.info.parse_mm_data(media_of(case))
    inputs = ProcessorInputs(
        prompt=tokenizer.encode(prompt, add_special_tokens=False), mm_data_items=items, cache=cache
    )
    got = processor.apply(inputs, TimingContext(enabled=False))
    ranges = {kind: [[r.offset, r.length] for r in found] for kind, found in got["mm_placeholders"].items()}
    pixels = {}
    for kind, name in (("image", "pixel_values_flat"), ("video", "pixel_values_flat_video")):
        for item in got["mm_kwargs"].get(kind, []):
            if item is None:  # the engine has it already
                continue
            pixels.setdefault(kind, []).append(digest(item[name].data))
    return {"prompt": prompt, "token_ids": list(got["prompt_token_ids"]), "ranges": ranges, "pixels": pixels}


def check_cache(processor: Any) -> None:
    """What was kept from another prompt is numbered anew: pictures in the other order, with and without a cache."""
    from vllm.multimodal.cache import MultiModalProcessorOnlyCache

    first, cache = CASES["images"], MultiModalProcessorOnlyCache(processor.info.ctx.model_config)
    both = {**CASES["both"], "videos": 2}
    for case in (first, both, {**first, "swapped": True}, {**both, "swapped": True}):
        cached, fresh = result(processor, case, cache), result(processor, case)
        assert (cached["token_ids"], cached["ranges"]) == (fresh["token_ids"], fresh["ranges"]), case


def digest(pixels_I3YX: torch.Tensor) -> list[Any]:
    bits = pixels_I3YX.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    return [list(pixels_I3YX.shape), hashlib.sha256(bits).hexdigest()]


def main() -> None:
    import vllm

    from eagle_model.infer.vllm.plugin import register

    register()
    register()  # as in a second process, or twice in one
    with tempfile.TemporaryDirectory() as name:
        folder = folder_of(Path(name))
        processor = processor_of(folder)
        found = {name: result(processor, case) for name, case in CASES.items()}
        check_cache(processor)
        dummies = {
            kind: len(processor.get_dummy_mm_inputs({kind: 1})["prompt_token_ids"]) for kind in ("image", "video")
        }
        assert set(dummies.values()) == {512}, dummies
    about = {"vllm": vllm.__version__, "torch": torch.__version__}
    OUT.write_text(json.dumps({"made_with": about, "cases": found}, indent=1) + "\n")
    print(f"Written: {OUT}")


if __name__ == "__main__":
    main()
