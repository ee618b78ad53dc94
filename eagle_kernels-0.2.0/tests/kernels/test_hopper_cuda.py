"""csrc's CUDA kernels by the machine code that nvcc makes for sm_90a, run on a CPU (tests/ptx): integer kernels give
the bits of the CPU's code, the others are as good as torch; the same bits under every schedule."""

import ctypes

import pytest
import torch

from eagle_kernels.attention_plan import _tiles_ref
from eagle_kernels.decode_attention import decode_attention_ref
from eagle_kernels.frames_to_tiles import frames_to_tiles
from eagle_kernels.merge_attention import merge_attention_ref
from eagle_kernels.scatter_visual import scatter_visual_ref
from eagle_kernels.tiles import Tiling
from eagle_kernels.yuv_to_tiles import yuv_to_tiles
from tests.kernels import test_attention_plan as plans
from tests.kernels import test_decode_attention as decode
from tests.kernels import test_frames_to_tiles as frames
from tests.kernels import test_merge_attention as merge
from tests.kernels import test_scatter_visual as scatter
from tests.kernels import test_yuv_to_tiles as yuv
from tests.kernels.hopper_cuda import CudaCode
from tests.numerics import assert_as_good
from tests.ptx.machine import Schedule

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SCHEDULES = [Schedule(order="together"), Schedule(1)]


def name_of(dtype):
    return str(dtype).removeprefix("torch.").encode()


def same_under_all_schedules(run):
    """run(schedule) -> tensors"""
    first, *others = [run(schedule) for schedule in SCHEDULES]
    assert all(torch.equal(a, b) for other in others for a, b in zip(other, first, strict=True))
    return first


@pytest.fixture(scope="module")
def merge_code(tmp_path_factory):
    others = ["attention_heads.cpp", "merge_attention.cpp"]
    return CudaCode(tmp_path_factory.mktemp("merge"), "merge_attention", 1, merge.ENTRY_POINT, others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "H", "D"), [(1, 1, 16), (5, 7, 72), (0, 1, 16)])
def test_merge_attention(merge_code, T, H, D, dtype):
    inputs = merge.partials(T, H, D, dtype)

    def run(schedule):
        got = [torch.full_like(inputs[0], torch.nan), torch.full_like(inputs[1], torch.nan)]
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*inputs, *got)]
        sizes = [ctypes.c_int64(n) for n in (T, H, D)]
        merge_code.run("run_kernels", *pointers, *sizes, name_of(dtype), tensors=[*inputs, *got], schedule=schedule)
        return got

    got = same_under_all_schedules(run)
    same, true = merge_attention_ref(*inputs), merge_attention_ref(*[t.double() for t in inputs])
    assert torch.equal(got[1] == -torch.inf, true[1] == -torch.inf)
    assert_as_good(merge.finite(*got), merge.finite(*same), merge.finite(*true))


@pytest.fixture(scope="module")
def decode_code(tmp_path_factory):
    others = ["attention_heads.cpp", "decode_attention.cpp"]
    code = CudaCode(tmp_path_factory.mktemp("decode"), "decode_attention", 2, decode.ENTRY_POINT, others)
    code.library.run_kernels.restype = ctypes.c_int64
    return code


@pytest.mark.parametrize(
    ("lengths", "H", "K", "D", "dtype", "block_rows"),
    [
        ([1], 1, 1, 16, torch.float32, 0),
        ([257, 0, 300], 7, 1, 128, torch.bfloat16, 0),
        ([257, 0, 40], 2, 1, 64, torch.bfloat16, 16),
        ([30, 300], 4, 2, 72, torch.float16, 0),
        pytest.param([5, 260], 9, 1, 256, torch.float32, 0, marks=pytest.mark.slow),
        pytest.param([5, 520], 2, 1, 32, torch.float32, 512, marks=pytest.mark.slow),
        ([0], 2, 1, 16, torch.float32, 0),
    ],
)
def test_decode_attention(decode_code, lengths, H, K, D, dtype, block_rows):
    inputs = decode.inputs_of(lengths, H, K, D, dtype)
    inputs = decode.in_blocks(inputs, block_rows) if block_rows else inputs
    S, L, B = len(lengths), inputs[1].shape[0], inputs[3].numel() // len(lengths)
    sizes = (S, H, K, D, L, max(lengths) + 1, B, block_rows)
    numbers = [*map(ctypes.c_int64, sizes), name_of(dtype)]
    needed = decode_code.run("run_kernels", *[None] * 8, *numbers, tensors=[])

    def run(schedule):
        out, lse = torch.full((S, H, D), torch.nan, dtype=dtype), torch.full((H, S), torch.nan)
        tensors = [*inputs, out, lse, torch.full((needed,), torch.nan)]
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
        decode_code.run("run_kernels", *pointers, *numbers, tensors=tensors, schedule=schedule)
        return out, lse

    out, lse = same_under_all_schedules(run)
    same = decode_attention_ref(*inputs, block_rows=block_rows or None)
    true = decode_attention_ref(*[t.double() for t in inputs[:3]], *inputs[3:], block_rows=block_rows or None)
    assert torch.equal(lse == -torch.inf, true[1] == -torch.inf)
    assert_as_good(decode.finite(out, lse), decode.finite(*same), decode.finite(*true))


