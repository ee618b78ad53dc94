"""Makes the golden set: small videos of every kind that trips decoders, each frame's number drawn into its pixels.

    python -m tests.video.make FOLDER        # to look at them; the tests build them in a temporary folder

Dims    L frames, Y rows, X columns. The number is drawn as 4 rows x 6 columns of black and white blocks: 12 bits and
their complement, so that a picture that is torn, turned or mixed is no number at all.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av", reason="needs PyAV (the extra `video`)")  # whoever imports this is skipped too

if TYPE_CHECKING:
    from eagle_kernels.video import Frame

NUM_BITS = 12
ROWS, COLS = 4, 6
WIDTH_PX, HEIGHT_PX = 64, 48


def draw(number: int, width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX) -> NDArray[np.uint8]:
    """(Y, X, 3) RGB: `number` (below 4096) in blocks. Not quite black and white, so that no codec has to clip."""
    bits = [number >> i & 1 for i in range(NUM_BITS)]
    blocks = np.array(bits + [1 - b for b in bits]).reshape(ROWS, COLS)
    y = np.arange(height_px) * ROWS // height_px
    x = np.arange(width_px) * COLS // width_px
    grey_YX = np.where(blocks[y][:, x] == 1, 224, 32).astype(np.uint8)
    return np.repeat(grey_YX[:, :, None], 3, axis=2)


def read(rgb_YX3: NDArray[np.uint8]) -> int:
    """The number drawn in a picture of any size; AssertionError if there is none."""
    height_px, width_px, _ = rgb_YX3.shape
    bits = []
    for row in range(ROWS):
        for col in range(COLS):
            y, x = (2 * row + 1) * height_px // (2 * ROWS), (2 * col + 1) * width_px // (2 * COLS)
            bits.append(int(rgb_YX3[y - 2 : y + 3, x - 2 : x + 3].mean() > 128))
    assert all(a != b for a, b in zip(bits[:NUM_BITS], bits[NUM_BITS:])), f"no number in the picture: {bits}"
    return sum(bit << i for i, bit in enumerate(bits[:NUM_BITS]))


def numbers(frames: Iterable[Frame]) -> list[int]:
    return [read(frame.rgb_YX3.numpy()) for frame in frames]


@contextlib.contextmanager
def ordinary_priority() -> Iterator[None]:
    """Around an encoder: libsvtav1, called by root, gives its caller's thread real-time priority (SCHED_FIFO, 99) for
    good. Every thread and process made later has it too, and on a busy machine nothing else runs any more."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def write_video(
    path: Path,
    frames_LYX3: Iterable[NDArray[np.uint8]],
    *,
    fps: float | Fraction = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    muxer: str | None = None,
    muxer_options: Mapping[str, str] | None = None,
    times_ms: Sequence[int] | None = None,
    pixel_aspect: Fraction | None = None,
    tags: Mapping[str, int] | None = None,
    cover: NDArray[np.uint8] | None = None,
    audio_seconds: float = 0.0,
    recount_dts: bool = False,
) -> None:
    """Encodes RGB frames. `times_ms` gives each frame's own time, else they are 1 / fps apart from 0. `tags` are codec
    context attributes (color_range, colorspace, ...); frames are converted to match. `cover` becomes a JPEG attached as
    stream 0. `recount_dts`: for x265's temporal layers, which it gives times of decoding after those of showing."""
    file = av.open(str(path), "w", format=muxer, options=dict(muxer_options or {}))
    with ordinary_priority(), file as container:
        if cover is not None:
            art = container.add_stream("mjpeg", rate=1)
            art.width, art.height, art.pix_fmt = cover.shape[1], cover.shape[0], "yuvj420p"
            art.disposition = av.stream.Disposition.attached_pic
        rate = Fraction(fps).limit_denominator(100_000)
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 1000) if times_ms is not None else 1 / rate
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        sound = container.add_stream("aac", rate=16_000, layout="mono") if audio_seconds else None
        packets = []
        for i, rgb_YX3 in enumerate(frames_LYX3):
            if i == 0:
                stream.height, stream.width = rgb_YX3.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb_YX3), format="rgb24").reformat(
                format=pix_fmt,
                dst_colorspace=(tags or {}).get("colorspace"),
                dst_color_range=(tags or {}).get("color_range"),
                interpolation=av.video.reformatter.Interpolation.BICUBIC
                | av.video.reformatter.Interpolation.ACCURATE_RND
                | av.video.reformatter.Interpolation.FULL_CHR_H_INT
                | av.video.reformatter.Interpolation.FULL_CHR_H_INP,
            )
            frame.pts = i if times_ms is None else times_ms[i]
            frame.time_base = stream.codec_context.time_base
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if recount_dts:
            in_order = sorted(packet.pts for packet in packets)
            delay = max(pts - packet.pts for pts, packet in zip(in_order, packets))
            for pts, packet in zip(in_order, packets):
                packet.dts = pts - delay
        if cover is not None:
            picture = av.VideoFrame.from_ndarray(cover, format="rgb24").reformat(format="yuvj420p")
            packets = art.encode(picture) + art.encode(None) + packets
        if sound is not None:
            for start in range(0, int(16_000 * audio_seconds), 1024):
                hum = np.sin(np.arange(start, start + 1024, dtype=np.float32) / 16)[None]
                chunk = av.AudioFrame.from_ndarray(hum, format="fltp", layout="mono")
                chunk.sample_rate, chunk.pts = 16_000, start
                packets += sound.encode(chunk)
            packets += sound.encode(None)
        for packet in packets:
            container.mux(packet)


