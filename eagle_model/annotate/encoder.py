"""Any CLIP or SigLIP folder that transformers saved, as a function from frames to features of unit length.

    encoder = Encoder(Path("clip-vit-large-patch14"))
    encoder(frames_NYX3)          # (N, D) float32

Dims    N frames of one size, Y rows, X columns, D width of the features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eagle_model.files import read_json

_FILTERS = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
CLIP_THRESHOLD = 0.5  # the paper's: a cosine on the scale of CLIP's features


class Encoder:
    def __init__(self, folder: str | Path, device: str | None = None) -> None:
        """Raises ValueError when the folder holds no model with image features, or not how its images are prepared."""
        from transformers import AutoModel

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = AutoModel.from_pretrained(str(folder)).to(self.device).eval()
        if not hasattr(self.model, "get_image_features"):
            raise ValueError(f"{folder} holds a {type(self.model).__name__}; needs a CLIP or SigLIP model, whole.")
        about, named = _image_processor(Path(folder))
        try:
            size = about["size"]
            self._shortest = size.get("shortest_edge") if isinstance(size, dict) else size
            crop = about.get("crop_size") or size
            self._side = int(crop if isinstance(crop, int) else crop.get("height") or crop["shortest_edge"])
            mean, std = (torch.tensor(about[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
            self._filter = _FILTERS[about.get("resample", 3)]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{named}: {error!r}; needs size, image_mean, image_std, and resample 2 or 3.") from None
        self._mean, self._std = mean.to(self.device), std.to(self.device)
        self.is_clip = self.model.config.model_type == "clip"

    @torch.inference_mode()
    def __call__(self, frames_NYX3: Tensor) -> np.ndarray:
        """uint8 RGB, of one size -> (N, D) float32 of length 1: resized and cropped as the folder says."""
        pixels = frames_NYX3.permute(0, 3, 1, 2)
        height, width = pixels.shape[2:]
        if self._shortest is None:
            pixels = self._resized(pixels, self._side, self._side)
        else:
            scale = self._shortest / min(height, width)
            pixels = self._resized(
                pixels, max(self._side, round(height * scale)), max(self._side, round(width * scale))
            )
            top, left = (pixels.shape[2] - self._side) // 2, (pixels.shape[3] - self._side) // 2
            pixels = pixels[:, :, top : top + self._side, left : left + self._side]
        values = (pixels.to(self.device).float() / 255 - self._mean) / self._std
        features = self.model.get_image_features(pixel_values=values)
        features = features if isinstance(features, Tensor) else features.pooler_output
        return F.normalize(features.float(), dim=-1).cpu().numpy()

    def _resized(self, pixels_N3YX: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(pixels_N3YX, size=(height, width), mode=self._filter, antialias=True)


def _image_processor(folder: Path) -> tuple[dict[str, Any], Path]:
    """How a folder says that images are prepared, and its file: a whole processor is saved in one by transformers 5."""
    alone, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not alone.is_file() and whole.is_file():
        return read_json(whole).get("image_processor", {}), whole
    return read_json(alone), alone
