"""Which reader a path takes, and media in containers put into files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle_model.data.formats.media import Embedded, MediaStore
from eagle_model.data.formats.opening import DataSet, Settler, open_data
from eagle_model.data.sample import DataError
from tests.data.formats.conftest import picture
from tests.data.formats.test_tars import write_tar

QA = {"question": "Q", "answer": "A"}


def rows(path: Path, **options: object) -> list[object]:
    return [row for data_set in open_data(path, **options) for _, row in data_set.rows()]  # type: ignore[arg-type]


ASKED = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.jsonl", json.dumps(QA)),
        ("x.json", json.dumps([QA])),
        ("x.csv", "question,answer\nQ,A\n"),
        ("x.tsv", "question\tanswer\nQ\tA\n"),
    ],
)
def test_files_by_their_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text + "\n")
    assert rows(tmp_path / name) == [ASKED]
    (data_set,) = open_data(tmp_path / name)
    assert (data_set.name, data_set.root) == ("x", tmp_path)
    assert list(data_set.rows()) == list(data_set.rows())  # each time anew


def test_a_recipe_is_its_sources(root: Path) -> None:
    (root.parent / "a.jsonl").write_text(json.dumps(QA) + "\n{\n")
    recipe = {name: {"root": "root", "annotation": "a.jsonl", "repeat_time": 2} for name in ("one", "two")}
    (root.parent / "recipe.json").write_text(json.dumps(recipe))
    one, two = open_data(root.parent / "recipe.json")
    assert (one.name, two.name, one.root) == ("one", "two", root)
    assert one.source is not None and one.source.repeat_time == 2
    (_, row), (_, error) = one.rows()
    assert row == ASKED and isinstance(error, DataError)
    assert [d.name for d in open_data(root.parent / "recipe.json", only=("two",))] == ["two"]
    with pytest.raises(DataError, match="no data set 'three'"):
        open_data(root.parent / "recipe.json", only=("three",))


def test_folders_by_what_is_in_them(root: Path) -> None:
    (root / "a.txt").write_text("A.")
    (root / "b.txt").write_text("B.")
    assert len(rows(root)) == 2
    (root / "shards").mkdir()
    (root / ".nv-meta").mkdir()
    for i in range(2):
        write_tar(root / f"shards/{i}.tar", [(f"{i}.txt", b"A."), (f"{i}.png", picture())])
    energon = rows(root)
    assert [row["id"] for row in energon] == ["0", "1"]  # type: ignore[index]
    assert open_data(root)[0].notes == ("Of the folder, its 2 .tar files were read, and nothing else.",)
    assert [type(row) for row in rows(root / "shards/1.tar")] == [dict]


def test_a_folder_of_parquet(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for i in range(2):
        pq.write_table(pa.Table.from_pylist([{"question": f"Q{i}", "answer": "A"}]), tmp_path / f"{i}.parquet")
    assert [row["messages"][0]["content"] for row in rows(tmp_path)] == ["Q0", "Q1"]  # type: ignore[index]


def test_a_dataset_info(root: Path) -> None:
    (root / "rows.jsonl").write_text('{"instruction": "Q", "output": "A"}\n')
    about = {"mine": {"file_name": "rows.jsonl"}, "far": {"hf_hub_url": "x/y"}}
    (root / "dataset_info.json").write_text(json.dumps(about))
    for path in (root, root / "dataset_info.json"):
        assert rows(path) == [ASKED]
        assert "far" in open_data(path)[0].notes[0]


def test_paths_that_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.zip").touch()
    for path in (tmp_path / "x.zip", tmp_path / "gone"):
        with pytest.raises(DataError):
            open_data(path)
    with pytest.raises(DataError, match="no layout is named 'x'"):
        open_data(tmp_path, layout="x")


def test_bytes_are_put_into_the_store(root: Path) -> None:
    store = MediaStore(root.parent / "media")
    with Settler(DataSet("x", root, lambda: iter(())), store) as settler:
        row, folder = settler.settled({"image": Embedded(picture()), "n": 1}, "x:1")
        assert folder == store.folder and (folder / row["image"]).read_bytes() == picture() and row["n"] == 1
        assert settler.settled({"image": "a.png"}, "x:2") == ({"image": "a.png"}, root)
        for bad, message in [
            ({"images": [Embedded(picture()), "a.png"]}, "x:3: its media are bytes, and the file 'a.png'"),
            ({"image": Embedded(b"?")}, "x:3: 1 bytes that begin"),
            (DataError("x:3: said"), "x:3: said"),
        ]:
            with pytest.raises(DataError, match=message):
                settler.settled(bad, "x:3")


def test_lmdb_in_rows_of_eagle(root: Path) -> None:
    pytest.importorskip("lmdb", reason="needs lmdb (the extra `data`)")
    from tests.data.formats.test_lmdb_media import write_lmdb

    write_lmdb(root / "x.lmdb", {"1": picture()}, subdir=False)
    entry = {"lmdb_file": "x.lmdb", "lmdb_key": "1"}
    with Settler(DataSet("x", root, lambda: iter(())), MediaStore(root.parent / "media")) as settler:
        row, folder = settler.settled({"data": [{"type": "image", "image_list": [entry]}]}, "x:1")
        assert (folder / row["data"][0]["image_list"][0]).read_bytes() == picture()
