# %% [markdown]
# # Films that nobody described
#
# `eagle annotate` lets a model behind an OpenAI-compatible endpoint write captions and questions about your films,
# and check them, as the paper made Eagle-Video-110K. Needs the extra `annotate`. The endpoint here follows fixed
# rules and knows nothing but which corner of a picture is brightest: free, and enough to see every step. Yours is an
# address and a key.

# %%
import json
from pathlib import Path

import small  # puts examples/ on the path

# isort: split
import annotate_and_train as example

run = Path("tutorial_run/annotating")
example.make_films(run / "films", 4)
print((run / "films/videos.jsonl").read_text().splitlines()[0])

# %% [markdown]
# ## What will it cost?
#
# The list of films says what is known of each: its licence, chapters, subtitles. `estimate` needs no endpoint.

# %%
config = run / "run.toml"
config.write_text(example.CONFIG.format(url="http://127.0.0.1:1/v1", model="rules"))
small.eagle("annotate", "estimate", "--config", config)

# %% [markdown]
# ## All steps
#
# Each answer is on disk before it is used: kill it whenever you like, start it again, and nothing is asked twice.

# %%
with example.rule_annotator() as url:
    config.write_text(example.CONFIG.format(url=url, model="rules"))
    small.eagle("annotate", "all", "--config", config)

# %% [markdown]
# ## What came out
#
# Rows to train on, a card with statistics, and a page to look through. Look through it: no filter is as good as you.

# %%
built = run / "annotated/build"
rows = [json.loads(line) for line in (built / "train.jsonl").read_text().splitlines()]
print(f"{len(rows)} rows; one of them:")
print(json.dumps(rows[0], indent=1)[:800])
assert rows and (built / "page/index.html").exists() and (built / "card.md").exists()

# %% [markdown]
# `eagle train stage2 --set data.recipe=tutorial_run/annotating/annotated/build/recipe.json` trains on them. Prompts,
# filters, batches, budgets: [annotation](../../docs/annotation.md).
