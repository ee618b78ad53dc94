"""One step of the model for many sequences: their tokens in one packed row, their keys in blocks of one cache.

    forward = Forward(model, num_blocks=1000)
    logits_SV = forward(model, [(work, loader), ...])     # of those works whose next token follows, in their order

Dims     T tokens of the step, S sequences that get a token, B blocks, D width of the language model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
import torch.distributed as dist
from torch import Tensor

from eagle_kernels.scatter_visual import scatter_visual
from eagle_model.infer.encoded import Loader
from eagle_model.infer.graphs import Graphs
from eagle_model.infer.schedule import BLOCK_TOKENS, Work
from eagle_model.infer.tensor_parallel import tell
from eagle_model.model.attend import Cache, Chunk, Paged
from eagle_model.model.eagle import Eagle
from eagle_model.model.llm import DecoderLayer


class Forward:
    """Holds the cache, which is as large as it will ever be.

    graphs: for steps in which every sequence gets one token; None: these run as others do. group: of processes that
    share the model (tensor_parallel.py), this one the first of them.
    """

    def __init__(self, model: Eagle, *, num_blocks: int) -> None:
        llm, first = model.llm, model.llm.layers[0]
        assert isinstance(first, DecoderLayer)
        self.cache = Cache.zeros(  # the last block is nobody's: graphs.py
            llm.embed_tokens.weight, num_layers=len(llm.layers), num_rows=(num_blocks + 1) * BLOCK_TOKENS,
            num_heads=first.self_attn.num_kv_heads, head_dim=llm.cfg.head_dim,
        )  # fmt: skip
        is_plain = self.cache.keys_NLKW.is_cuda and not llm.needs_lengths
        self.graphs = Graphs(self.cache) if is_plain else None
        self.group: dist.ProcessGroup | None = None
        self._tables = Tables()

    @torch.inference_mode()
    def __call__(self, model: Eagle, works: Items[tuple[Work, Loader | None]]) -> Tensor:
        """(S, V). `works` have those of one token first, which see all that is before it."""
        device = model.llm.embed_tokens.weight.device
        ids: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        for (sequence, first, end), _ in works:
            ids += sequence.token_ids[first:end]
            positions += range(first, end)
            if model.llm.needs_lengths:
                # A document is as long as its prompt, then as it is so far: keys in the cache stay as they were turned.
                lengths += [max(sequence.num_prompt, position + 1) for position in range(first, end)]
        attend = self._paged([work for work, _ in works], device)
        if self.graphs is not None and self.group is None and all(work.sequence.is_decoding for work, _ in works):
            return self.graphs(model, ids, positions, attend.rows_T, attend.start_SB)
        embeddings_TD = model.llm.embed_tokens(torch.tensor(ids, device=device))
        embeddings_TD = self._with_visual(model, embeddings_TD, works)
        positions_T = torch.tensor(positions, dtype=torch.int32, device=device)
        lengths_T = torch.tensor(lengths, dtype=torch.int32, device=device) if model.llm.needs_lengths else None
        if self.group is not None:
            tell(self.group, (embeddings_TD, positions_T, attend, lengths_T))
        hidden_TD = model.llm(embeddings_TD, positions_T, attend, lengths_T=lengths_T)
        last, row = [], 0
        for work, _ in works:
            row += work.end - work.first
            if work.is_last:
                last.append(row - 1)
        if len(last) < row:
            hidden_TD = hidden_TD[torch.tensor(last, dtype=torch.int64, device=device)]
        return model.lm_head(hidden_TD)

    def _with_visual(self, model: Eagle, embeddings_TD: Tensor, works: Items[tuple[Work, Loader | None]]) -> Tensor:
        rows: list[int] = []
        tokens: list[Tensor] = []
        row = 0
        for (sequence, first, end), loader in works:
            begin, stop = sequence.visual_range(first, end)
            if begin < stop and loader is not None:
                each = sequence.tokens_per_tile
                tiles = begin // each, (stop - 1) // each + 1
                found_ND = loader.tokens(model, *tiles).flatten(0, 1)
                tokens.append(found_ND[begin - tiles[0] * each : stop - tiles[0] * each])
                rows += [row + at - first for at in sequence.visual_positions[begin:stop]]
            row += end - first
        if not tokens:
            return embeddings_TD
        rows_N = torch.tensor(rows, device=embeddings_TD.device)
        return scatter_visual(embeddings_TD, torch.cat(tokens), rows_N)

    def _paged(self, works: Items[Work], device: torch.device) -> Paged:
        rows: list[int] = []  # of those that get one token; then of chunks
        rows_of_chunks: list[Tensor] = []
        lengths: list[int] = []
        chunks: list[Chunk] = []
        for sequence, first, end in works:
            if end - first == 1:
                rows.append(sequence.blocks[first // BLOCK_TOKENS] * BLOCK_TOKENS + first % BLOCK_TOKENS)
                lengths.append(end)
                continue
            blocks_B = torch.tensor(sequence.blocks[: -(-end // BLOCK_TOKENS)]) * BLOCK_TOKENS
            rows_L = (blocks_B[:, None] + torch.arange(BLOCK_TOKENS)).flatten()[:end]
            chunks.append(Chunk.of(len(rows) + sum(map(len, rows_of_chunks)), end - first, rows_L.to(device)))
            rows_of_chunks.append(rows_L[first:])
        rows_T = torch.cat([torch.tensor(rows, dtype=torch.int64), *rows_of_chunks])
        start_SB = self._tables([work.sequence.blocks for work in works[: len(rows)]])
        return Paged(
            cache=self.cache,
            rows_T=rows_T.to(device),
            start_SB=start_SB.to(device),
            length_S=torch.tensor(lengths, dtype=torch.int32, device=device),
            longest=max(lengths, default=0),
            block_tokens=BLOCK_TOKENS,
            chunks=tuple(chunks),
        )


class Tables:
    """Where the blocks of sequences lie, from step to step: most steps add no block."""

    def __init__(self) -> None:
        self._start_SB = torch.zeros(0, 1, dtype=torch.int32)
        self._kept: list[tuple[list[int], int]] = []  # of each row: its sequence's blocks, and how many are written

    def __call__(self, tables: Items[list[int]]) -> Tensor:
        """(S, B) int32, on the host: the first row of each block of each of `tables`, which may have become longer
        since the last call. Beyond its blocks a row holds anything. Good until the next call."""
        num, most = len(tables), max(map(len, tables), default=0)
        if num > self._start_SB.shape[0] or most > self._start_SB.shape[1]:
            sizes = (max(need, 2 * has) if need > has else has
                     for need, has in zip((num, most), self._start_SB.shape, strict=True))  # fmt: skip
            self._start_SB, self._kept = torch.zeros(*sizes, dtype=torch.int32), []
        for s, blocks in enumerate(tables):
            known, num_known = self._kept[s] if s < len(self._kept) else (None, 0)
            if known is not blocks:
                num_known = 0
            if num_known < len(blocks):
                new_B = torch.tensor(blocks[num_known:], dtype=torch.int32)
                self._start_SB[s, num_known : len(blocks)] = new_B * BLOCK_TOKENS
        self._kept = [(blocks, len(blocks)) for blocks in tables]
        return self._start_SB[:num]
