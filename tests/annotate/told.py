"""What stands in an endpoint's place in the tests: it is told what to say, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from eagle_model.annotate.ask import Answer, Parts
from eagle_model.annotate.prompts import Prompt
from eagle_model.infer.endpoint import EndpointConfig
from eagle_model.infer.json_answers import read_json_answer


class Told:
    """says(the request's text, its number) is the answer; `asking` is a step's `ask` without a journal."""

    def __init__(self, says: Callable[[str, int], str]) -> None:
        self.config = EndpointConfig(url="http://none/v1", model="told")
        self.says, self.parts, self.options = says, [], []

    def asking(self) -> _Asking:
        return _Asking(self)


class _Asking:
    def __init__(self, told: Told) -> None:
        self.told = told

    def __call__(self, prompt: Prompt, parts: Parts, schema: dict[str, Any] | None, **options: Any) -> Answer:
        number = len(self.told.parts)
        self.told.parts.append(list(parts))
        self.told.options.append(options)
        text = self.told.says(parts[-1]["text"], number)
        return Answer(read_json_answer(text, schema) if schema else text, f"k{number}")

    def every(self, calls: Iterable[Callable[[], Any]]) -> list[Any]:
        return [call() for call in calls]

    def some(self, calls: Iterable[tuple[str, Callable[[], Any]]]) -> list[Any]:
        return [call() for _, call in calls]
