"""Which tokens are computed next: chunks, room, who waits for whom."""

from eagle_model.infer.cache import Blocks
from eagle_model.infer.schedule import BLOCK_TOKENS, Scheduler, Sequence, Work

B = BLOCK_TOKENS


def sequence(first_id: int, num: int, **more) -> Sequence:
    return Sequence([first_id, *range(1, num)], num, **more)


def spans(works: list[Work]) -> list[tuple[int, int]]:
    return [(work.first, work.end) for work in works]


def step(scheduler: Scheduler) -> list[tuple[int, int]]:
    works = scheduler.next()
    scheduler.done(works)
    for work in works:
        if work.is_last:
            work.sequence.token_ids.append(99)
    return spans(works)


def test_prompts_come_in_chunks_beside_those_that_decode():
    scheduler = Scheduler(Blocks(100), max_running=2, prefill_tokens=10)
    scheduler.waiting.extend([sequence(1, 4), sequence(2, 15), sequence(3, 4)])
    assert step(scheduler) == [(0, 4), (0, 6)]
    assert step(scheduler) == [(4, 5), (6, 15)]
    assert step(scheduler) == [(5, 6), (15, 16)]  # the third waits: two at most
    scheduler.finish(scheduler.running[0])
    assert step(scheduler) == [(16, 17), (0, 4)]


def test_keys_that_are_there_are_not_computed_again():
    scheduler = Scheduler(Blocks(100), max_running=4, prefill_tokens=1000)
    first, second = sequence(1, 3 * B), sequence(1, 3 * B)
    scheduler.waiting.extend([first, second])
    assert step(scheduler) == [(0, 3 * B)]  # the second waits for what the first is computing
    assert step(scheduler) == [(3 * B, 3 * B + 1), (2 * B, 3 * B)]  # one token at least is left to compute
    assert (first.num_cached, second.num_cached) == (0, 2 * B)
    assert first.blocks[:2] == second.blocks[:2]
    assert first.blocks[2] != second.blocks[2]


def test_other_pixels_are_other_keys():
    scheduler = Scheduler(Blocks(100), max_running=1, prefill_tokens=1000)
    about = {"visual_positions": range(B, B + 8), "tokens_per_tile": 4}
    for digests, want in [((b"a", b"b"), 0), ((b"a", b"b"), 2 * B), ((b"a", b"c"), B)]:
        one = sequence(1, 2 * B + 1, tile_digests=digests, **about)
        scheduler.waiting.append(one)
        step(scheduler)
        assert one.num_cached == want
        scheduler.finish(one)


def test_the_last_to_come_gives_way_and_is_next_in_line():
    scheduler = Scheduler(Blocks(4), max_running=4, prefill_tokens=1000)
    old, new, later = sequence(1, 2 * B), sequence(2, 2 * B), sequence(3, 1)
    scheduler.waiting.extend([old, new, later])
    assert step(scheduler) == [(0, 2 * B), (0, 2 * B)]  # no block is left for the third
    assert step(scheduler) == [(2 * B, 2 * B + 1)]
    assert list(scheduler.waiting) == [new, later]
    assert (scheduler.num_preempted, new.blocks, new.num_computed) == (1, [], 0)
    scheduler.finish(old)
    assert step(scheduler) == [(B, 2 * B + 1), (0, 1)] or step(scheduler)
    assert new.token_ids[:2] == [2, 1]
    scheduler.finish(new)
    scheduler.finish(later)
    assert scheduler.blocks.num_free == 4


def test_tokens_whose_pixels_are_on_their_way_wait():
    up_to = {1: 3}
    scheduler = Scheduler(
        Blocks(9),
        max_running=2,
        prefill_tokens=100,
        ready=lambda s, first, end: min(end, up_to.get(s.token_ids[0], end)),
    )
    scheduler.waiting.extend([sequence(1, 6), sequence(2, 5)])
    assert step(scheduler) == [(0, 3), (0, 5)]
    assert step(scheduler) == [(5, 6)]
    del up_to[1]
    assert step(scheduler) == [(6, 7), (3, 6)]
