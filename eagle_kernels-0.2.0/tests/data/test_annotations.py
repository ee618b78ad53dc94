"""Rows of annotation files: the same whatever the window they are read through, bounded, each line's fault its own."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_model.data import annotations
from eagle_model.data.annotations import is_json_list, json_members, json_rows
from eagle_model.data.recipe import read_recipe
from eagle_model.data.sample import DataError


def write(folder: Path, name: str, text: str | bytes) -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(rows=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 0, 3]), ascii_only=st.booleans())
def test_a_list_is_read_as_json_reads_it_through_any_window(
    tmp_path_factory: pytest.TempPathFactory, rows: list, indent: int | None, ascii_only: bool
) -> None:
    text = "\ufeff \n" + json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + "\n \n"
    path = write(tmp_path_factory.getbasetemp(), "rows.json", text)
    with pytest.MonkeyPatch.context() as patch:
        for num_bytes in (50, 97, 1 << 18):  # no number above has more than 50 digits
            patch.setattr(annotations, "_READ_BYTES", num_bytes)
            assert [row for _, row in json_rows(path)] == rows


@pytest.mark.parametrize("num_bytes", [7, 64, 1 << 18])
def test_lines_and_columns_are_the_files_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(annotations, "_READ_BYTES", num_bytes)
    good = '{"a": "' + "x" * 40 + '",\n "b": 1}'
    for rows in range(4):
        text = "[" + f"{good},\n\n" * rows + "  {'a'}]"
        path = write(tmp_path, "rows.json", text)
        with pytest.raises(json.JSONDecodeError) as want:
            json.loads(text)
        with pytest.raises(DataError) as error:
            list(json_rows(path))
        place = f"{want.value.lineno}: not JSON: {want.value.msg} at column {want.value.colno}."
        assert str(error.value) == f"{path}:{place}"
    path = write(tmp_path, "rows.json", f"[{good},\n\n  {good}\n,{good}]")
    assert [where for where, _ in json_rows(path)] == [f"{path}:{line}" for line in (1, 4, 6)]
    path = write(tmp_path, "rows.json", f"[{good},\n\n".encode() + b'"\xe9"]')
    with pytest.raises(DataError, match=r"rows\.json:4: not UTF-8\."):
        list(json_rows(path))


def test_a_row_has_a_bound_and_a_file_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "MAX_ROW_BYTES", 100_000)
    monkeypatch.setattr(annotations, "_READ_BYTES", 10_000)
    good, long = json.dumps({"a": "x" * 1000}), json.dumps({"a": "x" * 3_000_000})
    lines = write(tmp_path, "rows.jsonl", "\n".join([good] * 5 + [long] + [good] * 5000))
    listed = write(tmp_path, "rows.json", "[" + ",".join([good] * 5000) + "," + long + "]")
    tracemalloc.start()
    found = list(map(type, (row for _, row in json_rows(lines))))
    assert found == [dict] * 5 + [DataError] + [dict] * 5000
    rows = json_rows(listed)
    assert sum(1 for _, row in zip(range(5000), rows) if row) == 5000
    with pytest.raises(
        DataError, match=r"rows\.json:1: the row is longer than 100000 bytes\. Shorten it, or give media"
    ):
        next(rows)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000, "files of 8 MB"
    tracemalloc.stop()


def test_a_list_takes_time_by_its_length_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.json", "[" + " " * 3_000_000 + '{"a":1},\n' * 100_000 + '{"a":1}]')
    started = time.process_time()
    assert [where for where, _ in json_rows(path)][-1] == f"{path}:100001"
    assert time.process_time() - started < 2  # 0.2; counting lines from the window's start would take 4


def test_a_name_given_twice_is_a_fault_of_its_line(tmp_path: Path) -> None:
    twice = '{"image": "a.png", "image": "b.png"}'
    path = write(tmp_path, "rows.jsonl", f"{{}}\n{twice}\n{{}}")
    (_, first), (_, second), (_, third) = json_rows(path)
    assert first == third == {}
    assert str(second) == (
        f"{path}:2: not JSON that can be read: the name 'image' is given twice; rename one or remove it."
    )
    with pytest.raises(DataError, match=r"rows\.json:2: .*the name 'image' is given twice"):
        list(json_rows(write(tmp_path, "rows.json", f"[{{}},\n{twice}]")))


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.jsonl", tmp_path / "zero.jsonl", tmp_path, Path("/dev/zero")):
        for read in (read_recipe, lambda path: list(json_rows(path))):
            with pytest.raises(DataError, match=r"does not exist or is not a file\."):
                read(path)
    fields = {"s": {"root": ".", "annotation": "pipe.jsonl"}}
    with pytest.raises(DataError, match=r"source 's': annotation .*pipe\.jsonl does not exist or is not a file"):
        read_recipe(write(tmp_path, "recipe.json", json.dumps(fields)))


def test_a_list_is_known_by_its_first_character(tmp_path: Path) -> None:
    assert is_json_list(write(tmp_path, "a.json", "\ufeff \n\t[not JSON"))
    assert not is_json_list(write(tmp_path, "a.json", '{"a": []}'))
    assert not is_json_list(write(tmp_path, "a.json", " "))


@settings(max_examples=30, deadline=None)
@given(members=st.dictionaries(st.text(max_size=6), VALUES, max_size=6), indent=st.sampled_from([None, 0, 3]))
def test_members_of_an_object_are_read_as_json_reads_them_through_any_window(
    tmp_path_factory: pytest.TempPathFactory, members: dict, indent: int | None
) -> None:
    folder = tmp_path_factory.getbasetemp()
    plain = write(folder, "members.json", json.dumps(members, indent=indent))
    inside = write(folder, "inside.json", json.dumps({"first": [{}], "x": members, "last": 1}, indent=indent))
    listed = write(folder, "listed.json", json.dumps({"first": {"x": 1}, "x": list(members.values())}, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        for num_bytes in (50, 1 << 18):
            patch.setattr(annotations, "_READ_BYTES", num_bytes)
            assert [(name, value) for _, name, value in json_members(plain)] == list(members.items())
            assert [(name, value) for _, name, value in json_members(inside, "x")] == list(members.items())
            found = [(name, value) for _, name, value in json_members(listed, "x")]
            assert found == [(str(i), value) for i, value in enumerate(members.values())]


def test_members_say_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "x.json", '{\n"a": 1,\n\n"b": {"c": 2}}')
    assert list(json_members(path)) == [(f"{path}:2", "a", 1), (f"{path}:4", "b", {"c": 2})]
    assert list(json_members(path, "b")) == [(f"{path}:4", "c", 2)]
    with pytest.raises(DataError, match="no 'd' that is an object or a list"):
        list(json_members(path, "d"))


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "{", '{"a"', '{"a" 1}', '{"a": 1', '{"a": 1 "b": 2}', "{1: 2}", '{"a": }']
)
def test_what_is_no_object_is_an_error_with_its_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "x.json", text)
    with pytest.raises(DataError, match=r"x\.json:1"):
        list(json_members(path))


def test_lines_by_what_is_said_of_them(tmp_path: Path) -> None:
    path = write(tmp_path, "lines.json", '{"a": 1}\n{"a": 2}\n')
    assert [row for _, row in json_rows(path, lines=True)] == [{"a": 1}, {"a": 2}]
