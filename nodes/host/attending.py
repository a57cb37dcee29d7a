"""Reweighting a prompt's words in the host's cross-attention (erasers/words.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional

from ...erasers.words import WordPart
from .acting import OVERRIDE, Sampling, behind, feature_size


def attend(model: ModelPatcher, guard: Any, part: WordPart, key: str) -> None:
    """Put a part on a clone: as scaled values, which chain, or around attention where that does not do."""
    if part.renormalise or part.region is not None:
        options = model.model_options["transformer_options"]
        options[OVERRIDE] = _around(guard, part, key, options.get(OVERRIDE))
    else:
        model.set_model_attn2_patch(_scaled(guard, part, key))


def _scaled(guard: Any, part: WordPart, key: str) -> Callable[..., Any]:
    def patch(n: Tensor, k: Tensor, v: Tensor, extra_options: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        weights = _weights(guard, part, extra_options, key, k)
        return (n, k, v) if weights is None else (n, k, v * weights[..., None])

    return patch


def _around(guard: Any, part: WordPart, key: str, before: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    def override(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        attention = behind(func, before)

        def inner(values: Tensor, **changed: Any) -> Tensor:
            return attention(q, k, values, *args, **{**kwargs, **changed})

        options = kwargs.get("transformer_options") or {}
        crosses = q.shape[-2] != k.shape[-2]
        weights = _weights(guard, part, options, key, k) if crosses else None
        if weights is None:
            return inner(v)
        if part.renormalise:
            changed = inner(v, mask=_bias(weights, q, kwargs.get("mask")))
        else:
            changed = inner(v * (weights[:, None, :, None] if v.ndim == 4 else weights[..., None]))
        if part.region is None:
            return changed
        where = _region(part.region, options, q.shape[-2]).to(changed)
        return torch.lerp(inner(v), changed, where[:, None])

    return override


def _weights(guard: Any, part: WordPart, options: Mapping[str, Any], key: str, k: Tensor) -> Tensor | None:
    """Weights `[b, tokens]` for the rows of an attention's keys; None where it does not act."""
    run: Sampling | None = options.get(key)
    block = options.get("block")
    if run is None or block is None or block[0] not in part.blocks:
        return None
    if not part.window.holds(run.percent(float(options["sigmas"].flatten()[0]))):
        return None
    uuids = options["uuids"]
    own = [run.weights(guard, uuid) for uuid in uuids]
    if all(weights is None for weights in own):
        return None
    count, tokens = len(k) // len(uuids), k.shape[-2]
    rows = [torch.ones(count, tokens) if w is None else _spread(w, count, tokens) for w in own]
    return torch.cat(rows).to(k)


def _spread(weights: Tensor, count: int, tokens: int) -> Tensor:
    """Weights of a condition for every picture of a batch; the host repeats prompts to a common length."""
    return weights.repeat(-(-count // len(weights)), tokens // weights.shape[1])[:count]


def _bias(weights: Tensor, q: Tensor, mask: Tensor | None) -> Tensor:
    bias = weights.log()[:, None].expand(-1, q.shape[-2], -1)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return bias + mask


def _region(region: Tensor, options: Mapping[str, Any], places: int) -> Tensor:
    """The region at the places of an attention's queries, `[places]`."""
    size = feature_size(options, places)
    return functional.interpolate(region[None, None].float(), size=size, mode="area").flatten()
