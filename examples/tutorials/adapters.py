# %% [markdown]
# # LoRA from a released folder
#
# Adapters are thin matrices beside those of a model that stays as it is. They train on one GPU where the whole model
# would not, and are a file of some MB. Needs the extra `train`. The folder here holds a small random model in the
# released format; put the folder of a released one, `Eagle2.5-8B`, in its place.

# %%
from dataclasses import replace
from pathlib import Path

import small

from eagle_model.data.loader import DataConfig
from eagle_model.data.processor import Processor
from eagle_model.model.lora import LoraConfig
from eagle_model.train.recipes import lora
from eagle_model.train.trainer import Trainer

example = small.lora  # examples/lora.py

run = Path("tutorial_run/adapters")
model = small.make_model(run / "model", 256)
data = example.make_data(run / "data")  # four pictures, each of one colour, and what the assistant says of them
print(data.read_text().splitlines()[0])

# %% [markdown]
# ## Training
#
# The recipe `lora` has what is usual; here the learning rate is larger, because the model is new and tiny. From the
# command line it is `eagle train lora --run RUN --set model=FOLDER --set data.recipe=FILE`.

# %%
recipe = lora()
config = replace(
    recipe,
    model=str(model),
    data=DataConfig(recipe=str(data)),
    processor=Processor.from_pretrained(model).config,
    lora=LoraConfig(rank=8, alpha=16, targets=("all-linear",), modules_to_save=("mlp1",)),
    optimizer=replace(recipe.optimizer, learning_rate=1e-2),
    dtype="float32",
    max_steps=30,
)
Trainer(config, run / "training").train()

# %% [markdown]
# ## With and without
#
# An adapter's file is PEFT's, both ways.

# %%
checkpoint = run / "training/checkpoints/step-000030"
print(f"{(checkpoint / 'adapter_model.safetensors').stat().st_size / 1e3:.0f} kB of adapters")
for colour in ("red", "blue"):
    picture = run / "data" / f"{colour}.png"
    print(f"{colour}: {example.ask(model, picture)!r} -> {example.ask(model, picture, run / 'training')!r}")

# %% [markdown]
# ## Into the weights
#
# Merged, it is a model's folder like the first, for any program that reads those.

# %%
small.eagle("convert", model, run / "merged", "--adapter", run / "training")
picture = run / "data/red.png"
assert example.ask(run / "merged", picture) == example.ask(model, picture, run / "training")
