"""Steps in which every sequence gets one token, as CUDA graphs: one launch for the host, whatever the model's depth.

    decode = Decode(model, cache, num_sequences=8, longest=4096)      # for at most 8 sequences of at most 4096 tokens
    decode.fill(ids, positions, rows, start_SB, lengths)              # of 5 sequences
    decode.capture()                                                  # on a GPU, once
    logits_SV = decode.run()                                          # (5, V)

    graphs = Graphs(cache)                                            # keeps one for each size that comes up
    logits_SV = graphs(model, ids, positions, rows, start_SB, lengths)

Sizes are rounded up to powers of two, so that few are captured. Sequences that are not there have no keys, write theirs
to rows that nobody reads, and their logits are left out. On a CPU the same step runs without a graph, which is how its
numbers are tested; that a captured one gives the same is a test with the marker `gpu`.

Dims     S sequences, B blocks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eagle_model.infer.schedule import BLOCK_TOKENS
from eagle_model.model.attend import Cache, Paged
from eagle_model.model.eagle import Eagle

SHORTEST = 1024  # tokens: of shorter contexts one graph is enough
WARM_UPS = 2  # runs before a capture: what is made once must not be made in it


class Decode:
    """The step of a fixed size; its tensors are written in place. The cache's last block is nobody's."""

    def __init__(self, model: Eagle, cache: Cache, *, num_sequences: int, longest: int) -> None:
        device = cache.keys_NLKW.device
        self.model, self.num_sequences = model, num_sequences
        self._num = 0
        self._nowhere = cache.keys_NLKW.shape[1] - BLOCK_TOKENS

        def ints(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._ids_S, self._positions_S = ints(num_sequences, dtype=torch.int64), ints(num_sequences)
        self._attend = Paged(
            cache=cache,
            rows_T=ints(num_sequences, dtype=torch.int64),
            start_SB=ints(num_sequences, -(-longest // BLOCK_TOKENS)),
            length_S=ints(num_sequences),
            longest=longest,
            block_tokens=BLOCK_TOKENS,
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits_SV: Tensor | None = None

    def fill(self, ids: Tensor, positions: Tensor, rows: Tensor, start_SB: Tensor, lengths: Tensor) -> None:
        """Each of `ids` is the next token of a sequence. The tensors may be on the host."""
        self._num = num = len(ids)
        attend = self._attend
        for to, new, nothing in (
            (self._ids_S, ids, 0),
            (self._positions_S, positions, 0),
            (attend.rows_T, rows, self._nowhere),
            (attend.length_S, lengths, 0),
        ):
            to[:num].copy_(new, non_blocking=True)
            to[num:].fill_(nothing)
        attend.start_SB[:num, : start_SB.shape[1]].copy_(start_SB, non_blocking=True)

    @torch.no_grad()
    def step(self) -> Tensor:
        """(S, V), of those that are not there too."""
        llm = self.model.llm
        hidden_SD = llm(llm.embed_tokens(self._ids_S), self._positions_S, self._attend)
        return self.model.lm_head(hidden_SD)

    def capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits_SV = self.step()

    def run(self) -> Tensor:
        """(sequences, V), to be read before the next run."""
        if self._graph is None:
            return self.step()[: self._num]
        self._graph.replay()
        assert self._logits_SV is not None
        return self._logits_SV[: self._num]


class Graphs:
    """Captures a size when it first comes up."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._found: dict[tuple[int, int, int], Decode] = {}

    def __call__(
        self, model: Eagle, ids: Sequence[int], positions: Sequence[int], rows_S: Tensor, start_SB: Tensor
    ) -> Tensor:
        """(S, V): `positions` say how long the sequences are."""
        num_sequences = _power(len(ids))
        longest = min(max(_power(max(positions) + 1), SHORTEST), self._cache.keys_NLKW.shape[1] - BLOCK_TOKENS)
        key = (id(model), num_sequences, longest)
        is_new = key not in self._found
        if is_new:
            self._found[key] = Decode(model, self._cache, num_sequences=num_sequences, longest=longest)
        decode = self._found[key]
        at = torch.tensor(positions, dtype=torch.int32)
        decode.fill(torch.tensor(ids), at, rows_S, start_SB, at + 1)
        if is_new and rows_S.is_cuda:
            decode.capture()
        return decode.run()


def _power(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()
