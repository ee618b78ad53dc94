"""Files damaged at random never end a run or hold it up: an exact list, and substitutes, the same on all ranks."""

from __future__ import annotations

import json
import random
import time
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from eagle_model.data.loader import DataConfig, Loader
from eagle_model.data.processor import Processor
from eagle_model.data.sample import DataError
from eagle_model.data.share import ALONE, Share
from tests.data.conftest import chat_row, tiny_config, write_image, write_video
from tests.data.test_loader_ranks import assert_same_steps, steps_of
from tests.data.together import together

TIME_LIMIT_SECONDS = 20.0  # of one video; a damaged file is known to be so in milliseconds


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, tiny_config(context_tokens=400, max_frames=8))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, processor: Processor) -> tuple[Path, set[str], set[str]]:
    """A recipe of two sources with 120 samples, 5 % of whose files are damaged; the ids of those that cannot be planned
    and of those that cannot be loaded, found one by one."""
    folder = tmp_path_factory.mktemp("damaged")
    rng = random.Random(3)
    video, image = write_video(folder / "clip.mp4").read_bytes(), write_image(folder / "page.jpg").read_bytes()
    sources = {}
    for name, num, suffix, content in (("films", 40, "mp4", video), ("pages", 80, "jpg", image)):
        rows = []
        for i in range(num):
            path = folder / f"{name}{i}.{suffix}"
            path.write_bytes(content)
            if i % 20 == 7:
                cut = rng.randrange(len(content) // 4, len(content) - 200)
                path.write_bytes(content[:cut] if rng.random() < 0.5 else content[:cut] + rng.randbytes(200))
            kind = "video" if suffix == "mp4" else "image"
            rows.append(chat_row(f"{'word ' * (i % 9)}{i}?", id=f"{name}{i}", **{kind: path.name}))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources[name] = {"root": ".", "annotation": f"{name}.jsonl"}
    (folder / "recipe.json").write_text(json.dumps(sources))
    with Loader(DataConfig(recipe=str(folder / "recipe.json"), on_bad_sample="skip"), processor) as loader:
        unplanned = {sample_id for sample_id, _ in loader.skipped}
        unloaded = set()
        for i in range(loader.num_samples):
            plan = loader._rows.plan(i)
            try:
                processor.load_sample(plan)
            except DataError:
                unloaded.add(plan.sample.id)
    assert len(unloaded) >= 2 and len(unplanned | unloaded) >= 4
    return folder / "recipe.json", unplanned, unloaded


@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_the_list_is_exact_and_no_step_waits_for_long(
    damaged: tuple[Path, set[str], set[str]], processor: Processor, policy: str
) -> None:
    recipe, unplanned, unloaded = damaged
    config = DataConfig(
        recipe=str(recipe),
        on_bad_sample=policy,
        video_time_limit_seconds=TIME_LIMIT_SECONDS,  # type: ignore[arg-type]
    )
    with Loader(config, processor) as loader:
        longest, shown = 0.0, 0
        for _ in range(2 * loader.num_rows):
            begin = time.monotonic()
            batch = next(loader)
            longest = max(longest, time.monotonic() - begin)
            if loader.epoch == 0:
                shown += len(batch.sample_ids)
            assert not unloaded & set(batch.sample_ids)
        assert longest < TIME_LIMIT_SECONDS
        assert {sample_id for sample_id, _ in loader.skipped} == unplanned | unloaded
        assert len(loader.skipped) == len(unplanned | unloaded)  # each once
        for sample_id, reason in loader.skipped:
            source = sample_id.rstrip("0123456789")
            assert f"{source}.jsonl:" in reason and f"{sample_id}." in reason  # file and line, and the medium's name
            if policy == "substitute" and sample_id in unloaded:
                assert f"In its place: {source}" in reason and f"{source}.jsonl:" in reason.partition("In its place")[2]
        assert shown == 120 - len(unplanned) - (0 if policy == "substitute" else len(unloaded))


@pytest.mark.parametrize(("num_data", "num_context"), [(3, 1), (1, 3)])
def test_all_ranks_show_the_same_substitutes_and_keep_the_same_list(
    damaged: tuple[Path, set[str], set[str]], processor: Processor, num_data: int, num_context: int
) -> None:
    recipe = damaged[0]

    def work(share: Share):
        return steps_of(recipe, processor, share, num_steps=10, on_bad_sample="substitute")

    one = work(ALONE)
    assert any("In its place" in reason for _, reason in one[1][-1]["skipped"])
    assert_same_steps(together(num_data, num_context, work), one, num_data, num_context)


def test_a_substitute_that_is_bad_too_is_listed_and_the_next_one_shown(processor: Processor, tmp_path: Path) -> None:
    noise = write_image(tmp_path / "fine.png", level=3).read_bytes()
    rows = []
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(noise if i in (0, 5) else noise[:60])
        rows.append(chat_row("word " * i, image=f"{i}.png", id=f"s{i}"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Loader(DataConfig(recipe=str(tmp_path / "rows.jsonl"), on_bad_sample="substitute"), processor) as loader:
        ids = [name for batch in islice(loader, loader.num_rows) for name in batch.sample_ids]
        bad = {name for name, _ in loader.skipped}
    assert bad == {"s1", "s2", "s3", "s4"}  # their headers can be read, their pixels cannot
    assert sorted(ids) == ["s0"] * 4 + ["s5"]  # of s4: s3, s2 and s1 are tried
