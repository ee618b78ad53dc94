"""Every flipped byte of a checkpoint is found, and the newest that is whole is taken."""

import json
import os
from pathlib import Path

import pytest

from eagle_model.checkpoints import CheckpointError, latest, steps, verify
from eagle_model.train.checkpoint import save


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