# Colour. Dims Y rows, X columns.

MATRIX_TAGS = {"601": 6, "709": 1, "2020": 9, "none": 2}  # ITU-T H.273, MatrixCoefficients
LUMA = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}  # K_R, K_B


def smooth_picture(height_px: int = 96, width_px: int = 128) -> NDArray[np.float64]:
    """(Y, X, 3) in 0..255, all hues, without edges: what is measured is colour, not chroma sharpness."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height_px, :width_px] / np.array([height_px, width_px]).reshape(2, 1, 1)
    waves = [
        80 * np.sin(2 * np.pi * (rng.uniform(0.3, 1) * x + rng.uniform(0.3, 1) * y + rng.uniform())) for _ in "RGB"
    ]
    return np.stack([127.5 + wave + 30 * np.sin(2 * np.pi * (1.3 * x - y)) for wave in waves], axis=-1).clip(0, 255)


def to_planes(
    rgb_YX3: NDArray[np.float64], matrix: str, full_range: bool, sited: str = "left"
) -> list[NDArray[np.uint8]]:
    """Y'CbCr 4:2:0 by ITU-T H.273 in fp64, chroma sited on the left as in MPEG or in the centre, rounded once."""
    k_r, k_b = LUMA[matrix]
    r, g, b = np.moveaxis(rgb_YX3, -1, 0) / 255
    y = k_r * r + (1 - k_r - k_b) * g + k_b * b
    planes = [y * 255 if full_range else y * 219 + 16]
    for colour, k in ((b, k_b), (r, k_r)):
        chroma = (colour - y) / (2 * (1 - k)) * (255 if full_range else 224) + 128
        padded = np.pad(chroma, ((0, 0), (1, 1)), mode="edge")
        left = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:])[:, ::2] / 4
        half = left if sited == "left" else (chroma[:, ::2] + chroma[:, 1::2]) / 2
        planes.append((half[::2] + half[1::2]) / 2)
    return [np.rint(plane).clip(0, 255).astype(np.uint8) for plane in planes]


def write_planes(
    path: Path, planes: list[NDArray[np.uint8]], tag: int, full_range: bool, codec: str = "libx264"
) -> None:
    """One lossless frame of H.264 or VP9 of exactly these samples."""
    height_px, width_px = planes[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"qp": "0"} if codec == "libx264" else {"lossless": "1"})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        frame = av.VideoFrame(width_px, height_px, "yuv420p")
        for plane, samples in zip(frame.planes, planes, strict=True):
            rows = np.zeros((plane.height, plane.line_size), np.uint8)
            rows[:, : samples.shape[1]] = samples
            plane.update(rows.tobytes())
        for target in (stream.codec_context, frame):
            target.colorspace, target.color_range = tag, 2 if full_range else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@dataclass(frozen=True)
class Golden:
    """One good file of the set. `numbers[i]` is the number drawn into the frame shown i-th."""

    path: Path
    numbers: tuple[int, ...]
    times_seconds: tuple[float, ...]
    width_px: int = WIDTH_PX
    height_px: int = HEIGHT_PX
    codec: str = "h264"
    rotation_degrees: int = 0
    is_variable: bool = False


