# %% [markdown]
# # One op in your own model
#
# Each op of `eagle_kernels` is a function that takes tensors and gives tensors. It is differentiable, works under
# `torch.autocast` and in `torch.compile`, and needs nothing else of this library. Tensors on a GPU take the kernel,
# tensors on a CPU take C++ or plain torch: so all of this runs on a laptop.

# %%
import torch
import torch.nn.functional as F

from eagle_kernels import linear_cross_entropy, rms_norm, swiglu, varlen_attention

torch.manual_seed(0)
TOKENS, WIDTH, VOCABULARY = 96, 64, 1000

# %% [markdown]
# ## The loss, without logits
#
# A language model's last layer makes a number for each token and each word: at 32,768 tokens and 152,064 words that
# is 18.6 GiB in fp32. `linear_cross_entropy` takes the hidden states and the weight in their place, and makes logits
# a part at a time.

# %%
hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
labels = torch.randint(VOCABULARY, (TOKENS,))
labels[:40] = -100  # a question: nothing is learned from it, and nothing is computed for it

loss = linear_cross_entropy(hidden, weight, labels)
ours = torch.autograd.grad(loss, (hidden, weight))

logits = hidden @ weight.t()
theirs = torch.autograd.grad(F.cross_entropy(logits, labels), (hidden, weight))
print(
    f"loss {loss.item():.4f}; gradients differ by {max((a - b).abs().max().item() for a, b in zip(ours, theirs)):.1e}"
)
assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs))

# %% [markdown]
# ## Several documents in one row
#
# `varlen_attention` has no batch dimension, no padding and no mask. Documents lie one behind the other, and
# `cu_seqlens` says where each begins. 28 query heads share 4 key heads here, as in Qwen2.5-7B.

# %%
lengths = [10, 50, 36]
cu_seqlens = torch.tensor([0, 10, 60, 96], dtype=torch.int32)
q = torch.randn(TOKENS, 28, 128)
k, v = torch.randn(TOKENS, 4, 128), torch.randn(TOKENS, 4, 128)
out = varlen_attention(q, k, v, cu_seqlens, causal=True)

alone = varlen_attention(q[10:60], k[10:60], v[10:60], torch.tensor([0, 50], dtype=torch.int32))
print("the second document, with the others and alone:", (out[10:60] - alone).abs().max().item())
assert torch.allclose(out[10:60], alone, atol=1e-5)

# %% [markdown]
# ## A block of a model
#
# Nothing is a module, so weights stay where your model has them.


# %%
class Block(torch.nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = torch.nn.Parameter(torch.ones(width))
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.gate = torch.nn.Linear(width, inner, bias=False)
        self.up = torch.nn.Linear(width, inner, bias=False)
        self.down = torch.nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(rms_norm(x, self.norm, 1e-6)).unflatten(1, (3, 4, -1)).unbind(1)  # 4 heads
        x = x + varlen_attention(q, k, v, cu_seqlens).flatten(1)
        return x + self.down(swiglu(self.gate(x), self.up(x)))


table = torch.nn.Embedding(VOCABULARY, WIDTH)
block = Block(WIDTH, 128)
optimizer = torch.optim.AdamW([*table.parameters(), *block.parameters()], lr=1e-2)
tokens = torch.randint(VOCABULARY, (TOKENS,))
following = tokens.roll(-1)
following[cu_seqlens[1:].long() - 1] = -100  # a document's last token has none that follows
losses = []
for _ in range(20):
    loss = linear_cross_entropy(block(table(tokens), cu_seqlens), table.weight, following)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {len(losses)} steps")
assert losses[-1] < losses[0] / 2

# %% [markdown]
# ## When something does not fit
#
# An op refuses before it computes, and says what it got and what it needs.

# %%
try:
    rms_norm(torch.randn(4, 64), torch.ones(32), 1e-6)
except ValueError as error:
    print(error)

# %% [markdown]
# `help(varlen_attention)` and the site's API reference say shapes, dtypes and errors of each op. To swap ops into a
# model of transformers without touching its code, go on with [your Qwen2](your_qwen2.ipynb).
