"""What the machine of tests/ptx makes of faults planted in our kernels.

Barriers of a wrong count and bytes that are not announced are always noticed. Synchronisation that a launch can do
without, all of it at once, is no fault: docs/notes/ptx.md says what that is.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import triton

from tests.kernels.plant_faults import DISPENSABLE, SOURCES, examine, notice, report, share_noticed, sound_launches

TABLE = Path(__file__).resolve().parents[2] / "bench/results/static/faults_sm90.json"
SAMPLE = 50
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


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_the_committed_table(source):
    """It names the faults of today's code. All that it calls dispensable may go at once in the first launch; of what it
    calls noticed every SAMPLE-th still is. `make ptx` examines all."""
    table = json.loads(TABLE.read_text())
    if table["triton"] != triton.__version__:
        pytest.skip(f"the table is of the code of Triton {table['triton']}; this is {triton.__version__}")
    for sound in sound_launches(source):
        rows = {row["fault"]: row["notice"] for row in table["rows"] if row["kernel"] == sound.name}
        found = {str(fault): fault for fault in sound.faults()}
        assert list(found) and set(found) == set(rows), f"{sound.name} has other code: write the table anew"
        first = replace(sound, launches=sound.launches[:1])
        assert notice(first, *(found[name] for name, who in rows.items() if who == DISPENSABLE)) is None
        alone = [name for name, who in rows.items() if who not in (None, DISPENSABLE) and "with others" not in who]
        assert all(notice(sound, found[name]) for name in alone[::SAMPLE]), sound.name


def test_the_share_of_the_committed_table():
    rows = json.loads(TABLE.read_text())["rows"]
    assert {row["kernel"].partition(" ")[0] for row in rows} == set(SOURCES)
    for source in SOURCES:
        check([row for row in rows if row["kernel"].startswith(f"{source} ")], 0.95)


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("source", SOURCES)
def test_all_faults(source):
    check([row for sound in sound_launches(source) for row in examine(sound, sound.faults())], 0.95)
