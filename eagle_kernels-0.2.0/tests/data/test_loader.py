"""Nothing lost, nothing reordered by threads, exact resume, and one policy for bad samples."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.data.loader import DataConfig, Loader
from eagle_model.data.processor import LoadedSample, Processor, SamplePlan
from eagle_model.data.sample import DataError
from tests.data.conftest import chat_row, tiny_config

Recipe = Callable[..., Path]
MEDIA = [{}, {"image": "wide.png"}, {"video": "clip.mp4"}, {"image": "square.png", "video": "long.mp4"}]
ROWS = [chat_row(f"Question {i}?", f"Answer {i}.", id=f"s{i}", **MEDIA[i % 4]) for i in range(22)]


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, tiny_config(context_tokens=512, max_frames=8))


def with_limits(processor: Processor, **changes: int) -> Processor:
    sampling = replace(processor.config.sampling, **changes)
    return Processor(processor.tokenizer, replace(processor.config, sampling=sampling))


def config_of(recipe: Path, **changes: object) -> DataConfig:
    return DataConfig(recipe=str(recipe), **changes)  # type: ignore[arg-type]


@contextmanager
def loader_of(recipe: Path, processor: Processor, **changes: object) -> Iterator[Loader]:
    with Loader(config_of(recipe, **changes), processor) as loader:
        yield loader


def assert_same(a: PackedBatch, b: PackedBatch) -> None:
    assert a.sample_ids == b.sample_ids
    for name in ("token_ids_T", "labels_T", "positions_T", "cu_seqlens", "patches_IPK", "visual_rows_N"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def epoch_of(loader: Loader) -> list[PackedBatch]:
    return list(islice(loader, loader.num_rows))


# ---- the stream


def test_batches_are_whole(recipe: Recipe, processor: Processor) -> None:
    with loader_of(recipe(ROWS), processor) as loader:
        assert loader.num_samples == 22
        for batch in epoch_of(loader):
            assert batch.num_tokens <= 512
            assert batch.cu_seqlens[-1] == batch.num_tokens == batch.labels_T.numel() == batch.positions_T.numel()
            assert batch.visual_rows_N.numel() == batch.patches_IPK.shape[0] * 4
            context_id = loader.processor.encoder.context_id
            assert (batch.token_ids_T == context_id).nonzero().flatten().tolist() == batch.visual_rows_N.tolist()
            for s, (start, end) in enumerate(zip(batch.cu_seqlens, batch.cu_seqlens[1:])):
                labels = batch.labels_T[start:end]
                answer = processor.tokenizer.decode(labels[labels != IGNORE_INDEX].tolist(), skip_special_tokens=False)
                assert answer == f"Answer {batch.sample_ids[s][1:]}.<|im_end|>"
                assert labels[-1] == IGNORE_INDEX


def test_every_sample_comes_exactly_as_often_as_it_should(recipe: Recipe, processor: Processor) -> None:
    with loader_of(recipe(ROWS, repeat_time=2.5), processor) as loader:
        for _ in range(3):
            seen = Counter(name for batch in epoch_of(loader) for name in batch.sample_ids)
            assert seen == {f"s{i}": 2 + i % 2 for i in range(22)}


def test_sources_are_mixed_and_keep_their_own_tile_limit(recipe: Recipe, processor: Processor, media: Path) -> None:
    path = recipe([chat_row(image="wide.png", id="few")], max_dynamic_tiles=1)
    fields = json.loads(path.read_text())
    (path.parent / "more.json").write_text(json.dumps([chat_row(image="wide.png", id="many")]))
    fields["second"] = {"root": str(media), "annotation": "more.json"}
    path.write_text(json.dumps(fields))
    with loader_of(path, processor) as loader:
        (batch,) = epoch_of(loader)
        lengths = dict(zip(batch.sample_ids, batch.cu_seqlens.diff().tolist()))
        assert lengths["many"] - lengths["few"] == 3 * 4
        assert batch.patches_IPK.shape[0] == 1 + 4


def test_epochs_differ_and_seeds_differ_and_both_repeat(recipe: Recipe, processor: Processor) -> None:
    path = recipe(ROWS)

    def order(seed: int) -> list[list[tuple[str, ...]]]:
        with loader_of(path, processor, seed=seed) as loader:
            return [[batch.sample_ids for batch in epoch_of(loader)] for _ in range(2)]

    first, second = order(0)
    assert first != second
    assert order(0) == [first, second]
    assert order(1)[0] != first


def test_threads_change_nothing(recipe: Recipe, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(ROWS)
    with loader_of(path, processor, num_workers=1) as loader:
        one = list(islice(loader, 12))
    load = Processor.load_sample

    def uneven(self: Processor, plan: SamplePlan, **kwargs: object) -> LoadedSample:
        time.sleep(0.02 * (hash(plan.sample.id) % 3))  # later rows are often ready before earlier ones
        return load(self, plan, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Processor, "load_sample", uneven)
    with loader_of(path, processor, num_workers=4) as loader:
        for a, b in zip(one, loader):
            assert_same(a, b)


# ---- resume


def test_decode_workers_and_kept_indexes_change_nothing(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    path = recipe(ROWS)
    indexes = tmp_path / "made" / "indexes"
    with loader_of(path, processor) as loader:
        plain, state = epoch_of(loader), loader.state_dict()
    for _ in ("made", "read"):
        with loader_of(path, processor, num_decode_workers=2, index_folder=str(indexes)) as loader:
            assert list(indexes.iterdir()), "planning keeps them"
            for a, b in zip(plain, epoch_of(loader), strict=True):
                assert_same(a, b)
            assert loader.state_dict() == state
            loader.load_state_dict(state)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"DataConfig: index_folder is '.*file', which cannot be made \(File exists\)"):
        Loader(config_of(path, index_folder=str(tmp_path / "file")), processor)


def test_resume_is_exact_after_every_batch_and_across_epochs(recipe: Recipe, processor: Processor) -> None:
    path = recipe(ROWS)
    with loader_of(path, processor) as loader:
        num_batches = 2 * loader.num_rows + 3
        states, batches = [loader.state_dict()], []
        for batch in islice(loader, num_batches):
            batches.append(batch)
            states.append(loader.state_dict())
        assert loader.epoch == 2
    states = json.loads(json.dumps(states))
    with loader_of(path, processor, num_workers=3) as other:
        for k, state in enumerate(states[:-1]):
            other.load_state_dict(state)
            for a, b in zip(batches[k : k + 3], other):
                assert_same(a, b)
                assert other.state_dict() == states[k + 1]
                k += 1
    with loader_of(path, processor) as fresh:
        next(fresh)  # what was prefetched here is forgotten
        fresh.load_state_dict(states[4])
        assert_same(next(fresh), batches[4])


def context_alone(row: dict) -> list[dict]:
    """Its turns, and one more time as context."""
    return [*({**turn, "loss": False} for turn in row["conversations"]), *row["conversations"]]


def test_a_state_of_other_data_is_refused(recipe: Recipe, processor: Processor) -> None:
    path = recipe(ROWS)
    with loader_of(path, processor) as loader:
        state = loader.state_dict()
    for rows, seed, changes in [
        (ROWS[:-1], 0, {}),
        ([*ROWS[:-1], {**ROWS[-1], "conversations": context_alone(ROWS[-1])}], 0, {}),
        ([chat_row("Another 0?", id="s0"), *ROWS[1:]], 0, {}),
        (ROWS, 1, {}),
        (ROWS, 0, {"context_tokens": 600}),
        (ROWS, 0, {"max_frames": 3}),
    ]:
        with (
            loader_of(recipe(rows), with_limits(processor, **changes), seed=seed) as other,
            pytest.raises(ValueError, match=rf"other data: 22 samples an epoch then, {len(rows)} now"),
        ):
            other.load_state_dict(state)
    with (
        loader_of(recipe(ROWS), processor) as same,
        pytest.raises(ValueError, match="format is 2; needs 3"),
    ):
        same.load_state_dict(state | {"format": 2})


def test_a_state_outlives_a_move_of_the_data_but_no_change_of_it(
    recipe: Recipe, processor: Processor, media: Path, tmp_path: Path
) -> None:
    rows = [{name: value for name, value in row.items() if name != "id"} for row in ROWS]  # so an id is file and line
    with loader_of(recipe(rows), processor) as loader:
        next(loader)
        state, want = loader.state_dict(), next(loader)
    (tmp_path / "moved").mkdir()
    for name in ("wide.png", "square.png", "clip.mp4", "long.mp4"):
        shutil.copy(media / name, tmp_path / "moved" / name)
    shutil.copy(tmp_path / "moved/wide.png", tmp_path / "moved/same.png")

    def moved(rows: list[dict]) -> Path:
        path = tmp_path / "moved" / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    with loader_of(moved(rows), processor) as loader:
        loader.load_state_dict(state)
        assert_same(replace(next(loader), sample_ids=want.sample_ids), want)
    rows[1] = rows[1] | {"image": "same.png"}
    with loader_of(moved(rows), processor) as loader, pytest.raises(ValueError, match="the state is of other data"):
        loader.load_state_dict(state)


# ---- bad samples

BAD_ROWS = [
    chat_row("<image>", id="no image"),
    chat_row(video="cut.mp4", id="cut video"),
    chat_row(video="empty.mp4", id="empty video"),
    chat_row(image="i" * 5000 + ".png", id="endless name"),
    chat_row(video="v" * 5000 + ".mp4", id="endless video name"),
    chat_row(image="none.png", id="missing"),
    chat_row("much " * 400, id="too long"),
]
UNREADABLE = {"no image", "endless name", "endless video name"}  # rows of which no sample is made: named by their lines


@pytest.mark.parametrize("bad", BAD_ROWS, ids=lambda row: row["id"])
def test_raise_while_planning(recipe: Recipe, processor: Processor, bad: dict) -> None:
    path = recipe([*ROWS[:3], bad])
    num_threads = threading.active_count()
    with pytest.raises(DataError) as error:
        Loader(config_of(path), processor)
    where = f"{path.parent}/rows.jsonl:4: " if bad["id"] in UNREADABLE else f"sample {bad['id']}: "
    assert str(error.value).startswith(where)
    assert threading.active_count() == num_threads


def test_skip_while_planning_and_loading(recipe: Recipe, processor: Processor) -> None:
    rows = [*ROWS, *BAD_ROWS, chat_row(image="cut.png", id="cut image")]
    path = recipe(rows)
    with path.with_name("rows.jsonl").open("a") as lines:
        lines.write("{not json\n")
    line = f"{path.parent}/rows.jsonl"
    with loader_of(path, processor, on_bad_sample="skip") as loader:
        bad = enumerate(BAD_ROWS, start=len(ROWS) + 1)
        names = {f"{line}:{i}" if row["id"] in UNREADABLE else row["id"] for i, row in bad} | {
            f"{line}:{len(rows) + 1}"
        }
        assert len(loader.skipped) == len(names) == 8
        assert {name for name, _ in loader.skipped} == names
        seen = Counter(name for batch in epoch_of(loader) for name in batch.sample_ids)
        assert seen == {f"s{i}": 1 for i in range(22)}  # the cut image's header is whole: found when it was loaded
        assert loader.skipped[-1][0] == "cut image"
        assert "cut.png cannot be decoded" in loader.skipped[-1][1]
        num_skipped = len(loader.skipped)
        epoch_of(loader)
        assert len(loader.skipped) == num_skipped  # once, however often it is met
        state = json.loads(json.dumps(loader.state_dict()))
        batch = next(loader)
    with loader_of(path, processor, on_bad_sample="skip") as again:
        assert len(again.skipped) == num_skipped - 1
        again.load_state_dict(state)
        assert len(again.skipped) == num_skipped
        assert_same(next(again), batch)


def test_samples_of_one_id_are_skipped_one_by_one(recipe: Recipe, processor: Processor) -> None:
    """Missing ones while planning, damaged ones while loading, each with its file and line."""
    names = ["none.png"] * 3 + ["cut.png"] * 2
    rows = [chat_row(id="fine"), *(chat_row(image=name, id="dup") for name in names)]
    path = recipe(rows, repeat_time=2)
    line = f"{path.parent}/rows.jsonl"
    with loader_of(path, processor, on_bad_sample="skip") as loader:
        epoch_of(loader)
        assert [name for name, _ in loader.skipped] == ["dup"] * 5
        reasons = sorted(reason for _, reason in loader.skipped)
        assert [reason.split(": sample dup: image ")[0] for reason in reasons] == [f"{line}:{k}" for k in range(2, 7)]


def test_what_the_rows_hold_is_told(recipe: Recipe, processor: Processor) -> None:
    rows = [chat_row(image=["wide.png", "square.png"], score=1, origin="web"), chat_row(score=2), chat_row(score=None)]
    rows += [chat_row(video="clip.mp4", image="none.png", score=1)]
    with loader_of(recipe(rows, repeat_time=3), processor, on_bad_sample="skip") as loader:
        assert loader.contents == "2 images, 0 videos, 2 text-only samples; fields not used: score (2), origin (1)."
    with loader_of(recipe([chat_row(video="clip.mp4")]), processor) as loader:
        assert loader.contents == "0 images, 1 video, 0 text-only samples."
    many = {f"field_{k:03}": k for k in range(1000)}
    with loader_of(recipe([chat_row(**many)]), processor) as loader:
        assert loader.contents.endswith("field_019 (1) and 980 more.")


def test_raise_while_loading_names_the_sample_and_can_be_tried_again(recipe: Recipe, processor: Processor) -> None:
    path = recipe([chat_row(image="cut.png", id="cut image")])
    with loader_of(path, processor) as loader:
        for _ in range(2):
            with pytest.raises(DataError, match=r"sample cut image: image .*cut\.png cannot be decoded: "):
                next(loader)


def test_rows_of_bad_samples_alone_are_passed_over(recipe: Recipe, processor: Processor) -> None:
    cut = [chat_row("word " * 25, image="cut.png", id=f"cut {i}") for i in range(4)]
    path, small = recipe([*cut, chat_row(id="fine")]), with_limits(processor, context_tokens=220)
    with loader_of(path, small, on_bad_sample="skip") as loader:
        assert loader.num_rows >= 3
        for _ in range(3):
            assert next(loader).sample_ids == ("fine",)
        assert len(loader.skipped) == 4


def test_no_sample_left_is_an_error_not_an_endless_search(recipe: Recipe, processor: Processor) -> None:
    path = recipe([chat_row(image="cut.png", id="cut")])
    with (
        loader_of(path, processor, on_bad_sample="skip") as loader,
        pytest.raises(
            DataError, match=r"no sample of an epoch could be loaded; the last: .*rows\.jsonl:1: sample cut: image"
        ),
    ):
        next(loader)
    with pytest.raises(DataError, match=r"recipe\.json: no sample to train on; 1 were skipped, the first: .*none\.png"):
        Loader(config_of(recipe([chat_row(image="none.png")]), on_bad_sample="skip"), processor)
    with pytest.raises(DataError, match=r"recipe\.json: no sample to train on\."):
        Loader(config_of(recipe([])), processor)


def test_a_bug_is_no_bad_sample(recipe: Recipe, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only DataError is a bad sample: whatever else a worker raises reaches the caller under either policy."""

    def broken(*args: object, **kwargs: object) -> LoadedSample:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Processor, "load_sample", broken)
    with loader_of(recipe(ROWS), processor, on_bad_sample="skip") as loader:
        with pytest.raises(ZeroDivisionError, match="a bug"):
            next(loader)
        assert loader.skipped == []


