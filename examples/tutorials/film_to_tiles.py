# %% [markdown]
# # From a film to tiles
#
# A vision encoder wants normalised patches of square tiles. Between a file and those lie: which frames, decoding,
# colours, resizing, cutting, normalising. Here is each step, and then all of it in one call. Needs the extra `video`;
# pictures need matplotlib.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import small
import torch

from eagle_kernels import Tiling, decode_tiles, video

film = small.make_film(Path("tutorial_run/film.mp4"))  # or a film of yours
info = video.probe(film)
print(f"{info.codec}, {info.width_px} x {info.height_px}, {info.num_frames} frames in {info.duration_seconds:.1f} s")

# %% [markdown]
# ## Frames by their time
#
# Times are seconds from the first frame that a player shows. You get the frame that is on show at that time, exactly,
# however the file is built.

# %%
clip = video.open(film)
for frame in clip.frames([0.0, 2.3, 5.0]):
    print(f"{frame.timestamp_seconds:.3f} s: {tuple(frame.rgb_YX3.shape)}")

# %% [markdown]
# Where about this time is enough, a nearby frame that costs less to decode is chosen beforehand:

# %%
print("exact    ", clip.choose([0.0, 2.3, 5.0]))
print("tolerance", clip.choose([0.0, 2.3, 5.0], seek="tolerance"))
print("keyframe ", clip.choose([0.0, 2.3, 5.0], seek="keyframe"))

# %% [markdown]
# ## Tiles, in one pass
#
# The grid `(2, 1)` cuts each frame into two tiles side by side, and adds a small picture of the whole. `Tiling` says
# the rest: Eagle 2.5's are 448 pixels in patches of 14.

# %%
tiling = Tiling(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), thumbnail=True)
times, tiles = decode_tiles(film, [0.0, 2.3, 5.0], (2, 1), tiling)
print(times, tuple(tiles.shape), tiles.dtype)  # 9 tiles of 1,024 patches of 3 x 14 x 14 numbers
assert tiles.shape == (9, 1024, 588)

# %% [markdown]
# To look at tiles, ask for whole pictures before normalisation:

# %%
plain = Tiling(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), thumbnail=True, dtype=torch.uint8, layout="tiles")
pictures = decode_tiles(film, [2.3], (2, 1), plain).tiles_IPK
_, axes = plt.subplots(1, 3, figsize=(9, 3))
for axis, picture, name in zip(axes, pictures, ["left tile", "right tile", "the whole"]):
    axis.imshow(picture.permute(1, 2, 0))
    axis.set_title(name)
    axis.axis("off")

# %% [markdown]
# ## How many frames does a model get to see?
#
# That is a question of its context, not of the film. A `Processor` plans it with numbers alone, before any pixel is
# read; `eagle plan FILM` does it with Eagle 2.5's own sizes, without a model. More in [what the model gets to
# see](../../docs/sampling.md).

# %%
from eagle_model import Processor  # noqa: E402

processor = Processor.from_pretrained(small.make_model(Path("tutorial_run/model")))
parts = [{"type": "video", "video": str(film)}, {"type": "text", "text": "Which way?"}]
batch = processor([{"role": "user", "content": parts}])
print(f"{batch.num_tokens} tokens, {len(batch.patches_IPK)} tiles, {len(batch.visual_rows_N)} visual tokens")
small.eagle("plan", film, "--context", 8192)