GOOD_NAMES = (
    *("b_frames.mp4", "b_frames.mkv", "b_frames.ts", "b_frames.flv", "fragmented.mp4", "live.mkv", "long_gop.mp4"),
    *("one_frame.mp4", "open_gop.mp4", "open_gop.ts", "intra_refresh.mp4", "intra_refresh.mkv", "intra_refresh.ts"),
    *(
        "interlaced.mp4",
        "444.mp4",
        "10_bit.mp4",
        "full_range.mp4",
        "hevc.mp4",
        "hevc_open_gop.mp4",
        "hevc_open_gop.mkv",
    ),
    *("hevc_10_bit.mp4", "vp9.webm", "vp9_odd.webm", "vp8.webm", "av1.mp4", "odd.mp4", "mjpeg.avi", "mpeg4.avi"),
    *("mpeg2_b.mpg", "wide_pixels.mp4", "wide_pixels.mkv", "cover_first.mp4", "with_audio.mkv", "variable.mp4"),
    *("variable.mkv", "late_start.mp4", "late_start.mkv", "turned_90.mp4", "turned_180.mp4", "turned_270.mp4"),
    *("mirrored.mp4", "vp8_hidden.webm", "edit_list.mp4", "cut_start.ts"),
)


@dataclass
class GoldenSet:
    good: dict[str, Golden] = field(default_factory=dict)
    bad: dict[str, Path] = field(default_factory=dict)


X264 = {"crf": "18", "preset": "veryfast"}
B_FRAMES = {**X264, "g": "24", "x264-params": "bframes=3:b-pyramid=normal:scenecut=0"}
X265 = {"crf": "20", "preset": "ultrafast"}
VPX = {"crf": "20", "b": "400k", "cpu-used": "8", "deadline": "realtime", "g": "24"}


