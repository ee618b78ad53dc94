"""The pass over the packets: joined films, fields, storage order, lying flags, joints, tracks longer than the picture.

Every file is made here; each stands for a kind in docs/notes/faults.md.
"""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")

import av

from eagle_kernels import video
from eagle_kernels.video import VideoError, probe, sidecar
from eagle_kernels.video.libav.index import read_index
from tests.video.make import B_FRAMES, VPX, X264, X265, GoldenSet, draw, read, write_video
from tests.video.remake import Stored, all_keys, check_exact, numbers_asked_singly, numbers_in_order, packets_of, remux

P_FRAMES = {**X264, "g": "24", "bf": "0"}
MPEG = {"q": "3", "g": "12"}
H265 = {**X265, "x265-params": "log-level=error:keyint=24:bframes=3"}
FILMS = ((30, 0), (17, 1000), (9, 2000))  # frames, the first one's number
JOINED = [first + i for num, first in FILMS for i in range(num)]


def films(folder: Path, suffix: str, **how: object) -> list[Path]:
    paths = [folder / f"film_{first}.{suffix}" for _, first in FILMS]
    for path, (num, first) in zip(paths, FILMS, strict=True):
        write_video(path, (draw(first + i) for i in range(num)), **how)  # type: ignore[arg-type]
    return paths


def times_anew(paths: list[Path], path: Path) -> None:
    """One track of all films' packets, each film's times from 0. Times of decoding rise: muxers want that."""
    with av.open(str(paths[0])) as first, av.open(str(path), "w") as container:
        template = first.streams.video[0]
        stream = container.add_stream_from_template(template)
        number = 0
        for film in paths:
            packets = packets_of(film)
            starts = min(stored.pts for stored in packets)
            for stored in packets:
                packet = av.Packet(stored.content)
                packet.pts, packet.dts, packet.duration = stored.pts - starts, number - 100_000, stored.duration
                packet.time_base, packet.is_keyframe, packet.stream = template.time_base, stored.is_key, stream
                container.mux(packet)
                number += 1


@pytest.mark.parametrize("options", [B_FRAMES, P_FRAMES], ids=["b", "p"])
@pytest.mark.parametrize("suffix", ["ts", "flv", "mkv"])
def test_films_whose_times_begin_anew_go_on_one_clock(tmp_path: Path, suffix: str, options: dict) -> None:
    times_anew(films(tmp_path, suffix, options=options), tmp_path / f"joined.{suffix}")
    check_exact(tmp_path / f"joined.{suffix}", JOINED)
    assert probe(tmp_path / f"joined.{suffix}").duration_seconds == pytest.approx(len(JOINED) / 25, abs=0.2)


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("webm", "libvpx", VPX),
        ("webm", "libvpx-vp9", VPX),
        ("ts", "libx265", H265),
        ("mkv", "libx265", H265),
        ("mkv", "mpeg4", MPEG),
    ],
)
def test_films_of_any_codec_go_on_one_clock(tmp_path: Path, suffix: str, codec: str, options: dict) -> None:
    times_anew(films(tmp_path, suffix, codec=codec, options=options), tmp_path / f"joined.{suffix}")
    check_exact(tmp_path / f"joined.{suffix}", JOINED)


@pytest.mark.parametrize(
    ("suffix", "how", "skip"),
    [
        ("ts", {"options": B_FRAMES}, lambda content: 0),
        ("mpg", {"codec": "mpeg2video", "options": {**MPEG, "bf": "2"}, "muxer": "vob"}, lambda content: 0),
        ("mpg", {"codec": "mpeg1video", "options": {**MPEG, "bf": "2"}, "muxer": "mpeg"}, lambda content: 0),
        ("flv", {"options": B_FRAMES}, lambda content: 13),  # the file's own header
        (
            "mkv",
            {"options": B_FRAMES, "muxer_options": {"live": "1"}},
            lambda content: content.index(b"\x1f\x43\xb6\x75"),
        ),
    ],
    ids=["ts", "mpeg2", "mpeg1", "flv", "mkv"],
)
def test_files_that_were_put_one_after_another(tmp_path: Path, suffix: str, how: dict, skip: object) -> None:
    contents = [path.read_bytes() for path in films(tmp_path, suffix, **how)]
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(contents[0] + b"".join(content[skip(content) :] for content in contents[1:]))  # type: ignore[operator]
    check_exact(path, JOINED)
    assert probe(path).damage is None


