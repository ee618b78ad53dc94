"""What the tests of video watch: the packets that go into a decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import av


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pts of every packet that goes into a decoder, be it for the index or for frames."""
    from eagle_kernels.video.libav import index, reader, scan  # here: without PyAV the tests are skipped

    seen: list[int] = []
    whole = reader.decode

    def spy(packet: av.Packet, decoder: av.VideoCodecContext) -> list[av.VideoFrame] | None:
        seen.append(packet.pts)
        return whole(packet, decoder)

    for module in (index, reader, scan):
        monkeypatch.setattr(module, "decode", spy)
    return seen
