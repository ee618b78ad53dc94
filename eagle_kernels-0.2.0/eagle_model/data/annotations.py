"""Annotation files -> their JSON rows, one after the other, in bounded memory.

    for where, row in json_rows(Path("rows.jsonl")):      # "rows.jsonl:1", {"image": "a.png", ...}
        ...

A file that ends in .jsonl holds a row a line; another one list of rows, as LLaVA writes it. Neither is ever held whole:
LLaVA's own has a gigabyte. Pipes and devices are no files. A name that is given twice in one object is an error, since
one of its two values would be lost.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from eagle_model.data.sample import DataError

MAX_ROW_BYTES = (
    16 << 20
)  # limit: a million tokens of text are about 5 MB; as Python objects JSON takes up to 20 times that
BLANK = object()  # what a line of white space holds
_NOT_SPACE = re.compile(r"[^ \t\r\n]")
_READ_BYTES = 1 << 18  # at once; more than any number that Python reads has digits


def json_rows(path: Path, *, lines: bool | None = None) -> Iterator[tuple[str, object]]:
    """("file:line", row) of each row. In JSON Lines a row that cannot be read is a DataError, given and not raised.

    lines: whether it holds a row a line; None: if its name says so.
    Raises DataError where the file cannot be read at all, and in a list for the first row that cannot be, since where
    the next one starts is unknown then.
    """
    need_file(path, "annotation")
    try:
        with path.open("rb") as file:
            is_lines = path.suffix.lower() == ".jsonl" if lines is None else lines
            yield from _json_lines(path, file) if is_lines else _json_list(_Text(path, file))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error


def json_members(path: Path, under: str | None = None) -> Iterator[tuple[str, str, object]]:
    """("file:line", name, value) of each member of a file's JSON object, one after the other.

    under: a member of the object, {"database": {...}}, whose own members are meant, or the entries of its list, whose
    names are then "0", "1", ... A member is bounded as a row is.
    Raises DataError where the file cannot be read, is no such object, or has no such member.
    """
    need_file(path, "annotation")
    try:
        with path.open("rb") as file:
            yield from _json_members(_Text(path, file), under)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error


def is_json_list(path: Path) -> bool:
    """Whether the file's first character, white space aside, opens a list. Raises DataError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return _Text(path, file).next_character() == "["
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error


def need_file(path: Path, what: str) -> None:
    if not os.path.isfile(path):  # pathlib's raises where a folder may not be looked into
        raise DataError(f"{what} {path} does not exist or is not a file.")


def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, as json's object_pairs_hook. Raises ValueError for a name that is given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice[:80]!r} is given twice; rename one or remove it.")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=without_duplicates)


def _json_lines(path: Path, file: BinaryIO) -> Iterator[tuple[str, object]]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        where = f"{path}:{number}"
        if len(line) > MAX_ROW_BYTES:
            yield where, _too_long(where)
            if not line.endswith(b"\n"):
                _skip_line(file)
            continue
        row = json_line(where, line, is_first=number == 1)
        if row is not BLANK:
            yield where, row


def json_line(where: str, line: bytes, *, is_first: bool) -> object:
    """The row of one line of JSON Lines; a DataError, given and not raised, where it cannot be read; BLANK for none.

    is_first: of its file: it may begin with a byte order mark.
    """
    if len(line) > MAX_ROW_BYTES:
        return _too_long(where)
    try:
        text = line.decode("utf-8-sig" if is_first else "utf-8")
        return _DECODER.decode(text.rstrip("\r\n")) if text.strip() else BLANK
    except UnicodeDecodeError as error:
        return DataError(f"{where}: not UTF-8: byte {error.start + 1} of the line is wrong.")
    except json.JSONDecodeError as error:
        return DataError(f"{where}: not JSON: {error.msg} at column {error.colno}.")
    except (ValueError, RecursionError, MemoryError) as error:
        return _unreadable(where, error)


def _skip_line(file: BinaryIO) -> None:
    """To the start of the next line, at three times the speed of readline."""
    while data := file.read(_READ_BYTES):
        if (end := data.find(b"\n")) >= 0:
            file.seek(end + 1 - len(data), os.SEEK_CUR)
            return


def _json_list(text: _Text) -> Iterator[tuple[str, object]]:
    if text.next_character() != "[":
        raise DataError(
            f"{text.path}:1: needs a JSON list of rows, '[{{...}}, ...]'; for one row a line name it .jsonl."
        )
    yield from _entries(text)
    if text.next_character():
        raise text.wrong(text.position, "Extra data")


