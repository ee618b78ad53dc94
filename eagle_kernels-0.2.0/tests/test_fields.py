"""Fields are set by name and by type, go to JSON and back, and are compared."""

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_model.fields import (
    ConfigError,
    diff,
    few,
    from_json,
    listing,
    near_misses,
    override,
    require,
    shown,
    to_json,
    to_text,
)  # fmt: skip


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
        ("inner.lo=2", r"inner\.lo: there is no field lo\. Did you mean inner\.low\? The fields are low, high, path\."),
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
        ("=3", "is no assignment; needs path.to.field=value"),
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
        ({"inner": {"loww": 1}}, r"inner\.loww: there is no field loww\. Did you mean inner\.low\?"),
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


def test_many_names_and_long_values_stay_short():
    assert few([]) == ""
    assert few(["a", 1, "b\n"]) == "a, 1, 'b\\n'"
    assert few(f"n{i}" for i in range(20)).endswith("n18, n19")
    assert few(range(5965)).endswith("18, 19 and 5,945 more")
    assert len(few(["x" * 10_000] * 3)) < 330
    assert few(["caf\udce9"]) == "'caf\\udce9'"  # a name that is not UTF-8 can still be printed
    assert shown("a" * 200) == "'" + "a" * 99 + "..."
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "list in list, and so on"


@pytest.mark.parametrize(
    "assignment",
    [f"{'x' * 100_000}=1", f"inner.{'x' * 100_000}=1", "a" * 100_000, f"rate.{'y.' * 9999}=2", "rate=" + "z" * 9999],
)
def test_refusals_of_long_names_are_short_and_quick(assignment):
    with pytest.raises(ConfigError) as caught:
        override(Outer(name="x"), [assignment])
    assert len(str(caught.value)) < 400
    if "=" in assignment:
        with pytest.raises(ConfigError) as caught:
            from_json(Outer, {"name": "x", assignment: 1})
        assert len(str(caught.value)) < 400


def test_require_says_what_it_needs():
    require(True, "rate", 1, "more than 0")
    with pytest.raises(ConfigError, match=r"^rate is -1; needs more than 0\.$"):
        require(False, "rate", -1, "more than 0")


