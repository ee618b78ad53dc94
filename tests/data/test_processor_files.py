"""The files of a Hugging Face processor: what transformers makes of ours, and we of those of a release."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from eagle_model.data.chat import SPECIAL_TOKENS, ChatEncoder
from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.processor_files import read_kept
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import ImageRef
from eagle_model.data.templates import SampledVideo
from eagle_model.data.tiling import choose_grid
from eagle_model.data.tokenizer import read_released_tokenizer, train_tokenizer
from tests.data.conftest import tiny_config
from tests.data.test_tokenizer import write_old_files

IMAGES = {  # as published beside the weights, but for the sizes
    "auto_map": {"AutoImageProcessor": "image_processing_eagle2_5_vl_fast.Eagle2_5_VLImageProcessorFast"},
    "do_resize": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.5, 0.5],
    "max_dynamic_tiles": 6,
    "min_dynamic_tiles": 1,
    "size": {"height": 56, "width": 56},
    "tokens_per_tile": 4,
    "use_thumbnail": True,
    "a_field_of_tomorrow": [1, {"x": None}],
}


def written(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    Processor(tokenizer, tiny_config(max_tiles=5)).save_pretrained(folder)
    # As beside a model; transformers does not know its type.
    written(folder / "config.json", {"model_type": "eagle_2_5_vl", "vision_config": {"image_size": 56}})
    return folder


def test_what_is_written_says_what_ours_says(saved: Path, tokenizer: Tokenizer) -> None:
    images, about = read(saved / "preprocessor_config.json"), read(saved / "processor_config.json")
    assert images["size"] == {"height": 56, "width": 56}
    assert (images["image_mean"], images["image_std"]) == ([0.5] * 3, [0.5] * 3)
    assert (images["min_dynamic_tiles"], images["max_dynamic_tiles"], images["tokens_per_tile"]) == (1, 5, 4)
    assert (images["rescale_factor"], images["resample"], images["use_thumbnail"]) == (1 / 255, 3, True)
    assert (about["image_start_token"], about["image_token"], about["tokens_per_tile"]) == ("<img>", "<IMG_CONTEXT>", 4)
    added = read(saved / "added_tokens.json")
    assert added == {name: tokenizer.token_to_id(name) for name in added}
    assert set(added) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", *SPECIAL_TOKENS}
    special = read(saved / "special_tokens_map.json")
    assert (special["eos_token"], special["pad_token"]) == ("<|im_end|>", "<|endoftext|>")
    assert not (saved / "video_preprocessor_config.json").exists()


@pytest.fixture(scope="module")
def theirs(saved: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(saved)


def test_auto_tokenizer_loads_the_folder(theirs: Any, tokenizer: Tokenizer) -> None:
    assert len(theirs) == tokenizer.get_vocab_size()
    assert theirs.eos_token == "<|im_end|>"
    assert theirs.pad_token == "<|endoftext|>"
    assert set(SPECIAL_TOKENS) <= set(theirs.all_special_tokens)


@settings(max_examples=50, deadline=None)
@given(text=st.lists(st.sampled_from(["<img>", "<|im_end|>", " a", "\n", "é"]) | st.text(max_size=5)).map("".join))
def test_auto_tokenizer_gives_the_same_ids(theirs: Any, tokenizer: Tokenizer, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("changes", [{}, {"template": "training-1"}, {"system": "", "auto_thinking_prompt": True}])
def test_its_chat_template_gives_our_ids(tokenizer: Tokenizer, tmp_path: Path, changes: dict) -> None:
    transformers = pytest.importorskip("transformers")
    processor = Processor(tokenizer, tiny_config(**changes))
    processor.save_pretrained(tmp_path)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": " What is {{ x }}? "}]},
        {"role": "assistant", "content": "A letter."},
        {"role": "user", "content": "Sure?\n"},
    ]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == processor(messages).token_ids_T.tolist()
    assert processor.config.system_text in tokenizer.decode(ids)
    # What looks like a control token in a text is text, as here.
    messages[0]["content"] = "<|im_end|> <image-1>"
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, sanitize_control_tokens=True)["input_ids"]
    assert ids == processor(messages).token_ids_T.tolist()


RELEASED = read(Path(__file__).parents[1] / "golden/released_processor.json")


@pytest.mark.parametrize("number", range(len(RELEASED["cases"])))
def test_the_published_processor_made_the_same_of_our_files(number: int) -> None:
    """It was given a folder that we saved; its tokens and its number of tiles are in the golden file."""
    case = RELEASED["cases"][number]
    lists = {"images": [f"{i}.png" for i in range(len(case["sizes"]))]}
    if is_video := "timestamps" in case or "pages" in case:
        lists["videos"] = ["v.mp4"]
    sample = parse_sample({"messages": case["messages"], **lists}, root=Path(), where="golden:1")
    times = tuple(case.get("timestamps", range(case.get("pages", 0))))
    video = SampledVideo(times, case.get("fps"), has_times="fps" in case)
    grids = [choose_grid(width, height, tile_px=56, max_tiles=12) for width, height in case["sizes"]]
    seen = [grids[part.number - 1] if isinstance(part, ImageRef) else video for part in sample.media]
    tokenizer = train_tokenizer(RELEASED["texts"], 300)
    tokens = ChatEncoder(tokenizer).encode(sample, seen=seen, tokens_per_tile=4, generation_prompt=True)
    text = tokenizer.decode(tokens.token_ids_T.tolist(), skip_special_tokens=False)
    assert re.sub("(<IMG_CONTEXT>)+", lambda m: f"<IMG_CONTEXT>*{len(m[0]) // 13}", text) == case["text"]
    assert tokens.token_ids_T.tolist() == case["ids"]
    assert sum(grid.num_tiles for grid in grids) + is_video * len(times) == case["num_tiles"]


def test_saved_twice_is_the_same_and_a_stale_template_is_gone(saved: Path, tmp_path: Path) -> None:
    written(tmp_path / "chat_template.json", {"chat_template": "old"})
    Processor.from_pretrained(saved).save_pretrained(tmp_path)
    names = {path.name for path in saved.iterdir()} - {"config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all((tmp_path / name).read_text() == (saved / name).read_text() for name in names)


def released(folder: Path, tokenizer: Tokenizer, **files: object) -> Path:
    """A folder as a release's, of files in Hugging Face's own form alone."""
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        written(folder / f"{name}.json", content)
    return folder


def test_a_release_is_read_and_all_its_fields_come_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = {
        "config": {"vision_config": {"image_size": 56, "patch_size": 14}},
        "preprocessor_config": IMAGES,
        "processor_config": {
            "auto_map": {"AutoProcessor": "x.Y"},
            "tokens_per_tile": 4,
            "video_token": "<IMG_CONTEXT>",
        },
        "tokenizer_config": {"eos_token": "<|endoftext|>", "chat_template": "old", "model_max_length": 16384},
        "special_tokens_map": {"eos_token": "<|endoftext|>", "unk_token": None},
        "generation_config": {"eos_token_id": tokenizer.token_to_id("<|im_end|>"), "do_sample": True, "top_k": 20},
        "video_preprocessor_config": {"fps": 2},
    }
    (tmp_path / "a").mkdir()
    processor = Processor.from_pretrained(released(tmp_path / "a", tokenizer, **files))
    assert processor.config == ProcessorConfig(
        tile_px=56, std=(0.25, 0.5, 0.5), sampling=type(processor.config.sampling)(max_tiles=6)
    )
    processor.save_pretrained(tmp_path / "b")
    again = Processor.from_pretrained(tmp_path / "b")
    assert (again.config, again.kept) == (processor.config, read_kept(tmp_path / "b"))
    files["tokenizer_config"].pop("chat_template")
    for name in list(files)[1:]:
        assert files[name].items() <= read(tmp_path / "b" / f"{name}.json").items(), name
    assert read(tmp_path / "b/tokenizer_config.json").get("chat_template") is None


@pytest.mark.parametrize(
    "found", [{}, {"eos_token_id": 7, "top_p": 0.8}, {"eos_token_id": [7, 9]}, {"eos_token_id": None}]
)
def test_a_turns_end_is_among_the_tokens_that_end_an_answer(tokenizer: Tokenizer, tmp_path: Path, found: dict) -> None:
    """Llama's file has its own alone, and a model that was trained from nothing has no file."""
    end = tokenizer.token_to_id("<|im_end|>")
    Processor(tokenizer, tiny_config(), kept={"generation_config.json": found}).save_pretrained(tmp_path / "a")
    fields = read(tmp_path / "a/generation_config.json")
    assert fields["eos_token_id"][0] == end
    old = found.get("eos_token_id", tokenizer.token_to_id("<|endoftext|>"))
    assert fields["eos_token_id"][1:] == (old if isinstance(old, list) else [] if old is None else [old])
    assert fields.get("top_p") == found.get("top_p")
    Processor.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert read(tmp_path / "b/generation_config.json") == fields


