"""Models laid over processes: loss, every gradient and two optimizer steps as in one process.

The oracle is one process with all rows. What is compared are whole tensors: every rank gathers its rows of them.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore

from eagle_model.batch import PackedBatch
from eagle_model.fields import ConfigError, override
from eagle_model.model import lora, weights
from eagle_model.model.config import EagleConfig, tiny
from eagle_model.model.eagle import Eagle, build, load, read_model_config
from eagle_model.model.fp8 import use_fp8
from eagle_model.model.fp8_config import Fp8Config
from eagle_model.model.loss import divisor, sqrt_mass
from eagle_model.model.shards import is_cut, own, whole
from eagle_model.train import recipes
from eagle_model.train.adapters import adapted
from eagle_model.train.config import OptimizerConfig
from eagle_model.train.layout import Layout
from eagle_model.train.memory import MemoryConfig, use_memory
from eagle_model.train.optimizer import Optimizer
from eagle_model.train.parallel import laid_out, parallelize
from eagle_model.train.precision import Masters
from eagle_model.train.ranks import Ranks, start, start_part
from tests.model.samples import (
    IMAGE_TOKEN_ID,
    VOCAB_SIZE,
    document,
    pack,
    small_model,
    with_text,
    with_vision,
)
from tests.ranks import run

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)


def rows_of_a_step(cfg: EagleConfig) -> list[PackedBatch]:
    """Four rows: two documents with an image, text alone, two tiles, text and an image."""
    kinds = [[(3, 1, 7), (4, 0, 0)], [(11, 0, 0)], [(0, 2, 5)], [(2, 0, 0), (2, 1, 3)]]
    return [
        pack([document(cfg, *size, seed=10 * i + j) for j, size in enumerate(sizes)]) for i, sizes in enumerate(kinds)
    ]


def built(ranks: Ranks, case: dict) -> Eagle:
    cfg = with_text(CFG, num_hidden_layers=1, tie_word_embeddings=case.get("tied", False))
    cfg = with_vision(cfg, num_hidden_layers=1)
    model = build(cfg)
    if "lora" in case:
        lora.add_lora(model, lora.LoraConfig(rank=3, dropout=0.0, dora=case["lora"] == "dora"))
    dtype = DTYPES[case.get("dtype", "float32")]
    parallelize(model, ranks, dtype=dtype, vision_at_once="vision_chunk_tiles" in case.get("memory", {}))
    torch.manual_seed(0)
    load(model, None, dtype=torch.promote_types(dtype, torch.float32))
    if "lora" in case:
        lora.draw(model)
        for parameter in model.parameters():  # B too has numbers
            if parameter.requires_grad:
                own(parameter.data).add_(0.01)
    return model.train()


def trained(ranks: Ranks, case: dict) -> dict[str, Tensor]:
    """Losses, gradients of the first step, and weights before and after two of them; whole."""
    model, dtype = built(ranks, case), DTYPES[case.get("dtype", "float32")]
    # Not torchao's update, whose compilation takes minutes.
    torch.compiler.set_stance("default" if "compile" in case else "force_eager")
    if "fp8" in case:
        use_fp8(model, Fp8Config(recipe=case["fp8"]))
    memory = MemoryConfig(**case.get("memory", {}))
    run_layer = use_memory(model, memory, torch.device("cpu"))
    if "compile" in case:
        for layer in (*model.vision.layers, *model.llm.layers):
            layer.compile(backend=case["compile"])
    # The CPU under another name, as it is another device's host.
    host = torch.device("cpu", 0) if memory.optimizer == "host" else None
    masters = Masters(model, dtype, host=host, stochastic=memory.stochastic_rounding)
    # A key's bias has no gradient but rounding; with a small eps AdamW would make a whole step of that.
    config = OptimizerConfig(learning_rate=1e-2, max_grad_norm=0.5, eps=1e-3)
    optimizer = Optimizer(masters, config, in_8_bits=memory.optimizer == "adamw8bit")
    rows = [row.to("cpu", dtype=dtype) for row in rows_of_a_step(model.cfg)]
    wide = torch.promote_types(dtype, torch.float32)
    parameters = {name: p for name, p in model.named_parameters() if name in masters.by_name}
    found = {"start." + name: gathered(masters.by_name[name], p) for name, p in parameters.items()}
    for step in range(2):
        mass, total = torch.zeros((), dtype=wide), torch.zeros((), dtype=wide)
        for row in rows[ranks.data_rank :: ranks.num_data]:
            loss = model(row, torch.ones(()), run_layer=run_layer)
            loss.backward()
            total += loss.detach()
            mass += sqrt_mass(row.labels_T, row.cu_seqlens)
        mass = ranks.total(mass)
        found[f"loss.{step}"] = ranks.total(total) / divisor(mass)
        if step == 0:
            found |= {"grad." + name: gathered(masters.by_name[name].grad, p) for name, p in parameters.items()}
        found[f"norm.{step}"] = optimizer.clip(mass)
        optimizer.step(1e-2)
    return found | {"end." + name: gathered(masters.by_name[name], p) for name, p in parameters.items()}


def gathered(rows: Tensor | None, like: Tensor) -> Tensor:
    """All of a parameter, or its gradient, from every process's rows, before the step goes on to change it."""
    rows = torch.zeros_like(own(like)) if rows is None else rows.detach()
    if not is_cut(like):
        return rows.clone()
    from torch.distributed.tensor import DTensor

    shape, stride = like.shape, like.stride()
    cut = DTensor.from_local(rows, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)
    return cut.full_tensor().clone()


