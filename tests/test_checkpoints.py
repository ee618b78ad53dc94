"""Every flipped byte of a checkpoint is found, and the newest that is whole is taken."""

import json
import os
from pathlib import Path

import pytest

from eagle_model.checkpoints import CheckpointError, latest, listed_files, read_newest, steps, verify, verify_listed
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


def test_no_usable_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    os.truncate(save(tmp_path, 1, "run", write_some) / "model.safetensors", 3)
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* can be used\. .*model\.safetensors has 3 bytes"):
        latest(tmp_path, lambda message: None)


def test_a_manifest_cannot_name_files_outside(tmp_path):
    path = save(tmp_path, 1, "run", write_some)
    (tmp_path / "secret").write_text("x")
    raw = json.loads((path / "manifest.json").read_text())
    raw["files"]["../secret"] = {"num_bytes": 1, "sha256": "0"}
    (path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"lists '\.\./secret'; needs names inside the checkpoint"):
        verify(path)


@pytest.mark.parametrize("damage", ["[" * 100_000, '{"files": {}, "step": 1e999, "run": "r"}', "directory", "\xff"])
def test_latest_passes_over_any_damaged_manifest(tmp_path, damage):
    older, newer = (save(tmp_path, step, "run", write_some) for step in (1, 2))
    (newer / "manifest.json").unlink()
    if damage == "directory":
        (newer / "manifest.json").mkdir()
    else:
        (newer / "manifest.json").write_text(damage, encoding="latin-1")
    said: list[str] = []
    assert latest(tmp_path, said.append) == older
    assert "manifest.json cannot be read as a manifest" in said[0]


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