# ---- groups that may be absent, tuples of any length, tuples of groups


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """Low-rank updates of linear layers.

    Not part of the listing.
    """

    rank: int = 8  # of the update
    targets: tuple[str, ...] = ("q", "v")
    dropout: float | None = None

    def __post_init__(self) -> None:
        require(self.rank > 0, "rank", self.rank, "more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    name: str  # of the parameters, as it begins
    learning_rate: float = 1e-3
    blocks: tuple[int, ...] = ()
    adapter: Adapter | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    max_steps: int  # of this stage
    sizes: tuple[int, ...] = (448, 896)
    adapter: Adapter | None = None
    groups: tuple[ParameterGroup, ...] = ()  # parameters with settings of their own
    spans: tuple[tuple[int, float], ...] = ()
    precision: Literal["bf16", 8] = "bf16"
    note: str | None = None
    tuned: Adapter = field(default_factory=lambda: Adapter(rank=64))


NUMBERS = st.floats(allow_nan=False)
ADAPTERS = st.builds(Adapter, rank=st.integers(1), targets=st.lists(st.text()).map(tuple), dropout=st.none() | NUMBERS)
GROUPS = st.builds(
    ParameterGroup,
    name=st.text() | st.sampled_from(["none", '"none"', "[1", "{}", "a=b", "true", " "]),
    learning_rate=NUMBERS,
    blocks=st.lists(st.integers()).map(tuple),
    adapter=st.none() | ADAPTERS,
)
STAGES = st.builds(
    Stage,
    max_steps=st.integers(),
    sizes=st.lists(st.integers()).map(tuple),
    adapter=st.none() | ADAPTERS,
    groups=st.lists(GROUPS, max_size=3).map(tuple),
    spans=st.lists(st.tuples(st.integers(), NUMBERS)).map(tuple),
    precision=st.sampled_from(["bf16", 8]),
    note=st.none() | st.text() | st.just("none"),
    tuned=ADAPTERS,
)


@settings(max_examples=200, deadline=None)
@given(STAGES)
def test_every_config_comes_back_from_json_and_from_its_listing(stage):
    assert from_json(Stage, json.loads(json.dumps(to_json(stage)))) == stage
    assignments = [assignment for assignment, _ in listing(stage) if assignment and not assignment.startswith("# ")]
    assert override(Stage(max_steps=0), assignments) == stage
    assert override(stage, []) == stage
    assert diff(stage, stage) == {}


@settings(max_examples=100, deadline=None)
@given(STAGES, STAGES)
def test_diff_names_what_makes_two_configs_one(one, other):
    """Setting the fields that differ to the other's values makes the other."""
    changed = diff(one, other)
    assert override(one, [f"{path}={as_text(value)}" for path, (_, value) in changed.items()]) == other
    for path, (before, after) in changed.items():
        assert before != after, path


def as_text(value: object) -> str:
    """A group as JSON, anything else as `to_text` has it."""
    return json.dumps(to_json(value)) if isinstance(value, Adapter) else to_text(value)


def test_a_group_that_was_none_is_made_with_its_defaults():
    stage = override(Stage(max_steps=1), ["adapter.rank=4"])
    assert stage.adapter == Adapter(rank=4)
    assert override(stage, ["adapter.targets=q, k ,v"]).adapter == Adapter(rank=4, targets=("q", "k", "v"))
    assert override(stage, ["adapter.targets="]).adapter == Adapter(rank=4, targets=())
    assert override(stage, ["adapter=none"]).adapter is None
    assert override(stage, ["adapter=none", "adapter.dropout=0.5"]).adapter == Adapter(dropout=0.5)
    assert override(stage, ['adapter={"rank": 2}']).adapter == Adapter(rank=2)
    assert override(stage, ["tuned.dropout=0.5"]).tuned == Adapter(rank=64, dropout=0.5)  # not the class's default rank


def test_items_of_a_tuple_of_groups_are_set_by_number():
    stage = override(Stage(max_steps=1), ["groups.0.name=llm", "groups.1.name=vision", "groups.1.learning_rate=1e-5"])
    assert stage.groups == (ParameterGroup(name="llm"), ParameterGroup(name="vision", learning_rate=1e-5))
    assert override(stage, ["groups.0.adapter.rank=3"]).groups[0].adapter == Adapter(rank=3)
    assert override(stage, ['groups=[{"name": "all"}]']).groups == (ParameterGroup(name="all"),)
    assert override(stage, ["groups="]).groups == ()
    assert override(stage, ["sizes.1=5", "sizes.2=6"]).sizes == (448, 5, 6)
    assert override(stage, ["spans=[[1, 2]]"]).spans == ((1, 2.0),)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("groups.1.name=x", r"groups\.1\.name: groups has 0 items, numbered from 0; there is no item 1\."),
        ("groups.first.name=x", r"groups\.first\.name: groups has 0 items, numbered from 0; there is no item first\."),
        ("groups.0.learning_rate=1", r"groups\.0\.name is missing; ParameterGroup needs it\."),
        (
            "groups.0.nam=x",
            r"there is no field nam\. Did you mean groups\.0\.name\? The fields are name, learning_rate",
        ),
        ("groups=llm", r"groups\.0 is a group of fields; set one of groups\.0\.name, groups\.0\.learning_rate"),
        ('groups=[{"name": 3}]', r"groups\.0\.name is 3; needs text\."),
        ("groups=[3]", r"groups\.0 is 3; needs an object with the fields of ParameterGroup\."),
        (
            "groups=[",
            r"groups is '\['; needs a JSON list, each an object with the fields of ParameterGroup",
        ),
        ("adapter=[1]", r"adapter is a group of fields; set one of adapter\.rank, adapter\.targets"),
        ("adapter={", r"adapter is '\{'; needs an object with the fields of Adapter or none\."),
        ("adapter.rank=none", r"adapter\.rank is 'none'; needs a whole number\."),
        ("adapter.rank=0", r"^adapter\.rank is 0; needs more than 0\."),
        ('groups=[{"name": "a", "adapter": {"rank": 0}}]', r"^groups\.0\.adapter\.rank is 0; needs more than 0\."),
        ("sizes=1,x", r"sizes is 'x'; needs a whole number\."),
        ("sizes.5=1", r"sizes\.5: sizes has 2 items, numbered from 0; there is no item 5\."),
        ("spans=1,2", r"spans is '1'; needs 2 values, which are a whole number, then a number, separated by commas\."),
        ("precision=4", r"precision is '4'; needs one of bf16, 8\."),
        ("sizes=" + "9," * 200 + "x", r"sizes is 'x'; needs a whole number\."),
        ("max_steps=" + "9" * 5000, r"max_steps is '9{50,200}\.\.\.; needs a whole number\."),
    ],
)
def test_errors_name_the_item(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(Stage(max_steps=1), [assignment])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": True}, r"precision is True; needs one of bf16, 8"),
        ({"spans": [[1, 10**400]]}, r"spans is 10+\.\.\.; needs a number"),
        ({"groups": {"name": "a"}}, r"groups is \{'name': 'a'\}; needs a JSON list, each"),
        ({"groups": [{"name": "a"}, {"nam": "b"}]}, r"groups\.1\.nam: .* Did you mean groups\.1\.name\?"),
        ({"groups": [None]}, r"groups\.0 is None; needs an object with the fields of ParameterGroup"),
        ({"adapter": []}, r"adapter is \[\]; needs an object with the fields of Adapter or none"),
    ],
)
def test_json_of_another_shape_is_refused_by_item(change, message):
    with pytest.raises(ConfigError, match=message):
        from_json(Stage, {"max_steps": 1} | change)


