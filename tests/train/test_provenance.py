"""Date, machine and versions are always there; the commit where there is a checkout."""

import subprocess

import torch

from eagle_model.train import provenance


def test_what_is_known_here():
    about = provenance.provenance("cpu")
    assert about["torch"] == torch.__version__ and about["device"] == "cpu"
    assert list(about)[:6] == ["date", "machine", "device", "python", "torch", "eagle_kernels"]


def test_a_commit_is_the_checkout_s_and_marked_where_files_changed(tmp_path):
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    assert provenance._commit(tmp_path) == ""
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    clean = provenance._commit(tmp_path)
    assert len(clean) == 10 and not clean.endswith("+")
    (tmp_path / "a").write_text("2")
    assert provenance._commit(tmp_path) == clean + "+"


def test_a_sentence_of_what_there_is():
    assert provenance.sentence({"torch": "2.13", "date": "today", "other": 3}) == "today; torch 2.13"
    assert provenance.sentence({}) == ""
