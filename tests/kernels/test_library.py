import subprocess
import sys

import torch
from torch import Tensor

from eagle_kernels.library import custom_op

FIRST_CALLS = """
import sys, torch
from eagle_kernels import *
tiling = Tiling(mean=(0.5,) * 3, std=(0.5,) * 3)
x, w, at = torch.randn(4, 2, 16, requires_grad=True), torch.randn(16), torch.arange(4)
ends = torch.tensor([0, 4], dtype=torch.int32)
out, lse = varlen_attention(x, x, x, AttentionPlan.from_cu_seqlens(ends, num_tokens=4), return_lse=True)
merge_attention(out.detach(), lse.detach(), out.detach(), lse.detach())
decode_attention(x[-1:].detach(), x.detach(), x.detach(), ends[:1], ends[1:])
linear_cross_entropy(x.flatten(1), torch.randn(5, 32), at).backward()
frames = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
frames_to_tiles(frames, (1, 1), tiling)
images_to_tiles([frames[0]], [(1, 1)], tiling)
y, u, v = frames[:, :, :, 0].contiguous(), *torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
yuv_to_tiles(y, u, v, (1, 1), tiling, matrix="bt709", full_range=False)
scatter_visual(x.flatten(1), x[:1].flatten(1), at[:1]).sum().backward()
print("torch._dynamo" in sys.modules)
"""


def test_first_calls_do_not_wait_for_the_compiler():
    """A second of imports that torch.compile alone needs."""
    done = subprocess.run([sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@custom_op("eagle_tests::halved_difference")
def _halved_difference(a: Tensor, b: Tensor, factor: float) -> Tensor:
    return (a - b) * factor / 2


_halved_difference.register_fake(lambda a, *_: torch.empty_like(a))
_halved_difference.register_autograd(
    lambda ctx, dout: (dout * ctx.factor / 2, -dout * ctx.factor / 2, None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "factor", inputs[2]),
)


def test_an_op_is_one_of_torch_s():
    a, b = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    torch.library.opcheck(_halved_difference.overload, (a, b, 4.0))
    compiled = torch.compile(lambda a, b: _halved_difference(a, b, 4.0) + 1, fullgraph=True, backend="aot_eager")
    assert compiled(a, b).tolist() == [3.0] * 3
    compiled(a, b).sum().backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([2.0] * 3, [-2.0] * 3)
