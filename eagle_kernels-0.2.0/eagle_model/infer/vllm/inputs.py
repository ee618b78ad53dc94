"""What stands in a prompt for an image or a video, and its pixels: as our own Processor makes them, for vLLM.

    inputs = EagleInputs(Processor.from_pretrained("my-eagle"))
    tiles_I3YX = inputs.image(Image.open("page.png"))
    inputs.image_ids(len(tiles_I3YX), number=1)       # of <image 1><img><IMG_CONTEXT>...</img>, in place of <image-1>
    inputs.video_ids((0.0, 0.5), seconds=1.0, number=1)

vLLM chooses the frames and numbers what is shown; Automatic Degradation Sampling, which needs all of a prompt at once,
is not there: what does not fit the context is an error of vLLM's. Needs nothing of vLLM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL.Image import Image
from torch import Tensor

from eagle_kernels.frames_to_tiles import frames_to_tiles
from eagle_model.data.chat import IMAGE_CONTEXT, IMAGE_END, IMAGE_START
from eagle_model.data.images import image_size, load_image
from eagle_model.data.processor import Processor
from eagle_model.data.templates import SampledVideo, Written, written
from eagle_model.data.tiling import Grid, choose_grid


class EagleInputs:
    def __init__(self, processor: Processor) -> None:
        """Raises ValueError for a layout in which what is written of one image depends on the others."""
        template = processor.encoder.template
        if template.counts != "images" or template.image != template.only_image:
            raise ValueError(
                f"the model's prompts have the layout {processor.config.template!r}, in which an image's label depends "
                "on the other images; vLLM keeps images one by one. Needs 'processor-1', or `eagle serve`."
            )
        self.processor, self.template = processor, template
        self.tiling = replace(processor.tiling, layout="tiles")
        self.tokens_per_tile = processor.config.tokens_per_tile
        self.context_id = processor.encoder.context_id
        self.start_id = processor.encoder._ids[IMAGE_START]

    def grid(self, width_px: int, height_px: int) -> Grid:
        config = self.processor.config
        return choose_grid(width_px, height_px, tile_px=config.tile_px, max_tiles=config.sampling.max_tiles)

    def image(self, image: Image) -> Tensor:
        """(I, 3, tile_px, tile_px), normalised, the thumbnail last where there are several tiles."""
        return frames_to_tiles(load_image(image)[None], self.grid(*image_size(image)), self.tiling, num_threads=1)

    def video(self, frames_NYX3: Tensor) -> Tensor:
        """uint8 frames, one tile each: (N, 3, tile_px, tile_px), normalised."""
        return torch.cat([frames_to_tiles(frame[None], (1, 1), self.tiling, num_threads=1) for frame in frames_NYX3])

    def image_ids(self, num_tiles: int, *, number: int) -> list[int]:
        """number: among the images of the prompt, from 1."""
        grid = Grid(num_tiles - 1, 1) if num_tiles > 1 else Grid(1, 1)  # as many tiles; its shape is not written
        return self._ids(self._written(grid, number))

    def video_ids(self, times_seconds: Sequence[float], *, seconds: float, number: int) -> list[int]:
        """times_seconds: of its frames; seconds: how long it lasts; number: among the videos of the prompt, from 1."""
        seen = SampledVideo(tuple(times_seconds), len(times_seconds) / seconds)
        return self._ids(self._written(seen, number))

    def renumbered(self, ids: Sequence[int], kind: str, old: int, new: int) -> list[int]:
        """The ids of what was shown under another number: vLLM keeps them from earlier prompts."""
        encoder = self.processor.encoder
        start = list(ids).index(self.start_id)
        label = self.processor.tokenizer.decode(list(ids[:start]), skip_special_tokens=False)
        old_name, new_name = (self._name(kind, number) for number in (old, new))
        if not label.startswith(old_name):
            raise ValueError(f"a {kind} was kept as {label[:60]!r}; needs to begin with {old_name!r}.")
        return [*encoder._encode_text(new_name + label.removeprefix(old_name)), *ids[start:]]

    def _name(self, kind: str, number: int) -> str:
        seen = Grid(1, 1) if kind == "image" else SampledVideo((0.0,), 1.0)
        before = self._written(seen, number).runs[0][0]
        return before if kind == "image" else before.partition(" sampled")[0]

    def _written(self, seen: Grid | SampledVideo, number: int) -> Written:
        return written(
            self.template, seen, number=number, picture=number, is_only=False, tokens_per_tile=self.tokens_per_tile
        )

    def _ids(self, parts: Written) -> list[int]:
        encoder, ids = self.processor.encoder, []
        for text, num_tokens in parts.runs:
            ids += [*encoder._encode_text(text), self.start_id]
            ids += [encoder._ids[IMAGE_CONTEXT]] * num_tokens + [encoder._ids[IMAGE_END]]
        return ids + list(encoder._encode_text(parts.end))
