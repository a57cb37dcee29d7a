"""Pictures that are drawn anew: sampling starts at the end of the way back from them (`erasers.guard.Path`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ...erasers.errors import GuardError
from ...erasers.guard import Path
from ...erasers.learn.path import walk_back
from ...erasers.learn.space import wide

Part = tuple[Any, Path]
Along = dict[Any, dict[float, Tensor]]
"""Predictions that lead along the way, by guard and level."""


def start_from_pictures(
    options: dict[str, Any],
    rows: Callable[[Any, int], Tensor],
    parts: Sequence[Part],
    along: Along,
    named: Callable[[Any, str], Any],
    key: str,
) -> None:
    """Let the sampling whose model options these are start from parts' pictures, and fill in `along`.

    Args:
        rows: which of a number of pictures a guard acts on.
        named: the conditions of a guard's own prompt, once the host has prepared them.
        key: of the wrapper.

    Raises:
        GuardError: there are two such guards.
    """
    if len(parts) > 1:
        raise GuardError("Two guards would draw a picture anew.", "Take one of them out.")
    if not parts:
        return
    (guard, path), *_ = parts

    def wrapper(
        executor: Any, guider: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor, *rest: Any
    ) -> Any:
        latent, *others = rest
        own = _fitted(path.latents, noise)
        model, kept = guider.inner_model, along.setdefault(guard, {})
        levels = sorted({float(sigma) for sigma in sigmas if sigma > 0})

        def denoise(x: Tensor, sigma: float) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            level = torch.full((len(x),), sigma, device=x.device)
            told = extra["model_options"]
            return comfy.samplers.calc_cond_batch(model, [named(guard, path.prompt)], x, level, told)[0]

        x = own
        for sigma, (here, found) in zip(levels, walk_back(own, levels, denoise, path.rounds), strict=True):
            x, kept[sigma] = here, found
        most = executor.class_obj.max_denoise(guider, sigmas)
        started = _noise_of(model.model_sampling, sigmas[0], x, latent, most)
        noise = torch.where(wide(rows(guard, len(noise)).to(noise), noise).bool(), started, noise)
        return executor(guider, sigmas, extra, callback, noise, latent, *others)

    add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, wrapper, options, is_model_options=True)


def prediction_along(along: Mapping[float, Tensor] | None, sigma: float) -> Tensor | None:
    """The prediction that leads along the way at a level; None where there is no way.

    Raises:
        GuardError: the sampler looks at levels between its steps.
    """
    if along is None:
        return None
    if sigma not in along:
        raise GuardError("This sampler looks between its steps, where a picture's way back has no level.", "Use euler.")
    return along[sigma]


def _fitted(latents: Tensor, noise: Tensor) -> Tensor:
    if latents.shape[1:] != noise.shape[1:]:
        sizes = [" x ".join(str(8 * side) for side in reversed(x.shape[2:])) for x in (latents, noise)]
        raise GuardError(
            f"The picture has {sizes[0]} pixels, and {sizes[1]} are drawn.", "Give the sampler latents of its size."
        )
    return latents.to(noise).repeat(-(-len(noise) // len(latents)), *[1] * (latents.ndim - 1))[: len(noise)]


def _noise_of(sampling: Any, sigma: Tensor, x: Tensor, latent: Tensor, most: bool) -> Tensor:
    """The noise of which the host makes `x`: what it makes is linear in the noise."""
    nothing = sampling.noise_scaling(sigma, torch.zeros_like(x), latent.clone(), most)
    scale = sampling.noise_scaling(sigma, torch.ones_like(x), torch.zeros_like(latent), most)
    return (x - nothing) / scale
