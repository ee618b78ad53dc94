"""Hugging Face's tools on eagle_model.hf: Auto classes, generate, pipelines, Trainer, PEFT; all on one small folder."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2Config,
    SiglipVisionConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)

import eagle_model.hf as hf
from eagle_kernels.integrations import attention as integration
from eagle_model import Eagle, Processor
from eagle_model.batch import IGNORE_INDEX
from eagle_model.model import attend
from eagle_model.model.config import tiny
from eagle_model.model.lora import LoraConfig, add_lora, load_adapter, save_adapter
from eagle_model.model.rope_scaling import RopeScaling
from tests.hf_folder import QUESTION, picture, write_folder
from tests.model.samples import document, pack, small_model, with_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


def rows_of(documents: list, padding_side: str) -> dict[str, Tensor]:
    """Documents as the rows of a padded batch."""
    longest = max(d.num_tokens for d in documents)
    ids_BT, mask_BT = torch.zeros(len(documents), longest, dtype=torch.int64), torch.zeros(len(documents), longest)
    for b, one in enumerate(documents):
        place = slice(longest - one.num_tokens, None) if padding_side == "left" else slice(one.num_tokens)
        ids_BT[b, place], mask_BT[b, place] = one.token_ids_T, 1
    patches = torch.cat([d.patches_IPK for d in documents])
    return {"input_ids": ids_BT, "attention_mask": mask_BT.long(), "pixel_values": patches}


def documents_for(eagle: Eagle) -> list:
    sizes = [(3, 1, 4), (2, 0, 3), (1, 2, 1)]
    return [document(eagle.cfg, *size, seed=seed) for seed, size in enumerate(sizes)]


# -- computing


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padded_rows_give_the_logits_of_eagle(model, padding_side: str) -> None:
    documents = documents_for(model.eagle)
    inputs = rows_of(documents, padding_side)
    with torch.no_grad():
        logits_BTV = model(**inputs).logits
        want = model.eagle.lm_head(model.eagle.hidden(pack(documents)))
    assert (logits_BTV[inputs["attention_mask"].bool()] - want).abs().max() < 1e-4
    last = model(**inputs, logits_to_keep=1).logits
    assert (last - logits_BTV[:, -1:]).abs().max() < 1e-5


def test_it_holds_eagle_and_calls_our_attention_once_a_layer(model, monkeypatch) -> None:
    assert isinstance(model.eagle, Eagle)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"eagle"}
    calls = []
    for module in (integration, attend):
        real = module.varlen_attention
        monkeypatch.setattr(
            module, "varlen_attention", lambda *a, real=real, where=module, **k: calls.append(where) or real(*a, **k)
        )
    model(**rows_of(documents_for(model.eagle), "left"))
    cfg = model.eagle.cfg
    assert calls == [attend] * model.eagle.vision.num_layers_run + [integration] * cfg.text.num_hidden_layers


@pytest.mark.parametrize("num_items", [None, 31])
def test_losses_and_gradients_are_of_the_next_token(model, num_items) -> None:
    model.train()
    documents = documents_for(model.eagle)
    inputs, row = rows_of(documents, "right"), pack(documents)
    labels_BT = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
    labels_BT = labels_BT.masked_fill(labels_BT == model.eagle.cfg.image_token_id, IGNORE_INDEX)
    result = model(**inputs, labels=labels_BT, num_items_in_batch=num_items)
    assert result.logits is None
    num_labels = int((row.labels_T != IGNORE_INDEX).sum())
    want = model.eagle.lm_head(model.eagle.hidden(row), row.labels_T) * num_labels / (num_items or num_labels)
    assert abs(result.loss - want) < 1e-5
    ours = torch.autograd.grad(result.loss, list(model.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(want, list(model.parameters()), allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() < 1e-5
    model.gradient_checkpointing_enable()
    loss = model(**inputs, labels=labels_BT, num_items_in_batch=num_items).loss
    again = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert all(a is None or torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    with_logits = model.eval()(**inputs, labels=labels_BT)
    assert with_logits.logits.shape == (*labels_BT.shape, model.eagle.cfg.text.vocab_size)


def test_packed_documents(model) -> None:
    documents = documents_for(model.eagle)
    row = pack(documents)
    inputs = {"input_ids": row.token_ids_T[None], "pixel_values": row.patches_IPK}
    with torch.no_grad():
        want = model.eagle.lm_head(model.eagle.hidden(row))
        by_positions = model(**inputs, position_ids=row.positions_T[None]).logits[0]
        by_offsets = model(**inputs, cu_seq_lens_q=row.cu_seqlens, cu_seq_lens_k=row.cu_seqlens).logits[0]
    assert (by_positions - want).abs().max() < 1e-4
    assert (by_offsets - want).abs().max() < 1e-4


def test_pixels_may_be_tiles(model, processor) -> None:
    one = document(model.eagle.cfg, 2, 2, 1, seed=0)
    tiles = processor._tiles(one.patches_IPK)
    assert tiles.shape == (2, 3, 28, 28)
    assert torch.equal(model._patches(tiles), one.patches_IPK)


@pytest.mark.parametrize("how", [{"use_cache": False}, {}, {"cache_implementation": "static"}], ids=str)
def test_generation_is_that_of_eagle(model, how: dict) -> None:
    documents = [document(model.eagle.cfg, *size, seed=seed) for seed, size in enumerate([(3, 1, 4), (2, 0, 3)])]
    inputs = rows_of(documents, "left")
    given = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    new = model.generate(**inputs, **given, **how)[:, inputs["input_ids"].shape[1] :]
    assert new.tolist() == model.eagle.generate(pack(documents), max_new_tokens=6)
    embeddings = model.embed(inputs["input_ids"], inputs["pixel_values"])
    by_embeddings = model.generate(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], **given, **how)
    assert torch.equal(by_embeddings, new)


def test_a_loop_of_ones_own_goes_on_from_its_cache(model) -> None:
    """As with every model of transformers: `forward` gives a cache unless it is told not to, and in training."""
    one = document(model.eagle.cfg, 3, 1, 4, seed=0)
    inputs, new = {"input_ids": one.token_ids_T[None], "pixel_values": one.patches_IPK}, []
    with torch.no_grad():
        for _ in range(4):
            out = model(**inputs)
            new.append(int(out.logits[0, -1].argmax()))
            inputs = {"input_ids": torch.tensor([new[-1:]]), "past_key_values": out.past_key_values}
    assert [new] == model.eagle.generate(one, max_new_tokens=4)
    inputs = {"input_ids": one.token_ids_T[None], "pixel_values": one.patches_IPK}
    assert model(**inputs, use_cache=False).past_key_values is None
    assert model.train()(**inputs).past_key_values is None


def test_generation_ends_where_a_turn_does(model, processor) -> None:
    ends = model.generation_config.eos_token_id
    assert set(ends) == processor.eagle.encoder.stop_token_ids
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": "What?"}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    with torch.no_grad():  # a model that says nothing else
        model.eagle.lm_head.weight.zero_()
        model.eagle.llm.norm.weight.zero_()
        model.eagle.lm_head.register_forward_hook(
            lambda _module, _inputs, out: out.index_fill(1, torch.tensor(ends[:1]), 1)
        )
    new = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert new.tolist() == ends[:1]


def test_several_sequences_of_one_prompt_keep_its_tiles(model) -> None:
    documents = [document(model.eagle.cfg, *size, seed=seed) for seed, size in enumerate([(3, 2, 4), (2, 1, 3)])]
    inputs = rows_of(documents, "left")
    given = {"max_new_tokens": 4, "pad_token_id": 0}
    want = model.generate(**inputs, **given, do_sample=False)
    got = model.generate(**inputs, **given, do_sample=True, top_k=1, num_return_sequences=3)
    assert torch.equal(got, want.repeat_interleave(3, dim=0))


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("text_config", "num_hidden_layers", 1),
        (None, "select_layer", -2),
        ("text_config", "rope_parameters", {"rope_type": "yarn"}),
    ],
)
def test_an_edited_config_is_refused(folder: Path, part: str | None, name: str, value: object) -> None:
    config = AutoConfig.from_pretrained(folder)
    setattr(config if part is None else getattr(config, part), name, value)
    with pytest.raises(ValueError, match=f"{name} was set to"):
        AutoModelForImageTextToText.from_config(config)
    with pytest.raises(ValueError, match=f"{name} was set to"):
        AutoModelForImageTextToText.from_pretrained(folder, config=config)


def test_beams_are_those_of_no_cache(model) -> None:
    """The best of three beams is by its log-probability under the model; one beam is greedy."""
    documents = [document(model.eagle.cfg, *size, seed=seed) for seed, size in enumerate([(3, 2, 4), (2, 0, 3)])]
    inputs, num_new = rows_of(documents, "left"), 4
    given = {"max_new_tokens": num_new, "do_sample": False, "pad_token_id": 0, "num_beams": 3}
    beams = model.generate(**inputs, **given)
    assert torch.equal(model.generate(**inputs, **given, use_cache=False), beams)

    one = {name: x[:1] for name, x in inputs.items()} | {"pixel_values": documents[0].patches_IPK}
    several = model.generate(**one, **given, num_return_sequences=3, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(several.sequences[0], beams[0])
    repeated = {name: x.repeat_interleave(3, dim=0) for name, x in one.items() if name != "pixel_values"}
    with torch.no_grad():
        logits = model(
            input_ids=several.sequences,
            attention_mask=torch.nn.functional.pad(repeated["attention_mask"], (0, num_new), value=1),
            pixel_values=documents[0].patches_IPK.repeat(3, 1, 1),
        ).logits
    new = several.sequences[:, -num_new:, None]
    sums = logits[:, -num_new - 1 : -1].log_softmax(-1).gather(2, new).sum((1, 2))
    assert (sums / num_new - several.sequences_scores).abs().max() < 1e-4
    assert sums[0] == sums.max()


def test_other_language_models_and_dynamic_rope() -> None:
    """A document is as long as it is so far, in `Eagle.generate` and here."""
    scaling = RopeScaling(rope_type="dynamic", factor=2.0)
    cfg = with_text(
        tiny(vocab_size=97, image_token_id=96),
        model_type="qwen3", head_dim=16, max_position_embeddings=6, rope_scaling=scaling,
    )  # fmt: skip
    model = hf.Eagle2_5_VLForConditionalGeneration(hf.Eagle2_5_VLConfig(**cfg.to_dict()), small_model(cfg)).eval()
    assert model.eagle.llm.needs_lengths
    documents = documents_for(model.eagle)
    row, inputs = pack(documents), rows_of(documents, "left")
    new = model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)[:, inputs["input_ids"].shape[1] :]
    assert new.tolist() == model.eagle.generate(row, max_new_tokens=5)
    with torch.no_grad():
        want = model.eagle.lm_head(model.eagle.hidden(row))
        got = model(input_ids=row.token_ids_T[None], pixel_values=row.patches_IPK, position_ids=row.positions_T[None])
    assert (got.logits[0] - want).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": None}, "rows for visual tokens, but its 0 tiles give 0"),
        ({"input_ids": None}, "both or none of input_ids and inputs_embeds"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(3, 12, 128)}, "needs input_ids beside pixel_values"),
        ({"output_hidden_states": True}, "layers' results are not kept"),
        (
            {"pixel_values": torch.zeros(3, 3, 14, 56)},
            r"is torch.float32 \(3, 3, 14, 56\); needs .*\(I, 3, 28, 28\) or",
        ),
        ({"pixel_values": torch.zeros(3, 16, 75)}, r"\(3, 16, 75\); needs .* or \(I, 16, 147\)"),
        ({"pixel_values": torch.zeros(3, 3, 28, 28, dtype=torch.uint8)}, "is torch.uint8 .* needs normalised tiles"),
    ],
    ids=["no pixels", "no ids", "embeddings and pixels", "hidden states", "no square", "other patches", "integers"],
)
def test_inputs_that_do_not_fit_are_refused(model, change: dict, message: str) -> None:
    inputs = rows_of(documents_for(model.eagle), "left") | change
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_a_prompt_without_its_pixels_is_refused_before_generation(model) -> None:
    inputs = rows_of(documents_for(model.eagle), "left") | {"pixel_values": None}
    with pytest.raises(ValueError, match="12 placeholders of visual tokens and no pixel_values"):
        model.generate(**inputs, max_new_tokens=1)


# -- files


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model*.safetensors*")}


def test_files_stay_bit_for_bit_under_the_released_names(folder: Path, model, tmp_path: Path) -> None:
    for _ in range(2):  # over what is there
        model.save_pretrained(tmp_path)
        assert files_of(tmp_path) == files_of(folder)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(files_of(tmp_path)) > 2
    assert "model.safetensors" not in files_of(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    assert files_of(tmp_path) == files_of(folder)
    assert not list(tmp_path.glob(".saving*"))


def test_configs_lose_nothing(folder: Path, tmp_path: Path) -> None:
    released = json.loads((folder / "config.json").read_text())
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, hf.Eagle2_5_VLConfig)
    assert config.get_text_config().num_hidden_layers == released["text_config"]["num_hidden_layers"]
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).eagle == config.eagle
    written = json.loads((tmp_path / "config.json").read_text())
    assert {name: written[name] for name in released} == released
    old = dict(released)
    old["llm_config"] = old.pop("text_config")
    assert hf.Eagle2_5_VLConfig(**old).eagle == config.eagle


def test_configs_that_other_classes_wrote(folder: Path) -> None:
    """LeRobot's class has another name; theirs and the released one leave out what is a default."""
    fields = json.loads((folder / "config.json").read_text())
    for name in ("dynamic_image_size", "pad2square", "max_dynamic_tiles", "mlp_connector_layers"):
        del fields[name]
    del fields["vision_config"]["model_type"]
    fields["architectures"] = ["Eagle25VLForConditionalGeneration"]
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    fields["text_config"] = {**fields["text_config"], "rope_scaling": yarn}
    config = hf.Eagle2_5_VLConfig(**fields)
    assert (config.pad2square, config.max_dynamic_tiles) == (False, 12)
    assert (type(config.vision_config), type(config.text_config)) == (SiglipVisionConfig, Qwen2Config)
    assert config.text_config.rope_parameters["rope_type"] == "yarn"
    assert AutoModelForImageTextToText.from_config(config).eagle.cfg == config.eagle


