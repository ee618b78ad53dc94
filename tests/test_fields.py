"""Fields are set by name and by type, go to JSON and back, and are compared."""

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from eagle_model.fields import ConfigError, diff, from_json, override, require, to_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    low: int = 1
    high: int = 2
    path: str | None = None

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}; needs less than high, {self.high}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    on: bool = False
    kind: Literal["a", "b"] = "a"


def test_override_sets_every_kind_of_field():
    config = override(
        Outer(name="x"),
        ["name = y=z ", "inner.low=-3", "inner.path=/a b", "rate=1e-4", "betas=0.5, 1", "on=true", "kind=b"],
    )
    assert config == Outer(name="y=z", inner=Inner(low=-3, path="/a b"), rate=1e-4, betas=(0.5, 1.0), on=True, kind="b")
    assert override(config, ["inner.path=none", "on=False", "rate=2"]).inner.path is None
    assert type(override(config, ["rate=2"]).rate) is float
    assert override(config, ["inner.high=3", "inner.high=4"]).inner.high == 4  # the last one wins


def test_override_checks_the_whole_once():
    """Fields that are only right together can be set in any order; wrong together, the config's own check speaks."""
    assert override(Outer(name="x"), ["inner.low=10", "inner.high=11"]).inner == Inner(low=10, high=11)
    with pytest.raises(ValueError, match="low is 10; needs less than high, 2"):
        override(Outer(name="x"), ["inner.low=10"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "rat=2",
            r"rat: there is no field rat\. Did you mean rate\? The fields are name, inner, rate, betas, on, kind\.",
        ),
        ("inner.lo=2", r"inner\.lo: there is no field lo\. Did you mean low\? The fields are low, high, path\."),
        ("zzz=2", r"zzz: there is no field zzz\. The fields are name, inner"),
        ("rate.x=2", r"rate\.x: rate is a number and has no fields\."),
        ("inner=2", r"inner is a group of fields; set one of inner\.low, inner\.high, inner\.path\."),
        ("rate", r"'rate' is no assignment; needs path\.to\.field=value"),
        ("rate=fast", r"rate is 'fast'; needs a number\."),
        ("inner.low=1.5", r"inner\.low is '1\.5'; needs a whole number\."),
        ("inner.low=none", r"inner\.low is 'none'; needs a whole number\."),
        ("on=yes", r"on is 'yes'; needs true or false\."),
        ("kind=c", r"kind is 'c'; needs one of a, b\."),
        ("betas=0.9", r"betas is '0\.9'; needs 2 values, each a number, separated by commas\."),
        ("betas=0.9,x", r"betas is 'x'; needs a number\."),
        ("=3", r": there is no field \. The fields are"),
    ],
)
def test_override_errors_say_what_there_is(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(Outer(name="x"), [assignment])


def test_json_round_trip():
    config = Outer(name="x", inner=Inner(low=-5, path="p"), betas=(0.5, 1.0), on=True, kind="b")
    raw = to_json(config)
    assert raw["inner"] == {"low": -5, "high": 2, "path": "p"}
    assert from_json(Outer, json.loads(json.dumps(raw))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, r"extra: there is no field extra"),
        ({"inner": {"loww": 1}}, r"inner\.loww: there is no field loww\. Did you mean low\?"),
        ({"inner": 3}, r"inner is 3; needs an object with the fields of Inner"),
        ({"inner": {"low": True}}, r"inner\.low is True; needs a whole number"),
        ({"rate": "1"}, r"rate is '1'; needs a number"),
        ({"betas": [1]}, r"betas is \[1\]; needs 2 values"),
        ({"kind": None}, r"kind is None; needs one of a, b"),
        ({"on": 1}, r"on is 1; needs true or false"),
    ],
)
def test_json_of_another_shape_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        from_json(Outer, {"name": "x"} | change)


def test_json_without_a_needed_field_is_refused():
    with pytest.raises(ConfigError, match=r"name is missing; Outer needs it"):
        from_json(Outer, {"rate": 1})


def test_diff_names_nested_fields():
    a = Outer(name="x")
    assert diff(a, override(a, ["inner.low=0", "rate=2"])) == {"inner.low": (1, 0), "rate": (1.0, 2.0)}
    assert diff(a, a) == {}


def test_require_says_what_it_needs():
    require(True, "rate", 1, "more than 0")
    with pytest.raises(ConfigError, match=r"^rate is -1; needs more than 0\.$"):
        require(False, "rate", -1, "more than 0")
