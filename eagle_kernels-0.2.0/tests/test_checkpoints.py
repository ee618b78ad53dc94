"""Every flipped byte of a checkpoint is found, and the newest that is whole is taken."""

import json
import os
import re
from pathlib import Path

import pytest

from eagle_model.checkpoints import (
    MAX_MANIFEST_BYTES,
    CheckpointError,
    FileEntry,
    Manifest,
    latest,
    listed_files,
    read_newest,
    steps,
    verify,
    verify_listed,
)
from eagle_model.train.checkpoint import prune, save


def write_some(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "training").mkdir()
    (folder / "training" / "state.json").write_text('{"step": 1}')


def must_not_speak(message: str) -> None:
    raise AssertionError(f"said: {message}")


def test_steps_are_in_the_order_of_numbers(tmp_path):
    for step in (20, 3, 1_000_000):
        save(tmp_path, step, "run", write_some)
    assert list(steps(tmp_path)) == [3, 20, 1_000_000]
    assert latest(tmp_path, must_not_speak).name == "step-1000000"
    assert steps(tmp_path / "absent") == {}
    assert latest(tmp_path / "absent", must_not_speak) is None


@pytest.mark.parametrize("name", ["model.safetensors", "training/state.json"])
def test_every_changed_byte_is_found(tmp_path, name):
    path = save(tmp_path, 1, "run", write_some)
    file = path / name
    good = file.read_bytes()
    for at in range(0, len(good), max(1, len(good) // 40)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(CheckpointError, match=rf"{name} has SHA-256 [0-9a-f]+; the manifest says [0-9a-f]+"):
            verify(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: os.truncate(p / "model.safetensors", 100),
            r"model\.safetensors has 100 bytes; the manifest says 10240",
        ),
        (lambda p: (p / "model.safetensors").unlink(), r"model\.safetensors is missing; the manifest lists it"),
        (lambda p: (p / "manifest.json").unlink(), r"manifest\.json is missing; every complete checkpoint has one"),
        (
            lambda p: os.truncate(p / "manifest.json", 50),
            r"manifest\.json cannot be read as a manifest: .*manifest\.json is not JSON: Unterminated string",
        ),
        (lambda p: (p / "manifest.json").write_text("[]"), r"manifest\.json cannot be read as a manifest: TypeError"),
        (lambda p: (p / "manifest.json").write_text("{}"), r"manifest\.json cannot be read as a manifest: KeyError"),
    ],
)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, damage, message):
    older, newer = (save(tmp_path, step, "run", write_some) for step in (1, 2))
    damage(newer)
    with pytest.raises(CheckpointError, match=message):
        verify(newer)
    said: list[str] = []
    assert latest(tmp_path, said.append) == older
    assert len(said) == 1
    assert said[0].startswith("Passing over step-000002: ")
    assert newer.is_dir()  # looking changes nothing


def test_several_can_share_the_checking(tmp_path):
    """Each checks the bytes of its share of the files, and the sizes of all: together they find what one would."""
    path = save(tmp_path, 1, "run", write_some)
    os.truncate(path / "model.safetensors", 10239)
    for i in range(3):
        with pytest.raises(CheckpointError, match="has 10239 bytes"):
            verify(path, share=(i, 3))
    (path / "model.safetensors").write_bytes(bytes(10240))
    found = []
    for i in range(3):
        try:
            verify(path, share=(i, 3))
        except CheckpointError:
            found.append(i)
    assert found == [0]

    def refuse(checkpoint: Path) -> None:
        raise CheckpointError(f"{checkpoint.name} is not for us")

    with pytest.raises(CheckpointError, match=r"No checkpoint in .* can be used\. step-000001 is not for us"):
        latest(tmp_path, lambda message: None, check=refuse)


def test_no_usable_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    os.truncate(save(tmp_path, 1, "run", write_some) / "model.safetensors", 3)
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* can be used\. .*model\.safetensors has 3 bytes"):
        latest(tmp_path, lambda message: None)


def test_a_manifest_cannot_name_files_outside(tmp_path):
    path = save(tmp_path, 1, "run", write_some)
    (tmp_path / "secret").write_text("x")
    for name, shown in (
        ("../secret", r"\.\./secret"),
        ("/secret", "/secret"),
        ("a\ud800", r"a\\\\?ud800"),
        ("a\n", r"a\\n"),
    ):
        forged = Manifest(step=1, run="run", files={name: FileEntry(1, "0")})
        (path / "manifest.json").write_text(json.dumps(forged.to_json()))
        with pytest.raises(CheckpointError, match=rf"lists '{shown}'; needs names inside the checkpoint"):
            verify(path)


def test_every_changed_byte_of_the_manifest_is_found(tmp_path):
    path = save(tmp_path, 1, "run", write_some)
    file = path / "manifest.json"
    good = file.read_bytes()
    meaning = json.loads(good)
    num_found = 0
    for at in range(len(good)):
        changed = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        try:
            if json.loads(changed) == meaning:  # another kind of blank between its words
                continue
        except ValueError:
            pass
        file.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"manifest\.json (cannot be read as a manifest|lists)"):
            verify(path)
        num_found += 1
    assert num_found > 300


