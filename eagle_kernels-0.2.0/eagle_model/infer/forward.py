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
        return model.lm_head(hidden_TD[torch.tensor(last, dtype=torch.int64, device=device)])

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
        rows: list[Tensor] = []
        starts: list[Tensor] = []
        lengths: list[int] = []
        chunks: list[Chunk] = []
        row = 0
        for sequence, first, end in works:
            blocks_B = torch.tensor(sequence.blocks, dtype=torch.int32) * BLOCK_TOKENS
            rows_L = (blocks_B[:, None] + torch.arange(BLOCK_TOKENS, dtype=torch.int32)).flatten()[:end].long()
            rows.append(rows_L[first:])
            if end - first == 1:
                starts.append(blocks_B)
                lengths.append(end)
            else:
                chunks.append(Chunk.of(row, end - first, rows_L.to(device)))
            row += end - first
        longest = max(lengths, default=0)
        start_SB = torch.nn.utils.rnn.pad_sequence(starts, batch_first=True) if starts else torch.zeros(0, 1)
        return Paged(
            cache=self.cache,
            rows_T=torch.cat(rows).to(device),
            start_SB=start_SB.to(device, torch.int32),
            length_S=torch.tensor(lengths, dtype=torch.int32, device=device),
            longest=longest,
            block_tokens=BLOCK_TOKENS,
            chunks=tuple(chunks),
        )
