"""Sampling pictures inside a node, exactly as the stock KSampler and VAEDecode do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...erasers.errors import SettingError
from .pictures import decode_pictures
from .runtime import progress

READINGS = "lethe.readings"
"""Where CONDITIONING carries what readers made of a prompt's tokens: by owner, a list of one reading per row."""
SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS


@dataclass(frozen=True)
class Sampling:
    """How to sample: the settings of a KSampler and the size of the picture in pixels."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    width: int
    height: int


def draw(model: ModelPatcher, positive: Any, negative: Any, vae: Any, how: Sampling, count: int = 1) -> Tensor:
    """Draw `count` pictures from consecutive noise of one seed.

    Returns:
        `[count, height, width, 3]` float32 in 0..1 on the CPU.
    """
    return decode_pictures(vae, draw_latents(model, positive, negative, how, count))


def draw_latents(model: ModelPatcher, positive: Any, negative: Any, how: Sampling, count: int = 1) -> Tensor:
    """Latents `[count, c, h, w]`, or `[count, c, 1, h, w]` of a video model, of the pictures that `draw` draws."""
    empty = empty_latents(model, how, count)
    with progress(how.steps) as step:
        return comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(empty, how.seed),
            how.steps,
            how.cfg,
            how.sampler,
            how.scheduler,
            positive,
            negative,
            empty,
            seed=how.seed,
            callback=showing(model, step),
            disable_pbar=True,
        )


def showing(model: ModelPatcher, step: Callable[..., None]) -> Callable[..., None]:
    """A sampler's callback that tells a bar of each step, with a preview where the user has the host make them."""
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def callback(index: int, denoised: Any, *_: object) -> None:
        first = denoised.tensors[0] if denoised.is_nested else denoised
        step(previewer.decode_latent_to_preview_image("JPEG", first) if previewer else None)

    return callback


def empty_latents(model: ModelPatcher, how: Sampling, count: int) -> Tensor:
    """What sampling starts from, without its noise, as `draw_latents` gives it."""
    shape = count, *latent_shape(model, how.width, how.height)
    return torch.zeros(shape, device=comfy.model_management.intermediate_device())


def latent_shape(model: ModelPatcher, width: int, height: int) -> tuple[int, ...]:
    """The shape of a picture's latents; of a video, one frame."""
    known = model.model.latent_format
    frames = [1] * (known.latent_dimensions - 2)
    ratio = known.spacial_downscale_ratio
    return known.latent_channels, *frames, height // ratio, width // ratio


def prompts_at_once(encoded: list[Any]) -> Any:
    """CONDITIONING of several prompts as one: the host gives picture i of a batch the i-th row of every tensor.

    Raises:
        SettingError: the prompts differ in more than their features, so that no batch can hold them.
    """
    first = encoded[0]
    same = all(len(e) == 1 and e[0][1].keys() == first[0][1].keys() for e in encoded)
    if not same:
        raise SettingError("These prompts cannot be drawn in one batch.", "Set the batch to 1.")
    longest = max(e[0][0].shape[1] for e in encoded)
    if any(longest % e[0][0].shape[1] for e in encoded):
        raise SettingError("These prompts differ in length.", "Set the batch to 1.")
    states = torch.cat([e[0][0].repeat(1, longest // e[0][0].shape[1], 1) for e in encoded])
    extras = [e[0][1] for e in encoded]
    tensors = [name for name, value in extras[0].items() if isinstance(value, Tensor)]
    joined: dict[str, Any] = {name: torch.cat([e[name] for e in extras]) for name in tensors}
    if READINGS in extras[0]:
        joined[READINGS] = joined_readings([extra[READINGS] for extra in extras])
    return [[states, {**extras[0], **joined}]]


def joined_readings(readings: Sequence[Mapping[Any, list[Any]]]) -> dict[Any, list[Any]]:
    """The readings of several prompts as those of the rows of one batch."""
    return {owner: [own for one in readings for own in one[owner]] for owner in readings[0]}


def encode_prompt(clip: Any, prompt: str) -> Any:
    """CONDITIONING of a prompt, as the stock CLIPTextEncode gives it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
