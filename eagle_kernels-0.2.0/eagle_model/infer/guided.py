"""Answers that follow a JSON schema: which tokens may come next, by xgrammar, the extra "guided".

    guides = Guides(processor, vocab_size=151_674)
    guide = guides.of_schema('{"type": "object", "properties": {"cats": {"type": "integer"}}, "required": ["cats"]}')
    guide.mask(logits_V)                 # tokens that may not come next: -inf
    guide.accept(token_id)               # what came

Dims     V vocabulary.
"""

from __future__ import annotations

import re
import threading
from typing import Any

import torch
from torch import Tensor

from eagle_model.data.processor import Processor

_BITS = 32  # tokens in a number of the mask
_MAX_SCHEMA_CHARS = 1 << 16  # limit: compiling takes time that grows with it; half of OpenAI's
_MAX_DEPTH = 32  # limit: of a schema's JSON; of arrays in arrays, 450 take minutes to compile. OpenAI's is 10 objects
_MAX_CACHE_BYTES = 64 << 20  # limit: of compiled schemas that are kept; each client may bring new ones


class Guides:
    """Of one tokenizer. Schemas that came before are not compiled again. Safe to share between threads."""

    def __init__(self, processor: Processor, *, vocab_size: int) -> None:
        """vocab_size: the model's; it may have rows that no token uses. Raises ImportError without xgrammar."""
        try:
            import xgrammar
        except ImportError as error:
            raise ImportError('json_schema needs xgrammar: pip install "eagle-kernels[guided]".') from error
        tokenizer, encoder = processor.tokenizer, processor.encoder
        size = min(vocab_size, tokenizer.get_vocab_size())
        # Control tokens are no text: without a text of theirs they never come, but for those that end a turn.
        texts = [tokenizer.id_to_token(i) if encoder.spoken_ids([i]) else "" for i in range(size)]
        stops = sorted(encoder.stop_token_ids)
        info = xgrammar.TokenizerInfo(
            [text or "" for text in texts], xgrammar.VocabType.BYTE_LEVEL, vocab_size=vocab_size, stop_token_ids=stops
        )
        self._xgrammar: Any = xgrammar
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=_MAX_CACHE_BYTES)
        self._vocab_size = vocab_size
        self._lock = threading.Lock()

    def of_schema(self, schema: str) -> JsonGuide:
        """A guide for one answer. Raises ValueError for what is no JSON schema, or a very long or deep one."""
        if len(schema) > _MAX_SCHEMA_CHARS or _depth(schema) > _MAX_DEPTH:
            raise ValueError(
                f"Sampling: json_schema has {len(schema)} characters, nested {_depth(schema)} deep; needs at most "
                f"{_MAX_SCHEMA_CHARS}, nested {_MAX_DEPTH} deep."
            )
        try:
            with self._lock:
                grammar = self._compiler.compile_json_schema(schema, any_whitespace=False)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"Sampling: json_schema is no JSON schema that can be followed: {error}") from error
        return JsonGuide(self._xgrammar.GrammarMatcher(grammar), self._vocab_size)


def _depth(text: str) -> int:
    """Of brackets in JSON, those in its strings not counted."""
    deepest = depth = 0
    for bracket in re.findall(r"[\[{}\]]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


class JsonGuide:
    """Of one answer."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self._bits = torch.full((1, -(-vocab_size // _BITS)), -1, dtype=torch.int32)

    def mask(self, logits_V: Tensor) -> None:
        if self._matcher.is_terminated():
            return
        self._matcher.fill_next_token_bitmask(self._bits)
        bits_N = self._bits[0].to(logits_V.device)
        may_come_V = (bits_N[:, None] >> torch.arange(_BITS, device=logits_V.device) & 1).flatten()
        logits_V.masked_fill_(may_come_V[: self._vocab_size] == 0, -torch.inf)

    def accept(self, token_id: int) -> None:
        if not self._matcher.is_terminated():
            self._matcher.accept_token(token_id)
