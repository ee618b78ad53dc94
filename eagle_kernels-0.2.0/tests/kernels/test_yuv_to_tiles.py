"""yuv_to_tiles: near the true picture, the reference bit for bit on every path, and the GPU's code among them."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.frames_to_tiles import frames_to_tiles
from eagle_kernels.tiles import Tiling
from eagle_kernels.video.colour import LUMA_WEIGHTS, TILED_MATRICES
from eagle_kernels.yuv_to_tiles import COSITED, PLANE_BITS, _fwd, _taps, colours, yuv_to_tiles, yuv_to_tiles_ref
from tests.kernels.cuda_on_cpu import ARCHITECTURES, build, resources
from tests.kernels.op_checks import far_tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
HD = {"matrix": "bt709", "full_range": False}
TILING = Tiling(tile_px=28, thumbnail=True, **HALF)
DTYPES = [torch.uint8, torch.float32, torch.bfloat16]
SIZES = [  # width, height, cols, rows, tile_px: what breaks things
    (1, 1, 1, 1, 14),
    (2, 1, 1, 1, 14),  # one chroma sample
    (1, 300, 2, 1, 28),
    (301, 1, 1, 3, 28),
    (56, 56, 2, 2, 28),  # luma's size stays, chroma grows
    (112, 113, 2, 2, 28),  # chroma's size stays across and is cut down the middle down
    (3, 5, 4, 3, 56),  # far up
    (500, 77, 8, 1, 56),
    (61, 499, 4, 1, 14),
    (131, 97, 3, 2, 98),  # a tile of more than one band of rows
    (33, 450, 1, 1, 14),  # filters of a hundred rows
]

Planes = tuple[Tensor, Tensor, Tensor]


def noise(height: int, width: int, *, frames: int = 1, seed: int = 0, extreme: bool = False) -> Planes:
    """y, u and v; `extreme` has only 0 and 255, which drives the sums out of range on both sides."""
    generator = np.random.default_rng(seed)

    def plane(rows: int, columns: int) -> Tensor:
        values = generator.integers(0, 256, (frames, rows, columns), dtype=np.uint8)
        return torch.from_numpy(np.where(values > 127, 255, 0).astype(np.uint8) if extreme else values)

    half = (height + 1) // 2, (width + 1) // 2
    return plane(height, width), plane(*half), plane(*half)


def nv12(planes: Planes) -> Planes:
    """The same samples, with those of u and v by turns in one plane."""
    y, u, v = planes
    uv = torch.stack([u, v], -1)
    return y, uv[..., 0], uv[..., 1]


# ---- against the true picture --------------------------------------------------------------------------------------


def scene(x: np.ndarray, y: np.ndarray, width: int, height: int) -> np.ndarray:
    """(3, len(y), len(x)): colours at any point of a smooth picture, 0 .. 255, waves of a fifteenth of it and more."""
    generator = np.random.default_rng(3)
    rgb = np.zeros((3, len(y), len(x)))
    for channel in rgb:
        for _ in range(5):
            fx, fy = generator.uniform(-15, 15, 2)
            waves = fx * x[None, :] / width + fy * y[:, None] / height + generator.uniform(0, 1)
            channel += 22 * np.sin(2 * math.pi * waves)
    return rgb + 127.5


def to_yuv(rgb: np.ndarray, matrix: str, full_range: bool) -> np.ndarray:
    kr, kb = LUMA_WEIGHTS[matrix]
    y = kr * rgb[0] + (1 - kr - kb) * rgb[1] + kb * rgb[2]
    u, v = (rgb[2] - y) / (2 - 2 * kb), (rgb[0] - y) / (2 - 2 * kr)
    if full_range:
        return np.stack([y, u + 128, v + 128])
    return np.stack([y * 219 / 255 + 16, u * 224 / 255 + 128, v * 224 / 255 + 128])


def filmed(width: int, height: int, matrix: str, full_range: bool, chroma: str) -> Planes:
    """The scene as 8-bit planes; each sample is the scene at the place where it lies."""

    def plane(channel: int, x: np.ndarray, y: np.ndarray) -> Tensor:
        values = to_yuv(scene(x, y, width, height), matrix, full_range)[channel]
        return torch.from_numpy(values.round().clip(0, 255).astype(np.uint8))[None]

    across, down = COSITED[chroma]
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    half_x = 2 * np.arange((width + 1) // 2) + (0.5 if across else 1.0)
    half_y = 2 * np.arange((height + 1) // 2) + (0.5 if down else 1.0)
    return plane(0, x, y), plane(1, half_x, half_y), plane(2, half_x, half_y)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((a - b) ** 2))


def filters(num_in: int, num_out: int, length: float, shift: float = 0.0) -> np.ndarray:
    """Keys' cubic (a = -0.5), widened where it shrinks, cut off at the edges; written down again, in fp64."""
    scale = length / num_out
    center = (np.arange(num_out)[:, None] + 0.5) * scale + shift
    x = np.abs(np.arange(num_in)[None, :] + 0.5 - center) / max(scale, 1)
    w = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return w / w.sum(1, keepdims=True)


