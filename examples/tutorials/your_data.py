# %% [markdown]
# # Your own data: from a folder of films to a run
#
# A film and a caption beside it are a data set already. This tutorial makes such a folder, has it checked, turns it
# into a recipe, prepares it and trains a small model on it. Needs the extras `data` and `train`. Every format that is
# read: [data sets of other trainers](../../docs/data_formats.md).

# %%
import json
from pathlib import Path

import small

run = Path("tutorial_run/your_data")
films = run / "films"
for way in small.WAYS:
    small.make_film(films / f"{way}.mp4", way=way)
    (films / f"{way}.txt").write_text(f"A bright square moves {way}.")
(films / "broken.mp4").write_bytes(b"no film at all")
(films / "broken.txt").write_text("A film that was cut off while it was copied.")

# %% [markdown]
# ## What is in it, and what is wrong with it?
#
# `check` reads everything and changes nothing. Exit code 3 says that there are problems; the broken film is named.

# %%
small.eagle("data", "check", films, may_end_with=(3,))

# %% [markdown]
# ## A recipe
#
# `convert` writes rows that training reads. Films stay where they are. `--skip` leaves bad rows out and lists them;
# without it the first one is an error.

# %%
(films / "broken.mp4").unlink()
small.eagle("data", "convert", films, run / "set")
recipe = json.loads((run / "set/recipe.json").read_text())
print(json.dumps(recipe, indent=1))
annotation = run / "set" / next(iter(recipe.values()))["annotation"]
print(annotation.read_text().splitlines()[0])

# %% [markdown]
# ## Prepared once
#
# Preparing counts tokens and opens every film once; a run then starts from numbers. For four films that is no gain,
# for a million it is. The counts are those of a model's tokenizer, so it wants a model's folder. The page of a data
# set shows lengths, packing and samples as the model sees them.

# %%
model = small.make_model(Path("tutorial_run/model"))
small.eagle("data", "prepare", run / "set/recipe.json", run / "prepared", "--processor", model)
small.eagle("data", "report", run / "prepared", "--processor", model, "--out", run / "data.html")

# %% [markdown]
# ## A run
#
# `debug` is six steps of a very small model: a test of your data rather than of the model. The recipe `tiny` is the
# same for as long as you say, and `stage2` trains Eagle 2.5. A run that was interrupted goes on when you say the same
# again.

# %%
settings = [f"model={model}", f"data.recipe={run / 'prepared'}", "processor.sampling.context_tokens=2048"]
words = [word for setting in settings for word in ("--set", setting)]
small.eagle("train", "debug", "--run", run / "training", *words)
for line in (run / "training/metrics.jsonl").read_text().splitlines()[:3]:
    step = json.loads(line)
    print({name: step[name] for name in ("step", "loss", "num_tokens", "grad_norm") if name in step})
assert (run / "training/report.html").exists()