def test_a_checkpoint_is_of_the_step_that_its_folder_says(tmp_path):
    path = save(tmp_path, 1, "run", write_some)
    other = path.rename(tmp_path / "step-000009")
    with pytest.raises(CheckpointError, match=r"manifest\.json is of step 1; its folder's name says step-000009"):
        verify(other)
    assert verify(other.rename(tmp_path / "best")).step == 1  # a copy under a name of its own


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "maximum recursion depth exceeded"),
        (b'{"step": 1e999, "run": "a", "files": {}, "sha256": ""}', "inf where int is needed"),
        (b'{"step": 2, "run": 3, "files": {}, "sha256": ""}', "3 where str is needed"),
        (b'{"step": 2, "run": "a", "files": {"a": {"num_bytes": true, "sha256": ""}}}', "True where int is needed"),
        (
            b'{"step": 2, "run": "a", "files": {"a": {"num_bytes": %s}}}' % (b"[" * 500 + b"]" * 500),
            r"TypeError\('\[\[\[",
        ),
        (b'{"step": 2, "run": "a", "files": {"a": 3}, "sha256": ""}', "TypeError"),
        (b'{"step": 2, "run": "a", "files": [], "sha256": ""}', "AttributeError"),
        (b'{"step": 2, "run": "a", "files": {}}', "KeyError"),
        (b'{"step": %s}' % (b"9" * 5000), "Exceeds the limit"),
        (b"\xff\xfe", "'utf-8' codec"),
        (b" " * (MAX_MANIFEST_BYTES + 1), f"has more than {MAX_MANIFEST_BYTES} bytes"),
        (None, "is no file"),  # a folder
    ],
)
def test_any_damaged_manifest_is_passed_over(tmp_path, content, message):
    older, newer = (save(tmp_path, step, "run", write_some) for step in (1, 2))
    (newer / "manifest.json").unlink()
    if content is None:
        (newer / "manifest.json").mkdir()
    else:
        (newer / "manifest.json").write_bytes(content)
    said: list[str] = []
    assert latest(tmp_path, said.append) == older
    assert len(said) == 1
    assert re.search(message, said[0]), said
    assert len(said[0]) < 500


def test_listed_files_that_cannot_be_read_are_passed_over(tmp_path):
    older, newer = (save(tmp_path, step, "run", write_some) for step in (1, 2))
    names = {
        "x" * 300: r"cannot be read: File name too long",
        "training": r"training is missing",
        "pipe": "pipe is missing",
    }
    os.mkfifo(newer / "pipe")  # never waited for
    for name, message in names.items():
        forged = Manifest(step=2, run="run", files={name: FileEntry(1, "0")})
        (newer / "manifest.json").write_text(json.dumps(forged.to_json()))
        said: list[str] = []
        assert latest(tmp_path, said.append) == older
        assert re.search(message, said[0]), said


def test_many_that_cannot_be_used_make_a_short_message(tmp_path):
    for step in range(30):
        (tmp_path / f"step-{step:06d}").mkdir()
    said: list[str] = []
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing.* And 27 more\.") as caught:
        latest(tmp_path, said.append)
    assert len(said) == 20
    assert str(caught.value).count("is missing") == 3


def test_only_names_that_a_save_gives_are_checkpoints(tmp_path):
    for name in (
        "step-000001",
        "step-0000002",
        "step-12",
        "step-\u0660\u0660\u0660\u0660\u0660\u0663",
        "step-000004.partial",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000005").write_text("no folder")
    assert list(steps(tmp_path)) == [1]


def test_only_what_is_about_to_be_read_is_checked(tmp_path):
    path = save(tmp_path, 1, "run", write_some)
    assert listed_files(path) == {"model.safetensors", "training/state.json"}
    (path / "training" / "state.json").write_text('{"step": 2}')
    (path / "other").write_text("")
    verify_listed(path, ["model.safetensors"])
    with pytest.raises(CheckpointError, match=r"state\.json has SHA-256"):
        verify_listed(path, ["model.safetensors", "training/state.json"])
    with pytest.raises(CheckpointError, match=r"other is not listed in manifest\.json: it is no part of the"):
        verify_listed(path, ["other"])
    (path / "manifest.json").unlink()  # as a released model's folder
    verify_listed(path, ["other", "training/state.json"])
    assert listed_files(path) is None


def test_the_newest_that_can_be_read_is_read(tmp_path):
    older, newer = (save(tmp_path / "checkpoints", step, "run", write_some) for step in (1, 2))

    def read(path: Path) -> Path:
        verify_listed(path, ["model.safetensors"])
        return path

    assert read_newest(tmp_path, read, must_not_speak) == newer
    assert read_newest(older, read, must_not_speak) == older  # a checkpoint's own folder
    (newer / "training" / "state.json").write_text("{}")  # not read, not checked
    assert read_newest(tmp_path, read, must_not_speak) == newer
    os.truncate(newer / "model.safetensors", 5)
    said: list[str] = []
    assert read_newest(tmp_path, read, said.append) == older
    assert len(said) == 1 and said[0].startswith("Passing over step-000002: ")
    with pytest.raises(CheckpointError, match="has 5 bytes"):
        read_newest(newer, read, must_not_speak)
    os.truncate(older / "model.safetensors", 5)
    with pytest.raises(CheckpointError, match=r"a run without a checkpoint that can be read\. .*has 5 bytes"):
        read_newest(tmp_path, read, said.append)
    with pytest.raises(FileNotFoundError, match="nowhere is no folder; needs that of a checkpoint or of a run"):
        read_newest(tmp_path / "nowhere", read)


def test_a_checkpoint_that_is_pruned_between_look_and_load_is_looked_for_again(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 1, "run", write_some)
    tried: list[str] = []

    def read(path: Path) -> bytes:
        tried.append(path.name)
        if len(tried) == 1:  # the trainer goes on meanwhile
            save(folder, 2, "run", write_some)
            prune(folder, "run", 1, must_not_speak)
        verify_listed(path, ["model.safetensors"])
        return (path / "model.safetensors").read_bytes()

    assert len(read_newest(tmp_path, read, must_not_speak)) == 10240
    assert tried == ["step-000001", "step-000002"]


def test_a_run_without_a_checkpoint_is_no_model(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a run without a checkpoint that can be read"):
        read_newest(tmp_path, must_not_speak)