@pytest.fixture(scope="module")
def plan_code(tmp_path_factory):
    code = CudaCode(tmp_path_factory.mktemp("plan"), "attention_plan", 1, plans.ENTRY_POINT, ["attention_plan.cpp"])
    code.library.run_kernel.restype = ctypes.c_char_p
    return code


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "segments",
    [
        [],
        [(0, 1, 0, 1)],
        [(0, 300, 0, 300), (300, 0, 300, 0), (300, 129, 300, 1), (429, 1, 301, 200)],
        [(0, 64, 0, 300), (64, 300, 17, 270), (400, 5, 100, 129)],
    ],
)
def test_attention_plan(plan_code, segments, causal):
    table = torch.tensor(segments, dtype=torch.int32).reshape(-1, 4)
    num_rows, num_keys = 500, 520
    want = _tiles_ref(table, num_rows, num_keys, causal, False)

    def run(schedule):
        q_tiles, k_tiles = (torch.full_like(t, -7) for t in want)
        num_ints = 4 * (len(q_tiles) + len(k_tiles)) + 32 * (len(table) + 4)
        workspace = torch.full((num_ints,), -9, dtype=torch.int32)
        tensors = [table, q_tiles, k_tiles, workspace]
        address = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
        size = [ctypes.c_int64(len(t)) for t in tensors]
        error = plan_code.run(
            "run_kernel", 512, address[0], size[0], address[1], size[1], address[2], size[2], ctypes.c_int64(num_keys),
            ctypes.c_bool(causal), address[3], size[3], tensors=tensors, schedule=schedule,
        )  # fmt: skip
        assert error is None, error
        return q_tiles, k_tiles

    got = same_under_all_schedules(run)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.fixture(scope="module")
def scatter_code(tmp_path_factory):
    return CudaCode(
        tmp_path_factory.mktemp("scatter"), "scatter_visual", 1, scatter.ENTRY_POINT, ["scatter_visual.cpp"]
    )


@pytest.mark.parametrize("rows_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("C", "dtype"), [(1160, torch.bfloat16), (129, torch.float32), (77, torch.bfloat16), (33, torch.uint8)]
)
def test_scatter_visual(scatter_code, C, dtype, rows_dtype):
    embeddings, visual = (torch.arange(n * C).reshape(n, C).to(dtype) + i for i, n in enumerate((19, 7)))
    rows = torch.tensor([0, 1, 5, 8, 15, 16, 18], dtype=rows_dtype)
    size = embeddings.element_size()

    def call(text, visual, whole, backward, schedule):
        tensors = [text, visual, rows, whole]
        numbers = [
            (ctypes.c_int64 * 4)(*values)
            for values in (
                [t.data_ptr() for t in tensors],
                [t.shape[0] for t in tensors],
                [t.stride(0) * (1 if t is rows else size) for t in tensors],
            )
        ]
        arguments = *numbers, ctypes.c_int64(C * size), name_of(rows_dtype), ctypes.c_bool(backward)
        scatter_code.run("run_kernels", *arguments, tensors=tensors, schedule=schedule)

    def run(schedule):
        out = torch.full_like(embeddings, 111)
        call(embeddings, visual, out, False, schedule)
        dembeddings, dvisual = torch.full_like(embeddings, 111), torch.full_like(visual, 111)
        call(dembeddings, dvisual, embeddings, True, schedule)
        return out, dembeddings, dvisual

    out, dembeddings, dvisual = same_under_all_schedules(run)
    assert torch.equal(out, scatter_visual_ref(embeddings, visual, rows))
    assert torch.equal(dembeddings, embeddings.index_fill(0, rows.long(), 0))
    assert torch.equal(dvisual, embeddings[rows])


