"""How an answer's tokens are chosen from the model's logits: what a request asks for, and who does it.

    Sampling()                                              # greedy, the likeliest token each time
    Sampling(temperature=0.7, top_p=0.9, seed=1, stop=("\\n\\n",))
    sampler = Sampler(Sampling(top_k=5, temperature=1.0, seed=3), prompt_ids, vocab_size=151_674)
    token_id = sampler.choose(logits_V).token_id

Dims     V vocabulary.
Order    As transformers has it: bias, repetition penalty (of prompt and answer), presence and frequency penalties (of
         the answer, as OpenAI defines them), the guide's mask, temperature, top-k, top-p, min-p. A draw comes from the
         request's own generator, so its tokens depend on its seed alone and not on who shares the batch.
Numbers  fp32. Log-probabilities are the model's own, before all of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

MAX_LOGPROBS = 20  # alternatives of a token: OpenAI's limit
MAX_STOPS = 16  # stop strings: each is looked for at every token
MAX_BIASES = 1024  # tokens of logit_bias: OpenAI's limit
MIN_TEMPERATURE = 1e-5  # limit: below it logits over the temperature leave fp32, and the draw is the likeliest anyway


class Guide(Protocol):
    """What an answer must look like, token by token (guided.py)."""

    def mask(self, logits_V: Tensor) -> None:
        """Sets the logits of tokens that may not come next to -inf."""

    def accept(self, token_id: int) -> None:
        """The token that came."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request asks for. Raises ValueError, which names the field, for numbers out of range."""

    max_new_tokens: int | None = None  # None: 512, or a quarter of a small context
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0  # of the likeliest tokens, as few as make this probability
    top_k: int = 0  # so many of the likeliest; 0: all
    min_p: float = 0.0  # tokens at least this probable beside the likeliest
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and the answer become less likely
    presence_penalty: float = 0.0  # taken from the logit of a token that the answer has
    frequency_penalty: float = 0.0  # taken from it as often as the answer has it
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    stop: tuple[str, ...] = ()  # texts that end the answer, and are not part of it
    seed: int | None = None  # None: another one each time
    logprobs: int | None = None  # log-probabilities of each token and of so many others; None: none
    json_schema: str | None = None  # JSON text of a schema that the answer follows; needs the extra "guided"

    def __post_init__(self) -> None:
        def need(name: str, is_right: bool, what: str) -> None:
            if not is_right:
                raise ValueError(f"Sampling: {name} is {getattr(self, name)!r}; needs {what}.")

        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            need(name, is_number, "a finite number")
        most = self.max_new_tokens
        need("max_new_tokens", most is None or (isinstance(most, int) and most >= 1), "None or at least 1")
        need("temperature", self.temperature >= 0, "0 (the likeliest) or more")
        need("top_p", 0 < self.top_p <= 1, "a share above 0 and up to 1")
        need("top_k", isinstance(self.top_k, int) and self.top_k >= 0, "0 (all) or more")
        need("min_p", 0 <= self.min_p <= 1, "a share from 0 to 1")
        need("repetition_penalty", self.repetition_penalty > 0, "a number above 0; 1 changes nothing")
        need("stop", len(self.stop) <= MAX_STOPS and all(self.stop), f"at most {MAX_STOPS} texts, none empty")
        need("logit_bias", len(self.logit_bias) <= MAX_BIASES, f"at most {MAX_BIASES} pairs")
        fits = self.logprobs is None or (isinstance(self.logprobs, int) and 0 <= self.logprobs <= MAX_LOGPROBS)
        need("logprobs", fits, f"None or 0 to {MAX_LOGPROBS}")

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token of the logits as they are is all that is asked for."""
        return self.temperature == 0 and not self._changes_logits and self.logprobs is None

    @property
    def _changes_logits(self) -> bool:
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1, 0, 0) or bool(self.logit_bias) or self.json_schema is not None


class Chosen(NamedTuple):
    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # (token id, log-probability) of the likeliest, best first


class Sampler:
    """Chooses the tokens of one answer, one after another."""

    def __init__(
        self, sampling: Sampling, prompt_ids: Sequence[int], *, vocab_size: int, guide: Guide | None = None
    ) -> None:
        """Raises ValueError for a biased token that the vocabulary of `vocab_size` does not have."""
        if wrong := [i for i, _ in sampling.logit_bias if not 0 <= i < vocab_size]:
            raise ValueError(f"Sampling: logit_bias names token {wrong[0]}; needs ids from 0 to {vocab_size - 1}.")
        self.sampling, self.guide = sampling, guide
        self._prompt_ids = prompt_ids
        self._counts: dict[int, int] = {}  # of the answer's tokens
        self._generator: torch.Generator | None = None

    @torch.no_grad()
    def choose(self, logits_V: Tensor) -> Chosen:
        """The next token. It counts as said."""
        wanted = self.sampling
        raw_V = logits_V.float()
        changed_V = self._changed(raw_V)
        if wanted.temperature == 0:
            token_id = int(changed_V.argmax())
        else:
            token_id = self._draw(filtered(changed_V, wanted).softmax(0))
        self.accept(token_id)
        if wanted.logprobs is None:
            return Chosen(token_id)
        logprobs_V = raw_V.log_softmax(0)
        top = logprobs_V.topk(min(wanted.logprobs, len(logprobs_V)))
        return Chosen(
            token_id, float(logprobs_V[token_id]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        )

    def accept(self, token_id: int) -> None:
        self._counts[token_id] = self._counts.get(token_id, 0) + 1
        if self.guide is not None:
            self.guide.accept(token_id)

    def _changed(self, logits_V: Tensor) -> Tensor:
        wanted = self.sampling
        if not wanted._changes_logits:
            return logits_V
        logits_V, device = logits_V.clone(), logits_V.device
        if wanted.logit_bias:
            ids, values = zip(*wanted.logit_bias, strict=True)
            biases = torch.tensor(values, device=device)
            logits_V.index_add_(0, torch.tensor(ids, device=device), biases)
        if wanted.repetition_penalty != 1:
            seen = torch.tensor(sorted({*self._prompt_ids, *self._counts}), dtype=torch.int64, device=device)
            found, penalty = logits_V[seen], wanted.repetition_penalty
            logits_V[seen] = torch.where(found < 0, found * penalty, found / penalty)
        if self._counts and (wanted.presence_penalty or wanted.frequency_penalty):
            said = torch.tensor(list(self._counts), device=device)
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32, device=device)
            logits_V[said] -= wanted.presence_penalty + wanted.frequency_penalty * counts
        if self.guide is not None:
            self.guide.mask(logits_V)
        return logits_V

    def _draw(self, probabilities_V: Tensor) -> int:
        if self._generator is None:
            self._generator = torch.Generator(probabilities_V.device)
            if self.sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.sampling.seed % 2**63)
        return int(torch.multinomial(probabilities_V, 1, generator=self._generator))


def filtered(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Logits over the temperature, -inf for tokens that top-k, top-p or min-p leave out; the likeliest always stays."""
    logits_V = logits_V / max(sampling.temperature, MIN_TEMPERATURE)
    if 0 < sampling.top_k < len(logits_V):
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        sorted_V, order_V = logits_V.sort(stable=True)  # ascending, as transformers': ties fall alike
        is_left_out = sorted_V.softmax(0).cumsum(0) <= 1 - sampling.top_p
        is_left_out[-1] = False
        logits_V = logits_V.masked_fill(torch.zeros_like(is_left_out).scatter(0, order_V, is_left_out), -torch.inf)
    if sampling.min_p > 0:
        probabilities_V = logits_V.softmax(0)
        logits_V = logits_V.masked_fill(probabilities_V < sampling.min_p * probabilities_V.max(), -torch.inf)
    return logits_V