@pytest.mark.parametrize("options", [B_FRAMES, P_FRAMES], ids=["b", "p"])
@pytest.mark.parametrize(("suffix", "ticks"), [("mkv", 80), ("mp4", 1024), ("flv", 80), ("ts", 7200)])
def test_frames_that_share_a_time_are_all_there(tmp_path: Path, suffix: str, ticks: int, options: dict) -> None:
    """As where a clock is too coarse for the rate: two frames bear each time."""
    write_video(tmp_path / f"even.{suffix}", (draw(i) for i in range(40)), options=options)
    path = tmp_path / f"shared.{suffix}"
    remux(
        tmp_path / f"even.{suffix}",
        path,
        lambda packets: [
            p._replace(pts=p.pts // ticks * ticks, dts=i - 100_000)  # type: ignore[operator]
            for i, p in enumerate(packets)
        ],
    )
    check_exact(path, range(40))


def test_times_that_all_frames_share_tell_nothing(tmp_path: Path) -> None:
    write_video(tmp_path / "even.mkv", (draw(i) for i in range(40)), options=P_FRAMES)
    same = [p._replace(pts=0, dts=i - 100_000) for i, p in enumerate(packets_of(tmp_path / "even.mkv"))]
    remux(tmp_path / "even.mkv", tmp_path / "same.mkv", lambda packets: same)
    with pytest.raises(VideoError, match="does not say when each frame is shown"):
        probe(tmp_path / "same.mkv")


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        *(("mpeg4", suffix, MPEG) for suffix in ("mp4", "mov", "3gp", "avi", "mkv")),
        *(("mpeg4", suffix, {**MPEG, "bf": "2"}) for suffix in ("mp4", "mkv")),
        *(("flv", suffix, MPEG) for suffix in ("flv", "avi")),
        *(("msmpeg4", suffix, MPEG) for suffix in ("avi", "mkv")),
        *(("wmv2", suffix, MPEG) for suffix in ("avi", "asf")),
        *(("mpeg2video", suffix, {**MPEG, "bf": "2"}) for suffix in ("mp4", "mkv", "avi")),
        *(("libx264", suffix, B_FRAMES) for suffix in ("mp4", "mkv", "avi", "flv")),
        *(("libx265", suffix, H265) for suffix in ("mp4", "mkv")),
        ("msvideo1", "avi", {"g": "12"}),
        ("svq1", "mov", {"g": "12"}),
    ],
)
def test_key_flags_that_lie_change_no_picture(tmp_path: Path, codec: str, suffix: str, options: dict) -> None:
    pix_fmt = {"msvideo1": "rgb555le", "svq1": "yuv410p"}.get(codec, "yuv420p")
    good = tmp_path / f"good.{suffix}"
    write_video(good, (draw(i) for i in range(40)), codec=codec, options=options, pix_fmt=pix_fmt)
    check_exact(remux(good, tmp_path / f"all_keys.{suffix}", all_keys), range(40))
    none = remux(
        good, tmp_path / f"none.{suffix}", lambda packets: [p._replace(is_key=i == 0) for i, p in enumerate(packets)]
    )
    assert numbers_in_order(none, -7) == list(range(40))[::-7]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_avi_stored_in_another_order_than_shown(tmp_path: Path, codec: str) -> None:
    options = B_FRAMES if codec == "libx264" else {**MPEG, "bf": "2"}
    write_video(tmp_path / "b.avi", (draw(i) for i in range(50)), codec=codec, options=options)
    check_exact(tmp_path / "b.avi", range(50))
    assert probe(tmp_path / "b.avi").frame_times_seconds.tolist() == pytest.approx([i / 25 for i in range(50)])


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("libx264", "mp4", B_FRAMES),
        ("libx264", "mkv", B_FRAMES),
        ("libx264", "ts", B_FRAMES),
        ("libx264", "flv", B_FRAMES),
        ("libx264", "mxf", B_FRAMES),
        ("libx265", "mp4", H265),
        ("mpeg2video", "mkv", {**MPEG, "bf": "2"}),
    ],
)
def test_times_of_decoding_in_the_place_of_times_of_showing(
    tmp_path: Path, codec: str, suffix: str, options: dict
) -> None:
    """As from muxers that know none of the latter."""
    write_video(tmp_path / "good.mkv", (draw(i) for i in range(50)), codec=codec, options=options)
    flat = tmp_path / f"flat.{suffix}"
    ticks = {"mxf": 1}.get(suffix, 40)
    remux(
        tmp_path / "good.mkv",
        flat,
        lambda packets: [p._replace(pts=i * ticks, dts=i * ticks) for i, p in enumerate(packets)],
    )
    check_exact(flat, range(50))


