# %% [markdown]
# # Our ops in a Qwen2 that you train
#
# `patch(model)` gives the modules of a model of transformers other classes, which compute by our ops. Weights, their
# names, hooks and the optimizer stay; `unpatch` takes it back. Needs the extra `hf`. What is swapped, and what is
# not, is in [the guide](../../docs/patching.md).
#
# The model here is small and random. `load("Qwen/Qwen2.5-0.5B", "cpu")` takes one of the hub.

# %%
import small  # noqa: F401  (puts examples/ on the path)
import torch

# isort: split
from patch_qwen2 import load, packed_row, train

from eagle_kernels.integrations.transformers import patch, unpatch

model = load(None, "cpu")
row = packed_row(model.config.vocab_size, "cpu")
print({name: tuple(tensor.shape) for name, tensor in row.items()})

# %% [markdown]
# `row` is three documents end to end in one row; positions that begin again say where. `train` is five steps of plain
# PyTorch. First without us:

# %%
losses = train(model, row)
print("as it is", [f"{loss:.4f}" for loss in losses])

# %% [markdown]
# Now the same model from the same weights, patched. `patch` says what it did.

# %%
patched = load(None, "cpu")
swaps = patch(patched)
for swap in swaps[:4]:
    print(swap)
print(f"... {len(swaps)} in all")

# %%
again = train(patched, row)
print("patched ", [f"{loss:.4f}" for loss in again])
assert torch.allclose(torch.tensor(losses), torch.tensor(again), rtol=2e-2)

# %% [markdown]
# The weights have the names that they had, so what saved and loaded the model before does so still.

# %%
assert list(patched.state_dict()) == list(model.state_dict())
unpatch(patched)
assert {type(module) for module in patched.modules()} == {type(module) for module in model.modules()}
