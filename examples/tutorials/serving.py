# %% [markdown]
# # Serving a model
#
# `eagle serve` speaks OpenAI's interface, so clients that you have work. Needs the extra `serve-http` and, for this
# client, `openai`. The model is small and random and answers nonsense; a run's folder or a released one goes in its
# place.

# %%
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import small
from openai import OpenAI

run = Path("tutorial_run/serving")
model = small.make_model(Path("tutorial_run/model"))
film = small.make_film(run / "film.mp4")

# %% [markdown]
# In a terminal: `eagle serve FOLDER --port 8000`. Here it is a process of this notebook's, on a port that is free.
# `/ready` answers when a first answer was computed.

# %%
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [sys.executable, "-m", "eagle_model.cli", "serve", str(model), "--port", str(port)]
server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
for _ in range(600):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/ready")
        break
    except urllib.error.URLError:
        assert server.poll() is None, "the server ended; run the command by hand to see why"
        time.sleep(0.2)

# %% [markdown]
# ## A question about a film

# %%
client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
sent = client.files.create(file=film.open("rb"), purpose="user_data")


def ask(text: str):
    parts = [{"type": "file", "file": {"file_id": sent.id}}, {"type": "text", "text": text}]
    return client.chat.completions.create(
        model="eagle", messages=[{"role": "user", "content": parts}], max_tokens=8, extra_body={"frames": 8}
    )


first = ask("Which way?")
print(repr(first.choices[0].message.content), first.usage)
print("the model saw", first.model_extra["eagle"])

# %% [markdown]
# ## Another one about the same film
#
# Keys and values of its frames are still there, so the question costs its text alone.

# %%
second = ask("How fast?")
print(second.usage)
assert second.usage.prompt_tokens_details.cached_tokens > 0

# %% [markdown]
# ## Streams, and the end
#
# SIGTERM lets answers under way end.

# %%
messages = [{"role": "user", "content": "Say something."}]
for event in client.chat.completions.create(model="eagle", messages=messages, max_tokens=8, stream=True):
    if event.choices:
        print(event.choices[0].delta.content or "", end="")
server.terminate()
print("\nended with", server.wait(60))
assert server.returncode == 0
