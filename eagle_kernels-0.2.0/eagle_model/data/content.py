"""What a sample says, as 16 bytes: two samples with the same ones teach the same, wherever their files lie.

content_digest(sample).hex()          # "9b1f...": by it a changed row is noticed, and data that a run goes on with
"""

from __future__ import annotations

import hashlib

from eagle_model.data.sample import ImageRef, Media, Sample

DIGEST_BYTES = 16


def content_digest(sample: Sample) -> bytes:
    """16 bytes of what a sample says, in which order it shows which files, and what of it is learned; not its id."""
    said: list[str] = []
    for turn in sample.turns:
        said += [turn.role, "learned" if turn.learned else "context", str(len(turn.parts))]
        for part in turn.parts:
            said += ["text", part] if isinstance(part, str) else _named(part)
    data = [text.encode(errors="surrogatepass") for text in (*said, "tools", *sample.tools)]
    lengths = ",".join(map(str, map(len, data)))  # so that no text passes for two
    return hashlib.blake2b(b";".join([lengths.encode(), *data]), digest_size=DIGEST_BYTES).digest()


def _named(medium: Media) -> list[str]:
    if isinstance(medium, ImageRef):
        return ["image", str(medium.number), medium.path.name, str(medium.max_tiles)]
    return ["video", str(medium.number), medium.path.name, f"{medium.start_seconds} {medium.end_seconds}"]
