"""frames_to_tiles: byte for byte Pillow before normalisation, the reference bit for bit after, on every path."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.frames_to_tiles import _fwd, frames_to_tiles, frames_to_tiles_ref, images_to_tiles
from eagle_kernels.tiles import Tiling
from tests.kernels.op_checks import far_tensor

CSRC = Path(__file__).parents[2] / "csrc"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
TILING = Tiling(tile_px=28, thumbnail=True, **HALF)
ORDERS = ["horizontal", "pillow"]
DTYPES = [torch.uint8, torch.float32, torch.bfloat16]
SIZES = [  # width, height, cols, rows, tile_px: what breaks things
    (1, 1, 1, 1, 14),
    (1, 300, 2, 1, 28),
    (300, 1, 1, 3, 28),
    (56, 56, 2, 2, 28),  # equal sizes
    (57, 28, 2, 1, 28),  # one axis equal
    (3, 2, 4, 3, 56),  # far up
    (4000, 500, 8, 1, 56),  # the released processor's widest grid
    (500, 4000, 1, 8, 56),
    (61, 999, 4, 1, 14),  # columns first in Pillow 13
    (130, 97, 3, 2, 448),
    (97, 1300, 1, 1, 448),  # columns first in Pillow 13, in more than one block of a line
    (5000, 30, 1, 1, 42),  # filters of hundreds of pixels
    (1920, 1080, 2, 1, 70),
    (640, 480, 3, 3, 98),  # a tile of more than one band of rows
]
needs_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason=f"Pillow {PIL.__version__} resizes rows first, always"
)


def noise(height: int, width: int, *, frames: int = 1, seed: int = 0, extreme: bool = False) -> Tensor:
    """(L, Y, X, 3) uint8 noise; `extreme` has only 0 and 255, which drives the sums out of range on both sides."""
    values = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(np.where(values > 127, 255, 0).astype(np.uint8) if extreme else values)


def pillow(frame_YX3: Tensor, width: int, height: int) -> Tensor:
    """What this machine's Pillow makes of the frame, in one call."""
    return torch.from_numpy(
        np.array(Image.fromarray(frame_YX3.numpy()).resize((width, height), Image.Resampling.BICUBIC))
    )


def pillow_by_axis(frame_YX3: Tensor, width: int, height: int, *, columns_first: bool = False) -> Tensor:
    """Pillow, one axis at a time: a call that keeps one size runs the other pass alone, in every version."""
    first = (frame_YX3.shape[1], height) if columns_first else (width, frame_YX3.shape[0])
    return pillow(pillow(frame_YX3, *first), width, height)


def expected_tiles(frame_YX3: Tensor, cols: int, rows: int, tile_px: int, order: str) -> Tensor:
    """(cols * rows + 1, 3, tile_px, tile_px) uint8 by Pillow: tiles cut out one by one, then the thumbnail."""
    resize = pillow if order == "pillow" else pillow_by_axis
    whole = resize(frame_YX3, cols * tile_px, rows * tile_px)
    tiles = [
        whole[row * tile_px : (row + 1) * tile_px, col * tile_px : (col + 1) * tile_px]
        for row in range(rows)
        for col in range(cols)
    ]
    return torch.stack([*tiles, resize(frame_YX3, tile_px, tile_px)]).permute(0, 3, 1, 2)


def assert_is_pillow(frame_YX3: Tensor, cols: int, rows: int, tile_px: int, order: str) -> None:
    expected = expected_tiles(frame_YX3, cols, rows, tile_px, order)[: None if cols * rows > 1 else 1]
    tiling = Tiling(tile_px=tile_px, thumbnail=True, dtype=torch.uint8, layout="tiles", **HALF)
    ours = frames_to_tiles(frame_YX3[None], (cols, rows), tiling, pass_order=order, num_threads=1)
    assert ours.shape == expected.shape
    assert torch.equal(ours, expected), f"{int((ours != expected).sum())} bytes differ"


@pytest.mark.parametrize("order", ["horizontal", pytest.param("pillow", marks=needs_pillow_13)])
@pytest.mark.parametrize(("width", "height", "cols", "rows", "tile_px"), SIZES)
@pytest.mark.parametrize("extreme", [False, True])
def test_is_pillow_byte_for_byte(width, height, cols, rows, tile_px, extreme, order):
    assert_is_pillow(noise(height, width, extreme=extreme)[0], cols, rows, tile_px, order)


