# %% [markdown]
# # How good is it?
#
# `eagle eval` asks the questions of a benchmark, scores the answers and puts the numbers beside the published ones.
# Benchmarks' files are yours to download; this tutorial uses the one task that needs none: needles, signs that are
# drawn into the frames of any film. The model is random, so its score is that of a guess.

# %%
import json
from pathlib import Path

import small

run = Path("tutorial_run/benchmarks")
model = small.make_model(Path("tutorial_run/model"))
film = small.make_film(run / "film.mp4", seconds=8)

# %% [markdown]
# ## Which benchmarks, and where do their files come from?

# %%
small.eagle("eval", "tasks", "videomme", "--long")

# %% [markdown]
# ## A run
#
# It writes a line an answer and goes on where it was killed. `needles.png` shows what was found by the film's length
# and the needle's place.

# %%
small.eagle(
    "eval", model, "--task", "needle", "--data", film, "--lengths", "8,12", "--depths", 2, "--out", run / "needles"
)
answers = [json.loads(line) for line in (run / "needles/predictions-0.jsonl").read_text().splitlines()]
print(len(answers), "answers; the first:", dict(list(answers[0].items())[:6]))
print((run / "needles/report.md").read_text())

# %% [markdown]
# A real one is the same line with another task: `eagle eval runs/mine --task videomme --data Video-MME`. For several
# GPUs put `torchrun` before it; for a server `--endpoint http://localhost:8000/v1` in place of the folder. How
# answers are read and scored, and where our numbers may differ from others': [evaluation](../../docs/evaluation.md).
