"""What is shown with a question: media first, subtitles where their variant says, nothing outside of the folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eagle_model.data.sample import DataError
from eagle_model.evaluate.read import read
from eagle_model.evaluate.show import frame_times, parts
from eagle_model.evaluate.task import Question
from eagle_model.evaluate.tasks import TASKS
from tests.data.make_pdf import gray, write_pdf
from tests.evaluate.official import SETS


def question_of(name: str, folder: Path, film: Path | None = None, at: int = 0) -> Question:
    SETS[name].write(folder)
    found = list(read(TASKS[name], folder))[at]
    if film is not None:
        target = folder / found.video
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, target)
    return found


def kinds(content: list[dict]) -> list[str]:
    return [part["type"] for part in content]


def texts(content: list[dict]) -> list[str]:
    return [part["text"] for part in content if part["type"] == "text"]


def test_a_video_comes_first_with_its_clip(tmp_path: Path, film: Path) -> None:
    question = question_of("mvbench", tmp_path, film)
    content = parts(question, tmp_path, most_frames=64)
    assert content[0] == {"type": "video", "video": question.video, "start": 0.0, "end": 1.0}
    assert texts(content) == [question.text]


def test_a_server_gets_frames_with_their_times(tmp_path: Path, film: Path) -> None:
    question = question_of("videomme", tmp_path, film)
    content = parts(question, tmp_path, most_frames=64, no_videos=True)
    assert kinds(content).count("image") == 8  # three seconds at two a second are six; at least eight
    assert texts(content)[0] == "Frame 1 at 0.00 s: " and content[1]["detail"] == "low"
    assert kinds(parts(question, tmp_path, most_frames=3, no_videos=True)).count("image") == 3


def test_perception_tests_frames_are_tiled(tmp_path: Path, film: Path) -> None:
    content = parts(question_of("perception_test", tmp_path, film), tmp_path, most_frames=64)
    assert {part["detail"] for part in content if part["type"] == "image"} == {"auto"}


def test_folders_of_frames_at_three_a_second(tmp_path: Path) -> None:
    question = question_of("mvbench", tmp_path, at=2)
    folder = tmp_path / question.video
    folder.mkdir(parents=True)
    for i in range(12):  # four seconds; the clip is 1 to 3 s, pictures 3 to 8
        Image.new("L", (8, 8), 20 * i).save(folder / f"{i:05d}.jpg")
    content = parts(question, tmp_path, most_frames=64)
    shown = [part["image"].getpixel((0, 0))[0] for part in content if part["type"] == "image"]
    assert shown == pytest.approx([60, 80, 100, 120, 140, 160], abs=3)
    assert "Frame 1 at 1.00 s: " in texts(content)


SRT = "1\n00:00:00,400 --> 00:00:00,600\nHello.\n\n2\n00:00:02,700 --> 00:00:02,750\nBye.\n"


def test_subtitles_as_a_block_or_at_the_frames_shown(tmp_path: Path, film: Path) -> None:
    (tmp_path / "subtitle").mkdir()
    (tmp_path / "subtitle/v1.srt").write_text(SRT)
    block = parts(question_of("videomme_subtitles_block", tmp_path, film), tmp_path, most_frames=64)
    frames = parts(question_of("videomme_subtitles_frames", tmp_path, film), tmp_path, most_frames=64)
    assert texts(block)[0] == "What is said in the video:\nHello.\nBye.\n\n"
    assert texts(frames)[0] == "What is said in the video:\nHello.\n\n", "no frame is shown while Bye. is"
    (tmp_path / "subtitle/v1.srt").unlink()
    without = parts(question_of("videomme_subtitles_block", tmp_path, film), tmp_path, most_frames=64)
    assert texts(without)[0] == "Nothing is said in the video.\n"


def test_subtitles_between_the_frames_from_where_the_video_begins(tmp_path: Path, film: Path) -> None:
    question = question_of("longvideobench_subtitles", tmp_path, film)
    content = parts(question, tmp_path, most_frames=64)
    said = texts(content)
    at = said.index('Said: "Hello there."\n')  # 1.2 to 2.2 s of the film, 0.2 to 1.2 s of the video: middle 0.7 s
    times = [float(text.split()[3]) for text in said[:at]]
    assert times and max(times) < 0.7 + 1e-6 and float(said[at + 1].split()[3]) > 0.7
    assert not any("Too early" in text for text in said)


def test_images_stand_where_the_text_says(tmp_path: Path) -> None:
    question = question_of("mmmu", tmp_path)
    content = parts(question, tmp_path, most_frames=1)
    assert kinds(content) == ["text", "image", "text", "image", "text"]  # <image 2>, then <image 1> in an option
    assert texts(content)[0] == "Where is " and not any("<image" in text for text in texts(content))


def test_a_pdf_is_a_video_and_pages_for_a_server(tmp_path: Path) -> None:
    question = question_of("mmlongbench_doc", tmp_path)
    (tmp_path / "documents").mkdir()
    write_pdf(tmp_path / "documents/d.pdf", [gray(0), gray(255)])
    assert parts(question, tmp_path, most_frames=9)[0] == {"type": "video", "video": "documents/d.pdf"}
    assert kinds(parts(question, tmp_path, most_frames=9, no_videos=True)).count("image") == 2


def test_missing_files_and_ways_out_are_named(tmp_path: Path) -> None:
    question = question_of("videomme", tmp_path)
    with pytest.raises(DataError, match=r"question 001-1 of videomme: .*data/v1\.mp4 does not exist"):
        parts(question, tmp_path, most_frames=8)
    with pytest.raises(DataError, match="leads out of"):
        parts(replace(question, video="../v1.mp4"), tmp_path, most_frames=8)
    with pytest.raises(DataError, match="leads out of"):
        parts(replace(question, video="", images=("/etc/passwd",)), tmp_path, most_frames=8)


def test_another_suffix_of_a_video_is_found(tmp_path: Path, film: Path) -> None:
    question = question_of("videomme", tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(film, tmp_path / "data/v1.webm")
    assert parts(question, tmp_path, most_frames=8)[0]["video"] == "data/v1.webm"


def test_duration_is_told_where_seconds_are_asked_for(tmp_path: Path, film: Path) -> None:
    content = parts(question_of("charades_sta", tmp_path, film), tmp_path, most_frames=64)
    assert texts(content)[0] == "The video is 3.0 seconds long.\n"


def test_frame_times_are_two_a_second_at_least_eight(film: Path) -> None:
    from eagle_model.data.sample import VideoRef

    assert len(frame_times(VideoRef(film), 512)) == 8 and len(frame_times(VideoRef(film), 5)) == 5
    assert len(frame_times(VideoRef(film, 0.0, 0.5), 512)) == 5  # no more than there are
