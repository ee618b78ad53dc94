"""Proxies: what they hold, that training reads them and no original, and that making them goes on where it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from eagle_kernels import video
from eagle_model.data import proxies as proxies_module
from eagle_model.data.clips import open_clip
from eagle_model.data.loader import DataConfig, Loader
from eagle_model.data.processor import Processor
from eagle_model.data.proxies import FAILED, SETTINGS, Proxies, ProxySettings, make_proxies
from eagle_model.data.sample import DataError, VideoRef
from eagle_model.fields import ConfigError
from tests.data.conftest import chat_row, tiny_config, write_video

TINY = ProxySettings(tile_px=56)
Recipe = Callable[..., Path]


def film_rows(*names: str) -> list[dict]:
    return [chat_row("<video>What moves?", video=name) for name in names]


@pytest.fixture
def films(tmp_path: Path, media: Path) -> Path:
    """A folder of its own: tests take originals away."""
    root = tmp_path / "films"
    root.mkdir()
    pattern = np.kron(np.random.default_rng(0).integers(40, 216, (12, 64, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    for name, num_frames in (("clip.mp4", 20), ("long.mp4", 60)):
        with av.open(str(root / name), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(num_frames):
                rgb = np.ascontiguousarray(pattern[:, i : i + 64])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode(None))
    (root / "cut.mp4").write_bytes((media / "cut.mp4").read_bytes())
    return root


@pytest.fixture
def few(recipe: Recipe, films: Path) -> Path:
    return recipe(film_rows("clip.mp4", "long.mp4", "clip.mp4"), root=str(films))


def test_a_proxy_holds_what_sampling_takes(few: Path, films: Path, tmp_path: Path) -> None:
    total = make_proxies(few, tmp_path / "proxies", TINY)
    assert (total.num_done, total.num_before, total.num_failed) == (2, 0, 0)
    assert total.num_frames == 4 + 12
    assert total.film_seconds == pytest.approx(8.0)
    assert total.least_psnr_db >= 40
    found = Proxies.open(tmp_path / "proxies", base=few.parent, tile_px=56)
    proxy = found.of(VideoRef(films / "long.mp4"))
    assert proxy is not None
    own = video.probe(films / "long.mp4").frame_times_seconds
    times = np.asarray(proxy.facts.frame_times_seconds)
    assert set(times.tolist()) <= set(own.tolist()), "bit for bit"
    assert (times[0], times[-1], len(times)) == (0.0, own[-1], 12)
    info = video.probe(proxy.path)
    assert (info.width_px, info.height_px, info.num_frames) == (56, 56, 12)
    assert total.num_bytes == sum(path.stat().st_size for path in (tmp_path / "proxies").glob("*/*.mp4"))


def test_samples_are_planned_and_loaded_without_originals(
    few: Path, films: Path, tmp_path: Path, processor: Processor
) -> None:
    make_proxies(few, tmp_path / "proxies", TINY)
    found = Proxies.open(tmp_path / "proxies", base=few.parent)
    config = DataConfig(recipe=str(few), num_workers=1)
    with Loader(config, processor) as loader:
        originals = next(loader)
    for path in films.iterdir():
        path.unlink()
    with Loader(replace(config, proxies=str(tmp_path / "proxies")), processor) as loader:
        batch = next(loader)
        assert loader.skipped == []
    assert torch.equal(batch.token_ids_T, originals.token_ids_T), "at this rate the frames are the same"
    assert batch.num_not_in_proxies == 0
    off = (batch.patches_IPK.float() - originals.patches_IPK.float()).abs()
    assert off.max() > 0
    assert off.square().mean() < 4 * 1e-4, "40 dB, of numbers from -1 to 1"
    clip = open_clip(VideoRef(films / "long.mp4", 1.0, 4.0), proxies=found)
    times = np.asarray(clip.frame_times_seconds)
    assert ((times >= 1.0) & (times < 4.0)).all()
    assert len(times) in (5, 6)
    assert clip.duration_seconds == pytest.approx(3.0)


def test_a_frame_that_a_proxy_lacks_is_read_from_the_original_and_counted(
    few: Path, films: Path, tmp_path: Path, processor: Processor, tokenizer: Tokenizer
) -> None:
    make_proxies(few, tmp_path / "proxies", TINY)
    found = Proxies.open(tmp_path / "proxies", base=few.parent)
    sample = next(iter(_samples(few)))
    dense = Processor(tokenizer, tiny_config(frames_per_second=5.0, max_frames=10))
    plan = dense.plan_sample(sample)  # as an index does that was made without proxies
    (times,) = plan.visual.timestamps_seconds
    proxy = found.of(sample.videos[0])
    assert proxy is not None
    lacks = np.array(proxy.lacks(times))
    assert 0 < lacks.sum() < len(times)
    assert found.num_lacking([(sample.videos[0], times)]) == lacks.sum()
    originals = dense.load_sample(plan).patches_IPK
    mixed = dense.load_sample(plan, proxies=found).patches_IPK
    same = (mixed == originals).flatten(1).all(1).numpy()
    assert same[lacks].all()
    assert not same[~lacks].all()
    assert (mixed - originals).float().square().mean() < 4e-4
    part = dense.load_sample(plan, tiles=(1, 4), proxies=found).patches_IPK
    assert torch.equal(part, mixed[1:4])
    assert found.num_lacking([(VideoRef(films / "cut.mp4"), (0.0, 1.0))]) == 2, "of one without a proxy all are"


def _samples(recipe: Path) -> list:
    from eagle_model.data.recipe import read_recipe
    from eagle_model.data.rows import read_samples

    return [sample for source in read_recipe(recipe) for sample in read_samples(source)]


def test_the_loader_counts_frames_of_originals(
    recipe: Recipe, films: Path, tmp_path: Path, processor: Processor
) -> None:
    make_proxies(recipe(film_rows("clip.mp4"), root=str(films)), tmp_path / "proxies", TINY)
    both = recipe(film_rows("clip.mp4", "long.mp4"), root=str(films))
    config = DataConfig(recipe=str(both), num_workers=1, proxies=str(tmp_path / "proxies"))
    with Loader(config, processor) as loader:
        assert next(loader).num_not_in_proxies == 12


def test_making_goes_on_where_it_ended(few: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "proxies"
    write = proxies_module._write

    def killed(*args: object) -> tuple[int, float]:
        if args[0].info.path.name == "long.mp4":  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(proxies_module, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        make_proxies(few, out, TINY)
    assert len(list(out.glob("*/*.json"))) == len(list(out.glob("*/*.mp4"))) == 1
    assert not list(out.glob("*/*.tmp"))
    monkeypatch.setattr(proxies_module, "_write", write)
    (done,) = out.glob("*/*.mp4")
    stamp = done.stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    total = make_proxies(few, out, TINY, progress=lambda *numbers: seen.append(numbers))
    assert (total.num_done, total.num_before) == (2, 1)
    assert seen == [(1, 2), (2, 2)]
    assert done.stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_processes_make_the_same_as_one(few: Path, tmp_path: Path) -> None:
    make_proxies(few, tmp_path / "one", TINY)
    make_proxies(few, tmp_path / "two", TINY, num_workers=2)
    for path in (tmp_path / "one").glob("*/*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_what_cannot_be_made_is_listed_and_the_others_are_made(
    recipe: Recipe, films: Path, tmp_path: Path, processor: Processor
) -> None:
    out = tmp_path / "proxies"
    rows = recipe(film_rows("clip.mp4", "cut.mp4", "none.mp4"), root=str(films))
    total = make_proxies(rows, out, TINY)
    assert (total.num_done, total.num_failed) == (1, 2)
    listed = [json.loads(line) for line in (out / FAILED).read_text().splitlines()]
    assert [entry["video"] for entry in listed] == ["films/cut.mp4", "films/none.mp4"]
    assert "none.mp4 does not exist" in listed[1]["why"]
    (films / "none.mp4").write_bytes((films / "long.mp4").read_bytes())
    (films / "cut.mp4").write_bytes((films / "long.mp4").read_bytes())
    assert make_proxies(rows, out, TINY).num_failed == 0
    assert not (out / FAILED).exists()


def test_the_loss_that_was_asked_for_is_kept(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise: the first crf is far off, and a coarser one is enough for a lower bound."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 56, 56, 3), np.uint8)
    (tmp_path / "films").mkdir()
    with av.open(str(tmp_path / "films" / "noise.mp4"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=2, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 56, 56, "rgb24"
        for rgb in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
    rows = recipe(film_rows("noise.mp4"), root=str(tmp_path / "films"))
    crfs = []
    write = proxies_module._write
    monkeypatch.setattr(proxies_module, "_write", lambda *args: crfs.append(args[4]) or write(*args))
    for least in (30.0, 44.0):
        crfs.clear()
        out = tmp_path / f"proxies-{least}"
        total = make_proxies(rows, out, replace(TINY, min_psnr_db=least))
        assert total.least_psnr_db >= least
        assert crfs == sorted(crfs, reverse=True)
        (place,) = out.glob("*/*.json")
        record = json.loads(place.read_text())
        assert record["crf"] == crfs[-1]
        film, proxy = (video.open(p) for p in (tmp_path / "films" / "noise.mp4", place.with_suffix(".mp4")))
        pairs = zip(film.frames(record["frame_times_seconds"]), proxy.frames(proxy.info.frame_times_seconds))
        errors = [np.square(a.rgb_YX3.numpy().astype(float) - b.rgb_YX3.numpy()).mean() for a, b in pairs]
        assert 10 * np.log10(255**2 / np.mean(errors)) == pytest.approx(record["psnr_db"], abs=0.02)
    assert len(crfs) > 1


def test_proxies_of_another_kind_or_file_are_refused(few: Path, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "proxies"
    make_proxies(few, out, TINY)
    with pytest.raises(DataError, match=r"has proxies of other settings: .*tile_px=56.* Give those, or another folder"):
        make_proxies(few, out, replace(TINY, tile_px=112))
    with pytest.raises(DataError, match=r"proxies of 56 px, the run's tiles have 448"):
        Proxies.open(out, base=few.parent, tile_px=448)
    with pytest.raises(DataError, match=rf"holds no proxies: {SETTINGS} is missing"):
        Proxies.open(tmp_path, base=few.parent)
    write_video(films / "clip.mp4", num_frames=40)
    found = Proxies.open(out, base=few.parent)
    with pytest.raises(DataError, match=r"clip\.mp4 has \d+ bytes, its proxy .* is of one of \d+\. Delete .*json and"):
        found.of(VideoRef(films / "clip.mp4"))
    proxy = found.of(VideoRef(films / "long.mp4"))
    assert proxy is not None
    place = proxy.path.with_suffix(".json")
    place.write_text(place.read_text().replace("original_bytes", "bytes_of"))
    os.utime(place, ns=(0, 0))
    with pytest.raises(DataError, match=r"no record of a proxy"):
        found.of(VideoRef(films / "long.mp4"))
    settings = json.loads((out / SETTINGS).read_text())
    (out / SETTINGS).write_text(json.dumps(settings | {"version": 0}))
    with pytest.raises(DataError, match="another version than 1"):
        Proxies.open(out, base=few.parent)


def test_data_and_proxies_move_together(few: Path, films: Path, tmp_path: Path) -> None:
    make_proxies(few, tmp_path / "proxies", TINY)
    (tmp_path / "proxies").rename(tmp_path / "elsewhere")
    found = Proxies.open(tmp_path / "elsewhere", base=tmp_path / "moved")
    assert found.of(VideoRef(tmp_path / "moved" / "films" / "clip.mp4")) is not None
    assert found.of(VideoRef(tmp_path / "films" / "clip.mp4")) is None
    found = Proxies.open(tmp_path / "elsewhere")
    assert found.of(VideoRef(tmp_path / "films" / "clip.mp4")) is not None, "beside the data, as it was"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames_per_second": 0.0}, "frames_per_second is 0"),
        ({"tile_px": 8}, "tile_px is 8"),
        ({"min_psnr_db": 50.0}, "min_psnr_db is 50.* at most 48"),
        ({"group_frames": 0}, "group_frames is 0"),
    ],
)
def test_settings_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProxySettings(**changes)
