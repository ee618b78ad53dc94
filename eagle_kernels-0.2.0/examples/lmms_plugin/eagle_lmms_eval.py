"""Our engine as a chat model of lmms-eval: `--model eagle --model_args pretrained=FOLDER`. README.md beside this."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from eagle_model.infer.engine import Engine
from eagle_model.infer.sampling import Sampling

MANIFEST = ModelManifest(model_id="eagle", chat_class_path="eagle_lmms_eval.Eagle")
_NAMES = {"max_new_tokens", "temperature", "top_p", "top_k"}  # of generation_kwargs that we know; `until` is `stop`


class Eagle(lmms):
    """Continuous batching: all requests are submitted, and come back in their order."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        adapter: str | None = None,
        device: str | None = None,
        max_frames: int = 512,
        fps: float = 2.0,
        **ignored: Any,  # lmms-eval hands batch_size and more to every model
    ) -> None:
        super().__init__()
        self._engine = Engine.from_folder(pretrained, adapter=adapter, device=device, max_queued=1 << 20)
        self._max_frames, self._fps = int(max_frames), float(fps)

    def generate_until(self, requests: list[Any]) -> list[str]:
        asked = [self._submit(*request.args) for request in requests]
        return [request.result().text for request in asked]

    def _submit(
        self, context: str, doc_to_messages: Any, given: dict[str, Any], doc_id: int, task: str, split: str
    ) -> Any:
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        stop = given.get("until") or ()
        known = {name: given[name] for name in _NAMES & set(given) if given[name] is not None}
        if not given.get("do_sample", known.get("temperature", 0) > 0):
            known.pop("temperature", None)
        return self._engine.submit(
            [{"role": m["role"], "content": [_part(part) for part in m["content"]]} for m in messages],
            Sampling(stop=(stop,) if isinstance(stop, str) else tuple(stop), **known),
            frames=self._max_frames,
            fps=self._fps,
        )

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("rounds of several answers are not asked of this model.")

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("tasks that compare likelihoods are not asked of this model.")


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """lmms-eval's part of a message as ours: its media have a `url`, which is a path or a PIL image."""
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] not in ("image", "video"):
        raise ValueError(f"a part of type {part['type']!r}; this model takes text, images and videos.")
    times = {ours: part[theirs] for ours, theirs in (("start", "start_time"), ("end", "end_time")) if part.get(theirs)}
    return {"type": part["type"], part["type"]: part["url"], **times}
