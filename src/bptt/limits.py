"""Which of torch's errors say that it cannot batch an operation, or differentiate it forwards.

There is another way then. Every other error is that of the module's own code, or of a machine
without memory left, and is not caught.
"""

from __future__ import annotations

_BATCHED = (
    "vmap: ",
    "Batching rule not implemented for ",
    "Cannot access data pointer of Tensor that doesn't have storage",  # .tolist(), .data_ptr()
)
_DISPATCH = "Could not run '"  # a layout, as a sparse one, that has no such operation


def cannot_batch(error: RuntimeError) -> bool:
    """Whether an error of ``torch.autograd.grad(…, is_grads_batched=True)`` is torch's own limit.

    What torch raises then is a RuntimeError as any other, so it is known by its beginning.
    """
    message = str(error)
    if isinstance(error, NotImplementedError):
        return message.startswith((*_BATCHED, _DISPATCH))
    return type(error) is RuntimeError and message.startswith(_BATCHED)


def cannot_differentiate_forwards(error: NotImplementedError) -> bool:
    """Whether an error is that torch knows no forward-mode derivative of an operation."""
    return "forward AD" in str(error) or "forward mode AD" in str(error)
