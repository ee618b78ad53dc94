"""A part of a prepared set: its rows and videos come back as they were; sizes are read once until a file changes."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from eagle_model.data import part_table
from eagle_model.data.clips import open_video
from eagle_model.data.part_table import ImageSizes, PartTable, videos_path
from eagle_model.data.processor import Processor
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DataError, Sample
from tests.data.conftest import chat_row, tiny_config, write_image


def sample(root: Path, number: int = 1, **row: object) -> Sample:
    return parse_sample(chat_row(**row), root=root, where=f"rows.jsonl:{number}")  # type: ignore[arg-type]


def test_rows_and_videos_come_back(media: Path, processor: Processor, tmp_path: Path) -> None:
    table = PartTable(processor, tmp_path, key="a")
    table.add(1, 0, 10, sample(media, question="<image><video>", image="wide.png", video="clip.mp4", note=1))
    table.add_bad(2, 10, 5, "rows.jsonl:2", "rows.jsonl:2: not JSON")
    table.add(3, 15, 20, sample(media, 3, video={"path": "clip.mp4", "start": 0.5}, id="again"))
    table.add(4, 35, 20, sample(media, 4, video="cut.mp4", id="cut"))
    counts = table.write(tmp_path / "0.parquet")
    assert counts == {"rows": 4, "skipped": 2, "images": 1, "videos": 2, "text_only": 0}
    rows = pq.read_table(tmp_path / "0.parquet")
    assert json.loads(rows.schema.metadata[b"eagle"]) == {**counts, "unused_fields": {"note": 1}}
    assert rows["line"].to_pylist() == [1, 2, 3, 4]
    assert rows["image_width"].to_pylist() == [[168], None, [], None]
    assert rows["video"].to_pylist() == [[0], None, [0], None]  # a video that rows share stands once
    assert rows["bad"].to_pylist()[:3] == [None, "rows.jsonl:2: not JSON", None]
    assert rows["bad"].to_pylist()[3].startswith("rows.jsonl:4: sample cut: video ")
    assert np.isnan(rows["start_seconds"].to_pylist()[0][0]) and rows["start_seconds"].to_pylist()[2] == [0.5]
    (clip,) = pq.read_table(videos_path(tmp_path / "0.parquet")).to_pylist()
    info = open_video(media / "clip.mp4").info
    times = np.arange(clip["num_frames"]) * clip["step_ticks"] * clip["tick_seconds"]
    assert times.tolist() == info.frame_times_seconds.tolist()
    assert np.frombuffer(clip["key_steps"], "<i4").cumsum().tolist() == info.key_frames.tolist()
    assert (clip["width_px"], clip["height_px"], clip["damage"]) == (64, 48, None)


def test_media_that_cannot_be_opened_and_text_that_cannot_be_counted_are_bad(
    media: Path, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = PartTable(processor, tmp_path, key="a")
    for number, row in enumerate([{"image": "none.png"}, {"video": "empty.mp4"}, {"video": "none.mp4"}, {}], 1):
        table.add(number, 0, 1, sample(media, number, id=f"s{number}", **row))
    table.add(5, 0, 1, sample(media, 5, question="no control token", id="s5"))
    plain = processor.encoder.nums_of_tokens
    monkeypatch.setattr(processor.encoder, "nums_of_tokens", lambda texts: [DataError("no"), *plain(texts)[1:]])
    assert table.write(tmp_path / "0.parquet")["skipped"] == 4
    rows = pq.read_table(tmp_path / "0.parquet").to_pylist()
    assert [row["bad_id"] for row in rows].count(None) == 1
    assert rows[0]["bad"].startswith("rows.jsonl:1: sample s1: image ")
    assert all(row["base_tokens"] is None for row in rows if row["bad"])


def test_texts_are_counted_together_as_each_is(
    tokenizer: Tokenizer, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_table, "_COUNTED_TOGETHER", 3)
    processor = Processor(tokenizer, tiny_config())
    rows = [chat_row(f"Which <box>[[{i}]]</box> is it?", "<ref>It</ref> " * i + "yes") for i in range(1, 9)]
    samples = [parse_sample(row, root=media, where=f"rows.jsonl:{i}") for i, row in enumerate(rows)]
    table = PartTable(processor, tmp_path, key="a")
    for each in samples:
        table.add(1, 0, 1, each)
    table.write(tmp_path / "0.parquet")
    found = pq.read_table(tmp_path / "0.parquet")["base_tokens"].to_pylist()
    assert found == [processor.encoder.num_text_tokens(each, [], []) for each in samples]


def test_sizes_of_images_are_read_once_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_image(tmp_path / f"{i}.png", 60 + i, 50) for i in range(8)]
    read, plain = list[str](), part_table.image_size
    monkeypatch.setattr(part_table, "image_size", lambda path: read.append(path.name) or plain(path))
    for _ in range(2):  # the second time they are known
        sizes = ImageSizes(tmp_path / "sizes.npy")
        assert [sizes.size(path) for path in [*paths, *paths]] == [(60 + i, 50) for i in range(8)] * 2
        sizes.write()
    assert read == [path.name for path in paths]
    write_image(paths[3], 600, 50)
    os.utime(paths[5], ns=(1, 1))
    sizes = ImageSizes(tmp_path / "sizes.npy")
    assert [sizes.size(path)[0] for path in paths] == [60, 61, 62, 600, 64, 65, 66, 67]
    assert read[8:] == ["3.png", "5.png"]
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        sizes.size(tmp_path / "none.png")