DIVX = b"\0\0\1\xb2DivX503b1393p"  # the user data by which decoders know it
NOT_CODED = b"\0\0\1\xb6\x50\x10\x7f"  # a P picture of no content (vop_coded is 0)


def packed(packets: list[Stored]) -> list[Stored]:
    """DivX's packed bitstream: a B picture lies in the packet of the picture that it leans on, and an empty picture in
    its own. The packets are in the order of decoding."""
    starts = [p.content.rindex(b"\0\0\1\xb6") for p in packets]
    is_b = [p.content[at + 4] >> 6 == 2 for p, at in zip(packets, starts, strict=True)]
    assert any(is_b)
    contents = [p.content for p in packets]
    contents[0] = contents[0][: starts[0]] + DIVX + contents[0][starts[0] :]
    for i in np.flatnonzero(is_b).tolist():
        assert not is_b[i - 1]
        contents[i - 1], contents[i] = contents[i - 1] + contents[i], NOT_CODED
    return [p._replace(content=c, pts=i, dts=i) for i, (p, c) in enumerate(zip(packets, contents, strict=True))]


def test_divx_s_packed_pictures(tmp_path: Path) -> None:
    write_video(tmp_path / "b.avi", (draw(i) for i in range(50)), codec="mpeg4", options={**MPEG, "bf": "1"})
    remux(tmp_path / "b.avi", tmp_path / "packed.avi", packed)
    check_exact(tmp_path / "packed.avi", range(50))
    assert probe(tmp_path / "packed.avi").frame_times_seconds.tolist() == pytest.approx([i / 25 for i in range(50)])


def ts_packets(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8).reshape(-1, 188).copy()


def segments(tmp_path: Path, num: int = 4) -> list[bytes]:
    """HLS segments of one film: its times go on, the counters of each segment begin at 0."""
    parts = []
    for k in range(num):
        path = tmp_path / f"segment{k}.ts"
        times_ms = [1000 + 40 * (24 * k + i) for i in range(24)]
        write_video(path, (draw(24 * k + i) for i in range(24)), options=B_FRAMES, times_ms=times_ms)
        parts.append(path.read_bytes())
    return parts


def test_segments_whose_counters_begin_anew_are_whole(tmp_path: Path) -> None:
    parts = segments(tmp_path)
    path = tmp_path / "hls.ts"
    path.write_bytes(b"".join(parts))
    with av.open(str(path)) as container:
        assert any(packet.is_corrupt for packet in container.demux(video=0)), "libav distrusts them"
    assert probe(path).damage is None
    check_exact(path, range(96))


def test_a_packet_that_is_lost_in_a_segment_is_still_damage(tmp_path: Path) -> None:
    parts = segments(tmp_path)
    packets = ts_packets(parts[2])
    pid = (packets[:, 1].astype(int) & 31) << 8 | packets[:, 2]
    inside = np.flatnonzero((pid == 256) & (packets[:, 1] & 0x40 == 0))[0]  # the first picture is the longest
    parts[2] = np.delete(packets, inside, axis=0).tobytes()
    path = tmp_path / "lost.ts"
    path.write_bytes(b"".join(parts))
    assert "damaged" in str(probe(path).damage)
    found = numbers_asked_singly(path)
    assert None in found
    assert [n for n in found if n is not None] == [i for i, n in enumerate(found) if n is not None]


H264_UNITS = {"sei": b"\x06\x05\x10" + bytes(range(1, 17)) + b"\x80", "delimiter": b"\x09\xf0"}


@pytest.mark.parametrize(
    ("how", "unit"),
    [
        ({"options": B_FRAMES}, H264_UNITS["sei"]),
        ({"options": B_FRAMES}, H264_UNITS["delimiter"]),
        ({"codec": "libx265", "options": H265}, b"\x46\x01\x50"),
    ],
    ids=["h264-sei", "h264-delimiter", "hevc-delimiter"],
)
def test_units_behind_the_slices_shift_no_time(tmp_path: Path, how: dict, unit: bytes) -> None:
    plain, path = tmp_path / "plain.ts", tmp_path / "units.ts"
    write_video(plain, (draw(i) for i in range(40)), **how)
    remux(plain, path, lambda stored: [s._replace(content=s.content + 30 * (b"\0\0\0\1" + unit)) for s in stored])
    with av.open(str(path)) as container:
        assert any(packet.pts is None for packet in container.demux(video=0) if packet.size), "libav finds no time"
    assert probe(path).damage is None
    assert probe(path).frame_times_seconds.tolist() == probe(plain).frame_times_seconds.tolist()
    check_exact(path, range(40))