def differences(cases: list) -> list:
    """For each layout and case, how far each kind of number is off, by the largest of its tensor; the worst of them."""
    answers: list = []
    for layout, case in cases:
        if (ranks := start_part(Layout(**layout), "cpu")) is None:
            continue
        ours = trained(ranks, case)
        if not ranks.is_first:
            continue
        theirs = trained(Ranks(Layout(), torch.device("cpu")), case)
        assert ours.keys() == theirs.keys()
        worst: dict[str, list] = {}
        for name, value in ours.items():
            error = float((value - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-30))
            kind = name.partition(".")[0]
            worst[kind] = max(worst.get(kind, [0.0, ""]), [error, name])
        answers.append(worst)
    return answers


SHARD2, SHARD4, HYBRID = {"shard": 2}, {"shard": 4}, {"replicate": 2, "shard": 2}
FP64, BF16 = {"dtype": "float64"}, {"dtype": "bfloat16"}
EXACT, SINGLE = (1e-12, 1e-12), (1e-6, 1e-5)  # of the first step, and of what comes after it
CASES = {  # layout, what is trained, and how far numbers may be off
    "fp64-tied": (SHARD2, FP64 | {"tied": True}, EXACT),
    "fp32": (SHARD2, {}, SINGLE),
    "bf16": (SHARD2, BF16, SINGLE),
    "four": (SHARD4, FP64, EXACT),  # of an uneven number of rows
    "hybrid": (HYBRID, FP64 | {"memory": {"activations": "block", "mlp_chunk_tokens": 4}}, EXACT),
    "replicas": ({"replicate": 2}, {}, SINGLE),
    # Rows with 1, 0, 2 and 1 tiles: processes run their towers different numbers of times.
    "chunks-of-tiles": (SHARD2, FP64 | {"memory": {"vision_chunk_tiles": 1}}, EXACT),
    "vocab-parallel": (HYBRID | {"vocab_parallel": True}, FP64, EXACT),
    "dora-bf16": (SHARD2, BF16 | {"lora": "dora"}, SINGLE),
    "fp8": (SHARD2, {"fp8": "current"}, (1e-6, 1e-2)),  # then some numbers fall to the other side of a rounding
    "8-bit": (SHARD2, {"memory": {"optimizer": "adamw8bit"}}, (1e-6, 1e-2)),  # moments' runs of 256 are others
}
SLOW_CASES = {
    f"{layout_name}-{name}": (layout, case, tolerance)
    for layout_name, layout in {"2": SHARD2, "4": SHARD4, "2x2": HYBRID}.items()
    for name, case, tolerance in (
        ("untied", FP64, EXACT),
        ("tied", {"tied": True}, SINGLE),
        ("lora", FP64 | {"lora": "plain"}, EXACT),
        ("selective", FP64 | {"memory": {"activations": "selective"}}, EXACT),
        ("offload", FP64 | {"memory": {"activations": "offload", "vision_chunk_tiles": 1}}, EXACT),
        ("tied-block", FP64 | {"tied": True, "memory": {"activations": "block"}}, EXACT),
        ("fp8-bf16", BF16 | {"fp8": "current"}, (1e-6, 1e-2)),
        ("fp8-blocks", {"fp8": "mxfp8", "memory": {"activations": "block"}}, (1e-6, 1e-2)),
        ("host", BF16 | {"memory": {"optimizer": "host"}}, (1e-2, 1e-1)),  # each row's sum goes there in bf16
        ("stochastic", BF16 | {"memory": {"optimizer": "adamw8bit", "stochastic_rounding": True}}, (1e-2, 1e-1)),
    )
} | {
    "4-vocab-parallel": (SHARD4 | {"vocab_parallel": True}, BF16, (3e-2, 1e-1)),  # hidden's gradients summed in fp32
    "2-compiled": (SHARD2, {"compile": "eager", "memory": {"activations": "block"}}, SINGLE),
}