def make(folder: Path) -> GoldenSet:
    """Writes every file into `folder` and says what each holds."""
    folder.mkdir(parents=True, exist_ok=True)
    golden = GoldenSet()

    def good(name: str, num_frames: int = 60, *, about: Mapping[str, object] | None = None, **how: object) -> Path:
        path = folder / name
        about = dict(about or {})
        size = about.pop("size", (WIDTH_PX, HEIGHT_PX))
        times_ms = how.get("times_ms")
        write_video(path, (draw(i, *size) for i in range(num_frames)), **how)
        times = [t / 1000 for t in times_ms] if times_ms else [i / 25 for i in range(num_frames)]
        about = {"width_px": size[0], "height_px": size[1], **about}
        golden.good[name] = Golden(path, tuple(range(num_frames)), tuple(t - times[0] for t in times), **about)
        return path

    good("b_frames.mp4", 120, options=B_FRAMES)
    good("b_frames.mkv", options=B_FRAMES)
    good("b_frames.ts", 120, options=B_FRAMES)
    good("b_frames.flv", options=B_FRAMES)
    good("fragmented.mp4", options=B_FRAMES, muxer_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
    good("live.mkv", options=B_FRAMES, muxer_options={"live": "1"})
    good("long_gop.mp4", 300, options={**X264, "g": "9999", "sc_threshold": "0"})
    good("one_frame.mp4", 1, options=X264)
    good(
        "open_gop.mp4", 120, options={**X264, "x264-params": "open-gop=1:keyint=24:min-keyint=24:bframes=3:scenecut=0"}
    )
    good("open_gop.ts", 120, options={**X264, "x264-params": "open-gop=1:keyint=24:min-keyint=24:bframes=3:scenecut=0"})
    refresh = {**X264, "x264-params": "intra-refresh=1:keyint=30:bframes=2:scenecut=0"}
    good("intra_refresh.mp4", 120, options=refresh)
    good("intra_refresh.mkv", 120, options=refresh)
    good("intra_refresh.ts", 120, options=refresh)
    good("interlaced.mp4", options={**B_FRAMES, "x264-params": "tff=1:bframes=2"})
    good("444.mp4", pix_fmt="yuv444p", options=X264)
    good("10_bit.mp4", pix_fmt="yuv420p10le", options=X264)
    good("full_range.mp4", pix_fmt="yuvj420p", options=X264)
    good(
        "hevc.mp4",
        96,
        codec="libx265",
        options={**X265, "x265-params": "log-level=error:keyint=24:open-gop=0"},
        about={"codec": "hevc"},
    )
    hevc_open = {**X265, "x265-params": "log-level=error:keyint=24:min-keyint=24:open-gop=1:bframes=4:scenecut=0"}
    good("hevc_open_gop.mp4", 96, codec="libx265", options=hevc_open, about={"codec": "hevc"})
    good("hevc_open_gop.mkv", 96, codec="libx265", options=hevc_open, about={"codec": "hevc"})
    good(
        "hevc_10_bit.mp4",
        codec="libx265",
        pix_fmt="yuv420p10le",
        options={**X265, "x265-params": "log-level=error"},
        about={"codec": "hevc"},
    )
    good("vp9.webm", codec="libvpx-vp9", options=VPX, about={"codec": "vp9"})
    good("vp9_odd.webm", codec="libvpx-vp9", options=VPX, about={"codec": "vp9", "size": (63, 47)})
    good("vp8.webm", codec="libvpx", options=VPX, about={"codec": "vp8"})
    good(
        "av1.mp4",
        codec="libsvtav1",
        options={"preset": "12", "crf": "25", "g": "30", "svtav1-params": "lp=1"},
        about={"codec": "av1"},
    )
    good("odd.mp4", pix_fmt="yuv444p", options=X264, about={"size": (63, 47)})
    good("mjpeg.avi", codec="mjpeg", pix_fmt="yuvj420p", options={"q": "3"}, about={"codec": "mjpeg"})
    good("mpeg4.avi", codec="mpeg4", options={"q": "3", "g": "12"}, about={"codec": "mpeg4"})
    good(
        "mpeg2_b.mpg",
        codec="mpeg2video",
        options={"q": "3", "g": "12", "bf": "2"},
        muxer="vob",
        about={"codec": "mpeg2video"},
    )
    # Stored 64 columns, each 3:2 as wide as high.
    good("wide_pixels.mp4", options=X264, pixel_aspect=Fraction(3, 2), about={"width_px": 96})
    good("wide_pixels.mkv", options=X264, pixel_aspect=Fraction(3, 2), about={"width_px": 96})
    good("cover_first.mp4", options=B_FRAMES, cover=draw(4095, 32, 32))
    good("with_audio.mkv", options=B_FRAMES, audio_seconds=2.0)

    steps = [10, 35, 70, 20, 90, 33, 200, 41]
    uneven = np.cumsum([0, *(steps * 10)][:60]).tolist()
    variable = {"is_variable": True}
    good("variable.mp4", options=B_FRAMES, times_ms=uneven, about=variable)
    good("variable.mkv", options=B_FRAMES, times_ms=uneven, about=variable)
    late = [5_000 + 40 * i for i in range(60)]
    good("late_start.mp4", options=B_FRAMES, times_ms=late)
    good("late_start.mkv", options=B_FRAMES, times_ms=late)

    # The display matrix in the track header: what phones write.
    turns = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    for degrees, matrix in turns.items():
        name = f"turned_{degrees}.mp4"
        turned = [np.rot90(draw(i), degrees // 90) for i in range(30)]  # anticlockwise: the player turns it back
        write_video(folder / name, turned, options=B_FRAMES)
        set_display_matrix(folder / name, matrix)
        golden.good[name] = Golden(
            folder / name, tuple(range(30)), tuple(i / 25 for i in range(30)), rotation_degrees=degrees
        )
    write_video(folder / "mirrored.mp4", [draw(i)[:, ::-1] for i in range(30)], options=B_FRAMES)
    set_display_matrix(folder / "mirrored.mp4", (-1, 0, 0, 1))
    golden.good["mirrored.mp4"] = Golden(folder / "mirrored.mp4", tuple(range(30)), tuple(i / 25 for i in range(30)))

    # VP8 pictures that are referred to and never shown: every tenth one, by its show_frame bit (RFC 6386, 9.1).
    golden.good["vp8_hidden.webm"] = _hide_frames(folder / "vp8.webm", folder / "vp8_hidden.webm")

    # Times before 0 make the muxer write an edit list that starts inside a group of pictures: the first 10 frames are
    # decoded and not shown, as after a lossless cut.
    cut = folder / "edit_list.mp4"
    write_video(cut, (draw(i) for i in range(60)), options=B_FRAMES, times_ms=[40 * (i - 10) for i in range(60)])
    golden.good["edit_list.mp4"] = Golden(cut, tuple(range(10, 60)), tuple(i / 25 for i in range(50)))

    # A recording that starts in the middle of a group of pictures: the first 24 frames have no key frame.
    whole = (folder / "b_frames.ts").read_bytes()
    golden.good["cut_start.ts"] = _cut_ts(whole, folder / "cut_start.ts")

    assert tuple(golden.good) == GOOD_NAMES  # known before they are made, so that each is a test of its own
    _make_bad(folder, golden)
    return golden


def _make_bad(folder: Path, golden: GoldenSet) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 1 << 16, np.uint8).tobytes()

    def bad(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        golden.bad[name] = folder / name

    front = folder / "front.mp4"
    write_video(front, (draw(i) for i in range(120)), options=B_FRAMES, muxer_options={"movflags": "faststart"})
    whole = front.read_bytes()
    bad("truncated.mp4", whole[: len(whole) * 2 // 3])
    mkv = (folder / "b_frames.mkv").read_bytes()
    bad("truncated.mkv", mkv[: len(mkv) * 2 // 3])
    plain = (folder / "b_frames.mp4").read_bytes()
    bad("no_moov.mp4", plain[: len(plain) // 2])
    middle = len(whole) // 2
    bad("garbage_inside.mp4", whole[:middle] + noise[:400] + whole[middle + 400 :])
    middle = len(mkv) // 2
    bad("garbage_inside.mkv", mkv[:middle] + noise[:400] + mkv[middle + 400 :])
    ts = (folder / "b_frames.ts").read_bytes()
    middle = len(ts) // 2
    bad("garbage_inside.ts", ts[:middle] + noise[:2000] + ts[middle + 2000 :])
    one = bytearray((folder / "one_frame.mp4").read_bytes())
    (mdat,) = struct.unpack_from(">I", one, one.index(b"mdat") - 4)
    at = one.index(b"mdat") + 4
    one[at : at + mdat - 8] = noise[: mdat - 8]
    bad("only_noise_inside.mp4", bytes(one))
    bad("empty.mp4", b"")
    bad("noise.mp4", noise)
    bad("text.mp4", b"not a video\n" * 100)
    bad(
        "playlist.mp4",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:5,\n{folder / 'b_frames.ts'}\n#EXT-X-ENDLIST\n".encode(),
    )
    for name in ("storage_order.avi", "raw.h264"):
        write_video(folder / name, (draw(i) for i in range(30)), options=B_FRAMES)
        golden.bad[name] = folder / name
    thin = folder / "thin_pixels.mp4"
    write_video(thin, [draw(0)], options=X264, pixel_aspect=Fraction(1, 50))
    golden.bad["thin_pixels.mp4"] = thin
    sound = folder / "audio_only.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for start in range(0, 16_000, 1024):
            chunk = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            chunk.sample_rate, chunk.pts = 16_000, start
            container.mux(stream.encode(chunk))
        container.mux(stream.encode(None))
    golden.bad["audio_only.mp4"] = sound


def _hide_frames(source: Path, path: Path) -> Golden:
    shown = []
    with av.open(str(source)) as whole, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for i, old in enumerate(p for p in whole.demux(video=0) if p.size):
            content = bytearray(old)
            if i % 10 == 5:
                content[0] &= ~0x10
            else:
                shown.append(i)
            packet = av.Packet(bytes(content))
            packet.pts, packet.dts, packet.time_base, packet.is_keyframe = (
                old.pts,
                old.dts,
                old.time_base,
                old.is_keyframe,
            )
            packet.stream = stream
            container.mux(packet)
    return Golden(path, tuple(shown), tuple(i / 25 for i in shown), codec="vp8", is_variable=True)


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Writes (a, b, c, d) into the track header (ISO/IEC 14496-12, 8.3.2), whose muxer wrote the identity."""
    content = bytearray(path.read_bytes())
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = content.index(identity, content.index(b"tkhd"))
    a, b, c, d = matrix
    content[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def _cut_ts(whole: bytes, path: Path) -> Golden:
    """The stream from some packet of its 5th picture on, after its tables (the first two packets, and SDT)."""
    packets = [whole[i : i + 188] for i in range(0, len(whole), 188)]
    pid = lambda p: (p[1] & 0x1F) << 8 | p[2]  # noqa: E731
    starts = [i for i, p in enumerate(packets) if pid(p) == 256 and p[1] & 0x40]
    tables = [p for p in packets[: starts[0]] if pid(p) != 256]
    path.write_bytes(b"".join(tables + packets[starts[5] :]))
    return Golden(path, tuple(range(24, 120)), tuple(i / 25 for i in range(96)))


if __name__ == "__main__":
    made = make(Path(sys.argv[1]))
    for golden_file in made.good.values():
        print(f"{golden_file.path}  {golden_file.path.stat().st_size} bytes, {len(golden_file.numbers)} frames")
    for bad_path in made.bad.values():
        print(f"{bad_path}  {bad_path.stat().st_size} bytes, damaged")
