"""Eagle 2.5 for vLLM 0.33: its own model of that name, with our tiles, numbers and labels of images, and with videos.

vLLM imports this by name (plugin.py). A video comes as the frames that vLLM's loader chose, with their times: how many
is `--media-io-kwargs '{"video": {"num_frames": 64}}'`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.model_executor.models.eagle2_5_vl import Eagle2_5_VLForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
    PromptUpdateDetails,
)
from vllm.multimodal.processing.processor import PlaceholderFeaturesInfo

from eagle_model.data.processor import Processor
from eagle_model.infer.vllm.inputs import EagleInputs

_LABEL_TOKENS = 32  # that a frame takes beside its visual tokens, at most: "Frame 512 sample at 3599.00s: "


class EagleInfo(BaseProcessingInfo):
    @cached_property
    def inputs(self) -> EagleInputs:
        return EagleInputs(Processor.from_pretrained(self.model_id))

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None, "video": None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {"text_kwargs": set(), "images_kwargs": set(), "videos_kwargs": set()}

    def get_data_parser(self) -> MultiModalDataParser:
        return MultiModalDataParser(
            video_needs_metadata=True,
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )


class EagleDummyInputs(BaseDummyInputsBuilder[EagleInfo]):
    """The largest image, and a video that fills the rest: what vLLM reserves memory by."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return "".join(f"<{kind}-{i + 1}>" for kind in ("image", "video") for i in range(mm_counts.get(kind, 0)))

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        config, inputs = self.info.inputs.processor.config, self.info.inputs
        num_images, num_videos = (mm_counts.get(kind, 0) for kind in ("image", "video"))
        most = config.sampling.max_tiles
        width, height = most * config.tile_px, config.tile_px  # most tiles side by side
        images = self._get_dummy_images(
            width=width, height=height, num_images=num_images, overrides=mm_options.get("image")
        )
        rest = seq_len - num_images * (inputs.grid(width, height).num_tiles * inputs.tokens_per_tile + _LABEL_TOKENS)
        num_frames = rest // (inputs.tokens_per_tile + _LABEL_TOKENS) // max(num_videos, 1)
        num_frames = max(2, min(config.sampling.max_frames, num_frames))
        frames = self._get_dummy_videos(
            width=config.tile_px,
            height=config.tile_px,
            num_frames=num_frames,
            num_videos=num_videos,
            overrides=mm_options.get("video"),
        )
        about = {"fps": 2.0, "duration": num_frames / 2, "frames_indices": list(range(num_frames))}
        return {"image": images, "video": [(video, about) for video in frames]}