@pytest.fixture(scope="module")
def frames_code(tmp_path_factory):
    files = ["frames_to_tiles.cpp", "tiles.cpp"]
    code = CudaCode(tmp_path_factory.mktemp("frames"), "frames_to_tiles", 2, frames.ENTRY_POINT, files)
    code.library.run_kernels.restype = ctypes.c_int64
    return code


@pytest.mark.parametrize("order", ["horizontal", "pillow"])
@pytest.mark.parametrize(
    ("width", "height", "cols", "rows", "tile_px"), [(1, 1, 1, 1, 14), (57, 28, 2, 1, 28), (20, 300, 1, 1, 14)]
)
def test_frames_to_tiles(frames_code, width, height, cols, rows, tile_px, order):
    source = frames.noise(height, width, frames=2, extreme=True)
    tiling = Tiling(tile_px=tile_px, mean=frames.MEAN, std=frames.STD, thumbnail=True)
    want = frames_to_tiles(source, (cols, rows), tiling, pass_order=order)
    inputs = [
        (ctypes.c_void_p * 1)(source.data_ptr()),
        (ctypes.c_int64 * 3)(*source.shape[:3]),
        (ctypes.c_int * 2)(cols, rows),
        1,
    ]
    numbers = ctypes.c_int64(len(want)), tile_px, 14, order == "pillow"
    needed = frames_code.run("run_kernels", *inputs, None, None, *numbers, tensors=[])

    def run(schedule):
        out, memory = torch.full_like(want, torch.nan), torch.full((needed + 256,), 0xA5, dtype=torch.uint8)
        start = memory.data_ptr() + -memory.data_ptr() % 256
        pointers = ctypes.c_void_p(out.data_ptr()), ctypes.c_void_p(start)
        frames_code.run("run_kernels", *inputs, *pointers, *numbers, tensors=[source, out, memory], schedule=schedule)
        return (out,)

    assert torch.equal(same_under_all_schedules(run)[0], want)


@pytest.fixture(scope="module")
def yuv_code(tmp_path_factory):
    files = ["yuv_to_tiles.cpp", "tiles.cpp"]
    code = CudaCode(tmp_path_factory.mktemp("yuv"), "yuv_to_tiles", 2, yuv.ENTRY_POINT, files)
    code.library.run_kernels.restype = ctypes.c_int64
    return code


@pytest.mark.parametrize(
    ("width", "height", "cols", "rows", "tile_px", "chroma"),
    [(1, 1, 1, 1, 14, "left"), (57, 28, 2, 1, 28, "center"), (20, 301, 1, 1, 14, "top_left")],
)
def test_yuv_to_tiles(yuv_code, width, height, cols, rows, tile_px, chroma):
    planes = yuv.noise(height, width, frames=2, extreme=True)
    tiling = Tiling(tile_px=tile_px, mean=yuv.MEAN, std=yuv.STD, thumbnail=True)
    want = yuv_to_tiles(*planes, (cols, rows), tiling, matrix="bt709", full_range=False, chroma=chroma)
    across, down = yuv.COSITED[chroma]
    numbers = [ctypes.c_int64(n) for n in (len(planes[0]), height, width, 1)] + [cols, rows, tile_px, across + 2 * down]
    pointers = [ctypes.c_void_p(p.data_ptr()) for p in planes]
    needed = yuv_code.run("run_kernels", *pointers, *numbers, None, None, tensors=[])

    def run(schedule):
        out, memory = torch.full_like(want, torch.nan), torch.full((needed + 256,), 0xA5, dtype=torch.uint8)
        start = memory.data_ptr() + -memory.data_ptr() % 256
        where = ctypes.c_void_p(out.data_ptr()), ctypes.c_void_p(start)
        yuv_code.run("run_kernels", *pointers, *numbers, *where, tensors=[*planes, out, memory], schedule=schedule)
        return (out,)

    assert torch.equal(same_under_all_schedules(run)[0], want)