def test_a_release_with_code_of_its_own_needs_none_of_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "release")
    for name, auto_map in {
        "config.json": {
            "AutoConfig": "configuration_eagle2_5_vl.Eagle2_5_VLConfig",
            "AutoModelForImageTextToText": "modeling_eagle2_5_vl.Eagle2_5_VLForConditionalGeneration",
        },
        "processor_config.json": {"AutoProcessor": "processing_eagle2_5_vl.Eagle2_5_VLProcessor"},
    }.items():
        fields = json.loads((tmp_path / "release" / name).read_text())
        (tmp_path / "release" / name).write_text(json.dumps({**fields, "auto_map": auto_map}))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "release")
    assert isinstance(model, hf.Eagle2_5_VLForConditionalGeneration)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "release"), hf.Eagle2_5_VLProcessor)
    model.save_pretrained(tmp_path / "again")
    assert "auto_map" in json.loads((tmp_path / "again" / "config.json").read_text())


def test_a_new_model_from_a_config(folder: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    torch.manual_seed(1)
    assert torch.equal(model.eagle.lm_head.weight, Eagle(model.eagle.cfg).lm_head.weight)


def test_arguments_of_from_pretrained(folder: Path, monkeypatch) -> None:
    load = AutoModelForImageTextToText.from_pretrained
    assert load(folder, dtype=torch.bfloat16, device_map="cpu").dtype == torch.bfloat16
    assert load(folder, dtype="bfloat16", device_map={"": "cpu"}, attn_implementation="eagle").dtype == torch.bfloat16
    assert load(folder, dtype="auto", device_map="auto").dtype == torch.float32
    for arguments, message in [
        ({"attn_implementation": "sdpa"}, "this model has one, 'eagle'"),
        ({"device_map": {"eagle.llm": 0, "eagle.vision": 1}}, "needs one device"),
        ({"key_mapping": {"a": "b"}}, "key_mapping is given"),
        ({"dtype": "nope"}, "dtype is 'nope'; needs auto, float64, float32, float16, bfloat16"),
        ({"dtype": torch.int8}, "dtype is torch.int8; needs auto"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(folder, **arguments)
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **kw: asked.append((name, kw)) or str(folder))
    hf.Eagle2_5_VLForConditionalGeneration.from_pretrained("someone/eagle", revision="main")
    assert asked[0][0] == "someone/eagle"
    assert asked[0][1]["revision"] == "main"


def test_importing_twice_is_harmless_and_other_vocabularies_are_refused(model) -> None:
    importlib.reload(hf)
    assert model.resize_token_embeddings(model.eagle.cfg.text.vocab_size) is model.get_input_embeddings()
    with pytest.raises(ValueError, match="asks for 5 tokens"):
        model.resize_token_embeddings(5)


# -- the processor


# -- pipelines, Trainer, PEFT


def test_pipeline(folder: Path, model, processor) -> None:
    answer = pipeline("image-text-to-text", model=str(folder), max_new_tokens=4)
    chat = [{"role": "user", "content": QUESTION}]
    (result,) = answer(text=chat, generate_kwargs={"do_sample": False})
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    new = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    want = processor.decode(new, skip_special_tokens=True)
    assert result["generated_text"][-1]["role"] == "assistant"
    assert result["generated_text"][-1]["content"].strip() == want.strip()
    turn = "<|im_start|>user\n<image-1>What is this?<|im_end|>\n<|im_start|>assistant\n"
    results = answer(images=[[picture()], [picture(seed=1)]], text=[turn, turn], generate_kwargs={"do_sample": False})
    assert len(results) == 2


def training_rows(processor) -> list[dict[str, Tensor]]:
    turn = "<|im_start|>user\n<image-1>What is this?<|im_end|>\n<|im_start|>assistant\n"
    rows = []
    for seed, animal in enumerate(["A cat.", "A dog."] * 2):
        inputs = processor(images=picture(seed=seed), text=f"{turn}{animal}<|im_end|>\n")
        num_prompt = processor(images=picture(seed=seed), text=turn)["input_ids"].shape[1]
        labels_1T = inputs["input_ids"].clone()
        labels_1T[:, :num_prompt] = IGNORE_INDEX
        rows.append({**inputs, "labels": labels_1T})
    return rows


def join(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of one length."""
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, learning_rate=1e-3, save_steps=2, logging_steps=1,
        report_to=[], remove_unused_columns=False, use_cpu=True, disable_tqdm=True, seed=0, **changes,
    )  # fmt: skip


def train(model: Any, rows: list, folder: Path, resume: str | None = None, **changes: Any) -> Trainer:
    trainer = Trainer(model=model, args=arguments(folder, **changes), train_dataset=rows, data_collator=join)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_trainer_trains_and_resumes(folder: Path, model, processor, tmp_path: Path) -> None:
    rows = training_rows(processor)
    trainer = train(model, rows, tmp_path, max_steps=3)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "checkpoint-3"))  # over what is there
    saved = Eagle.from_pretrained(tmp_path / "checkpoint-3")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), model.eagle.parameters(), strict=True))
    resumed = AutoModelForImageTextToText.from_pretrained(folder)
    train(resumed, rows, tmp_path / "again", resume=str(tmp_path / "checkpoint-2"), max_steps=3)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), model.parameters(), strict=True))


def test_tensors_of_shards_are_put_together(folder: Path, model, tmp_path: Path) -> None:
    """As trainers load a sharded checkpoint: one load_state_dict a file."""
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    other = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    for path in sorted(tmp_path.glob("*.safetensors")):
        other.load_state_dict(load_file(path), strict=False)
    assert not other.waiting
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))


def test_peft(model, processor, tmp_path: Path) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import PeftModel, get_peft_model

    names = {name.rpartition(".")[2] for name, module in model.eagle.llm.named_modules() if hasattr(module, "weight")}
    targets = [name for name in sorted(names) if name.endswith("_proj")]
    with pytest.raises(ValueError, match="q_proj"):  # released names are not the modules'
        get_peft_model(model, PeftConfig(target_modules=["q_proj"]))
    config = PeftConfig(r=4, target_modules=targets, modules_to_save=["connector"])
    plain = {name: p.clone() for name, p in model.named_parameters()}
    adapted = get_peft_model(model, config)
    batch = join(training_rows(processor))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = adapted.train()(**batch).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        want = adapted.eval()(**batch).logits
        merged = adapted.merge_and_unload()
        assert (merged(**batch).logits - want).abs().max() < 1e-4
    merged.save_pretrained(tmp_path / "merged")
    alone = Eagle.from_pretrained(tmp_path / "merged")
    changed = {name for name, p in alone.named_parameters() if not torch.equal(p, plain[f"eagle.{name}"])}
    assert any(name.startswith("connector.") for name in changed)
    assert all(name.startswith(("connector.", "llm.layers.", "vision.layers.")) for name in changed)
    fresh = AutoModelForImageTextToText.from_pretrained(Path(model.config._name_or_path))
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    ours = AutoModelForImageTextToText.from_pretrained(Path(model.config._name_or_path)).eval()
    load_adapter(ours.eagle, tmp_path / "adapter")
    by_folder = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter")  # which names the model under it
    with torch.no_grad():
        for again in (loaded, ours, by_folder):
            assert (again(**batch).logits - want).abs().max() < 1e-4


def test_adapters_by_transformers_own_methods(folder: Path, model, processor, tmp_path: Path) -> None:
    """`add_adapter`, a trainer that saves them alone, and `load_adapter`."""
    from peft import LoraConfig as PeftConfig

    model.add_adapter(PeftConfig(r=2, target_modules=["qkv_proj", "o_proj"]))
    rows = training_rows(processor)
    train(model, rows, tmp_path, max_steps=2)
    saved = tmp_path / "checkpoint-2"
    assert not list(saved.glob("model*"))
    assert len(load_file(saved / "adapter_model.safetensors")) == 2 * (5 + 3)
    batch = join(rows)
    with torch.no_grad():
        want = model.eval()(**batch).logits
        again = AutoModelForImageTextToText.from_pretrained(folder)
        assert (again(**batch).logits - want).abs().max() > 1e-4
        again.load_adapter(str(saved))
        assert (again.eval()(**batch).logits - want).abs().max() < 1e-5
        ours = AutoModelForImageTextToText.from_pretrained(saved)  # of the model that the adapters name
        assert (ours(**batch).logits - want).abs().max() < 1e-5


def test_a_model_under_adapters_is_not_saved_as_if_it_were_plain(model, tmp_path: Path) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    peft = get_peft_model(model, PeftConfig(target_modules=["qkv_proj"]))
    with pytest.raises(ValueError, match=r"the model and its config differ in .*qkv_proj.*merged by merge_and_unload"):
        peft.get_base_model().save_pretrained(tmp_path / "model")
    assert not list((tmp_path / "model").glob("*.safetensors"))


@pytest.mark.parametrize("how", [{"target_modules": ["o_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_tied_embeddings_that_peft_trained_apart_are_saved_apart(how: dict, tmp_path: Path) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    cfg = with_text(tiny(vocab_size=97, image_token_id=96), num_hidden_layers=1, tie_word_embeddings=True)
    model = hf.Eagle2_5_VLForConditionalGeneration(hf.Eagle2_5_VLConfig(**cfg.to_dict()), small_model(cfg)).eval()
    model.save_pretrained(tmp_path / "plain")
    assert Eagle.from_pretrained(tmp_path / "plain").cfg.text.tie_word_embeddings
    peft = get_peft_model(model, PeftConfig(**{"target_modules": ["o_proj"], "r": 2, **how}))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad and "lm_head" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    inputs = rows_of(documents_for(model.eagle), "left")
    with torch.no_grad():
        merged = peft.eval().merge_and_unload()
        want = merged(**inputs).logits
    is_tied = "target_modules" in how  # merging adapters of the head, PEFT changes what the embeddings share
    for name, given in (("own", {}), ("gathered", {"state_dict": merged.state_dict()})):
        merged.save_pretrained(tmp_path / name, **given)
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / name)
        assert again.eagle.cfg.text.tie_word_embeddings == is_tied
        with torch.no_grad():
            assert (again(**inputs).logits - want).abs().max() < 1e-4


def test_trl_prefers_what_it_is_shown(folder: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("trl", reason="needs TRL (the extra `preference`)")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    dpo = importlib.import_module("dpo")
    pairs = []
    for seed in range(2):
        picture(seed=seed).save(tmp_path / f"{seed}.png")
        question = {"images": [f"{seed}.png"], "prompt": "What is this?"}
        pairs.append({**question, "chosen": "A cat.", "rejected": "A dog."})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    out = tmp_path / "preferred"
    log = dpo.main([str(folder), str(tmp_path / "pairs.jsonl"), "--out", str(out), "--steps", "3", "--lr", "1e-2"])
    assert float(log[0]["loss"]) == pytest.approx(math.log(2), abs=1e-3)
    assert float(log[-1]["loss"]) < float(log[0]["loss"]) / 2
    assert float(log[-1]["rewards/margins"]) > 0
    before, after = Eagle.from_pretrained(folder), Eagle.from_pretrained(out)
    changed = [n for (n, p), q in zip(before.named_parameters(), after.parameters()) if not torch.equal(p, q)]
    assert changed
    assert all(name.startswith("llm.layers.") and "_proj." in name for name in changed)
    assert Processor.from_pretrained(out).config == Processor.from_pretrained(folder).config


def test_our_own_adapters_attach_to_what_it_holds(model, tmp_path: Path) -> None:
    """Of q_proj alone, in PEFT's files under the released names; PEFT itself sees a fused module."""
    add_lora(model.eagle, LoraConfig(rank=2, targets=("q_proj",)), base="base")
    for name, parameter in model.eagle.named_parameters():
        if name.endswith(".B.weight"):
            torch.nn.init.normal_(parameter)
    save_adapter(model.eagle, tmp_path)
    inputs = rows_of(documents_for(model.eagle), "left")
    fresh = AutoModelForImageTextToText.from_pretrained(Path(model.config._name_or_path))
    with torch.no_grad():
        want, without = model.eval()(**inputs).logits, fresh(**inputs).logits
        load_adapter(fresh.eagle, tmp_path)
        assert torch.equal(fresh.eval()(**inputs).logits, want)
    assert (want - without).abs().max() > 1e-3