def _entries(text: _Text) -> Iterator[tuple[str, object]]:
    """Those of the list that begins here; goes behind it."""
    text.position += 1
    if text.next_character() != "]":
        while True:
            text.next_character()
            where = text.where()
            yield where, text.value(where)
            after = text.next_character()
            if after == "]":
                break
            if after != ",":
                raise text.wrong(text.position, "Expecting ',' or ']'")
            text.position += 1
    text.position += 1


def _json_members(text: _Text, under: str | None) -> Iterator[tuple[str, str, object]]:
    if text.next_character() != "{":
        raise DataError(f"{text.path}:1: needs a JSON object.")
    text.position += 1
    after = "}" if text.next_character() == "}" else ","
    while after == ",":
        text.next_character()
        where = text.where()
        name = text.value(where)
        if not isinstance(name, str) or text.next_character() != ":":
            raise text.wrong(text.position, "Expecting a name and ':'")
        text.position += 1
        opening = text.next_character()
        if name == under and opening == "{":
            yield from _json_members(text, None)
            return
        if name == under and opening == "[":
            yield from ((place, str(i), value) for i, (place, value) in enumerate(_entries(text)))
            return
        value = text.value(where)
        if under is None:
            yield where, name, value
        after = text.next_character()
        if after not in (",", "}"):
            raise text.wrong(text.position, "Expecting ',' or '}'")
        text.position += 1
    if under is not None:
        raise DataError(f"{text.path}: the object has no {under!r} that is an object or a list.")


class _Text:
    """A JSON file read from its start through a window of text, which knows the line and column of each place in it."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.window, self.position = "", 0
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")()
        self._ended = False
        self._line, self._column = 1, 0  # of the window's first character, the column from 0
        self._counted, self._num_newlines = 0, 0  # in window[:_counted], so that each character is looked at once
        self._json = json.JSONDecoder(object_pairs_hook=without_duplicates)

    def next_character(self) -> str:
        """The first one from here on that is no white space, to which it goes; "" at the end."""
        while True:
            if found := _NOT_SPACE.search(self.window, self.position):
                self.position = found.start()
                return found[0]
            self.position = len(self.window)
            if self._ended:
                return ""
            self._read(_READ_BYTES)

    def value(self, where: str) -> object:
        """The JSON value that starts here; goes to what follows it."""
        if len(self.window) - self.position < _READ_BYTES:
            self._read(_READ_BYTES)  # else a number might go on beyond the window
        while True:
            try:
                value, self.position = self._json.raw_decode(self.window, self.position)
                return value
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self.wrong(error.pos, error.msg) from error
                length = len(self.window) - self.position
                if length > MAX_ROW_BYTES:
                    raise _too_long(where) from error
                self._read(length)  # twice as much, so that all tries together cost two
            except (ValueError, RecursionError, MemoryError) as error:
                raise _unreadable(where, error) from None

    def where(self) -> str:
        """As errors name the position."""
        return f"{self.path}:{self.line()}"

    def line(self) -> int:
        """The line of the position, from 1."""
        self._num_newlines += self.window.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line + self._num_newlines

    def place(self, position: int) -> tuple[int, int]:
        """(line, column), both from 1, of a place in the window."""
        lines = self.window.count("\n", 0, position)
        if lines:
            return self._line + lines, position - self.window.rindex("\n", 0, position)
        return self._line, self._column + position + 1

    def wrong(self, position: int, message: str) -> DataError:
        line, column = self.place(position)
        return DataError(f"{self.path}:{line}: not JSON: {message} at column {column}.")

    def _read(self, num_bytes: int) -> None:
        """Forgets what is before the position, and reads on."""
        line, column = self.place(self.position)
        self._line, self._column = line, column - 1
        self.window, self.position = self.window[self.position :], 0
        self._counted, self._num_newlines = 0, 0
        data = self._file.read(num_bytes)
        self._ended = not data
        try:
            self.window += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line += self.window.count("\n") + error.object[: error.start].count(b"\n")
            raise DataError(f"{self.path}:{line}: not UTF-8.") from error


def _too_long(where: str) -> DataError:
    return DataError(f"{where}: the row is longer than {MAX_ROW_BYTES} bytes. Shorten it, or give media as files.")


def _unreadable(where: str, error: BaseException) -> DataError:
    """Of what json raises beside JSONDecodeError; ValueError: an integer of more than 4300 digits, a name twice."""
    if isinstance(error, RecursionError):
        return DataError(f"{where}: nested too deep.")
    if isinstance(error, MemoryError):
        return DataError(f"{where}: there is not enough memory to read it.")
    return DataError(f"{where}: not JSON that can be read: {error}")
