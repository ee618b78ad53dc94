"""What vLLM calls when it starts: the entry point is there, and names what is there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoConfig

from eagle_model.infer.vllm import plugin
from eagle_model.infer.vllm.config import EagleVLLMConfig

ROOT = Path(__file__).parents[3]


def test_it_registers_the_model_and_its_config_any_number_of_times(monkeypatch: pytest.MonkeyPatch):
    registered = []
    vllm = ModuleType("vllm")
    vllm.ModelRegistry = type("Registry", (), {"register_model": lambda *given: registered.append(given)})
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    plugin.register()
    plugin.register()
    assert registered == [(plugin.ARCHITECTURE, plugin.CLASS)] * 2
    assert isinstance(AutoConfig.for_model(plugin.MODEL_TYPE), EagleVLLMConfig)


def test_the_names_lead_to_what_is_there():
    table = (ROOT / "pyproject.toml").read_text().partition('[project.entry-points."vllm.general_plugins"]\n')[2]
    assert re.match(rf'{plugin.MODEL_TYPE} = "{re.escape(plugin.__name__)}:register"\n', table)
    module, _, name = plugin.CLASS.partition(":")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text())
    assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
