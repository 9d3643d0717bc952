"""Recognise torch's errors that an operation cannot be batched, or differentiated forwards.

These have an alternative. Every other error comes from the module's own code, or from a machine
without memory left, and is not caught.
"""

from __future__ import annotations

_BATCHED = (
    "vmap: ",
    "Batching rule not implemented for ",
    "Cannot access data pointer of Tensor that doesn't have storage",  # .tolist(), .data_ptr()
)
_DISPATCH = "Could not run '"  # a layout without such an operation, such as a sparse one


def cannot_batch(error: RuntimeError) -> bool:
    """Whether an error of ``torch.autograd.grad(…, is_grads_batched=True)`` is torch's own limit.

    Torch raises a plain RuntimeError then, so it is recognised by its beginning.
    """
    message = str(error)
    if isinstance(error, NotImplementedError):
        return message.startswith((*_BATCHED, _DISPATCH))
    return type(error) is RuntimeError and message.startswith(_BATCHED)


def cannot_differentiate_forwards(error: NotImplementedError) -> bool:
    """Whether torch raised an error because an operation has no forward-mode derivative."""
    return "forward AD" in str(error) or "forward mode AD" in str(error)
