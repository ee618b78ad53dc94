"""Who takes what of the data: alone, everything."""

from eagle_model.data.share import ALONE, Share
from eagle_model.train.layout import Layout
from eagle_model.train.ranks import start
from tests.data.together import together


def test_alone_is_the_share_of_one_process() -> None:
    ranks: Share = start(Layout(), "cpu")
    for name in ("data_rank", "num_data", "context_rank", "num_context"):
        assert getattr(ALONE, name) == getattr(ranks, name)
    assert ALONE.gather({"a": 1}) == ranks.gather({"a": 1}) == [{"a": 1}]


def test_threads_that_stand_for_processes_meet() -> None:
    def work(share: Share) -> list:
        return [share.gather([share.data_rank, share.context_rank]), share.gather(share.data_rank)]

    assert together(2, 2, work) == [[[[0, 0], [0, 1], [1, 0], [1, 1]], [0, 0, 1, 1]]] * 4