class EagleProcessor(BaseMultiModalProcessor[EagleInfo]):
    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Pixels, and how many tiles each has; of videos the times too, which their text says."""
        inputs, found = self.info.inputs, dict[str, Tensor]()
        if images := hf_data.get("images"):
            tiles = [inputs.image(image) for image in images]
            found |= {"pixel_values_flat": torch.cat(tiles), "image_num_patches": torch.tensor([len(t) for t in tiles])}
        if videos := hf_data.get("videos"):
            tiles = [inputs.video(torch.as_tensor(frames)) for frames, _ in videos]
            times = [torch.tensor(_times(about, len(t)), dtype=torch.float64) for (_, about), t in zip(videos, tiles)]
            found["pixel_values_flat_video"] = torch.cat(tiles)
            found["video_num_patches"] = torch.tensor([len(t) for t in tiles])
            found["video_times"] = torch.cat(times)
            found["video_seconds"] = torch.tensor(
                [_seconds(about, len(t)) for (_, about), t in zip(videos, tiles)], dtype=torch.float64
            )
        return BatchFeature(found)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        image_sizes = hf_inputs.get("image_num_patches", torch.empty(0, dtype=torch.int64))
        video_sizes = hf_inputs.get("video_num_patches", torch.empty(0, dtype=torch.int64))
        return {
            "pixel_values_flat": MultiModalFieldConfig.flat_from_sizes("image", image_sizes),
            "image_num_patches": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            "pixel_values_flat_video": MultiModalFieldConfig.flat_from_sizes("video", video_sizes),
            "video_num_patches": MultiModalFieldConfig.batched("video", keep_on_cpu=True),
            "video_times": MultiModalFieldConfig.flat_from_sizes("video", video_sizes, keep_on_cpu=True),
            "video_seconds": MultiModalFieldConfig.batched("video", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        inputs = self.info.inputs

        def image(index: int) -> PromptUpdateDetails:
            num_tiles = int(out_mm_kwargs["image"][index]["image_num_patches"].data)
            return _only_visual(inputs.image_ids(num_tiles, number=index + 1), inputs)

        def video(index: int) -> PromptUpdateDetails:
            item = out_mm_kwargs["video"][index]
            times, seconds = item["video_times"].data.tolist(), float(item["video_seconds"].data)
            return _only_visual(inputs.video_ids(times, seconds=seconds, number=index + 1), inputs)

        return [
            PromptReplacement("image", target=lambda i: self._target("image", i), replacement=image),
            PromptReplacement("video", target=lambda i: self._target("video", i), replacement=video),
        ]

    def _target(self, kind: str, index: int) -> list[int]:
        return list(self.info.inputs.processor.encoder._encode_text(f"<{kind}-{index + 1}>"))

    def _apply_prompt_updates(
        self, token_ids: list[int], mm_prompt_updates: Mapping[str, Any]
    ) -> tuple[list[int], Any]:
        """The prompt with all media in it, and where each is: from its first <img> on.

        In text, because `<image-1>What` has no token that ends at `>`; a label and the text before it are encoded
        together, as in training, so that no token search could find the label again.
        """
        tokenizer, start_id = self.info.get_tokenizer(), self.info.inputs.start_id
        text, places = tokenizer.decode(token_ids), []
        for kind, items in mm_prompt_updates.items():
            for i, updates in enumerate(items):
                target = f"<{kind}-{i + 1}>"
                if (at := text.find(target)) < 0:
                    raise ValueError(f"the prompt shows {len(items)} {kind}s and has no {target}, where one stands.")
                places.append((at, at + len(target), kind, i, updates[0].content))
        found: dict[str, list[Any]] = {kind: [] for kind in mm_prompt_updates}
        ids, end = list[int](), 0
        for at, after, kind, i, content in sorted(places, key=lambda place: place[0]):
            first = list(content.full).index(start_id)
            ids += tokenizer.encode(text[end:at] + tokenizer.decode(content.full[:first]), add_special_tokens=False)
            visual, is_embed = content.full[first:], content.is_embed(content.full)[first:]
            found[kind].append(
                PlaceholderFeaturesInfo(modality=kind, item_idx=i, start_idx=len(ids), tokens=visual, is_embed=is_embed)
            )
            ids += visual
            end = after
        ids += tokenizer.encode(text[end:], add_special_tokens=False)
        for places_of in found.values():
            places_of.sort(key=lambda info: info.item_idx)
        return ids, {kind: infos for kind, infos in found.items() if infos}

    def _recompute_cached_prompt_update(self, cached_update: Any, new_item_idx: int) -> Any:
        """What was shown before may have another number now."""
        old, kind = cached_update.item_idx, cached_update.modality
        if old == new_item_idx:
            return cached_update
        ids = self.info.inputs.renumbered(cached_update.content.full, kind, old + 1, new_item_idx + 1)
        moved = cached_update.with_target(self._target(kind, new_item_idx))
        return replace(moved.with_content(_only_visual(ids, self.info.inputs)), item_idx=new_item_idx)


def _only_visual(ids: list[int], inputs: EagleInputs) -> PromptUpdateDetails:
    return PromptUpdateDetails.select_token_id(ids, inputs.context_id)


def _times(about: Mapping[str, Any], num_frames: int) -> list[float]:
    """Seconds of the frames, from the film's start; as vLLM's loaders describe what they chose."""
    fps, indices = about.get("fps"), about.get("frames_indices")
    if not fps or indices is None or len(indices) != num_frames:
        raise ValueError(
            f"a video of {num_frames} frames came with fps {fps} and {0 if indices is None else len(indices)} "
            "frames_indices; needs one index a frame, and their fps."
        )
    return [float(index) / float(fps) for index in indices]


def _seconds(about: Mapping[str, Any], num_frames: int) -> float:
    seconds = about.get("duration") or 0.0
    return float(seconds) if seconds > 0 else _times(about, num_frames)[-1] + 1 / float(about["fps"])


@MULTIMODAL_REGISTRY.register_processor(EagleProcessor, info=EagleInfo, dummy_inputs=EagleDummyInputs)
class EagleForVLLM(Eagle2_5_VLForConditionalGeneration):
    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality not in ("image", "video"):
            raise ValueError(f"{modality} is given; Eagle sees images and videos.")
        return f"<{modality}-{i}>"

    def embed_multimodal(self, **given: Any) -> Any:
        """Visual tokens of each image and video, in the order in which vLLM names their kinds."""
        found: list[Tensor] = []
        for name in given:
            if name == "pixel_values_flat":
                found += self._tokens(given[name], given["image_num_patches"])
            elif name == "pixel_values_flat_video":
                found += self._tokens(given[name], given["video_num_patches"])
        return tuple(found)

    def _tokens(self, pixels_I3YX: Tensor, num_tiles: Tensor) -> list[Tensor]:
        tokens_IQD = self.extract_feature(pixels_I3YX)
        return [item.flatten(0, 1) for item in tokens_IQD.split(num_tiles.flatten().tolist())]