@pytest.fixture(scope="module")
def fast() -> dict[str, dict[str, list]]:
    cases = [(layout, case) for layout, case, _ in CASES.values()]
    return dict(zip(CASES, run(differences, 4, cases)[0], strict=True))


def assert_close(worst: dict[str, list], tolerance: tuple[float, float]) -> None:
    first, later = tolerance
    assert worst["start"][0] == 0  # new weights from a seed, bit for bit
    assert worst["grad"][0] <= first, worst
    assert max(worst["loss"][0], worst["norm"][0], worst["end"][0]) <= later, worst


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_same_over_any_processes(fast, name):
    assert_close(fast[name], CASES[name][2])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_CASES)
def test_a_step_is_the_same_over_more_of_them(name):
    layout, case, tolerance = SLOW_CASES[name]
    assert_close(run(differences, 4, [(layout, case)])[0][0], tolerance)


def means_in_place_of_sums() -> list:
    FSDPModule.set_force_sum_reduction_for_comms = FSDPModule.set_gradient_divide_factor = lambda self, value: None
    return differences([(SHARD2, FP64)])


def test_means_in_place_of_sums_would_show():
    (worst,) = run(means_in_place_of_sums, 2)[0]
    assert worst["grad"][0] > 0.4 and worst["norm"][0] > 0.4


# ---- what is not a step


def adapters(folder: str) -> list[bool]:
    """Adapters of a base and of a file of them, as a run makes and loads them, against one process's."""
    config = override(recipes.tiny(), ["data.recipe=none", f"model={folder}/base", *LORA])
    cfg = read_model_config(config.model)
    found = []
    models = {}
    for name, ranks in {"cut": start(Layout(shard=2), "cpu"), "one": start(Layout(), "cpu")}.items():
        torch.manual_seed(5)
        models[name] = adapted(cfg, Path(config.model), config, ranks)
    for load_file in (False, True):
        for model in models.values() if load_file else ():
            lora.load_adapter(model, f"{folder}/adapter", dtype=torch.float32)
        ones = dict(models["one"].named_parameters())
        found.append(all(torch.equal(whole(p.detach()), ones[n]) for n, p in models["cut"].named_parameters()))
    return found


LORA = ["rows_per_step=2", "lora.rank=3", "lora.dora=true", "lora.modules_to_save=mlp1"]


