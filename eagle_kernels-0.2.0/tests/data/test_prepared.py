"""A prepared data set is planned as the recipe itself is: the same numbers, plans and bad samples, at any context."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eagle_model.data import prepared as prepared_module
from eagle_model.data.index import Index, is_prepared, open_index
from eagle_model.data.loader import DataConfig, Loader
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.prepare import prepare
from eagle_model.data.processor import Processor
from eagle_model.data.sample import DataError
from tests.data.conftest import chat_row, tiny_config, write_image, write_video

Recipe = Callable[..., Path]
ROWS = [
    *[chat_row(f"Question {i}?", id=f"s{i}", **({"image": "wide.png"} if i % 2 else {})) for i in range(5)],
    chat_row("<video> Then <image>", video=["long.mp4"], image=["square.png"], unread="x"),
    chat_row(video={"path": "clip.mp4", "start": 0.5, "end": 1.7}),
    chat_row("<video-2><video-1>", videos=["clip.mp4", "long.mp4"]),
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "wide.png", "detail": "low"}}]},
            {"role": "assistant", "content": "A digit."},
        ]
    },
]
BAD = [
    chat_row("<image>", id="no image"),
    chat_row(image="none.png", id="gone"),
    chat_row(video="cut.mp4", id="cut"),
    chat_row(video={"path": "clip.mp4", "start": 50}, id="late"),
    chat_row("many words " * 2000, id="long"),
]  # fmt: skip


def opened(recipe: Path, processor: Processor, **options: bool) -> Index:
    with Prefetch(1) as prefetch:
        return open_index(recipe, processor, prefetch, **options)  # type: ignore[arg-type]


def both(path: Path, processor: Processor, out: Path) -> tuple[Index, Index]:
    """In memory, and prepared."""
    if not is_prepared(out):
        prepare(path, processor, out)
    return opened(path, processor, skip_bad=True), opened(out, processor, skip_bad=True)


@pytest.mark.parametrize("fields", [{}, {"context_tokens": 100}, {"seek": "keyframe"}, {"seek": "tolerance"},
                                    {"template": "demo-1", "context_tokens": 100}, {"ads": False}])  # fmt: skip
def test_it_is_planned_as_the_recipe_is(fields: dict, recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    processor = Processor(processor.tokenizer, tiny_config(**fields))
    path = recipe([*ROWS[:4], *BAD, *ROWS[4:]], max_dynamic_tiles=3)
    memory, prepared = both(path, processor, tmp_path / "prepared")
    for name in ("tokens", "tiles", "decode_seconds", "source_of", "digests"):
        assert getattr(prepared, name).tolist() == getattr(memory, name).tolist(), name
    for i in range(memory.num_samples):
        assert prepared.plan(i) == memory.plan(i)
    assert prepared.contents() == memory.contents()
    assert [name for name, _ in prepared.skipped] == [name for name, _ in memory.skipped]
    assert {name for name, _ in memory.skipped} >= {"gone", "cut", "late", "long"}
    assert prepared.skipped[1:4] == memory.skipped[1:4]
    assert prepared.fingerprint(processor.config, 0) == memory.fingerprint(processor.config, 0)


def test_any_context_is_planned_of_one_preparation(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    path = recipe(ROWS)
    prepare(path, processor, tmp_path / "prepared")
    for context_tokens in (90, 150, 1024, 8192):
        longer = Processor(processor.tokenizer, tiny_config(context_tokens=context_tokens))
        memory, prepared = both(path, longer, tmp_path / "prepared")
        assert prepared.tokens.tolist() == memory.tokens.tolist()


def test_each_source_has_its_own_limits(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    path = recipe(ROWS)
    fields = json.loads(path.read_text())["digits"]
    more = {"few": fields | {"max_frames": 3, "max_dynamic_tiles": 1}, "slow": fields | {"frames_per_second": 0.7}}
    path.write_text(json.dumps({"digits": fields, **more}))
    memory, prepared = both(path, processor, tmp_path / "prepared")
    for name in ("tokens", "tiles", "decode_seconds", "source_of"):
        assert getattr(prepared, name).tolist() == getattr(memory, name).tolist(), name
    of_film = [memory.tiles[k * len(ROWS) + 5] for k in range(3)]
    assert of_film[0] > of_film[1] > 0 and of_film[0] > of_film[2] > 0


def test_no_medium_is_touched(recipe: Recipe, processor: Processor, tmp_path: Path, media: Path) -> None:
    root = tmp_path / "media"
    root.mkdir()
    for path in media.iterdir():
        os.link(path, root / path.name)
    path = recipe(ROWS, root=str(root))
    want = opened(path, processor).tokens.tolist()
    prepare(path, processor, tmp_path / "prepared")
    for medium in root.iterdir():
        medium.unlink()
    index = opened(tmp_path / "prepared", processor)
    assert index.tokens.tolist() == want
    assert [index.plan(i).num_tokens for i in range(index.num_samples)] == want


def test_numbers_are_kept_for_the_next_start(
    recipe: Recipe, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = both(recipe([*ROWS, *BAD]), processor, tmp_path / "prepared")
    monkeypatch.setattr(prepared_module, "plan_many", None)
    again = opened(tmp_path / "prepared", processor, skip_bad=True)
    assert again.tokens.tolist() == first.tokens.tolist()
    assert again.skipped == first.skipped
    other = Processor(processor.tokenizer, tiny_config(context_tokens=512))
    with pytest.raises(TypeError):  # other limits are planned
        opened(tmp_path / "prepared", other, skip_bad=True)


def test_the_first_bad_sample_is_refused(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    path = recipe([ROWS[0], BAD[1], BAD[0]])
    prepare(path, processor, tmp_path / "prepared")
    with pytest.raises(DataError, match=r"gone: image .*none\.png does not exist"):
        opened(tmp_path / "prepared", processor)
    prepare(recipe([BAD[1]]), processor, tmp_path / "other")
    with pytest.raises(DataError, match=r"no sample to train on; 1 were skipped, the first: .*none\.png"):
        opened(tmp_path / "other", processor, skip_bad=True)


def test_what_has_changed_since_is_refused(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    path, out = recipe(ROWS), tmp_path / "prepared"
    prepare(path, processor, out)
    other = Processor(processor.tokenizer, replace(processor.config, system="Answer in rhymes."))
    with pytest.raises(DataError, match=r"prepared for another system: 'You are a helpful assistant\.', and the proc"):
        opened(out, other)
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({"digits": fields["digits"] | {"repeat_time": 3}}))
    assert opened(out, processor).sources[0].repeat_time == 3  # how often a source is shown may change
    path.write_text(json.dumps({"others": fields["digits"]}))
    with pytest.raises(DataError, match="has other sources than were prepared"):
        opened(out, processor)
    path.write_text(json.dumps(fields))
    index = opened(out, processor)
    lines = tmp_path / "rows.jsonl"
    found = os.stat(lines)
    lines.write_text(lines.read_text().replace("Question 0?", "Question 9?"))
    os.utime(lines, ns=(found.st_atime_ns, found.st_mtime_ns))  # of the same size and time: the row tells
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the row has changed since it was prepared"):
        index.plan(0)
    os.utime(lines)
    with pytest.raises(DataError, match=r"rows\.jsonl has changed since it was prepared\. Run eagle data prepare"):
        opened(out, processor)
    (out / "prepared.json").unlink()
    with pytest.raises(DataError, match="is not prepared to its end"):
        opened(out, processor)


def test_media_outside_the_root_need_the_word_again(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    path = recipe([chat_row(image=str(tmp_path / "../wide.png")), ROWS[0]])
    prepare(path, processor, tmp_path / "prepared", allow_outside_root=True)
    with pytest.raises(DataError, match=r"Set data\.allow_outside_root=true"):
        opened(tmp_path / "prepared", processor, skip_bad=True)
    assert opened(tmp_path / "prepared", processor, skip_bad=True, allow_outside_root=True).num_samples == 1


def test_a_folder_that_may_not_be_written_is_read(
    recipe: Recipe, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(recipe(ROWS), processor, tmp_path / "prepared")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prepared_module, "write_whole", refuse)
    with pytest.warns(UserWarning, match="cannot be written .Permission denied.; the next start plans again"):
        assert opened(tmp_path / "prepared", processor).num_samples == len(ROWS)


def test_a_run_loads_the_same_rows_of_it(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    path = recipe([*ROWS, BAD[1]])
    prepare(path, processor, tmp_path / "prepared")
    rows = []
    for source in (path, tmp_path / "prepared"):
        config = DataConfig(recipe=str(source), on_bad_sample="skip")
        with Loader(config, processor) as loader:
            rows.append([next(loader) for _ in range(3)])
            states = loader.state_dict()
            assert [name for name, _ in loader.skipped] == ["gone"]
        with Loader(replace(config, recipe=str(path)), processor) as loader:
            loader.load_state_dict(states)  # a run goes on with the one or the other
    for memory, prepared in zip(*rows, strict=True):
        assert memory.sample_ids == prepared.sample_ids
        assert memory.token_ids_T.tolist() == prepared.token_ids_T.tolist()
        assert torch.equal(memory.patches_IPK, prepared.patches_IPK)


def test_media_that_were_replaced_are_seen_when_prepared_again(
    recipe: Recipe, processor: Processor, tmp_path: Path
) -> None:
    folder, out = tmp_path / "own", tmp_path / "prepared"
    folder.mkdir()
    write_video(folder / "film.mp4")
    path = recipe([chat_row(video="film.mp4", id="film"), chat_row(image="late.png", id="late")], root=str(folder))
    prepare(path, processor, out)
    short = opened(out, processor, skip_bad=True)
    assert [name for name, _ in short.skipped] == ["late"]
    write_video(folder / "film.mp4", num_frames=60)
    write_image(folder / "late.png")
    assert prepare(path, processor, out)["skipped"] == 1  # without a word nothing is looked at again
    assert prepare(path, processor, out, again=True)["skipped"] == 0
    index = opened(out, processor)  # the film's row is the same: the numbers kept of the short one are not used
    assert [index.plan(i).num_tokens for i in range(2)] == index.tokens.tolist()
    assert index.tokens[0] > short.tokens[0]