@pytest.mark.parametrize("order", ["horizontal", pytest.param("pillow", marks=needs_pillow_13)])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    width=st.one_of(st.integers(1, 8), st.integers(1, 300)),
    height=st.one_of(st.integers(1, 8), st.integers(1, 300)),
    cols=st.integers(1, 4),
    rows=st.integers(1, 4),
    tile_px=st.sampled_from([14, 28, 42, 84]),
    extreme=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_is_pillow_on_random_sizes(order, width, height, cols, rows, tile_px, extreme, seed):
    assert_is_pillow(noise(height, width, seed=seed, extreme=extreme)[0], cols, rows, tile_px, order)


@pytest.mark.parametrize(
    ("width", "height", "columns_first"),
    [
        (66, 76, False),  # 2 * (66 - 56) == 76 - 56: rows first on equality
        (66, 77, True),
        (67, 77, False),
        (40, 57, True),  # the width grows, the height shrinks by one
        (40, 55, False),  # the height grows
        (200, 56, False),  # the height stays: one pass, no order
    ],
)
def test_order_of_pillow_13_at_its_edges(width, height, columns_first):
    """The rule, without asking which Pillow is installed. The two orders must differ here, or the case says nothing."""
    frame = noise(height, width, extreme=True)[0]
    by_columns = pillow_by_axis(frame, 56, 56, columns_first=True)
    by_rows = pillow_by_axis(frame, 56, 56)
    assert height == 56 or not torch.equal(by_columns, by_rows)
    tiling = Tiling(tile_px=56, dtype=torch.uint8, layout="tiles", **HALF)
    ours = frames_to_tiles(frame[None], (1, 1), tiling, pass_order="pillow")
    assert torch.equal(ours[0].permute(1, 2, 0), by_columns if columns_first else by_rows)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("thumbnail", [False, True])
@pytest.mark.parametrize(("width", "height", "cols", "rows", "tile_px"), [s for s in SIZES if max(s[:2]) <= 500])
def test_is_the_reference_bit_for_bit(width, height, cols, rows, tile_px, thumbnail, dtype, order):
    frames = noise(height, width, frames=2)
    for layout in ("patches", "tiles"):
        tiling = Tiling(tile_px=tile_px, mean=MEAN, std=STD, thumbnail=thumbnail, dtype=dtype, layout=layout)
        ours = frames_to_tiles(frames, (cols, rows), tiling, pass_order=order)
        ref = frames_to_tiles_ref(frames, (cols, rows), tiling, pass_order=order)
        assert ours.shape == ref.shape
        assert ours.dtype == ref.dtype == dtype
        assert torch.equal(ours, ref)


def test_golden_layout():
    """Frames of the grid's own size pass unchanged, so every number's place can be written down by hand."""
    cols, rows, tile_px, patch_px = 3, 2, 4, 2
    pixel = torch.arange(2 * rows * tile_px * cols * tile_px * 3) % 251
    frames = pixel.to(torch.uint8).view(2, rows * tile_px, cols * tile_px, 3)
    tiling = Tiling(tile_px=tile_px, patch_px=patch_px, thumbnail=True, dtype=torch.uint8, **HALF)
    out = frames_to_tiles(frames, (cols, rows), tiling)
    assert out.shape == (2 * 7, 4, 12)
    for frame in range(2):
        for row in range(rows):
            for col in range(cols):
                for patch in range(4):
                    y = row * 4 + patch // 2 * 2
                    x = col * 4 + patch % 2 * 2
                    block = frames[frame, y : y + 2, x : x + 2]
                    expected = [int(block[dy, dx, c]) for c in range(3) for dy in range(2) for dx in range(2)]
                    assert out[frame * 7 + row * 3 + col, patch].tolist() == expected
        thumbnail = pillow_by_axis(frames[frame], 4, 4)
        assert out[frame * 7 + 6, 3].tolist() == thumbnail[2:, 2:].permute(2, 0, 1).flatten().tolist()


def test_patches_are_tiles_cut_up():
    frames = noise(90, 120, frames=2)
    tiles = frames_to_tiles(frames, (2, 1), replace(TILING, layout="tiles"))
    patches = frames_to_tiles(frames, (2, 1), TILING)
    unfolded = torch.nn.functional.unfold(tiles.float(), kernel_size=14, stride=14).transpose(1, 2)
    assert torch.equal(patches.float(), unfolded)


