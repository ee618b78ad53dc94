"""AV1's references: headers written bit by bit, decoders that are made up, and real streams, to the byte."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_kernels.video.bitstream import av1
from eagle_kernels.video.bitstream.av1 import References, frame_header, sequence_header
from eagle_kernels.video.bitstream.bits import NotUnderstood

KEY, INTER, INTRA_ONLY, SWITCH = range(4)


def pack(*fields: tuple[int, int]) -> bytes:
    """(value, bits) after one another, filled up with zeros."""
    text = "".join(f"{value:0{bits}b}" for value, bits in fields if bits)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big") if text else b""


def obu(kind: int, payload: bytes, *, has_size: bool = True, size_bytes: int = 2) -> bytes:
    sizes = [len(payload) >> 7 * i & 127 | (128 if i < size_bytes - 1 else 0) for i in range(size_bytes)]
    return bytes([kind << 3 | 2 * has_size]) + (bytes(sizes) if has_size else b"") + payload


@dataclass(frozen=True)
class Tools:
    """What of a sequence changes how frame headers are written."""

    frame_ids: tuple[int, int] | None = None  # bits of an id beyond those of a difference, bits of a difference
    order_hint_bits: int = 7
    screen_content: int = 2
    integer_motion: int = 2


def write_sequence(
    tools: Tools,
    *,
    still: int = 0,
    timing: int | None = None,
    decoder_model: int = 0,
    points: int = 1,
    layers: int = 0,
    level: int = 8,
    delay: int = 0,
) -> bytes:
    """AV1 specification, 5.5.1. timing: ticks a picture, less 1."""
    fields = [(0, 3), (still, 1), (0, 1), (timing is not None, 1)]
    if timing is not None:
        num_bits = (timing + 1).bit_length()
        fields += [(1, 32), (25, 32), (1, 1), (0, num_bits - 1), (timing + 1, num_bits), (decoder_model, 1)]
    fields += [(delay, 1), (points - 1, 5)]
    for _ in range(points):
        fields += [(layers, 12), (level, 5)]
        fields += [(0, 1)] if level > 7 else []
        fields += [(1, 1), (9, 4)] if delay else []
    fields += [(9, 4), (8, 4), (639, 10), (359, 9), (tools.frame_ids is not None, 1)]
    if tools.frame_ids is not None:
        fields += [(tools.frame_ids[1] - 2, 4), (tools.frame_ids[0] - 1, 3)]
    fields += [(0b1010101, 7), (tools.order_hint_bits > 0, 1)]
    fields += [(0b10, 2)] if tools.order_hint_bits else []
    fields += [(1, 1)] if tools.screen_content == 2 else [(0, 1), (tools.screen_content, 1)]
    if tools.screen_content:
        fields += [(1, 1)] if tools.integer_motion == 2 else [(0, 1), (tools.integer_motion, 1)]
    fields += [(tools.order_hint_bits - 1, 3)] if tools.order_hint_bits else []
    return pack(*fields, (0b1011, 4))


@dataclass(frozen=True)
class Header:
    kind: int = INTER
    shown: bool = True
    shows: int | None = None  # a slot
    fills: int = 0
    refs: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0)
    resilient: bool = False
    short: bool = False


def write_frame(header: Header, tools: Tools, noise: random.Random) -> bytes:
    """AV1 specification, 5.9.2, up to the references; what does not matter is chosen by chance."""
    bit = lambda: (noise.getrandbits(1), 1)  # noqa: E731
    if header.shows is not None:
        return pack((1, 1), (header.shows, 3), (1, 1))
    fields = [(0, 1), (header.kind, 2), (header.shown, 1)]
    fields += [] if header.shown else [bit()]
    is_refresh = header.kind == SWITCH or (header.kind == KEY and header.shown)
    fields += [] if is_refresh else [(header.resilient, 1)]
    fields += [bit()]
    screen_content = tools.screen_content
    if screen_content == 2:
        screen_content = noise.getrandbits(1)
        fields += [(screen_content, 1)]
    fields += [bit()] if screen_content and tools.integer_motion == 2 else []
    id_bits, delta_bits = (sum(tools.frame_ids), tools.frame_ids[1]) if tools.frame_ids else (0, 0)
    fields += [(noise.getrandbits(id_bits) if id_bits else 0, id_bits)]
    fields += [] if header.kind == SWITCH else [bit()]
    fields += [(noise.getrandbits(tools.order_hint_bits) if tools.order_hint_bits else 0, tools.order_hint_bits)]
    is_intra = header.kind in (KEY, INTRA_ONLY)
    fields += [] if is_intra or is_refresh or header.resilient else [(noise.getrandbits(3), 3)]
    fields += [] if is_refresh else [(header.fills, 8)]
    if not is_intra:
        fields += [(header.short, 1)] if tools.order_hint_bits else []
        for ref in header.refs:
            fields += [(ref, 3), (noise.getrandbits(delta_bits) if delta_bits else 0, delta_bits)]
    return pack(*fields, *[bit() for _ in range(40)])


any_tools = st.builds(
    Tools,
    st.none() | st.tuples(st.integers(1, 8), st.integers(2, 8)),
    st.integers(0, 8),
    st.integers(0, 2),
    st.integers(0, 2),
)
slots = st.integers(0, 7)


@settings(max_examples=200, deadline=None)
@given(any_tools, st.none() | st.integers(0, 1000), st.integers(0, 1), st.sampled_from([0, 7, 8, 31]))
def test_sequence_headers(tools: Tools, timing: int | None, delay: int, level: int) -> None:
    found = sequence_header(write_sequence(tools, timing=timing, delay=delay, level=level))
    num_id_bits, num_delta_bits = (sum(tools.frame_ids), tools.frame_ids[1]) if tools.frame_ids else (0, 0)
    integer_motion = tools.integer_motion if tools.screen_content else 2
    assert found == (num_id_bits, num_delta_bits, tools.order_hint_bits, tools.screen_content, integer_motion)


@settings(max_examples=300, deadline=None)
@given(
    any_tools,
    st.builds(
        Header,
        st.sampled_from([KEY, INTER, INTRA_ONLY]),
        st.booleans(),
        st.none() | slots,
        st.integers(0, 255),
        st.tuples(*[slots] * 7),
    ),
    st.randoms(use_true_random=False),
)
def test_frame_headers(tools: Tools, header: Header, noise: random.Random) -> None:
    found = frame_header(write_frame(header, tools, noise), sequence_header(write_sequence(tools)))
    if header.shows is not None:
        assert found == (False, True, header.shows, 0, (header.shows,))
        return
    fills = 255 if header.kind == KEY and header.shown else header.fills
    refs = tuple(sorted(set(header.refs))) if header.kind == INTER else ()
    assert found == (header.kind == KEY, header.shown, None, fills, refs)


def test_switch_frames_fill_every_slot() -> None:
    tools = Tools(order_hint_bits=0)
    payload = write_frame(Header(SWITCH, refs=(1, 2, 3, 4, 5, 6, 7)), tools, random.Random(0))
    found = frame_header(payload, sequence_header(write_sequence(tools)))
    assert found == (False, True, None, 255, (1, 2, 3, 4, 5, 6, 7))


def test_resilient_frames_are_followed_without_order_hints() -> None:
    tools = Tools(order_hint_bits=0)
    payload = write_frame(Header(resilient=True, fills=4, refs=(3,) * 7), tools, random.Random(0))
    found = frame_header(payload, sequence_header(write_sequence(tools)))
    assert found == (False, True, None, 4, (3,))


class Stream:
    """Writes frames, and decodes them to what they are made of: a frame is its number and the frames it read."""

    def __init__(self, seed: int, tools: Tools = Tools()) -> None:
        self.tools = tools
        self.noise = random.Random(seed)
        self.headers: list[Header] = []
        self.sequence = obu(1, write_sequence(tools))

    def frame(self, header: Header) -> bytes:
        """One OBU, or a header and tiles with a copy of the header between."""
        number = len(self.headers)
        self.headers.append(header)
        payload = write_frame(header, self.tools, self.noise) + number.to_bytes(2, "big")
        if header.shows is not None:
            return obu(3, payload)
        if self.noise.random() < 0.5:
            return obu(6, payload)
        tiles = [obu(4, self.noise.randbytes(5) + number.to_bytes(2, "big")) for _ in range(2)]
        return obu(3, payload) + tiles[0] + obu(7, payload) + tiles[1]

    def decode(self, packets: Sequence[bytes]) -> Iterator[object]:
        """What each packet shows; a decoder that lacks a picture shows something else than one that has it."""
        slots: list[tuple[bool, object]] = [(False, "empty")] * 8
        for packet in packets:
            at, shown = 0, None
            tiles: dict[int, int] = {}
            while at < len(packet):
                kind, size = packet[at] >> 3, packet[at + 1] & 127 | packet[at + 2] << 7
                number = int.from_bytes(packet[at + 1 + size : at + 3 + size], "big")
                at += 3 + size
                if kind in (4, 7):
                    tiles[number] += 1  # a KeyError where its frame was left out
                if kind not in (3, 6):
                    continue
                header = self.headers[number]
                tiles[number] = 0 if kind == 3 and header.shows is None else 3
                if header.shows is not None:
                    is_key, picture = slots[header.shows]
                    slots = [slots[header.shows]] * 8 if is_key else slots
                    shown = picture
                    continue
                is_intra = header.kind in (KEY, INTRA_ONLY)
                picture = (number, () if is_intra else tuple(hash(slots[ref]) for ref in header.refs))
                fills = 255 if header.kind == KEY and header.shown else header.fills
                slots = [(header.kind == KEY, picture) if fills >> i & 1 else slots[i] for i in range(8)]
                shown = picture if header.shown else shown
            assert all(count == 3 for count in tiles.values()), "a frame without all its tiles"
            yield shown


def random_packets(stream: Stream, num_packets: int) -> list[bytes]:
    noise = stream.noise
    packets = []
    for i in range(num_packets):
        packet = obu(2, b"") if noise.random() < 0.3 else b""
        if i == 0 or noise.random() < 0.05:
            packets.append(packet + stream.sequence + stream.frame(Header(KEY)))
            continue
        packet += obu(5, b"metadata") if noise.random() < 0.1 else b""
        for _ in range(noise.choice([0, 0, 0, 1, 2, 4])):
            kind = noise.choices([INTER, INTRA_ONLY, KEY], [20, 1, 1])[0]
            refs = tuple(noise.choices(range(8), k=7))
            packet += stream.frame(Header(kind, False, None, 1 << noise.randrange(8), refs))
        if noise.random() < 0.2:
            shown = Header(shows=noise.randrange(8))
        else:
            fills = noise.choice([0, 0, 1 << noise.randrange(8), noise.randrange(256)])
            refs = tuple(noise.choices(range(8), k=7) if noise.random() < 0.2 else [noise.randrange(8)] * 7)
            shown = Header(noise.choices([INTER, INTRA_ONLY], [20, 1])[0], True, None, fills, refs)
        packets.append(packet + stream.frame(shown))
    return packets


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 60), st.integers(1, 8))
def test_what_is_left_shows_the_wanted_frames_as_the_whole_does(seed: int, num_packets: int, num_wanted: int) -> None:
    stream = Stream(seed)
    packets = random_packets(stream, num_packets)
    wanted = sorted(random.Random(seed).sample(range(num_packets), min(num_wanted, num_packets)))
    packets = packets[: wanted[-1] + 1]
    references = References()
    left, at = [], 0
    while at < len(packets):  # in windows of any length
        end = min(len(packets), at + stream.noise.randint(1, 40))
        is_wanted = [place in wanted for place in range(at, end)]
        left += references.needed(
            [memoryview(packet) for packet in packets[at:end]], is_wanted, is_last=end == len(packets)
        )
        at = end
    whole = list(stream.decode(packets))
    thinned = list(stream.decode([bytes(packet) for packet in left]))
    assert [thinned[i] for i in wanted] == [whole[i] for i in wanted]
    assert all(stream.sequence in bytes(b) for a, b in zip(packets, left, strict=True) if stream.sequence in a)


def pyramid() -> list[bytes]:
    """Groups of 4 after a key frame, as encoders make them: the last first, hidden; then the middle one, hidden; each
    shown where its turn is. Slot 0 holds the newest last one, slot 1 the middle one."""
    stream = Stream(0)
    ends, middles = (0,) * 7, (0, 0, 0, 0, 0, 0, 2)
    packets = [stream.sequence + stream.frame(Header(KEY))]
    for _ in range(3):
        first = stream.frame(Header(shown=False, fills=1 << 2, refs=ends))  # the group's last
        first += stream.frame(Header(shown=False, fills=1 << 1, refs=middles))
        packets.append(first + stream.frame(Header(refs=(0, 1, 2, 2, 2, 2, 2))))
        packets.append(stream.frame(Header(shows=1)))
        packets.append(stream.frame(Header(refs=(1, 2, 2, 2, 2, 2, 2))))
        packets.append(stream.frame(Header(shown=False, fills=1, refs=(2,) * 7)) + stream.frame(Header(shows=2)))
    return packets


def test_only_what_leads_to_the_wanted_frame_is_left() -> None:
    packets = pyramid()

    def num_left(wanted: int) -> list[int]:
        """How many frames of each packet are fed."""
        fed = References().needed(packets[: wanted + 1], [i == wanted for i in range(wanted + 1)], is_last=True)
        return [sum(kind in (3, 6) for kind, *_ in av1._obus(packet)) for packet in fed]

    assert num_left(0) == [1]
    assert num_left(1) == [1, 3]
    assert num_left(2) == [1, 2, 1], "not the first of the group, which nothing refers to"
    assert num_left(4) == [1, 1, 0, 0, 1], "not the middle one either"
    assert num_left(8) == [1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert num_left(9) == [1, 1, 0, 0, 1, 1, 0, 0, 1, 3]


def test_a_wanted_frame_after_the_window_keeps_what_the_slots_hold() -> None:
    packets = pyramid()
    fed = References().needed(packets[:5], [False] * 5, is_last=False)
    assert [bool(packet) for packet in fed] == [True, True, False, False, True]
    assert References().needed(packets[:5], [False] * 5, is_last=True)[1:] == [b""] * 4


def test_what_was_fed_in_an_earlier_window_is_not_looked_for_in_this_one() -> None:
    packets = pyramid()
    references = References()
    references.needed(packets[:5], [False] * 5, is_last=False)
    fed = references.needed([*packets[5:9], *packets[9:12]], [False] * 4 + [True] + [False] * 2, is_last=True)
    whole = References().needed(packets, [i == 9 for i in range(len(packets))], is_last=True)
    assert fed == whole[5:12]


def test_a_packet_that_is_needed_whole_is_the_same_object() -> None:
    packets = pyramid()
    fed = References().needed(packets[:2], [False, True], is_last=True)
    assert fed[0] is packets[0]
    assert fed[1] is packets[1]


def resilient(stream: Stream) -> bytes:
    return stream.frame(Header(resilient=True))


@pytest.mark.parametrize(
    ("packets", "message"),
    [
        (lambda s: [s.frame(Header())], "before any sequence header"),
        (lambda s: [s.sequence + s.frame(Header())], "empty slot"),
        (lambda s: [s.sequence + s.frame(Header(shows=3))], "empty slot"),
        (lambda s: [s.sequence], "shows 0 frames"),
        (lambda s: [b""], "shows 0 frames"),
        (lambda s: [s.sequence + s.frame(Header(KEY)) * 2], "shows 2 frames"),
        (lambda s: [s.sequence + s.frame(Header(KEY)), resilient(s)], "error resilience"),
        (lambda s: [s.sequence + s.frame(Header(KEY)), s.frame(Header(short=True))], "short signalling"),
        (lambda s: [s.sequence + obu(4, b"tiles")], "tiles without a frame"),
        (lambda s: [s.sequence + obu(8, b"tiles")], "an OBU of kind 8"),
        (lambda s: [s.sequence + obu(9, b"")], "an OBU of kind 9"),
        (lambda s: [b"\x16" + s.sequence[1:]], "of a layer"),
        (lambda s: [b"\x8a" + s.sequence[1:]], "or none"),
        (lambda s: [s.sequence[:-1]], "an OBU that is cut short"),
        (lambda s: [s.sequence[:2]], "an OBU that is cut short"),
        (lambda s: [obu(1, b"\0\0")], "a header that is cut short"),
        (lambda s: [s.sequence + obu(6, b"\x10")], "a header that is cut short"),
        (lambda s: [obu(1, write_sequence(s.tools, still=1))], "a still picture"),
        (lambda s: [obu(1, write_sequence(s.tools, timing=0, decoder_model=1))], "decoder model"),
        (lambda s: [obu(1, write_sequence(s.tools, points=2))], "layers"),
        (lambda s: [obu(1, write_sequence(s.tools, layers=0x103))], "layers"),
    ],
)
def test_what_is_not_understood_is_said(packets, message: str) -> None:  # type: ignore[no-untyped-def]
    packets = packets(Stream(0))
    with pytest.raises(NotUnderstood, match=message):
        References().needed(packets, [True] * len(packets), is_last=True)


def test_the_last_obu_may_have_no_size() -> None:
    stream = Stream(0)
    last = obu(6, write_frame(Header(KEY), stream.tools, stream.noise), has_size=False)
    (fed,) = References().needed([stream.sequence + last], [True], is_last=True)
    assert fed == stream.sequence + last


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 12), st.data())
def test_damage_is_understood_or_not_but_never_an_error_of_another_kind(
    seed: int, length: int, data: st.DataObject
) -> None:
    packets = [bytearray(packet) for packet in random_packets(Stream(seed), length)]
    for _ in range(data.draw(st.integers(1, 5))):
        packet = packets[data.draw(st.integers(0, length - 1))]
        if packet:
            at = data.draw(st.integers(0, len(packet) - 1))
            packet[at:] = data.draw(st.binary(max_size=3)) + packet[at + 1 :][: data.draw(st.integers(0, 40))]
    try:
        fed = References().needed([bytes(p) for p in packets], [True] * length, is_last=True)
    except NotUnderstood:
        return
    assert len(fed) == length
    assert all(len(after) <= len(before) for after, before in zip(fed, packets, strict=True))


def test_a_header_of_zeros_is_read_in_no_time() -> None:
    """Its clock would be a number of a million zeros."""
    started = time.process_time()
    for payload in (b"\0\4" + bytes(1_000_000), b"\4" + bytes(8) + b"\x40" + bytes(1_000_000), bytes(1_000_000)):
        with suppress(NotUnderstood):
            sequence_header(payload)
    assert time.process_time() - started < 0.1
