"""Blocks of the cache: none lost, none given twice, prefixes found, the least recently used one forgotten first."""

import random

from eagle_model.infer.cache import Blocks, block_digests


def test_digests_say_all_that_is_before():
    one, two = block_digests(b"", [b"a", b"b", b"c"]), block_digests(b"", [b"a", b"x", b"c"])
    assert one[0] == two[0]
    assert one[1] != two[1]
    assert one[2] != two[2]
    assert block_digests(b"adapter", [b"a"]) != one[:1]
    assert block_digests(one[0], [b"b", b"c"]) == one[1:]


def test_a_named_block_is_found_until_its_room_is_needed():
    blocks = Blocks(3)
    digests = block_digests(b"", [b"a", b"b"])
    held = blocks.take(2)
    assert held is not None
    assert blocks.find(digests) == []
    for block, digest in zip(held, digests, strict=True):
        blocks.name(block, digest)
    assert blocks.find(digests) == held  # two hold them now
    blocks.release(held)
    blocks.release(held)
    assert (blocks.num_free, blocks.num_named) == (3, 2)
    (other,) = blocks.take(1)
    assert other not in held  # without a name
    (last,) = blocks.take(1)
    assert last == held[1]  # of one sequence, its end goes first
    assert blocks.find(digests) == held[:1]
    assert blocks.take(1) is None


def test_of_two_with_the_same_keys_one_is_found():
    blocks = Blocks(2)
    (a,), (b,) = blocks.take(1), blocks.take(1)
    blocks.name(a, b"same")
    blocks.name(b, b"same")
    blocks.release([a])
    blocks.release([b])
    assert blocks.find([b"same"]) == [a]


def test_whatever_happens_no_block_is_lost_or_held_for_two_contents():
    rng = random.Random(0)
    blocks = Blocks(12)
    holders: list[tuple[list[int], list[bytes]]] = []
    content: dict[int, bytes] = {}
    for _ in range(3000):
        if holders and rng.random() < 0.5:
            held, _ = holders.pop(rng.randrange(len(holders)))
            blocks.release(held)
            continue
        digests = block_digests(b"", [bytes([rng.randrange(3)]) for _ in range(rng.randrange(1, 5))])
        found = blocks.find(digests)
        assert [content[block] for block in found] == digests[: len(found)]
        taken = blocks.take(len(digests) - len(found))
        if taken is None:
            blocks.release(found)
            continue
        in_use = {block for held, _ in holders for block in held}
        assert not in_use & set(taken)
        for block, digest in zip(taken, digests[len(found) :], strict=True):
            content[block] = digest
            blocks.name(block, digest)
        holders.append((found + taken, digests))
        for held, digests in holders:
            assert [content[block] for block in held] == digests
        assert blocks.num_free == 12 - len({block for held, _ in holders for block in held})