def test_an_interrupt_loses_no_row(recipe: Recipe, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    with loader_of(recipe(ROWS), processor) as loader:
        want = [batch.sample_ids for batch in islice(loader, 4)]

    def interrupted(*args: object, **kwargs: object) -> LoadedSample:
        raise KeyboardInterrupt

    with loader_of(recipe(ROWS), processor) as loader:
        got = [next(loader).sample_ids for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(Processor, "load_sample", interrupted)
            loader.load_state_dict(loader.state_dict())  # forgets what was loaded ahead
            with pytest.raises(KeyboardInterrupt):
                next(loader)
        got += [next(loader).sample_ids for _ in range(2)]
    assert got == want


def test_a_video_that_takes_too_long_is_a_bad_sample(
    recipe: Recipe, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eagle_kernels.video.libav import reader

    decode = reader.decode
    path = recipe([chat_row(video="long.mp4", id="film"), chat_row(id="text")])
    with loader_of(path, processor, on_bad_sample="skip", video_time_limit_seconds=60.0) as loader:
        monkeypatch.setattr(reader, "decode", lambda *fed: time.sleep(0.2) or decode(*fed))
        loader.config = replace(loader.config, video_time_limit_seconds=0.3)
        next(loader)
        assert [sample_id for sample_id, _ in loader.skipped] == ["film"]
        assert "decoding took more than time_limit_seconds = 0.3 s" in loader.skipped[0][1]
    with (
        pytest.raises(DataError, match=r"sample film: .* time_limit_seconds = 1e-09 s"),
        loader_of(path, processor, video_time_limit_seconds=1e-9),
    ):
        pass


# ---- threads


def test_close_ends_threads_promptly_in_the_middle_of_a_video(
    recipe: Recipe, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eagle_kernels.video.libav import reader

    decode, started = reader.decode, threading.Event()

    def slow(packet: object, decoder: object) -> object:
        started.set()
        time.sleep(0.1)
        return decode(packet, decoder)

    before = set(threading.enumerate())
    rows = [chat_row(video=["long.mp4"] * 4, id=f"s{i}") for i in range(8)]
    long = with_limits(processor, context_tokens=1024)
    loader = Loader(config_of(recipe(rows), num_workers=2, num_decode_workers=2), long)
    monkeypatch.setattr(reader, "decode", slow)

    def ask() -> None:
        with pytest.raises(CancelledError):
            next(loader)

    asking = threading.Thread(target=ask)
    asking.start()
    assert started.wait(10)
    begin = time.monotonic()
    loader.close()
    asking.join()
    assert time.monotonic() - begin < 1.0  # all rows would take over 20 s
    assert set(threading.enumerate()) <= before
    loader.close()
    with pytest.raises(ValueError, match="it was closed; make a new one"):
        next(loader)


def test_rows_are_loaded_ahead_and_no_more_than_asked(
    recipe: Recipe, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = Processor.load_sample

    def counted(self: Processor, plan: SamplePlan, **kwargs: object) -> LoadedSample:
        loaded.append(plan.sample.id)
        return load(self, plan, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Processor, "load_sample", counted)
    rows = [chat_row("word " * 25, id=f"s{i}") for i in range(30)]  # one a row
    with loader_of(recipe(rows), with_limits(processor, context_tokens=220), num_workers=3) as loader:
        assert loader.num_rows == 30
        assert loaded == []
        next(loader)
        deadline = time.monotonic() + 5
        while len(loaded) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(loaded) == 3


# ---- config


def test_wrong_configs(recipe: Recipe, processor: Processor) -> None:
    path = recipe(ROWS)
    for changes, message in [
        ({"on_bad_sample": "ignore"}, "on_bad_sample is 'ignore'; needs 'raise', 'skip' or 'substitute'"),
        ({"workers": "fibre"}, "workers is 'fibre'; needs 'thread' or 'process'"),
        ({"prefetch_bytes": 0}, "prefetch_bytes is 0; needs at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; needs a number above 0"),
        ({"num_workers": 0}, "num_workers is 0; needs at least 1"),
        ({"num_decode_workers": 0}, "num_decode_workers is 0; needs at least 1"),
        ({"video_time_limit_seconds": 0.0}, "video_time_limit_seconds is 0.0; needs more than 0, or None"),
    ]:
        with pytest.raises(ValueError, match=message):
            config_of(path, **changes)


def test_outside_root_only_if_allowed(recipe: Recipe, processor: Processor, media: Path) -> None:
    path = recipe([chat_row(image=str(media / "wide.png"), id="s")])
    with pytest.raises(DataError, match="leaves the root"):
        Loader(config_of(path), processor)
    with loader_of(path, processor, allow_outside_root=True) as loader:
        assert next(loader).sample_ids == ("s",)
