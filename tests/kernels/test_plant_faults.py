"""What the machine of tests/ptx makes of faults planted in our kernels.

Barriers of a wrong count and bytes that are not announced are always noticed. Synchronisation that a launch can do
without, all of it at once, is no fault: docs/notes/ptx.md says what that is.
"""

import random

import pytest

from tests.kernels.plant_faults import SOURCES, examine, notice, report, share_noticed, sound_launches
from tests.rounds import by_rounds

NEEDED = ("bytes", "count")  # kinds of which no fault may pass


def check(results, share):
    """At least this share is noticed."""
    assert share_noticed(results) >= share, report(results)
    assert not [r for r in results if r["kind"] in NEEDED and r["notice"] is None], report(results)


def test_faults_of_copies_and_barriers():
    results = [row for sound in sound_launches("layer_norm") for row in examine(sound, sound.faults())]
    assert len(results) > 10
    check(results, 0.95)


def test_two_barriers_that_cover_each_other_are_no_fault_alone():
    """Both gone at once are noticed: the rule that nothing is called dispensable for being covered."""
    (sound,) = sound_launches("layer_norm")
    alone = [fault for fault in sound.faults() if fault.kind == "barrier" and notice(sound, fault) is None]
    everything = [fault for fault in sound.faults() if fault.kind == "barrier"]
    assert notice(sound, *everything) is not None and len(alone) < len(everything)


def drawn(faults, rounds):
    """By lot, one a round."""
    lot = random.Random(0).sample(faults, len(faults))
    return (fault for _, fault in zip(rounds, lot, strict=False))


@by_rounds(None)
@pytest.mark.parametrize("source", SOURCES)
def test_some_faults_of_every_kernel(source, rounds):
    """Of a few, one that is not noticed is a large share."""
    check([row for sound in sound_launches(source) for row in examine(sound, drawn(sound.faults(), rounds))], 0.8)


@by_rounds(None)
def test_some_wrong_counts_and_bytes_of_the_gluon_kernels(rounds):
    rows = [row for sound in sound_launches("gluon_128") for row in examine(sound, drawn(sound.faults(NEEDED), rounds))]
    check(rows, 1.0)


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("source", SOURCES)
def test_all_faults(source):
    check([row for sound in sound_launches(source) for row in examine(sound, sound.faults())], 0.95)
