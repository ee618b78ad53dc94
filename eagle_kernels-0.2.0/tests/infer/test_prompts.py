"""Prompts: the frames of a film do not depend on the question, its tiles are known by what they show."""

import pytest

from eagle_model.data.sample import DataError
from eagle_model.infer.prompts import Prompts
from tests.infer.small import ask, noise, processor
from tests.video.make import draw, write_video


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, [draw(i) for i in range(200)], fps=25)
    return path


def about(film, text):
    return [{"role": "user", "content": [{"type": "video", "video": str(film)}, {"type": "text", "text": text}]}]


def test_questions_of_20_and_of_many_tokens_see_the_same_frames(film):
    """In any order; and a longer conversation too. Where it no longer fits, fewer, and it says so."""
    want = None
    for texts in (["Where?", "Where is " * 40], ["Where is " * 40, "Where?"]):
        prompts = Prompts(processor(4096))
        for text in texts:
            prompt = prompts.make(about(film, text), num_new=32, fps=25)
            assert prompt.shown.reduced
            assert want is None or prompt.tile_digests == want
            want = prompt.tile_digests
    later = [*about(film, "Where?"), {"role": "assistant", "content": "Here."}, *ask("What?", noise(1, 28, 28))]
    prompt = prompts.make(later, num_new=32, fps=25)
    assert prompt.tile_digests[: len(want)] == want
    assert len(prompt.tile_digests) == len(want) + 1
    long = prompts.make(about(film, "Where is " * 400), num_new=32, fps=25)
    assert len(long.token_ids) + 32 <= 4096
    assert len(long.tile_digests) < len(want)


def test_tiles_are_known_by_what_they_show(film, tmp_path):
    prompts = Prompts(processor())

    def make(*images):
        return prompts.make(ask("Where?", *images), num_new=4).tile_digests

    assert make(noise(1)) == make(noise(1))
    assert not set(make(noise(1))) & set(make(noise(2)))
    assert len(set(make(noise(1), noise(1)))) == len(make(noise(1)))
    one = tmp_path / "page.png"
    noise(1).save(one)
    before = make(str(one))
    noise(2).save(one)
    assert not set(before) & set(make(str(one)))


def test_pixels_come_piece_by_piece(film):
    prompt = Prompts(processor()).make(about(film, "Where?"), num_new=4, frames=6, fps=25)
    whole = prompt.load(0, 6)
    assert whole.shape[0] == len(prompt.shown.media[0].timestamps_seconds) == 6
    assert prompt.load(2, 5).equal(whole[2:5])


def test_what_is_asked_for_is_shown(film):
    prompts = Prompts(processor(4096))
    two = prompts.make(about(film, "Where?"), num_new=4, frames=2, fps=25)
    five = prompts.make(about(film, "Where?"), num_new=4, frames=5, fps=25)
    slow = prompts.make(about(film, "Where?"), num_new=4, fps=0.5)
    assert [p.shown.num_tiles for p in (two, five, slow)] == [2, 5, 4]
    one = prompts.make(ask("Where?", noise(1, 300, 200)), num_new=4, tiles=1)
    more = prompts.make(ask("Where?", noise(1, 300, 200)), num_new=4)
    assert one.shown.num_tiles == 1 < more.shown.num_tiles
    assert one.shown.media[0].grid == (1, 1)
    with pytest.raises(DataError, match="tiles is 1000000000; the context of 4096 tokens holds 1024 at most"):
        prompts.make(ask("Where?", noise(1)), num_new=4, tiles=10**9)
    with pytest.raises(ValueError, match="max_frames is 0"):
        prompts.make(about(film, "Where?"), num_new=4, frames=0)
    with pytest.raises(DataError, match=r"nowhere\.png cannot be read"):
        prompts.make([{"role": "user", "content": [{"type": "image", "image": "nowhere.png"}]}], num_new=4)
