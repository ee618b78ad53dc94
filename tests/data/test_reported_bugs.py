"""What people reported of other loaders, rebuilt small: each test names the report. The values are what is right."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eagle_model.data.annotations import json_rows
from eagle_model.data.formats.media import MediaStore
from eagle_model.data.formats.opening import Settler, open_data
from eagle_model.data.formats.subtitles import read_cues
from eagle_model.data.images import image_size, load_image
from eagle_model.data.rows import parse_sample, training_sample
from eagle_model.data.sample import DataError, ImageRef, Sample
from eagle_model.data.sampling import SamplingConfig, max_frames_of
from tests.data.conftest import chat_row
from tests.data.formats.conftest import picture
from tests.data.formats.test_tars import as_json, records, write_tar


def read(path: Path, tmp_path: Path) -> list[Sample | str]:
    """Each row of a data set as training has it, or why it is bad."""
    found: list[Sample | str] = []
    for data_set in open_data(path):
        with Settler(data_set, MediaStore(tmp_path / "store")) as settler:
            for where, row in data_set.rows():
                try:
                    row, root = settler.settled(row, where)
                    found.append(training_sample(row, root=root, where=where))
                except DataError as error:
                    found.append(str(error))
    return found


def samples(path: Path, tmp_path: Path) -> list[Sample]:
    found = read(path, tmp_path)
    assert all(isinstance(one, Sample) for one in found), found
    return found  # type: ignore[return-value]


def parsed(row: dict) -> Sample:
    return training_sample(row, root=Path("."), where="x:1")


def factory(tmp_path: Path, formatting: str, columns: dict, record: dict) -> Sample:
    about = {"file_name": "rows.json", "formatting": formatting, "columns": columns}
    (tmp_path / "rows.json").write_text(json.dumps([record]))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": about}))
    (found,) = samples(tmp_path / "dataset_info.json", tmp_path)
    return found


# ---- rows


def test_llama_factory_5883_an_image_that_is_a_text_is_one(tmp_path: Path) -> None:
    """Its 9 characters were counted as 9 images."""
    columns = {"messages": "conversations", "images": "image"}
    record = {**chat_row("<image>\nWhat?"), "image": "test1.jpg"}
    (picture_,) = factory(tmp_path, "sharegpt", columns, record).images
    assert picture_.path.name == "test1.jpg"


def test_llama_factory_8440_a_tag_in_an_answer_is_text(tmp_path: Path) -> None:
    record = {**chat_row("<image>\nAs Markdown.", "![fig. 3](<image>)"), "images": ["a.png"]}
    sample = factory(tmp_path, "sharegpt", {"messages": "conversations", "images": "images"}, record)
    assert sample.turns[1].parts == ("![fig. 3](<image>)",)
    assert len(sample.images) == 1


def test_llama_factory_5329_an_image_without_a_tag_comes_first() -> None:
    sample = parsed({**chat_row("What time is it?"), "images": ["a.png"]})
    assert isinstance(sample.turns[0].parts[0], ImageRef) and sample.turns[0].parts[1] == "What time is it?"


def test_llama_factory_6520_people_are_human_in_messages_too() -> None:
    messages = [{"role": "human", "content": "<image>\nQ"}, {"role": "assistant", "content": "A"}]
    assert [turn.role for turn in parsed({"messages": messages, "images": ["a.png"]}).turns] == ["user", "assistant"]


def test_llama_factory_10178_several_calls_and_answers_in_a_row(tmp_path: Path) -> None:
    turns = [("human", "Sum?"), ("function_call", '{"name": "f", "arguments": {}}'), ("observation", "1")]
    turns += [*turns[1:], ("gpt", "2")]
    record = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    sample = factory(tmp_path, "sharegpt", {"messages": "conversations"}, record)
    assert [turn.role for turn in sample.turns] == [
        *("user", "assistant", "observation", "assistant", "observation", "assistant"),
    ]


def test_ms_swift_3940_some_rows_show_nothing() -> None:
    rows = [{**chat_row("<image>Q"), "images": ["a.png"]}, {**chat_row("Q"), "images": []}]
    assert [len(parsed(row).images) for row in rows] == [1, 0]


def test_ms_swift_2750_a_text_to_go_on_with() -> None:
    sample = parsed({"messages": [{"role": "assistant", "content": "I love music"}]})
    assert [(turn.role, turn.text) for turn in sample.turns] == [("assistant", "I love music")]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\x1d"])
def test_jsonlines_53_tau_354_only_a_newline_ends_a_row(tmp_path: Path, separator: str) -> None:
    text = json.dumps(chat_row(f"one{separator}two"), ensure_ascii=False)
    if separator < " ":
        text = json.dumps(chat_row(f"one{separator}two"))
    (tmp_path / "rows.jsonl").write_text(f"{text}\r\n{text}\n", encoding="utf-8", newline="")
    (tmp_path / "rows.json").write_text(f"[{text},\n{text}]", encoding="utf-8")
    for name in ("rows.jsonl", "rows.json"):
        found = [row["conversations"][0]["value"] for _, row in json_rows(tmp_path / name)]  # type: ignore[index]
        assert found == [f"one{separator}two"] * 2


# ---- tars


def test_datasets_7150_a_folder_with_a_dot_is_no_ending(tmp_path: Path) -> None:
    members = [("set/22.0/1.png", picture()), ("set/22.0/1.txt", b"A."), ("set/22.0/2.png", picture(9))]
    found = records(write_tar(tmp_path / "a.tar", [*members, ("set/22.0/2.txt", b"B.")]))
    assert {key: row["caption"] for key, row in found.items()} == {"set/22.0/1": "A.", "set/22.0/2": "B."}  # type: ignore[index]


@pytest.mark.parametrize("captions", [(b"A dog.", b"A cat."), (b"A dog.", b"A dog.")])
def test_datasets_7144_names_with_dots_do_not_become_one_sample(tmp_path: Path, captions: tuple[bytes, bytes]) -> None:
    """22.05 and 22.06 are one key, 22, by WebDataset's rule: two images under one caption, were it not said."""
    members = [
        (f"22.0{5 + i}.{end}", data) for i in range(2) for end, data in (("png", picture(i)), ("txt", captions[i]))
    ]
    (found,) = read(write_tar(tmp_path / "a.tar", members), tmp_path)
    assert "22: has 2 texts, .05.txt, .06.txt" in str(found) and "put none into names" in str(found)


