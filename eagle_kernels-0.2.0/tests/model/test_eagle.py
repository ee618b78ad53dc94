"""The whole model: embedding merge, packing, checkpointing, sizes."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from eagle_model.batch import PackedBatch
from eagle_model.model import weights
from eagle_model.model.config import EagleConfig, eagle2_5_8b, tiny
from eagle_model.model.eagle import Eagle, build, check_device, load
from eagle_model.model.loss import sqrt_mass, token_weights
from eagle_model.model.recompute import RunLayer, recomputed
from tests.model.samples import (
    IMAGE_TOKEN_ID,
    VOCAB_SIZE,
    document,
    mixed_documents,
    pack,
    small_model,
    with_text,
    with_vision,
)

CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)


def loss_sum(model: Eagle, batch: PackedBatch, **kwargs: RunLayer) -> torch.Tensor:
    """Sum of the labelled tokens' cross-entropies."""
    weights_T = (batch.labels_T >= 0).float()
    return model.lm_head(model.hidden(batch, **kwargs), batch.labels_T, weights_T)


def gradients(model: Eagle) -> dict[str, torch.Tensor]:
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return grads


def owners(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules that have parameters of their own."""
    return {name: module for name, module in model.named_modules() if list(module.parameters(recurse=False))}


def called(model: Eagle, step) -> set[str]:
    """The names of the modules that `step` calls as modules, so that hooks, adapters and wrappers see them."""
    names: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: names.add(name)) for name, module in model.named_modules()
    ]
    step()
    for handle in handles:
        handle.remove()
    return names


@pytest.mark.parametrize("run_layer", [None, recomputed])
def test_every_module_with_parameters_is_called_in_training(run_layer):
    model = small_model(CFG)
    row = pack(mixed_documents(CFG))
    mass = sqrt_mass(row.labels_T, row.cu_seqlens)
    names = called(model, lambda: model(row, mass, run_layer=run_layer).backward())
    assert len(owners(model)) == 41
    assert owners(model).keys() - names == set()
    assert "" in names  # the model itself


def test_every_module_with_parameters_is_called_in_generation():
    model = small_model(CFG)
    row = pack(mixed_documents(CFG))
    assert owners(model).keys() - called(model, lambda: model.generate(row, max_new_tokens=1)) == set()


def test_a_change_of_any_modules_output_reaches_the_loss():
    """What an adapter does: were a weight taken out of a module, the change would be lost."""
    model = small_model(CFG)
    row = pack(mixed_documents(CFG))
    mass = sqrt_mass(row.labels_T, row.cu_seqlens)

    def changed(module, inputs, out):
        return (out[0].tanh(), *out[1:]) if isinstance(out, tuple) else out.tanh()

    with torch.no_grad():
        before = model(row, mass)
        for name, module in owners(model).items():
            handle = module.register_forward_hook(changed)
            assert not torch.equal(model(row, mass), before), name
            handle.remove()
        assert torch.equal(model(row, mass), before)


def test_forward_is_the_rows_share_of_the_loss():
    model = small_model(CFG)
    documents = mixed_documents(CFG)
    rows = [pack(documents[:2]), pack(documents[2:])]
    mass = sum(sqrt_mass(row.labels_T, row.cu_seqlens) for row in rows)
    with torch.no_grad():
        for row in rows:
            losses_T = F.cross_entropy(model.lm_head(model.hidden(row)), row.labels_T, reduction="none")
            want = (losses_T * token_weights(row.labels_T, row.cu_seqlens, mass)).sum()
            torch.testing.assert_close(model(row, mass), want)


def test_visual_tokens_take_their_rows():
    model = small_model(CFG)
    documents = mixed_documents(CFG)
    row = pack(documents)
    with torch.no_grad():
        embeddings = model.embed(row)
        visual = model.encode_tiles(row.patches_IPK)
    assert torch.equal(embeddings[row.visual_rows_N], visual)
    is_text = row.token_ids_T != IMAGE_TOKEN_ID
    assert torch.equal(embeddings[is_text], model.llm.embed_tokens.weight[row.token_ids_T[is_text]])
    assert is_text.sum() + visual.shape[0] == row.num_tokens


def test_packed_equals_one_by_one_with_gradients_of_all_towers():
    model = small_model(CFG)
    documents = mixed_documents(CFG)
    packed_loss = loss_sum(model, pack(documents))
    packed_loss.backward()
    packed = gradients(model)
    losses = [loss_sum(model, d) for d in documents]
    sum(losses).backward()
    single = gradients(model)
    assert abs(packed_loss.item() - sum(losses).item()) < 1e-5 * abs(packed_loss.item())
    assert packed.keys() == single.keys() == dict(model.named_parameters()).keys()
    for name, want in single.items():
        error = (packed[name] - want).abs().max()
        assert error <= 1e-5 * (1 + want.abs().max()), (name, error)


def test_loss_equals_plain_cross_entropy():
    model = small_model(CFG)
    row = pack(mixed_documents(CFG))
    with torch.no_grad():
        ours = loss_sum(model, row)
        want = F.cross_entropy(model.lm_head(model.hidden(row)), row.labels_T, reduction="sum")
    assert abs(ours.item() - want.item()) < 1e-5 * want.item()


@pytest.mark.parametrize("num_rows", [0, 3, 5])
def test_count_mismatch_names_both_numbers_and_the_samples(num_rows):
    model = small_model(CFG)
    row = pack([document(CFG, 3, 1, 4, seed=1), document(CFG, 2, 0, 0, seed=2)])
    row = replace(row, visual_rows_N=torch.arange(num_rows))
    with pytest.raises(ValueError, match="tiles") as raised:
        model.hidden(row)
    message = str(raised.value)
    assert f"has {num_rows} rows for visual tokens, but its 1 tiles give 4 (4 a tile)" in message
    assert "sample-1, sample-2" in message


@pytest.fixture
def two_processes():
    """As one of two that train: torch's process group that sends nothing."""
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("two_processes")
def test_text_only_batch_gives_every_parameter_a_gradient_where_another_rank_needs_it():
    model = small_model(CFG)
    batch = document(CFG, 12, 0, 0, seed=3)
    for run_layer in (None, recomputed):
        loss_sum(model, batch, run_layer=run_layer).backward()
        grads = gradients(model)
        assert grads.keys() == dict(model.named_parameters()).keys()
        for name, grad in grads.items():
            is_tower = name.startswith(("vision.", "connector."))
            assert (grad.abs().max() == 0) == is_tower, name


@pytest.mark.usefixtures("two_processes")
def test_zero_tile_changes_nothing():
    model = small_model(CFG)
    batch = document(CFG, 12, 0, 0, seed=3)
    before = model.hidden(batch)
    with torch.no_grad():
        for parameter in [*model.vision.parameters(), *model.connector.parameters()]:
            parameter.fill_(torch.nan)  # even an infinity or a NaN of the tower stays out of a text
    assert torch.equal(model.hidden(batch), before)


def test_text_alone_does_not_run_the_vision_tower_in_one_process():
    model = small_model(CFG)
    batch = document(CFG, 12, 0, 0, seed=3)
    for step in (lambda: loss_sum(model, batch).backward(), lambda: model.generate(batch, max_new_tokens=2)):
        assert not [name for name in called(model, step) if name.startswith(("vision", "connector"))]
    assert {name.split(".")[0] for name in gradients(model)} == {"llm", "lm_head"}


@pytest.mark.usefixtures("two_processes")
def test_text_alone_does_not_run_the_vision_tower_without_gradients():
    model = small_model(CFG)
    batch = document(CFG, 12, 0, 0, seed=3)
    names = called(model, lambda: model.generate(batch, max_new_tokens=2))
    assert "llm.norm" in names
    assert "vision" not in names


# ---- head widths that no kernel takes


WIDE = with_vision(with_text(CFG, hidden_size=48, head_dim=12), num_attention_heads=32)  # heads of 12 and 2


def test_any_head_width_runs_on_a_cpu():
    assert (WIDE.text.head_dim, WIDE.vision.head_dim) == (12, 2)
    model, row = small_model(WIDE), pack(mixed_documents(WIDE))
    loss_sum(model, row).backward()
    assert gradients(model).keys() == dict(model.named_parameters()).keys()
    packed = model.generate(row, max_new_tokens=3)
    assert packed == [model.generate(one, max_new_tokens=3)[0] for one in mixed_documents(WIDE)]


def test_a_gpu_is_refused_before_anything_is_built_or_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"the vision heads are 2 wide .* a multiple of 8 from 16 to 256\. Use the"):
        build(WIDE, "cuda")
    model = build(with_vision(WIDE, num_attention_heads=2))
    with pytest.raises(ValueError, match=r"the text heads are 12 wide"):
        load(model, tmp_path, device="cuda:1")
    check_device(CFG, "cuda")
    check_device(eagle2_5_8b(), "cuda")  # 72 and 128


