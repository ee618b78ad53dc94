# %% [markdown]
# # Eagle 2.5's stages, in small
#
# The paper trains the connector between two towers that are there (stage 1), then everything (1.5), then with ever
# longer contexts (2, 3, 4). Here all of it happens with towers and contexts of a few hundred: the commands are those
# of the real thing. Needs the extras `train` and `hf` (for towers to begin with). The real numbers are in
# [training](../../docs/training.md).

# %%
import json
from pathlib import Path

import small  # puts examples/ on the path

# isort: split
from new_eagle import random_models

from eagle_model.train.config import read_config

run = Path("tutorial_run/stages")
run.mkdir(parents=True, exist_ok=True)
if not (run / "start").exists():
    vision, llm = random_models(run)  # yours: siglip2-so400m-patch14-384 and Qwen2.5-7B-Instruct
    small.eagle("assemble", vision, llm, run / "start", "--tile-px", 56)

rows = []
for way in small.WAYS:
    film = small.make_film(run / "films" / f"{way}.mp4", way=way)
    talk = [{"from": "human", "value": "<video>\nWhich way?"}, {"from": "gpt", "value": way}]
    rows.append({"id": way, "video": film.name, "conversations": talk})
data = run / "films/ways.jsonl"
data.write_text("".join(json.dumps(row) + "\n" for row in rows))

# %% [markdown]
# ## All of them, one after the other
#
# `progressive` trains stages in a row, each in a folder of its own, each from the one before. A setting without a
# name is for all of them, one with a name is for that stage. What makes it small: tiles of 56 pixels, two steps each,
# contexts of 512 to 2,048 tokens.

# %%
contexts = {"stage1": 512, "stage1_5": 512, "stage2": 512, "stage3": 1024, "stage4": 2048}
settings = [
    f"model={run / 'start'}", f"data.recipe={data}", "processor.tile_px=56", "processor.patch_px=7", "dtype=float32",
    "processor.sampling.min_frames=2", "max_position_embeddings=none", "max_steps=2", "num_epochs=none",
    "rows_per_step=1", "data.workers=thread", "data.num_workers=1",
]  # fmt: skip
settings += [f"{name}:processor.sampling.context_tokens={tokens}" for name, tokens in contexts.items()]
words = [word for setting in settings for word in ("--set", setting)]
small.eagle("train", "progressive", "--stages", ",".join(contexts), "--run", run / "eagle", *words)

# %% [markdown]
# ## What each was given
#
# The data are the same; what grows is the context, and with it how many frames automatic degradation sampling leaves
# of a film.

# %%
for name in contexts:
    first = json.loads((run / "eagle" / name / "metrics.jsonl").read_text().splitlines()[0])
    config = read_config(run / "eagle" / name / "config.json")
    print(f"{name:9} from {Path(config.model).name:10} {first['num_tokens']:5} tokens a step, loss {first['loss']:.3f}")
assert config.model.endswith("stage3")

# %% [markdown]
# The last stage's folder is a model: `eagle chat tutorial_run/stages/eagle/stage4 film.mp4`. Before you train the
# real one, ask what it takes:

# %%
small.eagle("estimate", "stage4", "--gpus", 64, "--gpu", "h100-80g")