def test_a_patch_embedding_is_a_matmul():
    """(channel, y, x) is the order of a convolution's weight, flattened."""
    frames = noise(60, 60)
    weight = torch.randn(5, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    tiling = Tiling(tile_px=28, dtype=torch.float32, **HALF)
    tiles = frames_to_tiles(frames, (1, 1), replace(tiling, layout="tiles"))
    conv = torch.nn.functional.conv2d(tiles.double(), weight.double(), stride=14)
    linear = frames_to_tiles(frames, (1, 1), tiling).double() @ weight.double().flatten(1).T
    torch.testing.assert_close(linear, conv.flatten(2).transpose(1, 2))


def test_normalises_and_rounds_as_torch_does():
    """All 256 values, with many means and deviations: some results lie half way between two bf16 numbers."""
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    generator = np.random.default_rng(0)
    for _ in range(100):
        mean, std = generator.uniform(-2, 2, 3).tolist(), generator.uniform(1e-3, 4, 3).tolist()
        tiling = Tiling(tile_px=16, patch_px=16, mean=mean, std=std)
        true = (torch.arange(256) / 255 - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]
        fp32 = frames_to_tiles(frames, (1, 1), replace(tiling, dtype=torch.float32), num_threads=1)
        bf16 = frames_to_tiles(frames, (1, 1), tiling, num_threads=1)
        assert torch.equal(fp32.view(3, 256), true)
        assert torch.equal(bf16.view(3, 256), true.to(torch.bfloat16))


def test_ties_go_to_the_even_bf16():
    """x = 255 gives exactly (1 - mean): 1 + 2**-8 lies between 1 and 1 + 2**-7, 1 + 3 * 2**-8 one step further."""
    frames = torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)
    tiling = Tiling(tile_px=1, patch_px=1, mean=(-(2**-8), -3 * 2**-8, 1 + 2**-8), std=(1.0,) * 3)
    out = frames_to_tiles(frames, (1, 1), tiling)
    assert out.flatten().tolist() == [1.0, 1 + 2**-6, -(2**-8)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_vector_code_change_no_bit(dtype, order):
    """And every number is written: the memory starts as NaN."""
    for width, height, cols, rows, tile_px in [(211, 77, 3, 2, 98), (77, 411, 2, 1, 56), (5, 6, 1, 1, 70)]:
        frames = noise(height, width, frames=3)
        arguments = {"tile_px": tile_px, "patch_px": 14, "thumbnail": True, "mean": MEAN, "std": STD}
        tiling = native.load().Tiling(cols=cols, rows=rows, pass_order=order, **arguments)
        ref = frames_to_tiles_ref(frames, (cols, rows), Tiling(dtype=dtype, **arguments), pass_order=order)
        widest = native.build_info()["simd"]
        ways = {(0, widest), (1, widest), (2, widest), (16, widest), (1, "avx2" if widest else ""), (1, ""), (3, "")}
        for num_threads, simd in sorted(ways):
            out = torch.full_like(ref, 77 if dtype == torch.uint8 else float("nan"))
            native.load().frames_to_tiles_cpu(native.view(frames), native.view(out), tiling, num_threads, simd)
            assert torch.equal(out, ref), (num_threads, simd)


@pytest.mark.parametrize(("wanted", "message"), [("sse9", "needs 'avx512', 'avx2' or ''"), ("AVX2", "needs 'avx512'")])
def test_refuses_vector_code_that_it_does_not_know(wanted, message):
    frames, out = noise(4, 4), torch.empty(1, 4, 588, dtype=torch.bfloat16)
    sizes = {"tile_px": 28, "patch_px": 14, "thumbnail": True}
    tiling = native.load().Tiling(cols=1, rows=1, pass_order="pillow", mean=MEAN, std=STD, **sizes)
    with pytest.raises(ValueError, match=f"^frames_to_tiles: simd is '{wanted}'; {message}"):
        native.load().frames_to_tiles_cpu(native.view(frames), native.view(out), tiling, 1, wanted)


def test_takes_views():
    """Crops of larger frames, and one frame seen many times, without a copy."""
    frames = noise(100, 120, frames=2)
    crop = frames[:, 10:71, 20:97]
    assert not crop.is_contiguous()
    ours = frames_to_tiles(crop, (2, 2), TILING, num_threads=2)
    assert torch.equal(ours, frames_to_tiles(crop.contiguous(), (2, 2), TILING))
    again = frames_to_tiles(frames[:1].expand(3, -1, -1, -1), (1, 2), TILING, num_threads=2)
    assert torch.equal(again, frames_to_tiles(frames[:1], (1, 2), TILING).repeat(3, 1, 1))


def test_offsets_pass_32_bits(device):
    far = far_tensor((2, 3, 5, 3), (2**31 + 256, 2**28, 3, 1), torch.uint8, device)
    near = noise(3, 5, frames=2)
    far.copy_(near)
    for order in ORDERS:
        ours, want = (frames_to_tiles(frames, (2, 1), TILING, pass_order=order) for frames in (far, near))
        assert torch.equal(ours.cpu(), want)


def test_no_frames_no_tiles():
    for layout, shape in [("patches", (0, 1024, 588)), ("tiles", (0, 3, 448, 448))]:
        for frames in (noise(1, 1)[:0], noise(30, 40)[:0]):
            tiling = Tiling(thumbnail=True, layout=layout, **HALF)
            out = frames_to_tiles(frames, (2, 2), tiling)
            assert out.shape == shape
            assert out.dtype == torch.bfloat16
            assert frames_to_tiles_ref(frames, (2, 2), tiling).shape == shape


def test_opcheck(device):
    for frames in (noise(20, 30, frames=2).to(device), noise(20, 30)[:0].to(device)):
        torch.library.opcheck(_fwd.overload, ([frames], [2], [1], 28, 14, MEAN, STD, True, torch.bfloat16, "pillow", 1))


def test_torch_compile_takes_it_whole(device):
    def model_input(frames: Tensor) -> Tensor:
        return frames_to_tiles(frames, (2, 1), TILING, num_threads=1).float() * 2

    frames = noise(20, 30, frames=2).to(device)
    compiled = torch.compile(model_input, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(frames), model_input(frames))


@pytest.mark.parametrize(
    ("frames", "grid", "change", "message"),
    [
        (noise(4, 4).float(), (1, 1), {}, "frames' dtype is torch.float32; needs torch.uint8"),
        (noise(4, 4)[0], (1, 1), {}, r"frames' shape is \(4, 4, 3\); needs \(L, Y, X, 3\)"),
        (noise(4, 4)[..., :2], (1, 1), {}, r"frames' shape is \(1, 4, 4, 2\)"),
        (noise(4, 4)[:, :0], (1, 1), {}, r"frames' size \(Y, X\) is \(0, 4\); needs at least one pixel"),
        (noise(4, 4).transpose(1, 2), (1, 1), {}, r"frames' strides is .* side by side; call .contiguous\(\)"),
        (noise(4, 4), (0, 1), {}, r"grid is \(0, 1\); needs \(cols, rows\), both >= 1"),
        (noise(4, 4), (1, 1, 1), {}, r"grid is \(1, 1, 1\)"),
        (noise(4, 4), (1, 1), {"tiling": HALF}, r"tiling is a dict; needs a Tiling, as Tiling\(mean=..., std=...\)"),
        (noise(4, 4), (1, 1), {"pass_order": "vertical"}, "pass_order is 'vertical'; needs 'horizontal' or 'pillow'"),
        (noise(4, 4), (1, 1), {"num_threads": -1}, "num_threads is -1; needs at least 0"),
        (
            noise(4, 4),
            (1 << 11, 1 << 11),
            {},
            r"grid is \(2048, 2048\); needs .*at most 1048576 tiles",
        ),
    ],
)
def test_refuses(frames, grid, change, message):
    with pytest.raises(ValueError, match=f"^frames_to_tiles: {message}"):
        frames_to_tiles(frames, grid, **{"tiling": TILING, **change})


# ---- the CUDA code -----------------------------------------------------------------------------------------------

# Stands in for the CUDA runtime: a C++ compiler builds the kernels, and each thread of a block is a fiber. They run one
# after the other as far as the next __syncthreads; a block whose threads do not all come to the same ones aborts.
FAKE_CUDA = """
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <vector>
#include <ucontext.h>
#define __global__
#define __device__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(n)
using cudaStream_t = void*;
struct Index { unsigned x; };
static Index blockIdx, threadIdx, gridDim;
static int num_launches;
static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<std::vector<char>> stacks;
static std::vector<char> is_done;
static std::function<void()> body;
inline void __syncthreads() { swapcontext(&fibers[threadIdx.x], &scheduler); }
static void run_fiber() { body(); is_done[threadIdx.x] = 1; }
namespace eagle {
inline void check_launch(const char*) {}
struct DeviceGuard { explicit DeviceGuard(int) {} };
template <class Kernel, class... Args>
void launch_kernel(Kernel kernel, unsigned blocks, unsigned threads, const Args&... args) {
  ++num_launches;
  gridDim.x = blocks;
  fibers.resize(threads);
  stacks.resize(threads, std::vector<char>(1 << 16));
  body = [&] { kernel(args...); };
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    is_done.assign(threads, 0);
    for (unsigned t = 0; t < threads; ++t) {
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = stacks[t].data();
      fibers[t].uc_stack.ss_size = stacks[t].size();
      fibers[t].uc_link = &scheduler;
      makecontext(&fibers[t], run_fiber, 0);
    }
    for (unsigned num_done = 0; num_done < threads;) {
      if (num_done != 0) std::abort();  // some threads wait for others that are gone
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) {
        swapcontext(&scheduler, &fibers[threadIdx.x]);
        num_done += is_done[threadIdx.x];
      }
    }
  }
}
}
"""
ENTRY_POINT = """
extern "C" int64_t run_kernels(const void** frames, const int64_t* sizes, const int* grids, int num_groups, void* out,
                               void* workspace, int64_t num_images, int tile_px, int patch_px, int columns_first) {
  const auto view = [](const void* p, std::vector<int64_t> shape, std::vector<int64_t> strides, const char* dtype) {
    return eagle::make_view("view", reinterpret_cast<uintptr_t>(p), shape, strides, dtype, INT64_MAX);
  };
  std::vector<eagle::FrameGroup> groups;
  for (int g = 0; g < num_groups; ++g) {
    eagle::Tiling t;
    t.cols = grids[2 * g]; t.rows = grids[2 * g + 1]; t.tile_px = tile_px; t.patch_px = patch_px; t.thumbnail = true;
    t.order = columns_first ? eagle::PassOrder::kPillow : eagle::PassOrder::kHorizontal;
    const float mean[] = {0.485f, 0.456f, 0.406f}, stddev[] = {0.229f, 0.224f, 0.225f};
    for (int c = 0; c < 3; ++c) { t.mean[c] = mean[c]; t.stddev[c] = stddev[c]; }
    const int64_t num_frames = sizes[3 * g], height = sizes[3 * g + 1], width = sizes[3 * g + 2];
    const std::vector<int64_t> shape{num_frames, height, width, 3}, strides{height * width * 3, width * 3, 3, 1};
    groups.push_back({view(frames[g], shape, strides, "uint8"), t});
  }
  const int64_t needed = eagle::frames_to_tiles_workspace_bytes(groups);
  if (workspace == nullptr) return needed;
  const int64_t side = tile_px / patch_px;
  const std::vector<int64_t> shape{num_images, side * side, 3 * patch_px * patch_px};
  const std::vector<int64_t> strides{shape[1] * shape[2], shape[2], 1};
  num_launches = 0;
  eagle::frames_to_tiles_cuda(groups, view(out, shape, strides, "bfloat16"),
                              view(workspace, {needed}, {1}, "uint8"), 0, 0);
  return num_launches;
}
"""


@pytest.fixture(scope="module")
def cuda_code_for_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("cuda_on_cpu")
    source = (CSRC / "frames_to_tiles.cu").read_text()
    source, num_launches = re.subn(
        r"(\w+_kernel(?:<[^<>]+>)?)<<<(.+?), (\w+), 0, stream>>>\(",
        r"launch_kernel([](const auto&... args) { \1(args...); }, \2, \3, ",
        source,
    )
    assert num_launches == 2
    for name, value in (("kMaxBlocks", "3"), ("kMaxJobs", "4")):  # small, so that the cases reach both limits
        source, found = re.subn(rf"(constexpr \w+ {name}) = [^;]+;", rf"\1 = {value};", source)
        assert found == 1
    (folder / "kernels.cpp").write_text(FAKE_CUDA + source + ENTRY_POINT)
    library = folder / "kernels.so"
    files = [folder / "kernels.cpp", *(CSRC / f"{name}.cpp" for name in ("frames_to_tiles", "tiles"))]
    flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-pthread", f"-I{CSRC}"]
    subprocess.run([compiler, *flags, *files, "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.run_kernels.restype = ctypes.c_int64
    return loaded


def run_cuda_code(
    library: ctypes.CDLL, groups: list[tuple[Tensor, tuple[int, int]]], tile_px: int, order: str, out: Tensor
) -> int:
    """Fills `out` and checks that the workspace is as large as it says; the number of launches."""
    pointers = (ctypes.c_void_p * len(groups))(*(frames.data_ptr() for frames, _ in groups))
    sizes = [n for frames, _ in groups for n in frames.shape[:3]]
    grids = [n for _, grid in groups for n in grid]
    inputs = pointers, (ctypes.c_int64 * len(sizes))(*sizes), (ctypes.c_int * len(grids))(*grids), len(groups)
    numbers = ctypes.c_int64(len(out)), tile_px, 14, order == "pillow"
    needed = library.run_kernels(*inputs, None, None, *numbers)
    memory = torch.full((needed + 512,), 0xA5, dtype=torch.uint8)
    start = -memory.data_ptr() % 256
    workspace = ctypes.c_void_p(memory.data_ptr() + start)
    num_launches = library.run_kernels(*inputs, ctypes.c_void_p(out.data_ptr()), workspace, *numbers)
    assert (memory[:start] == 0xA5).all()
    assert (memory[start + needed :] == 0xA5).all()
    return num_launches


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("width", "height", "cols", "rows", "tile_px"),
    [
        (1, 1, 1, 1, 14),
        (57, 28, 2, 1, 28),
        (61, 499, 4, 1, 14),
        (33, 20, 3, 2, 42),
        (300, 1, 1, 3, 28),
        (20, 1000, 1, 1, 14),  # more rows than the middle holds
        (700, 1500, 1, 1, 42),  # columns first in Pillow 13, and more columns than the middle holds
    ],
)
def test_cuda_kernels_run_on_the_cpu_give_the_same_bits(
    cuda_code_for_the_cpu, width, height, cols, rows, tile_px, order
):
    """The kernels' own source, threads, barriers, offsets and workspace; what only a GPU can show is below."""
    frames = noise(height, width, frames=2, extreme=True)
    tiling = Tiling(tile_px=tile_px, mean=MEAN, std=STD, thumbnail=True)
    expected = frames_to_tiles(frames, (cols, rows), tiling, pass_order=order)
    out = torch.full_like(expected, float("nan"))
    assert run_cuda_code(cuda_code_for_the_cpu, [(frames, (cols, rows))], tile_px, order, out) == 2
    assert torch.equal(out, expected)


MANY = [
    ((33, 47), (2, 1)),
    ((90, 20), (1, 1)),
    ((30, 300), (1, 2)),
    ((1, 5), (1, 1)),
    ((64, 64), (3, 1)),
]  # (Y, X), grid


@pytest.mark.parametrize("order", ORDERS)
def test_cuda_kernels_take_images_of_many_sizes_at_once(cuda_code_for_the_cpu, order):
    """Five groups, one of them of no frames, with room for four resizes a launch: three turns of two launches."""
    groups = [(noise(*size, frames=2, seed=i, extreme=True)[: i % 3], grid) for i, (size, grid) in enumerate(MANY, 1)]
    tiling = Tiling(tile_px=28, mean=MEAN, std=STD, thumbnail=True)
    expected = torch.cat([frames_to_tiles(frames, grid, tiling, pass_order=order) for frames, grid in groups])
    out = torch.full_like(expected, float("nan"))
    assert run_cuda_code(cuda_code_for_the_cpu, groups, 28, order, out) == 6
    assert torch.equal(out, expected)


@pytest.mark.parametrize("layout", ["patches", "tiles"])
@pytest.mark.parametrize("order", ORDERS)
def test_images_of_many_sizes_are_frames_one_by_one(layout, order, device):
    images = [noise(*size, seed=i)[0].to(device) for i, (size, _) in enumerate(MANY)]
    tiling, grids = replace(TILING, layout=layout), [grid for _, grid in MANY]
    one_by_one = [
        frames_to_tiles(image[None], grid, tiling, pass_order=order) for image, grid in zip(images, grids, strict=True)
    ]
    assert torch.equal(images_to_tiles(images, grids, tiling, pass_order=order), torch.cat(one_by_one))


def test_opcheck_of_images(device):
    images = [noise(20, 30).to(device), noise(9, 5).to(device)]
    torch.library.opcheck(_fwd.overload, (images, [2, 1], [1, 1], 28, 14, MEAN, STD, True, torch.bfloat16, "pillow", 1))


@pytest.mark.parametrize(
    ("images", "grids", "message"),
    [
        ([], [], "the number of images is 0; needs at least 1"),
        ([noise(4, 4)[0]], [(1, 1), (1, 1)], "the number of grids is 2; needs one for each of 1 images"),
        ([noise(4, 4)], [(1, 1)], r"an image's shape is \(1, 4, 4, 3\); needs \(Y, X, 3\)"),
        ([noise(4, 4)[0], noise(4, 4)[0].float()], [(1, 1), (1, 1)], "frames' dtype is torch.float32"),
        ([noise(4, 4)[0], noise(4, 4)[0]], [(1, 1), (0, 1)], r"grid is \(0, 1\)"),
        ([noise(4, 4)[0], noise(4, 4)[0].to("meta")], [(1, 1), (1, 1)], "an image's device is meta; needs one for all"),
    ],
)
def test_images_refuses(images, grids, message):
    with pytest.raises(ValueError, match=f"^images_to_tiles: {message}"):
        images_to_tiles(images, grids, TILING)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cuda_kernels_keep_their_sums_in_registers(tmp_path):
    """By ptxas for sm_90a: nothing spilled, and three blocks of 256 threads (of 65536 registers) on a processor."""
    flags = ["-std=c++20", "-O3", "--fmad=false", "-arch=sm_90a", "-Xptxas=-v", f"-I{CSRC}"]
    command = ["nvcc", *flags, "-cubin", "-o", tmp_path / "tiles.cubin", CSRC / "frames_to_tiles.cu"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
    assert len(spills) == 8  # two numbers for each of four kernels
    assert not any(spills)
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", said)) <= 80
    assert max(int(n) for n in re.findall(r"(\d+) bytes smem", said)) <= 16 * 1024


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the op would reach the GPU")
def test_cuda_tensors_without_cuda_code_are_an_error(monkeypatch):
    class CudaTensor(Tensor):
        is_cuda = True

    monkeypatch.setattr(native, "build_info", lambda: {"has_cuda": False})
    frames = noise(4, 4).as_subclass(CudaTensor)
    with pytest.raises(RuntimeError, match=r"was built without CUDA\. Put nvcc on PATH and install it again"):
        _fwd.function([frames], [1], [1], 28, 14, MEAN, STD, True, torch.bfloat16, "pillow", 1)


@pytest.mark.gpu
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "height", "cols", "rows", "tile_px"), SIZES)
def test_gpu_gives_the_same_bits_as_the_cpu(width, height, cols, rows, tile_px, dtype, order):
    frames = noise(height, width, frames=2)
    tiling = Tiling(tile_px=tile_px, mean=MEAN, std=STD, thumbnail=True, dtype=dtype)
    ours = frames_to_tiles(frames.cuda(), (cols, rows), tiling, pass_order=order)
    assert ours.is_cuda
    assert torch.equal(ours.cpu(), frames_to_tiles(frames, (cols, rows), tiling, pass_order=order))


@pytest.mark.gpu
def test_gpu_runs_on_the_current_stream():
    """Frames that a long queue on a side stream writes last: the kernels must wait for it, and it alone."""
    frames = noise(200, 300, frames=4)
    expected = frames_to_tiles(frames, (2, 2), TILING)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        on_gpu = torch.zeros_like(frames, device="cuda")
        torch.cuda._sleep(50_000_000)
        on_gpu.copy_(frames.cuda())
        ours = frames_to_tiles(on_gpu, (2, 2), TILING)
    stream.synchronize()
    assert torch.equal(ours.cpu(), expected)


@pytest.mark.gpu
def test_gpu_repeats_bit_for_bit():
    frames = noise(480, 640, frames=2).cuda()
    first = frames_to_tiles(frames, (4, 3), Tiling(thumbnail=True, **HALF))
    for _ in range(20):
        assert torch.equal(frames_to_tiles(frames, (4, 3), Tiling(thumbnail=True, **HALF)), first)
