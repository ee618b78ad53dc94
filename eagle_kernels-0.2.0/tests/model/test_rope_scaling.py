"""RopeScaling: frequencies and scale against transformers', bit by bit, and what is refused."""

import re

import pytest
import torch
from transformers import Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from eagle_model.model.rope_scaling import RopeScaling

THETA, LENGTH = 1e6, 64
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": LENGTH}
KINDS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4 * LENGTH},
    "yarn, a length of the model's": {"rope_type": "yarn", "factor": 2},
    "yarn, every field": {
        "rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False,
        "original_max_position_embeddings": 4 * LENGTH, "mscale": 0.7, "mscale_all_dim": 1.2,
    },
    "yarn, its scale": {"rope_type": "yarn", "factor": 1.0, "attention_factor": 0.9},
    "llama3": {"rope_type": "llama3", **LLAMA3},
}  # fmt: skip


def read(fields, *, length=LENGTH):
    return RopeScaling.from_dict("config.json: rope", fields, max_position_embeddings=length)


def theirs(fields, head_dim, seq_len=None):
    config = Qwen2Config(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        rope_parameters={**fields, "rope_theta": THETA},
    )
    return ROPE_INIT_FUNCTIONS[fields["rope_type"]](config, torch.device("cpu"), seq_len=seq_len)


@pytest.mark.parametrize("head_dim", [4, 80, 128])
@pytest.mark.parametrize("name", KINDS)
def test_frequencies_are_transformers(name, head_dim):
    scaling = read(KINDS[name])
    frequencies, scale = theirs(KINDS[name], head_dim)
    torch.testing.assert_close(scaling.frequencies(head_dim=head_dim, theta=THETA), frequencies, rtol=2e-7, atol=0)
    assert scaling.scale == pytest.approx(scale, rel=1e-12)


def test_dynamic_takes_each_documents_length():
    fields = {"rope_type": "dynamic", "factor": 1.3}
    lengths = torch.tensor([1, LENGTH, LENGTH + 1, 1000, LENGTH])
    ours = read(fields).dynamic_frequencies(lengths, head_dim=80, theta=THETA, max_position_embeddings=LENGTH)
    plain = 1.0 / (THETA ** (torch.arange(0, 80, 2).float() / 80))
    for length, frequencies in zip(lengths, ours, strict=True):
        want, scale = theirs(fields, 80, seq_len=length)
        assert scale == 1.0
        torch.testing.assert_close(frequencies, want, rtol=5e-6, atol=0)
        assert torch.equal(frequencies, plain) == (length <= LENGTH)


@pytest.mark.parametrize("name", KINDS)
def test_comes_back(name):
    scaling = read(KINDS[name])
    assert read(scaling.to_dict()) == scaling
    assert scaling.to_dict().items() >= KINDS[name].items()
    assert hash(scaling) == hash(read(KINDS[name]))


def test_plain_positions_have_none():
    for fields in ({}, {"rope_type": "default"}, {"type": "default", "rope_type": "default"}):
        assert read(fields) is None
    assert read({"type": "linear", "factor": 2}) == RopeScaling(rope_type="linear", factor=2)
    extra = {"mscale": 1, "finetuned": True, "low_freq_factor": "x"}  # which linear does not have
    assert read({"rope_type": "linear", "factor": 2, **extra}) == RopeScaling(rope_type="linear", factor=2)
    assert read({"rope_type": "default", "mscale": 1}) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "linear", "rope_type": "yarn"}, "rope: rope_type is 'yarn' but type 'linear'; they must"),
        ({"rope_type": "longrope"}, "rope is {'rope_type': 'longrope'}; this model computes rope_type default, linear"),
        ({"rope_type": ["yarn"]}, "this model computes rope_type default, linear"),
        ({"rope_type": "linear"}, "config.json: rope is {'rope_type': 'linear'}; linear needs factor"),
        ({"rope_type": "yarn", "factor": 2, "mrope_section": [1]}, "this model has no 'mrope_section'"),
        ({"full_attention": {"rope_type": "yarn", "factor": 2}}, "this model has no 'full_attention'"),
        ({"factor": 2}, "needs rope_type beside factor"),
        ({"rope_type": "linear", "factor": 0.5}, "config.json: rope: factor is 0.5; linear needs a number of"),
        ({"rope_type": "linear", "factor": "2"}, "factor is '2'; linear needs a number of at least 1"),
        ({"rope_type": "yarn", "factor": 2, "truncate": 1}, "truncate is 1; yarn needs true or false"),
        ({"rope_type": "yarn", "factor": 2, "beta_fast": True}, "beta_fast is True; yarn needs a number of at least 0"),
        (
            {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 1.5},
            "original_max_position_embeddings is 1.5; yarn needs a whole number of at least 1",
        ),
        ({"rope_type": "llama3", **LLAMA3, "low_freq_factor": None}, "llama3 needs low_freq_factor"),
        ({"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4}, "low_freq_factor is 4 and high_freq_factor 4.0"),
    ],
)  # fmt: skip
def test_refuses(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(fields)


def test_heads_of_two_have_no_dynamic_frequencies():
    with pytest.raises(ValueError, match="heads are 2 wide; dynamic needs at least 4"):
        RopeScaling(rope_type="dynamic", factor=2).check_head_dim(2)
    RopeScaling(rope_type="linear", factor=2).check_head_dim(2)
