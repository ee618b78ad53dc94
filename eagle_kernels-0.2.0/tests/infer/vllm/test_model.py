"""vLLM's classes, where vLLM is: beside this torch it is not, and golden/make_vllm.py, which runs them, has said."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.infer.vllm.cases import CASES

HAS_VLLM = importlib.util.find_spec("vllm") is not None


def test_the_golden_file_is_vllm_033s_and_of_all_cases():
    golden = json.loads((Path(__file__).parents[2] / "golden/vllm.json").read_text())
    assert golden["made_with"]["vllm"].startswith("0.33.")
    assert set(golden["cases"]) == set(CASES)


@pytest.mark.skipif(not HAS_VLLM, reason="needs vLLM 0.33, which asks for another torch; tests/golden/make_vllm.py")
def test_processing_is_what_the_golden_file_says(tmp_path):
    from eagle_model.infer.vllm.plugin import register
    from tests.golden.make_vllm import processor_of, result
    from tests.infer.vllm.cases import folder_of

    register()
    processor = processor_of(folder_of(tmp_path))
    golden = json.loads((Path(__file__).parents[2] / "golden/vllm.json").read_text())["cases"]
    for name, case in CASES.items():
        assert result(processor, case) == golden[name], name
