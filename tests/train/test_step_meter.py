"""The meter's numbers beside those counted by hand from the same rows."""

import json
from dataclasses import replace

import pytest
import torch

from eagle_kernels.linear_cross_entropy import linear_cross_entropy_ref
from eagle_model.batch import IGNORE_INDEX
from eagle_model.data.loader import DataConfig
from eagle_model.model.config import tiny
from eagle_model.model.loss import sqrt_mass
from eagle_model.train import recipes
from eagle_model.train.flops import FlopMeter
from eagle_model.train.parts import part_of
from eagle_model.train.precision import Masters
from eagle_model.train.step_meter import StepMeter, peak_of
from tests.model.samples import document, pack, small_model

CFG = tiny(vocab_size=97, image_token_id=96)
CONFIG = replace(recipes.tiny(), data=DataConfig(recipe="none"))


def row(*seeds: int, names: str, num_reduced: int = 0):
    documents = [document(CFG, 3 + seed, seed % 2, 4, seed=seed) for seed in seeds]
    return replace(pack(documents), datasets=tuple(names), num_reduced=num_reduced)


def trained(model, meter, rows):
    """A step of some rows; returns what the meter read and what its loss and gradient norm were."""
    meter.begin()
    mass = torch.stack([sqrt_mass(r.labels_T, r.cu_seqlens) for r in rows]).sum()
    total = torch.zeros(())
    for batch in meter.rows(iter(rows)):
        loss = model(batch, torch.ones(()))
        loss.backward()
        total += loss.detach()
    meter.take_gradients(Masters(model, torch.float32), mass)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]) / mass
    loss, grad_norm = meter.read(total / mass, norm)
    return meter.metrics(step=1, epoch=0, loss=loss, learning_rate=1e-3, grad_norm=grad_norm, num_skipped_samples=0)


def test_losses_by_data_set_are_means_over_their_tokens():
    model = small_model(CFG)
    meter = StepMeter(model, CONFIG)
    rows = [row(0, 1, 2, names="aba"), row(3, 4, names="bb")]
    metrics = trained(model, meter, rows)
    sums, counts = {"a": 0.0, "b": 0.0}, {"a": 0, "b": 0}
    for batch in rows:
        with torch.no_grad():
            hidden_TD = model.hidden(batch)
        ends = batch.cu_seqlens.tolist()
        for name, start, end in zip(batch.datasets, ends, ends[1:], strict=False):
            labels = batch.labels_T[start:end]
            num = int((labels != IGNORE_INDEX).sum())
            sums[name] += linear_cross_entropy_ref(hidden_TD[start:end], model.lm_head.weight, labels).item() * num
            counts[name] += num
    assert metrics.dataset_tokens == counts
    assert metrics.dataset_losses == pytest.approx({name: sums[name] / counts[name] for name in sums}, rel=1e-5)
    assert metrics.num_supervised_tokens == sum(counts.values())


def test_norms_of_parts_make_up_the_whole():
    model = small_model(CFG)
    model.connector.requires_grad_(False)
    metrics = trained(model, StepMeter(model, CONFIG), [row(0, 1, names="aa")])
    assert set(metrics.grad_norms) == {"vision", "embeddings", "llm", "lm_head"}
    assert sum(norm**2 for norm in metrics.grad_norms.values()) ** 0.5 == pytest.approx(metrics.grad_norm, rel=1e-5)
    mass = sqrt_mass(*(getattr(row(0, 1, names="aa"), name) for name in ("labels_T", "cu_seqlens")))
    vision = [p.grad for name, p in model.named_parameters() if part_of(name) == "vision" and p.grad is not None]
    want = torch.cat([grad.flatten() for grad in vision]).norm() / mass
    assert metrics.grad_norms["vision"] == pytest.approx(want.item(), rel=1e-5)