def exact(planes: Planes, size_px: int, matrix: str, full_range: bool, chroma: str) -> np.ndarray:
    """(3, size_px, size_px) fp64 without any rounding: chroma to luma's size, the matrix, then the resize."""
    y, u, v = (p[0].double().numpy() for p in planes)
    (height, width), (half_height, half_width) = y.shape, u.shape
    across, down = COSITED[chroma]
    widen = filters(half_width, width, width / 2, 0.25 * across)
    heighten = filters(half_height, height, height / 2, 0.25 * down)
    u, v = heighten @ u @ widen.T - 128, heighten @ v @ widen.T - 128
    if not full_range:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    kr, kb = LUMA_WEIGHTS[matrix]
    red, blue = y + (2 - 2 * kr) * v, y + (2 - 2 * kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    rgb = np.stack([red, green, blue])
    return (filters(height, size_px, height) @ rgb @ filters(width, size_px, width).T).clip(0, 255)


def one_tile(planes: Planes, size_px: int, matrix: str, full_range: bool, chroma: str) -> np.ndarray:
    tiling = Tiling(tile_px=size_px, patch_px=size_px, dtype=torch.uint8, layout="tiles", **HALF)
    colour = {"matrix": matrix, "full_range": full_range, "chroma": chroma}
    return yuv_to_tiles(*planes, (1, 1), tiling, num_threads=1, **colour)[0].double().numpy()


@pytest.mark.parametrize("chroma", COSITED)
@pytest.mark.parametrize("matrix", TILED_MATRICES)
@pytest.mark.parametrize(
    ("width", "height", "size_px", "full_range"),
    [(640, 360, 224, False), (321, 241, 448, False), (321, 241, 196, True)],
)
def test_is_near_the_true_picture(width, height, size_px, matrix, full_range, chroma):
    """50 dB of the scene itself (4:2:0 in 8 bits included), 57 of the same planes without rounding; 58.9 is the best
    that bytes can do. Chroma taken to lie elsewhere is worse."""
    planes = filmed(width, height, matrix, full_range, chroma)
    ours = one_tile(planes, size_px, matrix, full_range, chroma)
    x, y = ((np.arange(size_px) + 0.5) * side / size_px for side in (width, height))
    true = scene(x, y, width, height)
    assert true.min() > 0
    assert true.max() < 255
    assert psnr(ours, exact(planes, size_px, matrix, full_range, chroma)) > 57
    near = psnr(ours, true)
    assert near > 50
    for other in COSITED.keys() - {chroma}:
        assert psnr(one_tile(planes, size_px, matrix, full_range, other), true) < near


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", TILED_MATRICES)
def test_colours_of_every_kind(matrix, full_range):
    """Plain pictures of 512 colours: the matrix in fp64, rounded; halves and a sixtieth more may fall either way."""
    levels = torch.linspace(0, 255, 8).round().to(torch.uint8)
    planes = [p.reshape(-1, 1, 1) for p in torch.meshgrid(levels, levels, levels, indexing="ij")]
    tiling = Tiling(tile_px=2, patch_px=2, dtype=torch.uint8, layout="tiles", **HALF)
    out = yuv_to_tiles(*planes, (1, 1), tiling, matrix=matrix, full_range=full_range)
    assert (out == out[..., :1, :1]).all()
    y, u, v = (p.double().numpy().reshape(-1) for p in planes)
    u, v = u - 128, v - 128
    if not full_range:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    kr, kb = LUMA_WEIGHTS[matrix]
    red, blue = y + (2 - 2 * kr) * v, y + (2 - 2 * kb) * u
    true = np.stack([red, (y - kr * red - kb * blue) / (1 - kr - kb), blue], 1).clip(0, 255)
    assert np.abs(out[..., 0, 0].double().numpy() - true).max() < 0.5 + 1 / 60


def test_colours_by_hand():
    """BT.709's red, green and blue in 8 bits, as BT.709 itself quantises them, and what the numbers are made of."""
    y, u, v = (torch.tensor(p, dtype=torch.uint8).view(5, 1, 1) for p in zip(*RGB_709.values(), strict=True))
    out = yuv_to_tiles(y, u, v, (1, 1), Tiling(tile_px=1, patch_px=1, dtype=torch.uint8, **HALF), **HD).view(5, 3)
    assert (out.int() - torch.tensor(list(RGB_709))).abs().max() <= 1
    assert colours("bt601", True) == (8192, 11485, -2819, -5850, 14516, 0)


RGB_709 = {  # R'G'B': Y'CbCr
    (0, 0, 0): (16, 128, 128),
    (255, 255, 255): (235, 128, 128),
    (255, 0, 0): (63, 102, 240),
    (0, 255, 0): (173, 42, 26),
    (0, 0, 255): (32, 240, 118),
}


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_weights_add_up_and_fit(shift):
    """Sums of 2**14 whatever the scale; without signs never above 1.26, which is why values fit 16 bits."""
    assert 255 * 2**PLANE_BITS * 1.26**2 < 2**15
    for num_in in (1, 2, 3, 4, 5, 6, 7, 33, 360, 5000):
        for num_out in (1, 14, 57, 448):
            for length in (num_in, num_in - 0.5):
                taps = _taps(num_in, num_out, length, shift)
                assert (taps.sum(1) == 2**14).all()
                assert taps.abs().sum(1).max() <= 1.26 * 2**14


def test_a_plain_picture_stays_plain():
    """At any scale, with no step where a filter's weights would not add up."""
    for height, width in ((720, 1280), (1, 5), (37, 2001)):
        planes = [torch.full_like(p, level) for p, level in zip(noise(height, width), (90, 60, 170), strict=True)]
        tiling = Tiling(tile_px=84, thumbnail=True, dtype=torch.uint8, layout="tiles", **HALF)
        out = yuv_to_tiles(*planes, (2, 1), tiling, **HD)
        assert len(out.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)) == 1