def test_webdataset_157_a_member_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    members = [
        ("a.jpg", picture(1, "JPEG")),
        ("a.txt", b"A."),
        ("a.jpg", picture(2, "JPEG")),
        ("b.jpg", picture()),
        ("b.txt", b"B."),
    ]
    bad, good = read(write_tar(tmp_path / "a.tar", members), tmp_path)
    assert "a.jpg: stands twice in the tar" in str(bad)
    assert isinstance(good, Sample)


def test_webdataset_407_members_that_lie_apart_are_no_sample(tmp_path: Path) -> None:
    members = [("a.png", picture()), ("b.png", picture()), ("a.txt", b"A."), ("b.txt", b"B.")]
    found = read(write_tar(tmp_path / "a.tar", members), tmp_path)
    assert len(found) == 4 and not any(isinstance(one, Sample) for one in found)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_webdataset_144_every_format_of_tar_is_read(tmp_path: Path, kind: int) -> None:
    name = "folder/" * 12 + "sample"
    members = [(f"{name}.png", picture()), (f"{name}.txt", "Ä dog.".encode())]
    (sample,) = samples(write_tar(tmp_path / "a.tar", members, kind=kind), tmp_path)
    assert (sample.id, sample.turns[1].text) == (name, "Ä dog.")


def test_daft_7493_a_sparse_member_is_never_taken_for_its_bytes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pax.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        about = tarfile.TarInfo("GNUSparseFile.0/a.png")
        about.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "a.png", "GNU.sparse.realsize": "9999"}
        data = b"1\n0\n10\n".ljust(512, b"\0") + picture()
        about.size = len(data)
        tar.addfile(about, io.BytesIO(data))
    with pytest.raises(DataError, match="holds a sparse file"):
        records(tmp_path / "pax.tar")
    path = write_tar(tmp_path / "gnu.tar", [("a.png", picture())], kind=tarfile.GNU_FORMAT)
    header = bytearray(path.read_bytes())
    header[156:157] = b"S"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 8 * 32)
    path.write_bytes(header)
    with pytest.raises(DataError, match="is a link or device"):
        records(path)


def test_img2dataset_344_an_empty_text_beside_a_caption_and_the_other_way(tmp_path: Path) -> None:
    about = {"caption": None, "url": "https://host/a", "status": "success"}
    members = [("a.png", picture()), ("a.json", as_json(about)), ("a.txt", b"A dog.")]
    members += [("b.png", picture()), ("b.txt", b"")]
    good, bad = read(write_tar(tmp_path / "a.tar", members), tmp_path)
    assert isinstance(good, Sample) and good.turns[1].text == "A dog."
    assert "is empty; there is nothing to learn from it" in str(bad)


# ---- folders


