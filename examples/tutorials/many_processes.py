# %% [markdown]
# # Many GPUs, tried on one CPU
#
# `torchrun` starts a process for each GPU; `layout` says what they share out. A step computes the same numbers
# whatever the layout, and that is something you can check before you rent anything. Needs the extra `train`.

# %%
import json
import subprocess
import sys
from pathlib import Path

import small

run = Path("tutorial_run/many_processes")
rows = []
for way in small.WAYS:
    film = small.make_film(run / "films" / f"{way}.mp4", way=way, seconds=2)
    talk = [{"from": "human", "value": "<video>\nWhich way?"}, {"from": "gpt", "value": way}]
    rows.append({"id": way, "video": film.name, "conversations": talk})
data = run / "films/ways.jsonl"
data.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(num_processes: int, name: str, *settings: str) -> list[float]:
    """`torchrun ... -m eagle_model.cli train debug`; returns the loss of each step."""
    words = ["torchrun", "--nproc-per-node", str(num_processes), "-m", "eagle_model.cli", "train", "debug"]
    words += ["--run-folder", str(run / name)]
    for setting in (f"data.recipe={data}", "rows_per_step=2", "max_steps=3", *settings):
        words += ["--set", setting]
    print("$", *words)
    command = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line)["loss"] for line in (run / name / "metrics.jsonl").read_text().splitlines()]


# %% [markdown]
# ## One process, two that share the rows, two that share each row
#
# `shard` cuts weights, gradients and optimizer over processes, each of which takes other rows of a step. `context`
# gives each process a part of the tokens and tiles of the same row: for rows too long for one GPU.

# %%
one = train(1, "one")
shared = train(2, "shard", "layout.shard=2")
split = train(2, "context", "layout.context=2")
print(one, shared, split, sep="\n")
for other in (shared, split):
    assert max(abs(a - b) for a, b in zip(one, other)) < 1e-3

# %% [markdown]
# ## Proved, not looked at
#
# `eagle verify` compares the loss and every gradient of a layout with one process, in fp64, and plants faults that it
# must find. Under `torchrun` on your GPUs it does so there. `--processes 8` takes minutes; here 2, one step each.

# %%
small.eagle("verify", "--processes", 2, "--short")

# %% [markdown]
# Which layout for which machine, and what happens when a process dies: [many GPUs](../../docs/parallel.md).