@pytest.mark.parametrize(
    ("suffix", "how"),
    [("flv", {"options": B_FRAMES}), ("ivf", {"codec": "libvpx", "options": VPX})],
    ids=["flv", "ivf"],
)
def test_an_end_that_libav_passes_over_is_damage(tmp_path: Path, suffix: str, how: dict) -> None:
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"made.{suffix}"
    write_video(whole, (draw(i) for i in range(20)), **how)
    content = whole.read_bytes()
    assert probe(whole).damage is None
    path.write_bytes(content + content)
    assert probe(path).damage is not None, "a second film"
    head = b"\x09\0\0\x20" if suffix == "flv" else b"\x20\0\0\0"
    path.write_bytes(content + head)
    assert "inside the header of a frame" in str(probe(path).damage)


@pytest.mark.parametrize("suffix", ["mkv", "flv"])
def test_sound_that_lasts_longer_is_no_damage(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sound.{suffix}"
    write_video(path, (draw(i) for i in range(50)), options=B_FRAMES, audio_seconds=4.0)
    info = probe(path)
    assert (info.damage, info.num_frames) == (None, 50)
    content = path.read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) * 2 // 3])
    assert probe(tmp_path / f"cut.{suffix}").damage is not None


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_of_several_video_streams_the_best_one(tmp_path: Path, suffix: str) -> None:
    small, large = tmp_path / f"small.{suffix}", tmp_path / f"large.{suffix}"
    write_video(small, (draw(i) for i in range(30)), options=B_FRAMES)
    write_video(large, (draw(1000 + i, 256, 192) for i in range(30)), options={**B_FRAMES, "crf": "5"})
    path = tmp_path / f"both.{suffix}"
    with av.open(str(path), "w") as container:
        streams, packets = [], []
        for source in (small, large):
            with av.open(str(source)) as whole:
                template = whole.streams.video[0]
                streams.append(container.add_stream_from_template(template))
                streams[-1].disposition = 0
                for stored in packets_of(source):
                    packet = av.Packet(stored.content)
                    packet.pts, packet.dts, packet.duration = stored.pts, stored.dts, stored.duration
                    packet.time_base, packet.is_keyframe = template.time_base, stored.is_key
                    packets.append((len(packets) % 30, len(streams) - 1, packet))
        for _, number, packet in sorted(packets, key=lambda p: p[:2]):
            packet.stream = streams[number]
            container.mux(packet)
    with av.open(str(path)) as container:
        best = container.streams.best("video").index
    index = read_index(path)
    assert index.stream == best
    for stream, first in ((0, 0), (1, 1000)):
        film = video.open(path, stream=stream)
        assert [read(f.rgb_YX3.numpy()) for f in film.frames(film.info.frame_times_seconds[::-5])] == [
            first + i for i in range(29, -1, -5)
        ]
        kept = video.open(path, stream=stream, index_folder=tmp_path / "kept")
        again = video.open(path, stream=stream, index_folder=tmp_path / "kept")
        assert (kept.index.stream, again.index.stream) == (stream, stream)
    with pytest.raises(VideoError, match=r"has no video stream 7; its video streams are 0, 1"):
        video.open(path, stream=7)


def test_a_clock_is_kept_with_the_index(tmp_path: Path) -> None:
    times_anew(films(tmp_path, "ts", options=B_FRAMES), tmp_path / "joined.ts")
    made = video.open(tmp_path / "joined.ts", index_folder=tmp_path / "kept")
    kept = video.open(tmp_path / "joined.ts", index_folder=tmp_path / "kept")
    assert made.index.clock is not None
    assert kept.index.clock is not None
    for name in sidecar.CLOCK_ARRAYS.values():
        assert np.array_equal(getattr(made.index.clock, name), getattr(kept.index.clock, name))
    assert [read(f.rgb_YX3.numpy()) for f in kept.frames(kept.info.frame_times_seconds[[40, 3]])] == [JOINED[40], 3]


def test_opening_keeps_its_time_limit(golden: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    path = golden.good["b_frames.ts"].path
    with pytest.raises(VideoError, match="decoding took more than time_limit_seconds"):
        video.open(path, time_limit_seconds=1e-9)
    with pytest.raises(VideoError, match="decoding took more than time_limit_seconds"):
        next(video.decode(path, [0.0], time_limit_seconds=1e-9))
