"""Out of the host's inference mode, where gradients are wanted, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.utils
import torch
from torch import Tensor, nn


@contextmanager
def ordinary(*loaded: Any) -> Iterator[None]:
    """Leave inference mode, without gradients; what is loaded meanwhile is fit for the caller's mode afterwards.

    Args:
        loaded: MODELs, CLIPs and modules that are used inside; None for one that is not there.
    """
    inside = torch.is_inference_mode_enabled()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        if inside:
            for one in loaded:
                _give_back(one)


def make_ordinary(module: nn.Module) -> None:
    """Replace tensors that were made in inference mode, which autograd refuses, by equal ones that it takes."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_inference():
            is_parameter = isinstance(value, nn.Parameter)
            replace = comfy.utils.set_attr_param if is_parameter else comfy.utils.set_attr_buffer
            replace(module, name, value.clone())


def _give_back(loaded: Any) -> None:
    """Wrap quantised weights anew, uncopied: in inference mode the host cannot move those made outside of it."""
    if loaded is None:
        return
    module = loaded if isinstance(loaded, nn.Module) else getattr(loaded, "patcher", loaded).model
    for name, value in list(module.named_parameters()):
        if hasattr(value, "__tensor_flatten__") and not value.is_inference():
            comfy.utils.set_attr_param(module, name, _wrapped(value))


def _wrapped(value: Any) -> Tensor:
    names, context = value.__tensor_flatten__()
    parts = {name: getattr(value, name) for name in names}
    return type(value).__tensor_unflatten__(parts, context, value.shape, value.stride())