@pytest.mark.parametrize("frozen", ["", "vision.", "llm."])
def test_checkpointing_keeps_every_bit(frozen):
    model = small_model(CFG)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or not name.startswith(frozen))
    row = pack(mixed_documents(CFG))
    results = []
    for run_layer in (None, recomputed):
        loss = loss_sum(model, row, run_layer=run_layer)
        loss.backward()
        results.append((loss.detach(), gradients(model)))
    (plain_loss, plain), (saved_loss, saved) = results
    assert torch.equal(plain_loss, saved_loss)
    assert plain.keys() == saved.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, grad in plain.items():
        assert torch.equal(grad, saved[name]), name


def test_checkpointing_keeps_less():
    model = small_model(CFG)
    row = pack(mixed_documents(CFG))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept_bytes = []
    for run_layer in (None, recomputed):
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = model.hidden(row, run_layer=run_layer)
        kept_bytes.append(sum(kept.values()))
        del hidden
    assert kept_bytes[1] < 0.5 * kept_bytes[0], kept_bytes


def test_bf16_is_near_fp32():
    model = small_model(CFG)
    row = pack(mixed_documents(CFG))
    with torch.no_grad():
        want = model.hidden(row)
        half = model.bfloat16().hidden(row)
    assert half.dtype == torch.bfloat16
    assert (half.float() - want).abs().mean() < 0.03 * want.abs().mean()