def test_adapters_begin_and_are_loaded_as_in_one_process(tmp_path):
    model = small_model(with_text(CFG, num_hidden_layers=1))
    model.save_pretrained(tmp_path / "base")
    lora.add_lora(model, lora.LoraConfig(rank=3, dora=True, modules_to_save=("mlp1",)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * parameter.requires_grad)
    lora.save_adapter(model, tmp_path / "adapter")
    assert run(adapters, 2, str(tmp_path)) == [[True, True]] * 2


def from_a_folder(folder: str) -> dict:
    """What each rank reads of a model's files, against the whole model."""
    whole_model = Eagle.from_pretrained(folder)
    sizes: dict[str, int] = {}
    cut = parallelize(build(whole_model.cfg), start(Layout(shard=2), "cpu"))
    plain_slices = weights.safe_open

    class Spied:
        """A file that counts what is asked of it."""

        def __init__(self, *args, **options):
            self.file = plain_slices(*args, **options)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *args):
            self.file.__exit__(*args)

        def __getattr__(self, name):
            assert name != "get_tensor", "no tensor is read whole"
            return getattr(self.file, name)

        def get_slice(self, key):
            part = self.file.get_slice(key)

            class Part:
                get_shape, get_dtype = part.get_shape, part.get_dtype

                def __getitem__(self, rows):
                    sizes[key] = sizes.get(key, 0) + part[rows].numel()
                    return part[rows]

            return Part()

    weights.safe_open = Spied
    load(cut, folder)
    weights.safe_open = plain_slices
    same = [torch.equal(whole(p), whole_model.get_parameter(name)) for name, p in cut.named_parameters()]
    here = sum(own(p).numel() for p in cut.parameters())
    prompts = document(cut.cfg, 5, 1, 3, seed=1)
    answers = [model.eval().generate(prompts, max_new_tokens=3) for model in (cut, whole_model)]
    streamed = [token for step in cut.stream(prompts, max_new_tokens=3) for _, token in step]
    with torch.no_grad():
        apart = [float((cut.hidden(prompts) - whole_model.hidden(prompts)).abs().max()), cut.embed(prompts).shape[0]]
    return {
        "same": all(same),
        "read": sum(sizes.values()),
        "here": here,
        "answers": [*answers, [streamed]],
        "apart": apart,
    }


@pytest.mark.parametrize("tied", [False, True])
def test_each_process_reads_its_rows_alone_and_answers_like_one(tmp_path, tied):
    model = small_model(with_text(CFG, num_hidden_layers=1, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path / "model")
    found = run(from_a_folder, 2, str(tmp_path / "model"))
    assert sum(one["here"] for one in found) == sum(p.numel() for p in model.parameters())
    prompts = document(CFG, 5, 1, 3, seed=1).num_tokens
    for one in found:
        assert one["same"] and one["read"] == one["here"]
        assert one["answers"] == one["answers"][:1] * 3
        assert one["apart"] == [0, prompts]


def on_128_ranks() -> float:
    """A layout of a fake process group: CPU seconds until the model is laid over it, and its rows are there."""
    begin = time.process_time()
    dist.init_process_group("fake", rank=77, world_size=128, store=FakeStore())
    ranks = start(Layout(replicate=2, shard=8, context=8, ulysses=2), "cpu")
    assert (ranks.data_rank, ranks.context_rank, ranks.mesh.shape) == (9, 5, (2, 64))
    model = parallelize(build(with_text(CFG, vocab_size=640)), ranks, dtype=torch.bfloat16)
    load(model, None)
    masters = Masters(model, torch.bfloat16)
    assert masters.by_name["lm_head.weight"].shape == (10, 128)
    seconds = time.process_time() - begin
    dist.destroy_process_group()
    return seconds


def test_128_ranks_start_up_in_seconds():
    assert run(on_128_ranks, 1)[0] < 5


def test_one_process_has_the_whole_model():
    model = build(CFG)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    placed = parallelize(model, start(Layout(), "cpu"))
    assert placed is model
    assert {name: p.shape for name, p in placed.named_parameters()} == shapes
    assert all(p.is_meta for p in placed.parameters())


@pytest.mark.parametrize(
    ("cfg", "layout", "settings", "said"),
    [
        (CFG, {"context": 8, "ulysses": 8}, [], "ulysses is 8; the model's 4 query heads must be a multiple of it"),
        (
            CFG,
            {"shard": 2},
            ["base_weights=nf4"],
            "base_weights is nf4 in a layout of 2 processes .* base_weights=full",
        ),
        (
            with_text(CFG, tie_word_embeddings=True),
            {"shard": 2, "vocab_parallel": True},
            [],
            "layout.vocab_parallel is true, and the model's lm_head is its table of embeddings",
        ),
    ],
    ids=["heads", "nf4", "tied"],
)
def test_what_cannot_be_laid_out_is_refused_before_it_is_loaded(cfg, layout, settings, said):
    config = override(
        recipes.tiny(), ["data.recipe=none", "rows_per_step=2", *["lora.rank=4"] * bool(settings), *settings]
    )
    ranks = Ranks.__new__(Ranks)
    ranks.layout = Layout(**layout)
    with pytest.raises(ConfigError, match=said):
        laid_out(build(cfg), config, ranks)
