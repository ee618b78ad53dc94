"""Converting: what is written is what training reads, once, whole or to be gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle_model.data.formats import convert as convert_module
from eagle_model.data.formats.check import check
from eagle_model.data.formats.convert import convert
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.data.sample import DataError
from tests.data.formats.conftest import picture
from tests.data.formats.test_check import turns, write_rows
from tests.data.formats.test_tars import write_tar


def samples(recipe: Path) -> list:
    return [sample for source in read_recipe(recipe) for sample in read_samples(source)]


def test_media_of_a_tar_become_files(tmp_path: Path) -> None:
    members = [(f"{i}.{e}", d) for i in range(3) for e, d in (("png", picture(i // 2)), ("txt", f"A {i}.".encode()))]
    done = convert(write_tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert (done.num_rows, done.num_media) == (3, 2)  # two of the pictures are one
    read = samples(tmp_path / "out/recipe.json")
    assert [sample.turns[1].text for sample in read] == ["A 0.", "A 1.", "A 2."]
    assert [sample.images[0].path.read_bytes() for sample in read] == [picture(i // 2) for i in range(3)]
    assert check(tmp_path / "out/recipe.json", pixels=True).is_good
    assert json.loads((tmp_path / "out/recipe.json").read_text()) == {
        "x": {"root": "media", "annotation": "x.stored.jsonl", "length": 3}
    }


def test_media_that_are_files_stay_where_they_are(root: Path) -> None:
    (root / "a.txt").write_text("A.")
    (root / "b.txt").write_text("B.")
    convert(root, root.parent / "out")
    assert {sample.images[0].path.resolve() for sample in samples(root.parent / "out/recipe.json")} == {
        root / "a.png", root / "b.jpg",
    }  # fmt: skip
    assert not (root.parent / "out/media").exists()


def test_a_recipe_keeps_its_settings_and_its_rows_of_both_kinds(root: Path) -> None:
    pytest.importorskip("lmdb", reason="needs lmdb (the extra `data`)")
    from tests.data.formats.test_lmdb_media import write_lmdb

    write_lmdb(root / "x.lmdb", {"1": picture(9)}, subdir=True)
    rows = [{**turns(), "image": "a.png"}, {**turns(), "image": {"lmdb_file": "x.lmdb", "lmdb_key": "1"}}]
    write_rows(root / "rows.jsonl", rows)
    about = {"root": ".", "annotation": "rows.jsonl", "repeat_time": 0.5, "max_dynamic_tiles": 4}
    (root / "recipe.json").write_text(json.dumps({"my/set": about}))
    convert(root / "recipe.json", root.parent / "out")
    files, stored = read_recipe(root.parent / "out/recipe.json")
    assert (files.name, stored.name) == ("my/set", "my/set (stored)")
    assert all((s.repeat_time, s.max_tiles, s.length) == (0.5, 4, 1) for s in (files, stored))
    assert len(samples(root.parent / "out/recipe.json")) == 2


def test_a_bad_row_ends_it_or_is_listed(root: Path) -> None:
    path = write_rows(root / "rows.jsonl", [turns(), "{", {**turns(answer="")}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        convert(path, root.parent / "out")
    assert not (root.parent / "out/recipe.json").exists()
    done = convert(path, root.parent / "out", on_bad_row="skip")  # goes on in the unfinished folder
    assert (done.num_rows, done.num_skipped) == (1, 2)
    listed = [json.loads(line) for line in (root.parent / "out/skipped.jsonl").read_text().splitlines()]
    assert [entry["where"] for entry in listed] == [f"{path}:2", f"{path}:3"]
    assert len(samples(root.parent / "out/recipe.json")) == 1


def test_an_interrupted_one_goes_on_without_writing_media_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [(f"{i}.{e}", d) for i in range(3) for e, d in (("png", picture(i)), ("txt", b"A."))]
    path, out = write_tar(tmp_path / "x.tar", members), tmp_path / "out"

    def stop(num_rows: int) -> None:
        if num_rows == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(path, out, progress=stop)
    assert not (out / "recipe.json").exists()
    assert convert(path, out).num_media == 1
    assert len(samples(out / "recipe.json")) == 3
    with pytest.raises(ValueError, match="holds a recipe already"):
        convert(path, out)


def test_a_folder_of_something_else_is_not_written_into(root: Path) -> None:
    path = write_rows(root.parent / "rows.jsonl", [turns()])
    with pytest.raises(ValueError, match=r"holds '(a\.png|b\.jpg)'"):
        convert(path, root)
    with pytest.raises(ValueError, match="is a file"):
        convert(path, path)


def test_nothing_left_is_an_error(root: Path) -> None:
    with pytest.raises(DataError, match="no row is left"):
        convert(write_rows(root / "rows.jsonl", ["{"]), root.parent / "out", on_bad_row="skip")


def test_sets_whose_names_are_one_as_a_files_name(root: Path) -> None:
    write_rows(root / "rows.jsonl", [turns()])
    names = ["a/b", "a:b", "..", "skipped"]
    (root / "recipe.json").write_text(json.dumps({name: {"root": ".", "annotation": "rows.jsonl"} for name in names}))
    convert(root / "recipe.json", root.parent / "out")
    written = json.loads((root.parent / "out/recipe.json").read_text())
    assert [entry["annotation"] for entry in written.values()] == [
        "a_b.jsonl",
        "a_b-2.jsonl",
        "rows.jsonl",
        "skipped-2.jsonl",
    ]
    assert len(samples(root.parent / "out/recipe.json")) == 4


def test_cells_that_json_has_no_word_for(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    import datetime

    row = {"question": "Q", "answer": "A", "day": datetime.date(2026, 1, 2), "vector": b"12345"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    convert(tmp_path / "x.parquet", tmp_path / "out")
    written = json.loads((tmp_path / "out/x.jsonl").read_text())
    assert (written["day"], written["vector"]) == ("2026-01-02", "5 bytes")
    assert convert_module.RECIPE == "recipe.json"
