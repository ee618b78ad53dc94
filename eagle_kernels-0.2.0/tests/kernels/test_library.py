import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eagle_kernels.library import cache_folder, custom_op

ROOT = Path(__file__).resolve().parents[2]

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


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_folder_that_can_be_written_is_taken(tmp_path, temporary):
    wanted = tmp_path / "home/.triton/cache"
    assert cache_folder(wanted) == wanted and wanted.is_dir()
    assert not list(temporary.iterdir())


def test_no_home_to_write_to(temporary):
    """Every process of a user finds the same folder, which nobody else can write."""
    found = {cache_folder(Path("/proc/none/.triton/cache")) for _ in range(2)}
    assert found == set(temporary.iterdir()) and len(found) == 1
    assert found.pop().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mine", ["link", "writable by all", "file"])
def test_somebody_elses_folder_is_not_taken(temporary, tmp_path, mine):
    (name,) = [cache_folder(Path("/proc/none"))]
    name.rmdir()
    if mine == "link":
        name.symlink_to(tmp_path)
    elif mine == "file":
        name.touch()
    else:
        name.mkdir()
        name.chmod(0o777)
    found = cache_folder(Path("/proc/none"))
    assert found != name and found.parent == temporary and found.is_dir()


COMPILES = """
import eagle_kernels
from bench import static_table
(case,) = [case for case in static_table.all_cases() if case.name == "merge_2x2_1152"]
print(static_table.compile_case(case, 90)["registers"])
"""


@pytest.mark.parametrize("num_processes", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_that_compile_at_once_without_a_home(tmp_path, num_processes):
    """All get the kernel; afterwards one more finds it compiled."""
    hidden = ("TRITON_INTERPRET", "TRITON_CACHE_DIR", "TRITON_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"HOME": "/proc/none", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def start():
        command = [sys.executable, "-c", COMPILES]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def files():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.cubin")}

    ended = [(process, *process.communicate()) for process in [start() for _ in range(num_processes)]]
    assert all(process.returncode == 0 for process, _, _ in ended), [errors for _, _, errors in ended]
    assert len({out for _, out, _ in ended}) == 1
    compiled = files()
    assert len(compiled) == 1
    last = start()
    assert last.communicate()[0] == ended[0][1] and files() == compiled