def test_datasets_7337_metadata_of_conversations_name_their_image(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "images/1.png").write_bytes(picture())
    row = {"id": "GCC_1", "file_name": "images/1.png", **chat_row("<image>\nDescribe it.", "a view of a city")}
    (root / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    (sample,) = samples(root, tmp_path)
    assert (sample.id, [image.path for image in sample.images]) == ("GCC_1", [root / "images/1.png"])


def test_datasets_5761_images_below_the_metadata_are_not_read_twice(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    for name in ("a.png", "train/b.png", "train/c.png"):
        (root / name).write_bytes(picture())
    (root / "metadata.csv").write_text("file_name,text\na.png,An a.\ntrain/b.png,A b.\n./train/c.png,A c.\n")
    assert [sample.turns[1].text for sample in samples(root, tmp_path)] == ["An a.", "A b.", "A c."]


def test_aqualora_8_an_image_that_the_metadata_lack_is_said(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for name in ("1.png", "2.png"):
        (root / name).write_bytes(picture())
    (root / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "One."}\n')
    good, bad = read(root, tmp_path)
    assert isinstance(good, Sample)
    assert "2.png: metadata.jsonl has no row for it" in str(bad)


# ---- tables


def test_datasets_of_bytes_or_paths_in_any_type_that_parquet_has(tmp_path: Path) -> None:
    """datasets 7793, arrow 32723: nested columns of several chunks; and null structs, large_binary, dictionaries."""
    (tmp_path / "a.png").write_bytes(picture(3))
    struct = pa.struct({"bytes": pa.large_binary(), "path": pa.string()})
    images = [[{"bytes": picture(1), "path": "x.png"}], [{"bytes": None, "path": "a.png"}], None, []]
    texts = [[{"user": f"Q{i}", "assistant": "A"}] for i in range(4)]
    table = pa.table(
        {
            "images": pa.chunked_array([pa.array([one], pa.list_(struct)) for one in images]),
            "texts": pa.array(texts),
            "source": pa.array(["s"] * 4).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=3)
    found = samples(tmp_path / "train.parquet", tmp_path)
    assert [len(sample.images) for sample in found] == [1, 1, 0, 0]
    assert found[1].images[0].path == tmp_path / "a.png"
    assert load_image(found[0].images[0].path)[0, 0].tolist() == [1, 1, 1]


def test_q_97_a_cell_of_more_than_131072_characters(tmp_path: Path) -> None:
    answer = "x " * 100_000 + "end"
    (tmp_path / "qa.csv").write_text(f'question,answer\nQ,"{answer}"\n')
    (sample,) = samples(tmp_path / "qa.csv", tmp_path)
    assert sample.turns[1].text == answer


# ---- images


def jpeg_with(exif: bytes) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def test_datasets_6252_an_image_of_a_table_is_turned_as_cameras_say(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    table = pa.table({"image": [{"bytes": jpeg_with(exif.tobytes())}], "caption": ["A photo."]})
    pq.write_table(table, tmp_path / "x.parquet")
    (sample,) = samples(tmp_path / "x.parquet", tmp_path)
    assert image_size(sample.images[0].path) == (20, 30)
    assert load_image(sample.images[0].path).shape == (30, 20, 3)


@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (b"Exif\0\0Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0", (20, 30)),  # Pillow 8348
        (b"Exif\0\0", (30, 20)),  # Pillow 4852
        (b"Exif\0\0b'Exif\\x", (30, 20)),  # stable-diffusion-webui 9078
        (b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03", (30, 20)),  # Pillow 5528
        (b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0\xff\xfe\xff\0\0\0\0\0", (30, 20)),  # datasets 7668
        (b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x00\0\0\0\x06\0\0\0\0\0\0\0", (30, 20)),  # imageio 1158
    ],
)  # fmt: skip
def test_exif_that_is_malformed_stops_nobody(tmp_path: Path, exif: bytes, size: tuple[int, int]) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_with(exif))
    assert image_size(tmp_path / "a.jpg") == size
    assert load_image(tmp_path / "a.jpg").shape == (*size[::-1], 3)


def test_pillow_7839_exif_that_cannot_be_written_again_turns_an_image_in_memory() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(jpeg_with(exif.tobytes()))) as image:
        image.getexif()[0x9C9B] = object()  # of a type that cannot be written, as a tag of a wrong type is
        assert load_image(image).shape == (30, 20, 3)


# ---- subtitles


def cues(tmp_path: Path, text: str, name: str = "a.srt") -> list[tuple[float, float, str]]:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    return [tuple(cue) for cue in read_cues(tmp_path / name)]


def test_pysrt_25_times_without_a_fraction(tmp_path: Path) -> None:
    text = "1\n00:00:20 --> 00:00:24\nI enjoy it.\n\n2\n00:00:24 --> 00:00:27,5\nBlessed.\n"
    assert cues(tmp_path, text) == [(20, 24, "I enjoy it."), (24, 27.5, "Blessed.")]


def test_srt_50_popcorn_314_blank_lines_at_the_start(tmp_path: Path) -> None:
    assert cues(tmp_path, "\ufeff\n\n\n1\n00:00:01,000 --> 00:00:02,000\nHi.\n") == [(1, 2, "Hi.")]


def test_pysubs2_11_cues_without_text_or_a_blank_line_between(tmp_path: Path) -> None:
    text = (
        "392\n00:29:27,46 --> 00:29:29,83\nI'm Liza.\n393\n00:30:00,00 --> 00:30:01,00\n\n\n394\n\n"
        "00:31:00,00 --> 00:31:01,00\nHere.\n395\n00:31:02,00 --> 00:31:03,00\n7\n"
    )
    assert cues(tmp_path, text) == [(1767.46, 1769.83, "I'm Liza."), (1860, 1861, "Here."), (1862, 1863, "7")]


def test_subtitleedit_2147_memento_69_blank_lines_inside_a_cue(tmp_path: Path) -> None:
    text = "9\n00:02:03,130 --> 00:02:06,100\nOne\n\ntwo\n\n\nthree\n\n10\n00:02:07,000 --> 00:02:08,000\n\n2\n\n"
    text += "11\n00:02:09,000 --> 00:02:10,000\nFour\n"
    assert [said for *_, said in cues(tmp_path, text)] == ["One two three", "2", "Four"]


def test_srt_92_numbers_that_look_like_times(tmp_path: Path) -> None:
    text = "1490\n01:58:16,824 --> 01:58:23,789\n<i> Austria-Hungary:\n1.567.202. </i>\n"
    assert cues(tmp_path, text) == [(7096.824, 7103.789, "Austria-Hungary: 1.567.202.")]


def test_vtt_times_without_hours_and_settings_without_a_space(tmp_path: Path) -> None:
    """subtitles 4, webvtt-py 2, node-webvtt 6, vtt.js 226."""
    text = (
        "WEBVTT\n\n00:11.000 --> 00:13.000align:start\nA\n\n59:16.403 --> 1:04:13.283\nB\n\n"
        "01:00:00.000-->01:00:01.000 line:0\nC\n"
    )
    assert cues(tmp_path, text, "a.vtt") == [(11, 13, "A"), (3556.403, 3853.283, "B"), (3600, 3601, "C")]


def test_webvtt_js_26_27_regions_styles_and_notes_are_no_cues(tmp_path: Path) -> None:
    text = (
        "WEBVTT\n\nREGION\nid:fred\nwidth:40%\n\nSTYLE\n::cue(b) { color: peachpuff; }\n\n"
        "intro\n00:00.000 --> 00:01.000 region:fred\nA\n\nNOTE\nnot shown\n\nsecond\n00:02.000 --> 00:03.000\nB\n"
    )
    assert [said for *_, said in cues(tmp_path, text, "a.vtt")] == ["A", "B"]


def test_subtitles_as_windows_saves_them(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_bytes("1\r\n00:00:01,000 --> 00:00:02,000\r\nÄh.\r\n".encode("utf-16"))
    assert [cue.text for cue in read_cues(tmp_path / "a.srt")] == ["Äh."]


# ---- short films


@pytest.mark.parametrize(
    ("num_frames", "rate", "shown"),
    [
        (9, 10.0, 8),  # lmms-eval 874, 1433: fewer frames than were asked for
        (5, 30.0, 5),
        (30, 30.0, 8),  # Qwen3-VL 1325: one second
        (90, 30.0, 8),  # 3 s, of which 2 a second would be 6: the release's clip(6, 8, ...)
        (150, 30.0, 10),
        (1, 30.0, 1),  # Qwen3-VL 1689: a picture as a film
    ],
)
def test_a_short_film_shows_min_frames_or_all_it_has(num_frames: int, rate: float, shown: int) -> None:
    assert max_frames_of(np.arange(num_frames) / rate, SamplingConfig()) == shown


def test_a_row_of_several_images_reads_them_in_their_order() -> None:
    """LLaVA-NeXT, LlamaFactory 6135: more tags than images are said, with both numbers."""
    row = {**chat_row("<image><image>Compare."), "images": ["a.png"]}
    with pytest.raises(DataError, match=r"the text has 2 <image> but the row lists 1 images"):
        parse_sample(row, root=Path("."), where="x:1")
