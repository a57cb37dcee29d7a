"""Applying a context operator to a MODEL: by a hook on its text features, or as weight patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ...erasers.errors import FamilyError, SettingError
from ...erasers.result import ContextOperator
from ...erasers.sites import Site

KEY = "lethe.context"
Applied = tuple[tuple[ContextOperator, float], ...]


def hook_operator(model: ModelPatcher, operator: ContextOperator, strength: float) -> ModelPatcher:
    """A clone of `model` whose text features pass through `operator`.

    Operators that are already there stay, and act after the new one: as later edits of weights do.
    Strength 0 adds nothing. Any change of x -> T x is exact for weights in every precision.
    """
    clone = model.clone()
    if strength == 0:
        return clone
    applied: Applied = ((operator, strength), *(model.get_attachment(KEY) or ()))
    clone.set_attachments(KEY, applied)
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _edit_context(applied))
    return clone


def patch_weights(
    model: ModelPatcher, operator: ContextOperator, sites: tuple[Site, ...], strength: float
) -> ModelPatcher:
    """A clone of `model` with W (I + M) as a low-rank patch on every site.

    Raises:
        SettingError: the operator has a bias, which a projection without one cannot hold.
        FamilyError: the host refused a site.
    """
    if operator.bias is not None:
        raise SettingError("This eraser shifts the text features by a bias.", "Apply it as a context operator.")
    clone = model.clone()
    if strength == 0:
        return clone
    patches = {site.name: _low_rank_patch(site.name, *operator.factors(_weight(model, site.name))) for site in sites}
    refused = set(patches) - set(clone.add_patches(patches, strength))
    if refused:
        raise FamilyError(f"The host refused to patch {sorted(refused)[0]}.", "Apply it as a context operator.")
    return clone


def _edit_context(applied: Applied) -> Callable[..., Tensor]:
    moved: dict[torch.device, Applied] = {}

    def wrapper(
        executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if c_crossattn is None:
            return executor(x, t, c_concat, c_crossattn, *args, **kwargs)
        device = c_crossattn.device
        if device not in moved:
            moved[device] = tuple((operator.to(device), strength) for operator, strength in applied)
        for operator, strength in moved[device]:
            c_crossattn = operator.apply(c_crossattn, strength)
        return executor(x, t, c_concat, c_crossattn, *args, **kwargs)

    return wrapper


def _low_rank_patch(name: str, up: Tensor, down: Tensor) -> LoRAAdapter:
    return LoRAAdapter({name}, (up, down, None, None, None, None))


def _weight(model: ModelPatcher, name: str) -> Tensor:
    """The effective weight `[o, d]` in float32 on the CPU: base weight plus the patches of `model`."""
    weight, _, convert = comfy.model_patcher.get_key_weight(model.model, name)
    if name in model.backup:
        weight = model.backup[name].weight
    weight = comfy.model_management.cast_to_device(weight, torch.device("cpu"), torch.float32, copy=True)
    if convert is not None:
        weight = convert(weight, inplace=True)
    return comfy.lora.calculate_weight(model.patches.get(name, []), weight, name)
