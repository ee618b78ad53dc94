"""What clients name becomes a file of the server's own, or a 4xx sentence; nothing outside allowed folders is read."""

import base64
import contextlib
import os
import threading
from pathlib import Path

import pytest

from eagle_model.infer import media
from eagle_model.infer.fetch import RequestError
from eagle_model.infer.media import MediaLimits, MediaStore


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(b"film a")
    (folder / "deep/b.pdf").write_bytes(b"paper b")
    (tmp_path / "secret").write_bytes(b"secret")
    return folder


def store(tmp_path: Path, **limits) -> MediaStore:
    (tmp_path / "store").mkdir(exist_ok=True)
    return MediaStore(tmp_path / "store", MediaLimits(**limits))


def content(kept: MediaStore, url: str) -> bytes:
    with kept.holding() as path_of:
        return path_of(url, "video").read_bytes()


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_data_urls_become_files_named_by_their_content(tmp_path):
    kept = store(tmp_path)
    with kept.holding() as path_of:
        first, again = path_of(data_url(b"abc"), "image"), path_of("data:text/plain,abc", "image")
        paper = path_of(data_url(b"%PDF-1.7 ..."), "video")
        lines = path_of(f"data:;base64,{base64.encodebytes(bytes(90)).decode()}", "image")
    assert lines.read_bytes() == bytes(90)
    assert first == again and first.read_bytes() == b"abc" and first.parent == kept.folder
    assert paper.suffix == ".pdf"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:image/png;base64", "is no data URL"),
        ("data:image/png;base64,ab$", "base64 cannot be read"),
        ("data:image/png;base64,", "the file is empty"),
        ("ftp://host/a", "needs a data URL, the id of a file sent to /v1/files"),
        ("/etc/passwd", "needs a data URL"),
        ("https://example.org/a.png", "fetches nothing by http"),
        ("file-" + "0" * 32, "there is no file"),
    ],
)
def test_what_is_no_medium_is_a_sentence(tmp_path, url, said):
    with pytest.raises(RequestError, match=said):
        content(store(tmp_path), url)


def test_files_of_an_allowed_folder(tmp_path, films):
    kept = store(tmp_path, allowed=(films,))
    assert content(kept, f"file://{films}/a.mp4") == b"film a"
    assert (films / "a.mp4").stat().st_nlink == 2  # a second name, no copy
    assert content(kept, f"file://localhost{films}/deep/b%2Epdf") == b"paper b"
    with kept.holding() as path_of:
        assert path_of(f"file://{films}/deep/b.pdf", "video").suffix == ".pdf"
    with pytest.raises(ValueError, match="is no folder"):
        store(tmp_path, allowed=(tmp_path / "nowhere",))


def test_nothing_else_is_read(tmp_path, films):
    (films / "link.mp4").symlink_to(tmp_path / "secret")
    (films / "inner.mp4").symlink_to(films / "a.mp4")
    (films / "up").symlink_to(tmp_path)
    os.mkfifo(films / "pipe.mp4")
    kept = store(tmp_path, allowed=(films,))
    paths = [
        f"{films}/../secret", f"{films}/%2e%2e/secret", f"{films}/link.mp4", f"{films}/inner.mp4", f"{films}/up/secret",
        f"{films}/pipe.mp4", f"{films}/deep", f"{films}", f"{films}/none.mp4", f"{films}/a.mp4/x", f"{tmp_path}/secret",
        "/dev/zero", f"{films}/a.mp4%00", f"{films}/\ud800", f"{films}/{'x' * 300}", f"/proc/self/root{films}/a.mp4",
        f"{films}x/a.mp4",
    ]  # fmt: skip
    for path in paths:
        with pytest.raises(RequestError, match="no regular file of a folder that this server allows") as raised:
            content(kept, f"file://{path}")
        assert raised.value.status == 403
    with pytest.raises(RequestError, match="no regular file"):
        content(kept, f"file://elsewhere{films}/a.mp4")
    with pytest.raises(RequestError, match="no regular file"):
        content(store(tmp_path), f"file://{films}/a.mp4")


@pytest.mark.parametrize("can_link", [True, False])
def test_a_file_that_is_swapped_after_the_check_is_read_as_it_was(monkeypatch, tmp_path, films, can_link):
    """At the latest moment: once open, its name leads elsewhere."""
    opened = media._open_beneath

    def swap(folder, parts):
        descriptor = opened(folder, parts)
        os.rename(films / "a.mp4", films / "moved.mp4")
        (films / "a.mp4").symlink_to(tmp_path / "secret")
        return descriptor

    def refuse(*_, **__):
        raise OSError("another disk")

    monkeypatch.setattr(media, "_open_beneath", swap)
    if not can_link:
        monkeypatch.setattr(media.os, "link", refuse)
    with store(tmp_path, allowed=(films,)).holding() as path_of:
        assert path_of(f"file://{films}/a.mp4", "video").read_bytes() == b"film a"


def test_a_file_that_is_swapped_while_it_is_asked_for_never_gives_another(tmp_path, films):
    """A thread that swaps a file for a link outside and back, as fast as it can."""
    kept, end = store(tmp_path, allowed=(films,)), threading.Event()
    (tmp_path / "good").write_bytes(b"film a")

    def swap():
        while not end.is_set():
            for target in (tmp_path / "good", None):
                beside = films / "beside"
                beside.symlink_to(tmp_path / "secret") if target is None else beside.write_bytes(b"film a")
                os.replace(beside, films / "a.mp4")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(300):
            with contextlib.suppress(RequestError):  # it was the link
                assert content(kept, f"file://{films}/a.mp4") == b"film a"
    finally:
        end.set()
        thread.join()


def test_uploads_stay_until_they_are_deleted(tmp_path):
    kept = store(tmp_path, max_store_bytes=10)
    one = kept.upload([b"123", b"456"], name="Film.MP4")
    assert (one.name, one.num_bytes, kept.uploads()) == ("Film.MP4", 6, [one])
    assert content(kept, one.id) == b"123456"
    with pytest.raises(RequestError, match="keeps 6 bytes of files and has no room for 5 more") as raised:
        kept.upload([b"12345"], name="b")
    assert raised.value.status == 507
    kept.delete(one.id)
    with pytest.raises(RequestError, match="there is no file"):
        kept.get(one.id)
    kept.upload([b"12345"], name="paper.pdf")
    assert [path.suffix for path in kept.folder.iterdir()] == [".pdf"]


def test_files_leave_when_others_need_their_room_but_not_while_they_are_read(tmp_path):
    kept = store(tmp_path, max_store_bytes=10)
    with kept.holding() as path_of:
        path_of("data:,first", "image")
        path_of("data:,next1", "image")
        with pytest.raises(RequestError, match="no room for 1 more"):
            path_of("data:,3", "image")
    assert content(kept, "data:,first") == b"first"  # used again, so the other is older
    content(kept, "data:,1")
    assert sorted(path.read_bytes() for path in kept.folder.iterdir()) == [b"1", b"first"]


def test_a_file_that_is_too_large_leaves_nothing_behind(tmp_path, films):
    kept = store(tmp_path, max_file_bytes=5, allowed=(films,))
    for ask in (lambda: kept.upload([b"1234", b"56"], name="a"), lambda: content(kept, f"file://{films}/a.mp4")):
        with pytest.raises(RequestError, match="larger than 5 bytes") as raised:
            ask()
        assert raised.value.status == 413
    for url in ("data:," + "x" * 16, "data:,123456"):
        with pytest.raises(RequestError, match="larger than 5 bytes"):
            content(kept, url)
    assert not list(kept.folder.iterdir())
