"""A model's files with anything in them: a model, or a sentence that names the file; no other exception, ever."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eagle_model.data.processor import Processor
from eagle_model.model import weights
from eagle_model.model.config import EagleConfig, eagle2_5_8b
from eagle_model.model.lora_config import LoraConfig, from_peft, to_peft
from eagle_model.model.weights import Rule
from tests.infer.test_assistant import save_model
from tests.rounds import Rounds, by_rounds

ODD = [None, True, "x", -1, 0, 1.5, 1e999, [], {}, [[]], {"a": []}, 10**30, "x" * 100_000]


def places(content: Any, at: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a JSON object."""
    for key, value in content.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from places(value, (*at, key))


def with_value(content: dict, place: tuple, value: Any) -> dict:
    changed = copy.deepcopy(content)
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return changed


def refusal(do: Callable[[], object]) -> str:
    """The sentence of a ValueError, which is the one exception allowed; "" for none."""
    try:
        do()
    except ValueError as error:
        return str(error)
    return ""


def test_every_field_of_adapter_config_json_with_every_odd_value():
    names = ["language_model.model.layers.0.self_attn.q_proj", "mlp1.1"]
    fields = to_peft(LoraConfig(rank_pattern=(("q_proj", 2),), alpha_pattern=(("q_proj", 2.0),)), names)
    fields |= dict.fromkeys(("exclude_modules", "layers_to_transform", "velora_config", "loftq_config", "unknown"))
    said = [
        refusal(lambda: from_peft(with_value(fields, place, value), {names[0]: 2})[0].adapted(names))  # noqa: B023
        for place in places(fields)
        for value in ODD
    ]
    assert sum(map(bool, said)) > 150
    assert max(map(len, said)) < 400


def test_every_field_of_config_json_with_every_odd_value():
    fields = eagle2_5_8b().to_dict()
    extra = ("llm_config", "rope_parameters", "quantization_config", "layer_types", "min_dynamic_patch", "dtype")
    fields |= dict.fromkeys(extra)
    fields["text_config"] |= dict.fromkeys([*extra, "head_dim"])
    said = [
        refusal(lambda: EagleConfig.from_dict(with_value(fields, place, value)))  # noqa: B023  (called at once)
        for place in places(fields)
        for value in ODD
    ]
    assert sum(map(bool, said)) > 300
    assert max(map(len, said)) < 400


def test_every_field_of_a_released_folders_processor_with_every_odd_value(tmp_path):
    save_model(tmp_path)
    (tmp_path / "eagle_processor.json").unlink()
    images = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "max_dynamic_tiles": 6, "use_thumbnail": True}
    said = []
    for place in places(images):
        for value in [*ODD, ["x"] * 3, [0.5, 0.5, 0.0], [1e999] * 3]:
            (tmp_path / "preprocessor_config.json").write_text(json.dumps(with_value(images, place, value)))
            said.append(refusal(lambda: Processor.from_pretrained(tmp_path)))
    assert sum(map(bool, said)) > 30
    assert all(str(tmp_path) in text and len(text) < 600 for text in said if text)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, repeats and inserts; most of them where the header is."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(data), rng.choice([9, 400, 10**9])))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + rng.randint(1, 30)]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randint(1, 30)]
        else:
            data[at : at + 1] = rng.choice([b"[", b"{", b"9", b'"', b"-", b"F8_E4M3", b"\xff", b"null"])
        if not data:
            break
    return bytes(data)


@by_rounds(200)
def test_damaged_safetensors(rounds: Rounds, tmp_path: Path):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).bfloat16()
    parameters, rules = dict(model.named_parameters()), (Rule(theirs=("model.{rest}",), ours=("{rest}",)),)
    weights.save(tmp_path, parameters, rules)
    path = tmp_path / weights.SINGLE
    good = path.read_bytes()
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    rng, said = random.Random(rounds.seed), []

    def read() -> None:
        got = dict(weights.read(tmp_path, parameters, rules, dtype=torch.float32, device="cpu"))
        assert {name: tensor.shape for name, tensor in got.items()} == shapes

    for _ in rounds:
        path.write_bytes(damaged(good, rng))
        said.append(refusal(read))
    assert sum(map(bool, said)) > rounds.num // 2
    assert all(str(tmp_path) in text and len(text) < 4000 for text in said if text)
