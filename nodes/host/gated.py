"""Erasers behind gates on a MODEL: gates are asked once per prompt, and what they let through acts in its rows alone.

Sampling starts by asking every gate about every condition. Each pass of the model then runs the open members beside
its layers by forward hooks that are there for this pass only; where all gates are shut it runs as if there were none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...erasers.algebra.hooks import hooked
from ...erasers.errors import GuardError, SettingError
from ...erasers.gated import GatedParts
from ...erasers.sites import Family
from .entering import edit_entering
from .guarding import KEY as GUARDS
from .reading import TOKENS
from .sampling import READINGS

KEY = "lethe.gated"
_COMPILED = "torch.compile"
"""The host's key for compiled models."""


def add_gated(model: ModelPatcher, family: Family, keys: Mapping[str, str], parts: GatedParts) -> None:
    """Put members behind gates on a MODEL, in place of those that are there.

    Args:
        keys: the host's names of weights by those in erasers.
    """
    wrappers = ((WrappersMP.OUTER_SAMPLE, _ask(parts)), (WrappersMP.APPLY_MODEL, _apply(parts, family, keys)))
    for kind, wrapper in wrappers:
        model.remove_wrappers_with_key(kind, KEY)
        if parts.members:
            model.add_wrapper_with_key(kind, KEY, wrapper)


def _ask(parts: GatedParts) -> Callable[..., Any]:
    """The wrapper around a whole sampling, which asks the gates."""

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        found: dict[UUID, Tensor] = {}
        for name, cond in ((name, cond) for name, conds in guider.conds.items() for cond in conds or ()):
            states = cond.get("cross_attn")
            if states is None:
                raise GuardError("This model reads no text features, so no gate can be asked.", "Merge in mode sum.")
            # A guard's own prompts may have been encoded before there were gates: their features have to do.
            if parts.reads_tokens and READINGS not in cond and not name.startswith(GUARDS):
                raise GuardError(
                    "A gate of this eraser has to know the prompt's tokens.",
                    "Encode the prompts with the CLIP output of 'Apply Eraser'.",
                )
            found[cond["uuid"]] = parts.openness(states, _ids(cond))
        options = guider.model_options.setdefault("transformer_options", {})
        options[KEY] = found
        try:
            return executor(*args, **kwargs)
        finally:
            options.pop(KEY, None)

    return wrapper


def _ids(cond: Mapping[str, Any]) -> Sequence[Sequence[int]]:
    return [reading or () for reading in cond.get(READINGS, {}).get(TOKENS, ())]


def _apply(parts: GatedParts, family: Family, keys: Mapping[str, str]) -> Callable[..., Any]:
    """The wrapper around one pass of the model."""

    def wrapper(
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = transformer_options or {}
        at_work = None
        if isinstance(c_crossattn, Tensor):
            openness = _openness(parts, options, c_crossattn, len(x))
            at_work = parts.at_work(openness, x.device, c_crossattn.dtype)
        if at_work is None or c_crossattn is None:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        if _COMPILED in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}):
            raise SettingError(
                "Gated erasers cannot act inside a compiled model.", "Take TorchCompileModel out, or merge in mode sum."
            )
        c_crossattn, kwargs = edit_entering(family, c_crossattn, kwargs, at_work.edit)
        model = executor.class_obj
        with hooked(at_work.hooks(lambda name: model.get_submodule(keys[f"{name}.weight"].removesuffix(".weight")))):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    return wrapper


def _openness(parts: GatedParts, options: Mapping[str, Any], states: Tensor, rows: int) -> Tensor:
    """Gates for every row of a batch, `[rows, members]`: those asked before, or asked now of features that are new."""
    known, uuids = options.get(KEY, {}), options.get("uuids", ())
    if not uuids or any(uuid not in known for uuid in uuids):
        return parts.openness(states, ())
    each = rows // len(uuids)
    found = [known[uuid].repeat(-(-each // len(known[uuid])), 1)[:each] for uuid in uuids]
    return torch.cat(found)
