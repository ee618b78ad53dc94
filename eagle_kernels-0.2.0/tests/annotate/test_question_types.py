"""annotate/question_types.py: the paper's 63 types, drawn the same way everywhere."""

from eagle_model.annotate.question_types import PERSONAL, TYPES, draw, stable_random


def test_there_are_as_many_types_as_in_the_paper() -> None:
    assert len(TYPES) == len(set(TYPES)) == 63
    assert TYPES[0] == "object_recognition" and TYPES[-1] == "anomaly_recognition" and set(PERSONAL) <= set(TYPES)


def test_a_draw_depends_on_name_and_seed_alone() -> None:
    assert draw("bikes.mp4#0", 3, seed=78) == ["object_state", "single_object_speed", "event_summary"]
    assert draw("bikes.mp4#0", 5, seed=78) != draw("bikes.mp4#0", 5, seed=79)
    assert stable_random(0, "a", "b").random() != stable_random(0, "a\nc").random()


def test_every_type_but_those_left_out_is_drawn_about_as_often() -> None:
    counts = dict.fromkeys(TYPES, 0)
    for i in range(2000):
        drawn = draw(f"v{i}", 5, seed=0)
        assert len(set(drawn)) == 5
        for kind in drawn:
            counts[kind] += 1
    assert counts.pop("human_identity") == 0
    assert min(counts.values()) > 110 and max(counts.values()) < 215  # 161 on average


def test_no_more_are_drawn_than_there_are() -> None:
    assert len(draw("v", 100, seed=0)) == 62 and len(draw("v", 100, seed=0, without=())) == 63