# ---- near misses and the listing


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    context_tokens: int = 512
    frames_per_second: float = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    optimizer: Optimizer = field(default_factory=Optimizer)
    sampling: Sampling = field(default_factory=Sampling)
    groups: tuple[ParameterGroup, ...] = ()
    max_steps: int = 1


@pytest.mark.parametrize(
    ("path", "hints"),
    [
        ("optimizer.lr", ["optimizer.learning_rate"]),
        ("groups.4.lr", ["groups.4.learning_rate"]),
        ("lr", ["optimizer.learning_rate", "groups.0.learning_rate"]),
        ("groups.4.learning_rat", ["groups.4.learning_rate"]),
        ("wd", ["optimizer.weight_decay"]),
        ("fps", ["sampling.frames_per_second"]),
        ("optimizer.context_tokens", ["sampling.context_tokens"]),
        ("context_token", ["sampling.context_tokens"]),
        ("optim.weight_decay", ["optimizer.weight_decay"]),
        ("grad_norm", ["optimizer.max_grad_norm"]),
        ("optimiser", ["optimizer"]),
        ("steps", ["max_steps"]),
        ("max_step", ["max_steps"]),
        ("zzz", []),
        ("", []),
    ],
)
def test_near_misses(path, hints):
    assert near_misses(Run, path) == hints


def test_a_wrong_name_in_a_wrong_group_hints_at_the_group():
    with pytest.raises(ConfigError, match=r"optim\.zzz: there is no field optim\. Did you mean optimizer\?"):
        override(Run(), ["optim.zzz=3"])


def test_the_listing_has_values_meanings_and_types():
    stage = Stage(max_steps=5, adapter=Adapter(dropout=0.5))
    assert listing(stage) == [
        ("max_steps=5", "of this stage (a whole number)"),
        ("sizes=448,896", "(any number of values, each a whole number, separated by commas)"),
        ("", "adapter: Low-rank updates of linear layers."),
        ("adapter.rank=8", "of the update (a whole number)"),
        ("adapter.targets=q,v", "(any number of values, each text, separated by commas)"),
        ("adapter.dropout=0.5", "(a number or none)"),
        ("groups=", "parameters with settings of their own (a JSON list, each an object with the fields of "
         "ParameterGroup)"),
        ("# groups.0.name=", "of the parameters, as it begins (text)"),
        ("# groups.0.learning_rate=0.001", "(a number)"),
        ("# groups.0.blocks=", "(any number of values, each a whole number, separated by commas)"),
        ("# groups.0.adapter=none", "(an object with the fields of Adapter or none)"),
        ("# groups.0.adapter.rank=8", "of the update (a whole number)"),
        ("# groups.0.adapter.targets=q,v", "(any number of values, each text, separated by commas)"),
        ("# groups.0.adapter.dropout=none", "(a number or none)"),
        ("spans=", "(a JSON list, each 2 values, which are a whole number, then a number, separated by "
         "commas)"),
        ("precision=bf16", "(one of bf16, 8)"),
        ("note=none", "(text or none)"),
        ("", "tuned: Low-rank updates of linear layers."),
        ("tuned.rank=64", "of the update (a whole number)"),
        ("tuned.targets=q,v", "(any number of values, each text, separated by commas)"),
        ("tuned.dropout=none", "(a number or none)"),
    ]  # fmt: skip
