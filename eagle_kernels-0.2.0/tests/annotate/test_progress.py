"""annotate/progress.py: a line that tells how far, at what cost, and until when."""

import pytest

from eagle_model.annotate import progress
from eagle_model.annotate.progress import Progress
from eagle_model.infer.endpoint import Budget


def test_a_line_tells_how_far_and_until_when(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    said: list[str] = []
    budget = Budget(num_requests=1234, dollars=0.5)
    shown = Progress("clip", 4, budget, said.append)
    shown.begin(2)
    now[0] += 60
    shown.item_done()  # half of a part in a minute: three and a half are left
    assert said == ["clip: part 1 of 4, item 1 of 2; 1,234 requests, 0.50 dollars; 7 min left"]
    now[0] += 1
    shown.item_done()  # too soon for another line
    shown.part_done()
    assert len(said) == 1 and shown.line().startswith("clip: part 2 of 4, item 0 of 2")


def test_nothing_is_known_before_the_first_item() -> None:
    shown = Progress("clip", 1, Budget(), print)
    shown.begin(0)
    assert shown.line().endswith("no time known")
