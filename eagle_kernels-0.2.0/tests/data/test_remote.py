"""Media from servers on this machine: what is fetched, what is kept, and one sentence for whatever goes wrong."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from eagle_kernels import video
from eagle_kernels.video.ranged import Unreachable
from eagle_model.data import remote
from eagle_model.data.index import open_index
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.prepare import prepare
from eagle_model.data.processor import Processor
from eagle_model.data.remote import BLOCK_BYTES, RemoteConfig, RemoteFile, local_file
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DataError
from eagle_model.fields import ConfigError
from tests.data.conftest import chat_row, write_image
from tests.data.http_files import Server, serving

pytest.importorskip("fsspec", reason="needs fsspec (the extra `remote`)")
pytest.importorskip("aiohttp", reason="needs aiohttp (the extra `remote`)")

LARGE = 3 * remote.BLOCKS_A_REQUEST * BLOCK_BYTES // 2 + 5  # more than one request


def write_noise(path: Path, num_bytes: int, seed: int = 0) -> bytes:
    content = np.random.default_rng(seed).bytes(num_bytes)
    path.write_bytes(content)
    return content


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "files").mkdir()
    with serving(tmp_path / "files") as found:
        yield found


@pytest.fixture
def config(server: Server, tmp_path: Path) -> RemoteConfig:
    return RemoteConfig(
        prefixes=(server.url(""),), cache_folder=str(tmp_path / "cache"), timeout_seconds=30, num_retries=1
    )


def changed(config: RemoteConfig, **changes: object) -> RemoteConfig:
    from dataclasses import replace

    return replace(config, **changes)  # type: ignore[arg-type]


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_checked", {})


def test_all_of_an_object_once(server: Server, config: RemoteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write_noise(server.folder / "a b.bin", LARGE)
    file = config.file(server.url("a%20b.bin"))
    server.folder.joinpath("a%20b.bin").write_bytes(content)
    assert file.path.name == "a_b.bin"
    assert file.fetch().read_bytes() == content
    spans = [span for command, _, span in server.asked if command == "GET" and span]
    assert sum(end - start for start, end in spans) == LARGE
    num_asked = len(server.asked)
    assert pickle.loads(pickle.dumps(file)).fetch().read_bytes() == content
    assert len(server.asked) == num_asked, "nobody is asked again"
    new_process(monkeypatch)
    file.fetch()
    assert [command for command, *_ in server.asked[num_asked:]] == ["HEAD"], "once a process"


def test_parts_alone(server: Server, config: RemoteConfig) -> None:
    content = write_noise(server.folder / "a.bin", 40 * BLOCK_BYTES + 3)
    entry = config.file(server.url("a.bin")).open()
    entry.need(np.array([5, 20 * BLOCK_BYTES]), np.array([10, 1]))
    asked = [span for command, _, span in server.asked if command == "GET"]
    assert sorted(asked) == [(0, BLOCK_BYTES), (20 * BLOCK_BYTES, 21 * BLOCK_BYTES)]
    assert entry.pread(100, BLOCK_BYTES - 50) == content[BLOCK_BYTES - 50 : BLOCK_BYTES + 50]
    assert entry.pread(100, len(content) - 2) == content[-2:]
    assert entry.pread(100, len(content) + 5) == b""
    entry.close()
    used = entry._place.stat().st_blocks * 512
    assert used <= 5 * BLOCK_BYTES, "the rest takes no room"


def test_a_video_is_read_in_parts_and_its_tiles_are_those_of_the_file(
    server: Server, config: RemoteConfig, processor: Processor, media: Path
) -> None:
    for name in ("long.mp4", "square.png"):
        (server.folder / name).write_bytes((media / name).read_bytes())
    rows = [
        chat_row("<video><image>What?", video=f"{base}long.mp4", image=f"{base}square.png")
        for base in ("", server.url(""))
    ]
    here, there = (
        processor.load_sample(processor.plan_sample(parse_sample(row, root=media, where="row", remote=config)))
        for row in rows
    )
    assert torch.equal(here.patches_IPK, there.patches_IPK)
    assert torch.equal(here.tokens.token_ids_T, there.tokens.token_ids_T)


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ("slow", r"no answer within remote\.timeout_seconds = 0\.4 s\. It was tried 2 times\."),
        ("dripping", r"no answer within remote\.timeout_seconds = 0\.4 s\. It was tried 2 times\."),
        ("breaks off", r"ClientPayloadError: .* It was tried 2 times\."),
        ("denies", r"access is denied"),
    ],
)
def test_a_bad_server_is_one_bad_sample_soon(
    server: Server, config: RemoteConfig, processor: Processor, mood: str, message: str
) -> None:
    write_noise(server.folder / "a.png", 3 * BLOCK_BYTES)
    server.mood = mood
    config = changed(config, timeout_seconds=0.4 if "no answer" in message else 30)
    row = chat_row("<image>What?", image=server.url("a.png"))
    sample = parse_sample(row, root=Path("."), where="row", remote=config)
    start = time.monotonic()
    with pytest.raises(DataError, match=rf"sample row: http://.*/a\.png: {message}"):
        processor.plan_sample(sample)
    assert time.monotonic() - start < 20


def test_a_failure_that_passes_is_tried_again(server: Server, config: RemoteConfig) -> None:
    content = write_noise(server.folder / "a.bin", 100)
    file = config.file(server.url("a.bin"))
    file.identity()
    server.mood = "fails once"
    assert file.fetch().read_bytes() == content


def test_a_server_without_ranges_gives_the_whole(server: Server, config: RemoteConfig) -> None:
    content = write_noise(server.folder / "a.bin", LARGE)
    server.mood = "no ranges"
    entry = config.file(server.url("a.bin")).open()
    assert entry.pread(10, LARGE - 10) == content[-10:]
    num_asked = len(server.asked)
    assert entry.pread(LARGE, 0) == content
    assert len(server.asked) == num_asked
    entry.close()


def test_no_such_object_and_no_server(server: Server, config: RemoteConfig) -> None:
    with pytest.raises(Unreachable, match=r"none\.bin: there is no such object\."):
        config.file(server.url("none.bin")).fetch()
    closed = changed(config, prefixes=("http://127.0.0.1:9/",))
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9/a: ClientConnectorError: .* It was tried 2 times"):
        closed.file("http://127.0.0.1:9/a").fetch()


def test_an_object_that_vanishes_is_said_so(server: Server, config: RemoteConfig) -> None:
    write_noise(server.folder / "a.bin", 10 * BLOCK_BYTES)
    entry = config.file(server.url("a.bin")).open()
    entry.pread(1, 0)
    (server.folder / "a.bin").unlink()
    assert len(entry.pread(10, 100)) == 10
    with pytest.raises(Unreachable, match="there is no such object"):
        entry.pread(1, 5 * BLOCK_BYTES)
    entry.close()


def test_a_changed_object_is_never_mixed(server: Server, config: RemoteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    write_noise(server.folder / "a.bin", 10 * BLOCK_BYTES)
    file = config.file(server.url("a.bin"))
    entry = file.open()
    entry.pread(1, 0)
    second = write_noise(server.folder / "a.bin", 10 * BLOCK_BYTES, seed=1)
    with pytest.raises(Unreachable, match=r"it was changed while it was read: etag:.* now"):
        entry.pread(1, 5 * BLOCK_BYTES)
    entry.close()
    assert file.fetch().read_bytes() == second, "who opens it anew sees the new one, all of it"
    third = write_noise(server.folder / "a.bin", 10 * BLOCK_BYTES + 1, seed=2)
    new_process(monkeypatch)
    assert file.fetch().read_bytes() == third


def test_what_an_index_pinned_is_what_is_read(
    server: Server, config: RemoteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_noise(server.folder / "a.bin", 100)
    tag = config.file(server.url("a.bin")).identity().tag
    pinned = config.file(server.url("a.bin"), pin=tag)
    assert pinned.fetch().read_bytes() == first
    write_noise(server.folder / "a.bin", 100, seed=1)
    new_process(monkeypatch)
    num_asked = len(server.asked)
    assert pinned.fetch().read_bytes() == first, "it is kept"
    assert len(server.asked) == num_asked
    other = config.file(server.url("a.bin"), pin="etag:older")
    with pytest.raises(Unreachable, match=r"another object than the index knows: etag:.* now, etag:older then"):
        other.fetch()


def test_the_cache_is_bounded_and_keeps_what_was_used_last(server: Server, config: RemoteConfig) -> None:
    most = 20 * BLOCK_BYTES
    small = changed(config, cache_bytes=most)
    files = []
    for i in range(8):
        write_noise(server.folder / f"{i}.bin", 4 * BLOCK_BYTES, seed=i)
        files.append(small.file(server.url(f"{i}.bin")))
        files[-1].fetch()
        files[0].fetch()
        kept = list(Path(small.cache_folder).glob("??/*/*.bin"))
        assert sum(place.stat().st_blocks * 512 for place in kept) <= most
        assert files[0].path in kept
    assert files[7].path in kept
    assert files[1].path not in kept
    num_asked = len(server.asked)
    assert (
        hashlib.sha256(files[1].fetch().read_bytes()).digest()
        == hashlib.sha256((server.folder / "1.bin").read_bytes()).digest()
    ), "what was deleted is fetched again"
    assert len(server.asked) > num_asked
    write_noise(server.folder / "large.bin", most + 1)
    with pytest.raises(Unreachable, match=rf"has {most + 1} bytes, remote\.cache_bytes is {most}\. Raise it"):
        small.file(server.url("large.bin")).fetch()


def test_many_threads_share_it(server: Server, config: RemoteConfig) -> None:
    content = write_noise(server.folder / "a.bin", 30 * BLOCK_BYTES)
    file = config.file(server.url("a.bin"))

    def read(i: int) -> bool:
        entry = file.open()
        try:
            at = i * 3 * BLOCK_BYTES // 2
            return entry.pread(BLOCK_BYTES, at) == content[at : at + BLOCK_BYTES]
        finally:
            entry.close()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(20)))


def test_another_thread_stops_a_wait(server: Server, config: RemoteConfig) -> None:
    write_noise(server.folder / "a.bin", 100)
    server.mood, stop = "slow", threading.Event()
    threading.Timer(0.2, stop.set).start()
    start = time.monotonic()
    with pytest.raises(CancelledError):
        local_file(changed(config, timeout_seconds=60).file(server.url("a.bin")), stop)
    assert time.monotonic() - start < 20


def test_the_time_limit_of_a_video_holds_while_it_is_fetched(server: Server, config: RemoteConfig) -> None:
    write_noise(server.folder / "a.mp4", 100)
    file = changed(config, timeout_seconds=60).file(server.url("a.mp4"))
    file.identity()
    server.mood = "slow"
    with pytest.raises((Unreachable, video.VideoError), match=r"time_limit_seconds = 0\.3 s"):
        video.open(file.path, ranged=file, time_limit_seconds=0.3)


# ---- which URLs


@pytest.mark.parametrize(
    "url",
    [
        "https://other.org/a.png",
        "https://host.org.evil.com/set/a.png",
        "https://host.org/set/../a.png",
        "https://host.org/set/%2e%2e/a.png",
        "https://host.org/set/./a.png",
        "https://host.org/set/a\n.png",
        "https://host.org/set/" + "a" * 3000,
        "s3://films2/a.mp4",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
    ],
)
def test_no_other_url_is_taken(url: str) -> None:
    config = RemoteConfig(prefixes=("https://host.org/set/", "s3://films/"), cache_folder="cache")
    with pytest.raises(DataError, match=r"^row 1: image"):
        parse_sample(chat_row("<image>", image=url), root=Path("."), where="row 1", remote=config)


def test_a_url_is_a_medium_where_it_is_allowed(tmp_path: Path) -> None:
    config = RemoteConfig(prefixes=("s3://films/",), cache_folder=str(tmp_path))
    row = chat_row("<video>", video={"path": "s3://films/a/walk.mp4", "start": 1})
    (film,) = parse_sample(row, root=Path("."), where="row", remote=config).videos
    assert film.remote == RemoteFile("s3://films/a/walk.mp4", config)
    assert film.path == film.remote.path
    assert film.path.is_relative_to(tmp_path)
    assert (film.path.name, film.start_seconds) == ("walk.mp4", 1.0)
    with pytest.raises(DataError, match=r"nothing is fetched\. Download it and give its path, or set data\.remote"):
        parse_sample(row, root=Path("."), where="row")
    local = parse_sample(chat_row("<image>", image="a.png"), root=Path("x"), where="row", remote=config)
    assert local.images[0].remote is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefixes": ()}, r"remote\.prefixes is empty"),
        ({"prefixes": ("https://host.org",)}, r"needs a URL of s3, gs, hf, https, http that ends in /"),
        ({"prefixes": ("s3:///",)}, r"needs a URL"),
        ({"prefixes": ("file:///data/",)}, r"needs a URL"),
        ({"cache_folder": ""}, r"remote\.cache_folder is empty"),
        ({"cache_bytes": 1}, r"remote\.cache_bytes is 1"),
        ({"timeout_seconds": 0}, r"remote\.timeout_seconds is 0"),
        ({"num_retries": -1}, r"remote\.num_retries is -1"),
        ({"num_requests": 0}, r"remote\.num_requests is 0"),
    ],
)
def test_a_config_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RemoteConfig(**{"prefixes": ("s3://a/",), "cache_folder": "cache"} | changes)


def test_a_missing_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    config = RemoteConfig(prefixes=("gs://a/",), cache_folder=str(tmp_path))
    with pytest.raises(ImportError, match=r"gs:// needs a package: pip install 'eagle-kernels\[remote\]'"):
        config.file("gs://a/b").fetch()


# ---- a service like S3


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("s3fs", reason="needs s3fs (the extra `remote`)")
    servers = pytest.importorskip("moto.server", reason="needs moto and flask (the extra `dev`)")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    server = servers.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_objects_of_s3(store: str, tmp_path: Path, media: Path) -> None:
    import s3fs

    files = s3fs.S3FileSystem(endpoint_url=store, skip_instance_cache=True)
    files.mkdir("films")
    files.pipe_file("films/set/long.mp4", (media / "long.mp4").read_bytes())
    content = np.random.default_rng(0).bytes(5 * BLOCK_BYTES)
    files.pipe_file("films/set/a.bin", content)
    config = RemoteConfig(
        prefixes=("s3://films/set/",), cache_folder=str(tmp_path), s3_endpoint=store, num_retries=0, timeout_seconds=20
    )
    film = config.file("s3://films/set/long.mp4")
    found = video.open(film.path, ranged=film)
    here = video.open(media / "long.mp4")
    for a, b in zip(found.frames([0.0, 4.0]), here.frames([0.0, 4.0]), strict=True):
        assert torch.equal(a.rgb_YX3, b.rgb_YX3)
    file = config.file("s3://films/set/a.bin")
    entry = file.open()
    assert entry.pread(10, 3 * BLOCK_BYTES) == content[3 * BLOCK_BYTES :][:10]
    assert file.identity().tag == f'etag:"{hashlib.md5(content).hexdigest()}"'
    files.pipe_file("films/set/a.bin", content[::-1])
    with pytest.raises(Unreachable, match="it was changed while it was read"):
        entry.pread(1, 0)
    entry.close()
    with pytest.raises(Unreachable, match=r"s3://films/set/none: there is no such object"):
        config.file("s3://films/set/none").fetch()


# ---- prepared


def test_a_prepared_folder_pins_what_it_saw(
    server: Server,
    config: RemoteConfig,
    processor: Processor,
    media: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("long.mp4", "square.png"):
        (server.folder / name).write_bytes((media / name).read_bytes())
    rows = [
        chat_row("<image>What?", image=server.url("square.png")),
        chat_row("<video>What?", video=server.url("long.mp4")),
        chat_row("What?"),
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "prepared"
    done = prepare(tmp_path / "rows.jsonl", processor, out, remote=config)
    assert (done["rows"], done["skipped"]) == (3, 0)
    new_process(monkeypatch)
    with Prefetch(1) as prefetch:
        index = open_index(out, processor, prefetch, remote=config)
        in_memory = open_index(tmp_path / "rows.jsonl", processor, prefetch, remote=config)
        with pytest.raises(DataError, match=r"was prepared with media that lie elsewhere\. Set data\.remote"):
            open_index(out, processor, prefetch)
    assert index.tokens.tolist() == in_memory.tokens.tolist()
    plans = [index.plan(i) for i in range(3)]
    assert [p.visual for p in plans] == [in_memory.plan(i).visual for i in range(3)]
    assert [None if m.remote is None else m.remote.pin[:5] for p in plans for m in p.sample.media] == ["etag:"] * 2
    write_image(server.folder / "square.png", 56, 56, level=7)
    shutil.rmtree(config.cache_folder)
    new_process(monkeypatch)
    with pytest.raises(DataError, match=r"square\.png: it is another object than the index knows"):
        processor.load_sample(plans[0])
    assert processor.load_sample(plans[1]).patches_IPK.shape[0] == plans[1].num_tiles
