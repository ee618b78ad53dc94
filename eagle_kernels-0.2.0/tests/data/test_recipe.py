"""Recipes: their fields, what is wrong with them and where, and how often a sample is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eagle_model.data.recipe import Source, read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.data.sample import DataError
from eagle_model.data.sampling import SamplingConfig
from tests.data.conftest import chat_row


def write(folder: Path, name: str, text: str | bytes) -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def test_recipe_with_all_fields(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path, name, json.dumps(chat_row(id=name)) + "\n")
    recipe = {
        "one": {
            "root": "media",
            "annotation": ["a.jsonl", "b.jsonl"],
            "weight": 2.5,
            "repeat_time": 2.5,
            "length": 2,
            "modility": "text",
            "max_dynamic_tiles": 4,
            "data_augment": True,
        },
        "two": {"root": str(tmp_path), "annotation": "a.jsonl"},
    }
    one, two = read_recipe(write(tmp_path, "recipe.json", json.dumps(recipe)))
    assert (one.name, one.root, one.max_tiles, two.name, two.root, two.max_tiles) == (
        "one", tmp_path / "media", 4, "two", tmp_path, None,
    )  # fmt: skip
    assert (one.weight, one.data_augment, two.weight, two.data_augment) == (2.5, True, 1.0, False)
    assert [s.id for s in read_samples(one)] == ["a.jsonl", "b.jsonl"]
    assert [one.num_repeats(i) for i in range(4)] == [2, 3, 2, 3]
    assert [two.num_repeats(i) for i in range(3)] == [1, 1, 1]


def test_a_source_s_limits_lower_the_run_s(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", json.dumps(chat_row()) + "\n")
    fields = {"root": ".", "annotation": "a.jsonl", "max_frames": 4, "frames_per_second": 0.5, "max_dynamic_tiles": 20}
    (source,) = read_recipe(write(tmp_path, "recipe.json", json.dumps({"a": fields})))
    run = SamplingConfig(max_tiles=12, max_frames=64, min_frames=8, frames_per_second=2)
    assert source.limited(run) == replace(run, max_frames=4, min_frames=4, frames_per_second=0.5)
    assert source.limited(replace(run, frames_per_second=0.25)).frames_per_second == 0.25
    assert Source("b", tmp_path, ()).limited(run) == run


@pytest.mark.parametrize("share", [0.1, 0.3, 1.7])
def test_a_fraction_takes_exactly_its_share(tmp_path: Path, share: float) -> None:
    write(tmp_path, "a.jsonl", "")
    fields = {"root": ".", "annotation": "a.jsonl", "repeat_time": share}
    (source,) = read_recipe(write(tmp_path, "recipe.json", json.dumps({"s": fields})))
    assert sum(source.num_repeats(i) for i in range(1000)) == round(1000 * share)  # floats alone would give 299


BAD_FIELDS = {
    "unknown": ({"wieght": 1}, "source 's' has the unknown field 'wieght'; known are annotation, "),
    "weight": ({"weight": 0}, "weight is 0; needs a number above 0."),
    "augment": ({"data_augment": 1}, "data_augment is 1; needs true or false."),
    "repeat": ({"repeat_time": 0}, "repeat_time is 0; needs a number above 0."),
    "tiles": ({"max_dynamic_tiles": 0}, "max_dynamic_tiles is 0; needs an integer of at least 1."),
    "length": ({"length": "many"}, "length is 'many'; needs an integer of at least 0."),
    "root": ({"root": "nowhere"}, "nowhere is not a folder."),
    "endless root": ({"root": "n" * 5000}, "n is not a folder."),
    "annotation": ({"annotation": "b.jsonl"}, "b.jsonl does not exist or is not a file."),
    "annotation list": ({"annotation": []}, "annotation is []; needs a path or a list of paths."),
    "annotation kind": ({"annotation": "a.txt"}, "must end in .jsonl or .json."),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_recipe_fields(tmp_path: Path, name: str) -> None:
    changes, message = BAD_FIELDS[name]
    write(tmp_path, "a.jsonl", "")
    write(tmp_path, "a.txt", "")
    recipe = write(tmp_path, "recipe.json", json.dumps({"s": {"root": ".", "annotation": "a.jsonl", **changes}}))
    with pytest.raises(DataError) as error:
        read_recipe(recipe)
    assert str(error.value).startswith(f"{recipe}: source 's'")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {\n "root": .}}', ":2: not JSON: Expecting value at column 10."),
        ('{"a": 3}', ": source 'a' is 3; needs an object with root and annotation."),
        ('{"a": {"root": "."}}', ": source 'a' lacks the field 'annotation'."),
        ("{}", ": a recipe is an object"),
        ('{"a": {}, "a": {}}', ": the name 'a' is given twice"),
        (b'{\n"a\xff": {}}', ":2: not UTF-8."),
        ('{"a": ' * 100_000, ": nested too deep."),
    ],
)
def test_malformed_recipes(tmp_path: Path, text: str | bytes, message: str) -> None:
    recipe = write(tmp_path, "recipe.json", text)
    with pytest.raises(DataError) as error:
        read_recipe(recipe)
    assert str(error.value).startswith(f"{recipe}{message}")


def test_null_fields_count_as_absent(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "")
    fields = {"root": ".", "annotation": "a.jsonl"}
    more = dict.fromkeys(["weight", "repeat_time", "length", "modality", "max_dynamic_tiles", "data_augment", "other"])
    (bare,) = read_recipe(write(tmp_path, "recipe.json", json.dumps({"s": fields})))
    assert read_recipe(write(tmp_path, "recipe.json", json.dumps({"s": fields | more}))) == [bare]


def test_a_recipe_has_a_bound(tmp_path: Path) -> None:
    with (tmp_path / "recipe.json").open("wb") as file:
        file.truncate(3 << 30)  # zeros, which take no room on the disk
    with pytest.raises(DataError, match=r"recipe\.json: larger than 16777216 bytes; no recipe\. Rows one a line are"):
        read_recipe(tmp_path / "recipe.json")
    many = ", ".join(f'"{i}": {{}}' for i in range(100_000))
    with pytest.raises(DataError, match="source '0' lacks the field 'root'"):  # a check of names was quadratic
        read_recipe(write(tmp_path, "recipe.json", f"{{{many}}}"))


def test_missing_recipe(tmp_path: Path) -> None:
    for name in ("no.json", "no.jsonl"):
        with pytest.raises(DataError, match=r"no\.jsonl? (does not exist|.*No such file)|no\.json: cannot be read"):
            read_recipe(tmp_path / name)


def test_a_prepared_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "preparation.json").touch()
    with pytest.raises(DataError, match=r"is a prepared folder, .* here the recipe is needed that it was made of\."):
        read_recipe(tmp_path)
