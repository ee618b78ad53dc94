"""What the machine of tests/ptx makes of faults planted in our kernels.

Not noticed are synchronisations that a launch can do without, because something else orders the same accesses:
docs/notes/ptx.md says which. Barriers of a wrong count and bytes that are not announced are always noticed.
"""

import pytest

from tests.kernels.plant_faults import SOURCES, notice, report, sound_launches

NEEDED = ("bytes", "count")  # kinds of which no fault may pass


def results_of(source, kinds=None):
    return [
        {"kernel": sound.name, "kind": fault.kind, "fault": str(fault), "notice": notice(sound, fault)}
        for sound in sound_launches(source)
        for fault in sound.faults()
        if kinds is None or fault.kind in kinds
    ]


def check(results, share):
    """At least this share is noticed."""
    missed = [r for r in results if r["notice"] is None]
    assert len(missed) <= (1 - share) * len(results), report(results)
    assert not [r for r in missed if r["kind"] in NEEDED], report(results)


def test_faults_of_copies_and_barriers():
    check(results_of("layer_norm"), 0.75)


@pytest.mark.slow
def test_wrong_counts_and_bytes_of_the_gluon_kernels():
    check(results_of("gluon_128", kinds=NEEDED), 1.0)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("source", SOURCES)
def test_all_faults(source):
    results = results_of(source)
    check([r for r in results if r["kind"] != "barrier"], 0.9)
    check(results, 0.75)