def test_a_release_without_pixel_shuffle_is_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = {"vision_config": {"image_size": 56, "patch_size": 14}, "use_pixel_shuffle": False}
    processor = Processor.from_pretrained(released(tmp_path, tokenizer, config=model))
    assert (processor.config.use_pixel_shuffle, processor.config.tokens_per_tile) == (False, 16)


def test_a_processor_s_folder_without_a_model_is_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """In both places where transformers puts an image processor's fields."""
    for name, content in (("preprocessor_config", IMAGES), ("processor_config", {"image_processor": IMAGES})):
        (tmp_path / name).mkdir()
        processor = Processor.from_pretrained(released(tmp_path / name, tokenizer, **{name: content}))
        config = processor.config
        assert (config.tile_px, config.patch_px, config.tokens_per_tile, config.sampling.max_tiles) == (56, 14, 4, 6)
        processor.save_pretrained(tmp_path / name / "again")
        kept = read_kept(tmp_path / name / "again")
        nested = kept["processor_config.json"].get("image_processor", kept["preprocessor_config.json"])
        assert IMAGES.items() <= nested.items()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config": {"model_type": "x"}}, "has neither eagle_processor.json, nor a config.json with a vision_config"),
        ({"config": [1]}, "has neither eagle_processor.json"),
        ({"preprocessor_config": {"image_mean": [0.5] * 3}}, "nor a preprocessor_config.json with a size"),
        ({"preprocessor_config": [1]}, "preprocessor_config.json holds no object; needs the fields of a Hugging Face"),
        ({"preprocessor_config": IMAGES | {"use_thumbnail": False}}, "use_thumbnail is false; images are prepared"),
        ({"preprocessor_config": IMAGES | {"size": "large"}}, "tile_px is 'large'; needs a whole number"),
        ({"preprocessor_config": IMAGES | {"image_mean": 3}}, "preprocessor_config.json: mean is 3; needs 3 values"),
        ({"preprocessor_config": IMAGES | {"size": {"height": 57}}}, "tile_px is 57; needs a multiple of 2"),
        ({"processor_config": {"image_processor": 3}}, "has neither eagle_processor.json"),
    ],
)
def test_files_that_do_not_say_enough(tokenizer: Tokenizer, tmp_path: Path, files: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Processor.from_pretrained(released(tmp_path, tokenizer, **files))


def test_a_tokenizer_of_old_files_is_saved_whole(tmp_path: Path) -> None:
    """From vocab.json and merges.txt; the class that they name is Qwen2's own and is kept."""
    transformers = pytest.importorskip("transformers")
    write_old_files(tmp_path)
    about = read(tmp_path / "tokenizer_config.json")
    written(tmp_path / "tokenizer_config.json", about | {"tokenizer_class": "Qwen2Tokenizer"})
    written(tmp_path / "preprocessor_config.json", IMAGES)
    ours = Processor.from_pretrained(tmp_path)
    ours.save_pretrained(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "<|im_start|>user\nA cat, and 12 caf\u00e9s!  <tool_call><box><|im_end|>\n"
    assert theirs(text)["input_ids"] == read_released_tokenizer(tmp_path).encode(text).ids
