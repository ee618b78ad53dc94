"""The plug-in for lmms-eval with lmms-eval's own classes: skipped where it is not installed, as its pins conflict."""

import importlib.util
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.evaluate.conftest import film, model_folder  # noqa: F401

PLUGIN = Path(__file__).parents[1] / "examples/lmms_plugin"


def test_the_plug_in_answers_a_task_of_lmms_eval(
    model_folder: Path,  # noqa: F811
    film: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if importlib.util.find_spec("lmms_eval") is None:
        pytest.skip("needs lmms-eval, which asks for av<16 and filelock<4: examples/lmms_plugin has the environment")
    monkeypatch.syspath_prepend(str(PLUGIN))
    plugin = importlib.import_module("eagle_lmms_eval")
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(plugin.MANIFEST)
    model = registry.get_model_class("eagle")(pretrained=str(model_folder), batch_size=1)
    model.task_dict = {"local": {"test": [{"question": "Which colour is it?"}]}}

    def messages(doc: dict) -> list[dict]:
        parts = [{"type": "video", "url": str(film)}, {"type": "text", "text": doc["question"]}]
        return [{"role": "user", "content": parts}]

    given = {"max_new_tokens": 4, "temperature": 0, "do_sample": False, "until": ["\n\n"]}
    requests = [SimpleNamespace(args=("", messages, given, 0, "local", "test"))] * 2
    first, second = model.generate_until(requests)
    assert first == second


def test_its_package_names_the_entry_point() -> None:
    about = tomllib.loads((PLUGIN / "pyproject.toml").read_text())
    assert about["project"]["entry-points"]["lmms_eval.models"] == {"eagle": "eagle_lmms_eval:MANIFEST"}
    source = (PLUGIN / "eagle_lmms_eval.py").read_text()
    assert 'model_id="eagle", chat_class_path="eagle_lmms_eval.Eagle"' in source
