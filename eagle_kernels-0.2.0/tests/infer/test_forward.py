"""One step for many sequences: whatever chunks a prompt comes in, the logits are those of the whole."""

import pytest
import torch

from eagle_model.infer.encoded import Encoded
from eagle_model.infer.forward import Forward
from eagle_model.infer.schedule import Sequence, Work
from tests.infer.small import ask, logits_after, model, noise, prompt_of


@pytest.mark.parametrize("cuts", [[], [1], [20, 21, 50], [3, 4, 5, 6]])
def test_chunks_give_the_logits_of_the_whole(cuts):
    prompt, encoded = prompt_of(ask("Where is it?", noise(1), noise(2)), 4), Encoded(capacity_tiles=1)
    loader = encoded.loader(prompt, root=b"")
    num = len(prompt.token_ids)
    one = Sequence(
        list(prompt.token_ids), num, visual_positions=prompt.visual_positions_N.tolist(), tokens_per_tile=4,
        blocks=list(range(-(-(num + 2) // 16)))[::-1],
    )  # fmt: skip
    other = Sequence([5, 6, 7], 3, blocks=[30])
    forward = Forward(model(), num_blocks=31)
    for first, end in zip([0, *cuts], [*cuts, num], strict=True):
        works = [(Work(one, first, end), loader), (Work(other, 0, 3), None)]
        works.sort(key=lambda work: work[0].end - work[0].first > 1)
        logits_SV = forward(model(), works)
    torch.testing.assert_close(logits_SV[0], logits_after(model(), prompt, []), atol=1e-4, rtol=1e-4)
    for said in ([4], [4, 8]):
        one.token_ids = [*prompt.token_ids, *said]
        (logits_V,) = forward(model(), [(Work(one, num + len(said) - 1, num + len(said)), None)])
        torch.testing.assert_close(logits_V, logits_after(model(), prompt, said), atol=1e-4, rtol=1e-4)
    encoded.close()
