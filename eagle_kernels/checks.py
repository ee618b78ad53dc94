"""How an op refuses an argument before a kernel starts: the message says who, what it got and what it needs.

if not is_positive(eps):
    refuse("rms_norm", "eps", eps, "a finite number > 0")  # rms_norm: eps is -1; needs a finite number > 0.

The condition stands at the call, the message after it: what is right builds no text, and under
torch.compile no number in a text becomes a constant of the graph.
"""

from math import inf
from typing import NoReturn

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

MAX_SAID = 300  # characters of a value in a refusal: a list may have been given where a number is needed
_PLAIN = (Tensor, torch.nn.Parameter)  # and no subclass, which may hold its numbers in another way
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def refuse(op: str, argument: str, got: object, need: str) -> NoReturn:
    said = str(got)
    if len(said) > MAX_SAID:
        said = f"{said[:MAX_SAID]}..."
    raise ValueError(f"{op}: {argument} is {said}; needs {need}.")


def is_positive(x: object) -> bool:
    """Whether it is a finite number above 0; True is none."""
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < inf


def refuse_types(op: str, **arguments: object) -> NoReturn:
    """Names the first argument that is no tensor: None, an array of another library, a list, a module ..."""
    name, got = next((name, x) for name, x in arguments.items() if not isinstance(x, Tensor))
    refuse(op, name, kind_of(got), "a torch tensor")


def refuse_unlike(op: str, argument: str, tensor: Tensor, like_name: str, like: Tensor) -> NoReturn:
    """Where `tensor` has not the dtype, or not the device, of `like`."""
    if tensor.dtype != like.dtype:
        refuse(op, f"{argument}'s dtype", tensor.dtype, f"{like_name}'s {like.dtype}")
    refuse(op, f"{argument}'s device", tensor.device, f"{like_name}'s {like.device}")


def kind_of(x: object) -> str:
    """For a refusal: "None", "a list", "a numpy.ndarray"."""
    if x is None:
        return "None"
    kind = type(x)
    return f"a {kind.__qualname__}" if kind.__module__ == "builtins" else f"a {kind.__module__}.{kind.__qualname__}"


def check_kernel_dtype(op: str, argument: str, tensor: Tensor) -> None:
    """Raises ValueError for a dtype that the kernels, fp32 inside, would take and silently lose digits of."""
    if tensor.dtype not in KERNEL_DTYPES:
        refuse(op, f"{argument}'s dtype", tensor.dtype, f"one of {', '.join(map(str, KERNEL_DTYPES))} on a GPU")


def takes_kernel(x: Tensor) -> bool:
    """Whether x goes to the operator and not to the reference: tensors on a GPU, and those without numbers (on "meta",
    or of FakeTensorMode), whose shapes, memory and graph are then those of a GPU whatever device they stand for.

    What traces code for a CPU, torch.compile and torch.export, gets the reference.
    """
    return x.is_cuda or has_no_numbers(x)


def takes_cpu_code(*tensors: Tensor) -> bool:
    """Whether they go to an op's C++ code and not to its reference: in inference mode, where nobody asks for gradients,
    plain tensors on a CPU, all bf16 or all fp32. Whoever trains on a CPU, traces, or checks against torch has the
    reference."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return False
    dtype = tensors[0].dtype
    if dtype is not torch.float32 and dtype is not torch.bfloat16:
        return False
    return all(type(x) in _PLAIN and x.dtype is dtype and x.device.type == "cpu" for x in tensors)


def has_no_numbers(x: Tensor) -> bool:
    """On "meta", or of FakeTensorMode outside of tracing: what looks at a value must be left out."""
    return x.is_meta or (isinstance(x, FakeTensor) and not torch.compiler.is_compiling())


def inner_contiguous(x: Tensor) -> Tensor:
    """x itself where its last dim is contiguous (rows may lie apart), else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def as_rows(x: Tensor) -> Tensor:
    """(..., C) as (T, C), without a copy where that can be; reshape(-1, C) would not know T where C is 0."""
    return x.flatten(0, -2) if x.ndim > 1 else x.unsqueeze(0)


def on_device_of(tensor: Tensor) -> torch.cuda.device_of:
    """Makes a CUDA tensor's device the current one, on which Triton launches; does nothing for a CPU tensor."""
    return torch.cuda.device_of(tensor)