def test_shares_and_flops():
    model = small_model(CFG)
    rows = [row(0, 1, names="aa", num_reduced=1), row(2, names="a")]
    metrics = trained(model, StepMeter(model, CONFIG), rows)
    room = 2 * CONFIG.processor.sampling.context_tokens
    assert metrics.padding_share == pytest.approx(1 - sum(r.num_tokens for r in rows) / room)
    assert metrics.truncation_share == pytest.approx(1 / 3)
    assert metrics.model_flops == FlopMeter(model).step(rows).model
    assert metrics.mfu is None and metrics.peak_device_bytes is None
    assert 0 <= metrics.data_wait_seconds < metrics.step_seconds


def test_held_out_rows_and_rows_without_names_are_not_counted():
    model = small_model(CFG)
    meter = StepMeter(model, CONFIG)
    named, nameless = row(0, names="a"), row(1, names="")
    metrics = trained(model, meter, [named, nameless])
    with torch.no_grad():
        model(row(2, names="b"), torch.ones(()))  # as validation does, between steps
    assert set(metrics.dataset_losses) == {"a"}
    again = trained(model, meter, [named])
    assert again.dataset_losses == metrics.dataset_losses


def test_a_step_begins_anew():
    model = small_model(CFG)
    meter = StepMeter(model, CONFIG)
    first = trained(model, meter, [row(0, 1, names="ab")])
    model.zero_grad()
    second = trained(model, meter, [row(0, 1, names="ab")])
    same = {"loss", "num_tokens", "model_flops", "grad_norms", "dataset_losses", "dataset_tokens", "padding_share"}
    assert all(getattr(first, name) == getattr(second, name) for name in same)


def test_a_share_is_taken_of_a_known_gpu_in_bf16_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_of(torch.device("cuda"), "bfloat16") == pytest.approx(989.4e12)
    assert peak_of(torch.device("cuda"), "float32") is None
    assert peak_of(torch.device("cpu"), "bfloat16") is None


def test_counts_of_several_ranks_are_added_up():
    """Two data ranks of two context ranks each, of which those of one row have counted the same."""

    class Two:
        num_context = 2

        def gather(self, value):
            other = json.loads(json.dumps(value))
            other[0]["tokens"] += 5
            other[1]["b"] = 7
            other[2] = {"a": 1.0, "b": 14.0}
            return [value, value, other, other]

    model = small_model(CFG)
    meter = StepMeter(model, CONFIG)
    alone = trained(model, meter, [row(0, 1, names="aa", num_reduced=1)])
    meter.add_up(Two())
    both = meter.metrics(step=1, epoch=0, loss=1.0, learning_rate=1.0, grad_norm=1.0, num_skipped_samples=0)
    assert both.num_tokens == 2 * alone.num_tokens + 5
    assert both.num_supervised_tokens == 2 * alone.num_supervised_tokens
    assert both.model_flops == 2 * alone.model_flops and both.truncation_share == alone.truncation_share
    assert both.dataset_tokens == {"a": 2 * alone.dataset_tokens["a"], "b": 7}
    total = 2 * alone.dataset_losses["a"] * alone.dataset_tokens["a"] + 2 * 1.0  # losses of all four: of own tokens
    assert both.dataset_losses["a"] == pytest.approx(total / both.dataset_tokens["a"], rel=1e-6)
    assert both.dataset_losses["b"] == pytest.approx(28.0 / 7)


def test_rows_of_idle_ranks_do_not_count_and_documents_without_a_finite_loss_are_named():
    model = small_model(CFG)
    meter = StepMeter(model, CONFIG)
    idle = replace(row(2, names=""), sample_ids=())
    metrics = trained(model, meter, [row(0, names="a"), idle])
    assert metrics.num_tokens == row(0, names="a").num_tokens
    assert meter.not_finite_ids == []
    bad = row(0, 1, names="ab")
    with torch.no_grad():
        model.lm_head.weight[bad.labels_T[bad.labels_T != IGNORE_INDEX][-1]] = float("nan")
    trained(model, meter, [bad])
    assert set(meter.not_finite_ids) <= set(bad.sample_ids) and meter.not_finite_ids
