"""Copies for saving: the same memory each time, and what was copied stays as it was."""

from itertools import pairwise

import pytest
import torch

from eagle_model.train.staging import BLOCK_BYTES, Staging


def copies(staging: Staging, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    staging.begin()
    made = [staging.copy(tensor) for tensor in tensors]
    staging.finish()
    return made


def test_what_was_copied_stays_and_the_memory_is_used_again():
    tensors = [
        torch.randn(3, 5),
        torch.randn(7).bfloat16(),
        torch.tensor(2.0),
        torch.zeros(0, 4),
        torch.ones(2, 9)[:, ::2],
    ]
    tensors.append(torch.randn(BLOCK_BYTES // 4 + 1))  # larger than a block
    staging = Staging(torch.device("cpu"))
    first = copies(staging, tensors)
    kept = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor += 1
    assert all(torch.equal(copy, was) and copy.dtype == was.dtype for copy, was in zip(first, kept, strict=True))
    places, num_bytes = [copy.data_ptr() for copy in first], staging.num_bytes
    again = copies(staging, tensors)
    assert [copy.data_ptr() for copy in again] == places and staging.num_bytes == num_bytes
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(again, tensors, strict=True))
    spans = sorted((copy.data_ptr(), copy.data_ptr() + copy.nbytes) for copy in again if copy.nbytes)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_a_copy_for_later_is_made_when_it_is_finished():
    tensors = [torch.randn(3, 5), torch.randn(7).bfloat16(), torch.ones(2, 9)[:, ::2]]
    staging = Staging(torch.device("cpu"))
    staging.begin()
    now, late = staging.copy(tensors[0]), [staging.copy(tensor, later=True) for tensor in tensors]
    was = tensors[0].clone()
    tensors[0] += 1
    staging.finish()
    assert torch.equal(now, was)
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(late, tensors, strict=True))
    staging.begin()  # what was to be copied in the round before is forgotten
    staging.copy(tensors[1], later=True)
    staging.begin()
    staging.finish()


def test_other_sizes_than_before_find_room():
    staging = Staging(torch.device("cpu"))
    copies(staging, [torch.randn(100)])
    tensors = [torch.randn(BLOCK_BYTES // 8) for _ in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(copies(staging, tensors), tensors, strict=True))
    staging.close()
    assert staging.num_bytes == 0


@pytest.mark.gpu
def test_from_a_gpu_copies_are_complete_when_it_is_finished():
    """Into page-locked memory, which is given back."""
    staging = Staging(torch.device("cuda"))
    tensors = [torch.randn(1 << 24, device="cuda") for _ in range(8)]
    for _ in range(2):
        made = copies(staging, tensors)
        assert all(torch.equal(copy, tensor.cpu()) for copy, tensor in zip(made, tensors, strict=True))
        for tensor in tensors:
            tensor += 1
    staging.close()
    assert staging.num_bytes == 0