@pytest.mark.parametrize(("vocab_size", "llm"), [(151674, 7_612_820_992), (152064, 7_615_616_512)])
def test_eagle2_5_8b_has_the_released_number_of_parameters(vocab_size, llm):
    with torch.device("meta"):
        model = Eagle(with_text(eagle2_5_8b(), vocab_size=vocab_size))
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    assert count["vision"] == 413_327_088
    assert count["connector"] == 29_376_512
    assert count["llm"] + count["lm_head"] == llm
    assert all(p.is_meta for p in model.parameters())


def test_tiny_is_about_three_quarters_of_a_million():
    num_parameters = sum(p.numel() for p in Eagle(tiny(vocab_size=320, image_token_id=1)).parameters())
    assert 0.7e6 < num_parameters < 0.8e6


def test_new_weights_follow_the_global_seed_and_the_config():
    def new(seed: int) -> Eagle:
        torch.manual_seed(seed)
        return Eagle(replace(CFG, initializer_range=0.5))

    first, same, other = new(0), new(0), new(1)
    for (name, a), b, c in zip(first.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        if name.endswith("bias"):
            assert a.abs().max() == 0, name
        elif "norm" in name:
            assert (a == 1).all(), name
        else:
            assert not torch.equal(a, c), name
            is_table = name.startswith(("lm_head.", "llm.embed_tokens.", "vision.position_embedding."))
            std = 0.5 if is_table else a.shape[1] ** -0.5
            assert 0.9 < a.std() / std < 1.1, name


class Unfused(nn.Module):
    """The projections and tables of a tiny model, each by itself, in the order in which they are drawn."""

    def __init__(self, cfg: EagleConfig) -> None:
        super().__init__()
        C, D, kv_width = cfg.vision.hidden_size, cfg.text.hidden_size, cfg.text.qkv_sizes[1]
        embeddings = nn.ModuleDict()
        embeddings["patch_embedding"] = nn.Linear(cfg.vision.num_patch_values, C)
        embeddings["position_embedding"] = nn.Embedding(cfg.vision.num_patches, C)
        self.vision = nn.ModuleDict({"embeddings": embeddings})
        for i in range(cfg.vision.num_hidden_layers):
            layer = nn.ModuleDict({f"self_attn/{x}_proj": nn.Linear(C, C) for x in ("q", "k", "v", "out")})
            layer["mlp/fc1"] = nn.Linear(C, cfg.vision.intermediate_size, bias=False)
            layer["mlp/fc2"] = nn.Linear(cfg.vision.intermediate_size, C)
            self.vision[f"encoder/layers/{i}"] = layer
        self.mlp1 = nn.ModuleDict({"1": nn.Linear(4 * C, D), "3": nn.Linear(D, D)})
        self.llm = nn.ModuleDict({"embed_tokens": nn.Embedding(cfg.text.vocab_size, D)})
        for i in range(cfg.text.num_hidden_layers):
            layer = nn.ModuleDict({f"self_attn/{x}_proj": nn.Linear(D, D if x == "q" else kv_width) for x in "qkv"})
            layer["self_attn/o_proj"] = nn.Linear(D, D, bias=False)
            for x in ("gate", "up"):
                layer[f"mlp/{x}_proj"] = nn.Linear(D, cfg.text.intermediate_size, bias=False)
            layer["mlp/down_proj"] = nn.Linear(cfg.text.intermediate_size, D, bias=False)
            self.llm[f"layers/{i}"] = layer
        self.lm_head = nn.Linear(D, cfg.text.vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                is_table = isinstance(module, nn.Embedding) or module is self.lm_head
                nn.init.normal_(module.weight, std=cfg.initializer_range if is_table else module.in_features**-0.5)

    def under_released_names(self) -> dict[str, torch.Tensor]:
        places = {
            "vision.": "vision_model.vision_model.",
            "llm.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
        }
        named = {}
        for name, tensor in self.state_dict().items():
            for ours, theirs in places.items():
                name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
            named[name.replace("/", ".")] = tensor
        return named


def test_new_weights_are_those_of_projections_that_are_not_fused():
    """A seed means the same numbers, whatever is joined inside."""
    torch.manual_seed(3)
    unfused = Unfused(CFG).under_released_names()
    torch.manual_seed(3)
    fused = weights.released(dict(Eagle(CFG).named_parameters()), weights.rules(CFG))
    matrices = {name: tensor for name, tensor in unfused.items() if name.endswith("weight")}
    assert matrices.keys() == {name for name, tensor in fused.items() if tensor.ndim > 1}
    for name, tensor in matrices.items():
        assert torch.equal(fused[name].view_as(tensor), tensor), name


@pytest.mark.parametrize("tied", [False, True])
def test_built_then_loaded_is_made_at_once(tied):
    """New weights for a seed do not depend on where the model was built; building on meta draws nothing."""
    cfg = with_text(CFG, tie_word_embeddings=tied)
    torch.manual_seed(0)
    at_once = build(cfg, "cpu")
    torch.manual_seed(0)
    model = build(cfg)
    assert all(p.is_meta for p in model.parameters())
    load(model, None)
    for (name, a), b in zip(at_once.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert b.requires_grad, name
    assert (model.lm_head.weight is model.llm.embed_tokens.weight) == tied
    model = build(cfg)
    load(model, None, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_weights_are_not_loaded_over_weights(tmp_path):
    with pytest.raises(
        ValueError, match=r"vision\.patch_embedding\.weight holds numbers already; needs a model from bui"
    ):
        load(build(CFG, "cpu"), tmp_path)


def test_loading_keeps_what_is_frozen(tmp_path):
    small_model(CFG).save_pretrained(tmp_path)
    model = build(CFG)
    model.vision.requires_grad_(False)
    load(model, tmp_path)
    assert {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad} == {"vision"}


def test_tied_embeddings_are_one_parameter():
    model = Eagle(with_text(CFG, tie_word_embeddings=True))
    assert model.lm_head.weight is model.llm.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("run_layer", [None, recomputed])
def test_kernels_give_the_references_loss_and_gradients(run_layer):
    """The same weights and row on the CPU (references) and on the GPU (kernels), fp32 without TF32."""
    model, row = small_model(CFG), pack(mixed_documents(CFG))
    loss = loss_sum(model, row)
    loss.backward()
    want = gradients(model)
    model, row = model.cuda(), row.to("cuda")
    on_gpu = loss_sum(model, row, run_layer=run_layer)
    on_gpu.backward()
    assert abs(on_gpu.item() - loss.item()) < 1e-4 * abs(loss.item())
    got = gradients(model)
    assert got.keys() == want.keys()
    for name, grad in want.items():
        error = (got[name].cpu() - grad).abs().max()
        assert error <= 1e-4 * (1 + grad.abs().max()), (name, error)


def test_any_module_alone_may_be_sharded(tmp_path):
    """FSDP gathers a module's parameters for that module's call: one that lends them to another's would fail."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        row = pack(mixed_documents(CFG))
        mass = sqrt_mass(row.labels_T, row.cu_seqlens)
        want = small_model(CFG)(row, mass)
        for name in owners(small_model(CFG)):
            model = small_model(CFG)
            fully_shard(model.get_submodule(name), mesh=mesh)
            fully_shard(model, mesh=mesh)
            torch.testing.assert_close(model(row, mass), want, msg=lambda text, name=name: f"{name}: {text}")
    finally:
        dist.destroy_process_group()