def test_is_near_rgb_first():
    """Grey frames, so that colours say nothing: near frames_to_tiles but for its rounding between passes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 256, (1, 90, 160), generator=generator, dtype=torch.uint8)
    grey = torch.full((1, 45, 80), 128, dtype=torch.uint8)
    tiling = Tiling(tile_px=56, thumbnail=True, dtype=torch.uint8, **HALF)
    ours = yuv_to_tiles(y, grey, grey, (2, 1), tiling, matrix="bt601", full_range=True).int()
    rgb = frames_to_tiles(y[..., None].expand(-1, -1, -1, 3).contiguous(), (2, 1), tiling).int()
    assert (ours - rgb).abs().max() <= 8  # frames_to_tiles clips between the passes, and this is noise
    assert (ours - rgb).abs().float().mean() < 0.5


# ---- the reference, bit for bit --------------------------------------------------------------------------------------


def run_native(planes: Planes, grid: tuple[int, int], out: Tensor, chroma: str, threads: int, simd: str) -> None:
    cols, rows = grid
    tile_px = math.isqrt(out.shape[1] * out.shape[2] // 3)
    arguments = {"mean": MEAN, "std": STD, "thumbnail": True, "pass_order": "horizontal"}
    tiling = native.load().Tiling(cols=cols, rows=rows, tile_px=tile_px, patch_px=14, **arguments)
    native.load().yuv_to_tiles_cpu(native_frames(planes, chroma), native.view(out), tiling, threads, simd)


def native_frames(planes: Planes, chroma: str = "left"):
    y, u, v = map(native.view, planes)
    across, down = COSITED[chroma]
    arguments = {"cosited_across": across, "cosited_down": down, "colours": colours("bt709", False)}
    return native.load().YuvFrames(y=y, u=u, v=v, **arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("thumbnail", [False, True])
@pytest.mark.parametrize(("width", "height", "cols", "rows", "tile_px"), SIZES)
def test_is_the_reference_bit_for_bit(width, height, cols, rows, tile_px, thumbnail, dtype, device):
    chroma = list(COSITED)[(width + height) % 3]
    colour = {"matrix": TILED_MATRICES[width % 3], "full_range": height % 2 == 0, "chroma": chroma}
    planes = tuple(p.to(device) for p in noise(height, width, frames=2, extreme=width % 2 == 0))
    for layout in ("patches", "tiles"):
        tiling = Tiling(tile_px=tile_px, mean=MEAN, std=STD, thumbnail=thumbnail, dtype=dtype, layout=layout)
        ref = yuv_to_tiles_ref(*planes, (cols, rows), tiling, **colour)
        for given_planes in (planes, nv12(planes)):
            ours = yuv_to_tiles(*given_planes, (cols, rows), tiling, **colour)
            assert ours.shape == ref.shape
            assert ours.dtype == ref.dtype == dtype
            assert torch.equal(ours, ref)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    width=st.one_of(st.integers(1, 8), st.integers(1, 300)),
    height=st.one_of(st.integers(1, 8), st.integers(1, 300)),
    cols=st.integers(1, 4),
    rows=st.integers(1, 4),
    tile_px=st.sampled_from([14, 28, 42, 84]),
    matrix=st.sampled_from(TILED_MATRICES),
    full_range=st.booleans(),
    chroma=st.sampled_from(sorted(COSITED)),
    extreme=st.booleans(),
    is_nv12=st.booleans(),
    margin=st.integers(0, 5),
    num_threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_is_the_reference_on_random_sizes(
    width,
    height,
    cols,
    rows,
    tile_px,
    matrix,
    full_range,
    chroma,
    extreme,
    is_nv12,
    margin,
    num_threads,
    seed,
):
    """Planes anywhere inside larger ones: rows and frames lie apart."""
    planes = noise(height, width, frames=2, seed=seed, extreme=extreme)
    big = [torch.nn.functional.pad(p, (margin, 2 * margin, margin, 1), value=99) for p in planes]
    big = nv12(tuple(big)) if is_nv12 else big
    inside = [b[:, margin:-1, margin : b.shape[2] - 2 * margin] for b in big]
    colour = {"matrix": matrix, "full_range": full_range, "chroma": chroma}
    tiling = Tiling(tile_px=tile_px, thumbnail=True, dtype=torch.uint8, **HALF)
    ref = yuv_to_tiles_ref(*planes, (cols, rows), tiling, **colour)
    ours = yuv_to_tiles(*inside, (cols, rows), tiling, num_threads=num_threads, **colour)
    assert torch.equal(ours, ref)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_vector_code_change_no_bit(dtype):
    """And every number is written: the memory starts as NaN."""
    widest = native.build_info()["simd"]
    ways = {(0, widest), (1, widest), (2, widest), (16, widest), (1, "avx2" if widest else ""), (1, ""), (3, "")}
    for width, height, cols, rows, tile_px in [(211, 77, 3, 2, 98), (77, 411, 2, 1, 56), (5, 6, 1, 1, 70)]:
        for chroma in COSITED:
            planes = noise(height, width, frames=3, extreme=True)
            tiling = Tiling(tile_px=tile_px, thumbnail=True, mean=MEAN, std=STD, dtype=dtype)
            ref = yuv_to_tiles_ref(*planes, (cols, rows), tiling, chroma=chroma, **HD)
            for threads, simd in sorted(ways):
                for given_planes in (planes, nv12(planes)):
                    out = torch.full_like(ref, 77 if dtype == torch.uint8 else float("nan"))
                    run_native(given_planes, (cols, rows), out, chroma, threads, simd)
                    assert torch.equal(out, ref), (threads, simd)


def test_one_frame_seen_many_times():
    planes = noise(41, 60)
    many = [p.expand(3, -1, -1) for p in planes]
    once, thrice = (yuv_to_tiles(*p, (1, 2), TILING, **HD) for p in (planes, many))
    assert torch.equal(thrice, once.repeat(3, 1, 1))


def test_offsets_pass_32_bits(device):
    planes = noise(5, 3, frames=2)
    far = []
    for near in planes:
        far.append(far_tensor(near.shape, (2**31 + 256, 2**28, 1), torch.uint8, device))
        far[-1].copy_(near)
    assert torch.equal(yuv_to_tiles(*far, (2, 1), TILING, **HD).cpu(), yuv_to_tiles(*planes, (2, 1), TILING, **HD))


def test_no_frames_no_tiles(device):
    for layout, shape in [("patches", (0, 1024, 588)), ("tiles", (0, 3, 448, 448))]:
        planes = [p[:0].to(device) for p in noise(30, 41)]
        tiling = Tiling(thumbnail=True, layout=layout, **HALF)
        out = yuv_to_tiles(*planes, (2, 2), tiling, **HD)
        assert out.shape == shape
        assert out.dtype == torch.bfloat16
        assert yuv_to_tiles_ref(*planes, (2, 2), tiling, **HD).shape == shape


def test_opcheck(device):
    for planes in (noise(20, 31, frames=2), nv12(noise(20, 31, frames=2)), [p[:0] for p in noise(20, 31)]):
        on_device = [p.to(device) for p in planes]
        colour = "bt601", True, "center"
        torch.library.opcheck(_fwd.overload, (*on_device, 2, 1, *colour, 28, 14, MEAN, STD, True, torch.bfloat16, 1))


def test_torch_compile_takes_it_whole(device):
    def model_input(y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return yuv_to_tiles(y, u, v, (2, 1), TILING, num_threads=1, **HD).float() * 2

    planes = [p.to(device) for p in noise(20, 30, frames=2)]
    compiled = torch.compile(model_input, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*planes), model_input(*planes))


Y, U, V = noise(4, 6)
GOOD = {"y_LYX": Y, "u_LHW": U, "v_LHW": V, "grid": (1, 1), "tiling": TILING, **HD}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_LYX": Y.float()}, "y's dtype is torch.float32; needs torch.uint8"),
        ({"u_LHW": U.int()}, "u's dtype is torch.int32; needs torch.uint8"),
        ({"y_LYX": Y[0]}, r"y's shape is \(4, 6\); needs \(L, Y, X\)"),
        ({"y_LYX": Y[:, :0]}, r"y's size \(Y, X\) is \(0, 6\); needs at least one sample"),
        ({"v_LHW": V[:, :1]}, r"v's shape is \(1, 1, 3\); needs \(1, 2, 3\), half of y's rounded up"),
        ({"u_LHW": U.repeat(2, 1, 1)}, r"u's shape is \(2, 2, 3\); needs \(1, 2, 3\)"),
        ({"v_LHW": V.to("meta")}, "v's device is meta; needs y's cpu"),
        ({"y_LYX": Y.mT.contiguous().mT}, r"y's stride along a row is 4; needs 1; call .contiguous\(\)"),
        ({"u_LHW": U[..., :1].expand(1, 2, 3)}, r"u's stride along a row is 0; needs 1 or 2; call .contiguous\(\)"),
        ({"full_range": None}, "full_range is None; needs True or False"),
        ({"matrix": "bt470"}, "matrix is 'bt470'; needs 'bt601', 'bt709' or 'bt2020'"),
        ({"chroma": "top"}, "chroma is 'top'; needs 'left', 'center' or 'top_left'"),
        ({"grid": (0, 1)}, r"grid is \(0, 1\); needs \(cols, rows\), both >= 1"),
        (
            {"grid": (1 << 11, 1 << 11)},
            r"grid is \(2048, 2048\); needs .*at most 1048576 tiles",
        ),
        ({"tiling": None}, r"tiling is None; needs a Tiling, as Tiling\(mean=..., std=...\)"),
        ({"num_threads": -1}, "num_threads is -1; needs at least 0"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=f"^yuv_to_tiles: {message}"):
        yuv_to_tiles(**{**GOOD, **change})


def test_native_code_refuses_what_does_not_fit():
    """What reaches the extension past the public function."""
    good = {"cols": 1, "rows": 1, "tile_px": 28, "patch_px": 14, "mean": MEAN, "std": STD, "thumbnail": True}
    out = torch.full((1, 4, 588), float("nan"))

    def call(planes=(Y, U, V), order="horizontal", threads=1, simd="", shape=(1, 4, 588)) -> None:
        tiling = native.load().Tiling(pass_order=order, **good)
        view = native.view(out[:, : shape[1], : shape[2]].expand(shape))
        native.load().yuv_to_tiles_cpu(native_frames(planes), view, tiling, threads, simd)

    for change, message in [
        ({"planes": (Y, U[:, :1], V)}, r"u needs uint8 of shape \(1, 2, 3\)"),
        ({"planes": (Y, U, V.float())}, r"v needs uint8 of shape \(1, 2, 3\)"),
        ({"planes": (Y[0], U, V)}, r"y needs shape \(L, Y, X\)"),
        ({"planes": (Y, U, V.repeat(1, 1, 3)[..., ::3])}, "v's stride along a row is 3; needs 1 to 2"),
        ({"order": "pillow"}, "pass_order is 'pillow'; needs 'horizontal'"),
        ({"threads": -1}, "num_threads is -1"),
        ({"simd": "sse9"}, "simd is 'sse9'; needs 'avx512', 'avx2' or ''"),
        ({"shape": (1, 4, 587)}, r"out needs contiguous \(1, 4, 588\)"),
    ]:
        with pytest.raises(ValueError, match=f"^yuv_to_tiles: {message}"):
            call(**change)
    assert out.isnan().all()


# ---- the CUDA code -----------------------------------------------------------------------------------------------

ENTRY_POINT = """
extern "C" int64_t run_kernels(const void* y, const void* u, const void* v, int64_t num_frames, int64_t height,
                               int64_t width, int64_t step, int cols, int rows, int tile_px, int cosited, void* out,
                               void* workspace) {
  const auto view = [](const void* p, std::vector<int64_t> shape, std::vector<int64_t> strides, const char* dtype) {
    return eagle::make_view("view", reinterpret_cast<uintptr_t>(p), shape, strides, dtype, INT64_MAX);
  };
  const int64_t half_height = (height + 1) / 2, half_width = (width + 1) / 2;
  const auto plane = [&](const void* p, int64_t h, int64_t w, int64_t step) {
    return view(p, {num_frames, h, w}, {h * w * step, w * step, step}, "uint8");
  };
  const eagle::YuvFrames frames{plane(y, height, width, 1), plane(u, half_height, half_width, step),
                                plane(v, half_height, half_width, step),
                                eagle::make_colours(9539, 14686, -1747, -4366, 17305, 16), cosited % 2 == 1,
                                cosited / 2 == 1};
  eagle::Tiling t;
  t.cols = cols; t.rows = rows; t.tile_px = tile_px; t.patch_px = 14; t.thumbnail = true;
  const float mean[] = {0.485f, 0.456f, 0.406f}, stddev[] = {0.229f, 0.224f, 0.225f};
  for (int c = 0; c < 3; ++c) { t.mean[c] = mean[c]; t.stddev[c] = stddev[c]; }
  const int64_t needed = eagle::yuv_to_tiles_workspace_bytes(frames, t);
  if (workspace == nullptr) return needed;
  const int64_t side = tile_px / 14;
  const std::vector<int64_t> shape{num_frames * t.num_images(), side * side, 3 * 14 * 14};
  eagle::yuv_to_tiles_cuda(frames, view(out, shape, {shape[1] * shape[2], shape[2], 1}, "bfloat16"), t,
                           view(workspace, {needed}, {1}, "uint8"), 0, 0);
  return needed;
}
"""


@pytest.fixture(scope="module")
def cuda_code_for_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("cuda_on_cpu")
    others = ["yuv_to_tiles.cpp", "tiles.cpp"]
    library = build(folder, "yuv_to_tiles", 2, ENTRY_POINT, others, {"kMaxBlocks": "3", "kMiddleRows": "24"})
    numbers = [ctypes.c_int64] * 4 + [ctypes.c_int] * 4
    library.run_kernels.argtypes = [ctypes.c_void_p] * 3 + numbers + [ctypes.c_void_p] * 2
    library.run_kernels.restype = ctypes.c_int64
    return library


@pytest.mark.parametrize(
    ("width", "height", "cols", "rows", "tile_px", "chroma"),
    [
        (1, 1, 1, 1, 14, "left"),
        (57, 28, 2, 1, 28, "center"),
        (61, 99, 3, 1, 28, "top_left"),  # more blocks than are launched, and thumbnails
        (20, 301, 1, 1, 14, "left"),  # more rows than the middle holds
    ],
)
def test_cuda_kernels_run_on_the_cpu_give_the_same_bits(
    cuda_code_for_the_cpu, width, height, cols, rows, tile_px, chroma
):
    """The kernels' own source, threads, barriers, offsets and workspace; what only a GPU can show is below."""
    planes = noise(height, width, frames=2, extreme=True)
    colour = {"matrix": "bt709", "full_range": False, "chroma": chroma}
    tiling = Tiling(tile_px=tile_px, mean=MEAN, std=STD, thumbnail=True)
    expected = yuv_to_tiles(*planes, (cols, rows), tiling, **colour)
    across, down = COSITED[chroma]
    for y, u, v in (planes, nv12(planes)):
        step = 1 if u is planes[1] else 2
        numbers = len(y), height, width, step, cols, rows, tile_px, across + 2 * down
        pointers = [p.data_ptr() for p in (y, u, v)]
        needed = cuda_code_for_the_cpu.run_kernels(*pointers, *numbers, None, None)
        memory = torch.full((needed + 512,), 0xA5, dtype=torch.uint8)
        start = -memory.data_ptr() % 256
        out = torch.full_like(expected, float("nan"))
        cuda_code_for_the_cpu.run_kernels(*pointers, *numbers, out.data_ptr(), memory.data_ptr() + start)
        assert torch.equal(out, expected)
        assert (memory[:start] == 0xA5).all()
        assert (memory[start + needed :] == 0xA5).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_kernels_keep_their_sums_in_registers(architecture):
    """Nothing spilled, and three blocks of 256 threads (of 65536 registers) on a processor: 3 dtypes."""
    found = resources("yuv_tiles_kernel", architecture)
    assert len(found) == 3
    for usage in found:
        assert usage["LOCAL"] == usage["STACK"] == 0
        assert usage["REG"] <= 80
        assert usage["SHARED"] <= 17 * 1024
    (taps,) = resources("yuv_taps_kernel", architecture)
    assert taps["LOCAL"] == taps["STACK"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the op would reach the GPU")
def test_cuda_tensors_without_cuda_code_are_an_error(monkeypatch):
    class CudaTensor(Tensor):
        is_cuda = True

    monkeypatch.setattr(native, "build_info", lambda: {"has_cuda": False})
    y, u, v = (p.as_subclass(CudaTensor) for p in noise(4, 4))
    with pytest.raises(RuntimeError, match=r"^yuv_to_tiles: .* was built without CUDA"):
        _fwd.function(y, u, v, 1, 1, "bt709", False, "left", 28, 14, MEAN, STD, True, torch.bfloat16, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("chroma", COSITED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "height", "cols", "rows", "tile_px"), [*SIZES, (1920, 1080, 2, 1, 448)])
def test_gpu_gives_the_same_bits_as_the_cpu(width, height, cols, rows, tile_px, dtype, chroma):
    planes = noise(height, width, frames=2)
    tiling = Tiling(tile_px=tile_px, mean=MEAN, std=STD, thumbnail=True, dtype=dtype)
    for given_planes in (planes, nv12(planes)):
        ours = yuv_to_tiles(*(p.cuda() for p in given_planes), (cols, rows), tiling, chroma=chroma, **HD)
        assert ours.is_cuda
        assert torch.equal(ours.cpu(), yuv_to_tiles(*planes, (cols, rows), tiling, chroma=chroma, **HD))


@pytest.mark.gpu
def test_gpu_runs_on_the_current_stream():
    """Planes that a long queue on a side stream writes last: the kernels must wait for it, and it alone."""
    planes = noise(200, 300, frames=4)
    tiling = Tiling(tile_px=56, thumbnail=True, **HALF)
    expected = yuv_to_tiles(*planes, (2, 2), tiling, **HD)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        on_gpu = [torch.zeros_like(p, device="cuda") for p in planes]
        torch.cuda._sleep(50_000_000)
        for to, plane in zip(on_gpu, planes, strict=True):
            to.copy_(plane.cuda())
        ours = yuv_to_tiles(*on_gpu, (2, 2), tiling, **HD)
    stream.synchronize()
    assert torch.equal(ours.cpu(), expected)


@pytest.mark.gpu
def test_gpu_repeats_bit_for_bit():
    planes = [p.cuda() for p in noise(480, 640, frames=2)]
    first = yuv_to_tiles(*planes, (4, 3), Tiling(thumbnail=True, **HALF), **HD)
    for _ in range(20):
        assert torch.equal(yuv_to_tiles(*planes, (4, 3), Tiling(thumbnail=True, **HALF), **HD), first)
