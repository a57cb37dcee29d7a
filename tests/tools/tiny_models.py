"""Models of the host's own classes with seeded random weights: reduced in depth and inner width, true in structure.

Widths of text features are true, because a family is recognised by them; so are the tokenizers where the host ships
them. Token embeddings are folded to a few rows, which ids share. Import only after the `comfy` fixture has run.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from family_encoders import ROWS
from family_plans import PLANS, Plan
from torch import Tensor, nn

RELATIVES = (
    "flux2_klein_4b",
    "flux2_klein_9b",
    "chroma",
    "cosmos1",
    "hunyuan_video",
    "hunyuan_video15",
    "longcat_image",
    "ltxv",
    "mochi",
    "sd2",
    "sdxl_refiner",
)
"""Families that act by the same parts as others do, which are always run."""


def full_model(name: str) -> Any:
    """MODEL at its true size, without memory for its weights."""
    return _patcher(PLANS[name], {}, torch.device("meta"), torch.float16)


def tiny_model(name: str, seed: int = 0) -> Any:
    """MODEL in float32 with random weights."""
    plan = PLANS[name]
    patcher = _patcher(plan, plan.tiny, torch.device("cpu"), torch.float32)
    fill(patcher.model, seed)
    return patcher


def tiny_clip(name: str, seed: int = 1) -> Any:
    """CLIP in float32 with random weights and the host's own tokenizers."""
    import comfy.sd

    plan = PLANS[name]
    tokenizer, model = plan.clip()
    target = SimpleNamespace(params={}, clip=model, tokenizer=tokenizer)
    options = {"dtype": torch.float32, **plan.options}
    given = {k: dict(v) if isinstance(v, dict) else v for k, v in options.items()}
    with _sightless():
        clip = comfy.sd.CLIP(target, model_options=given)
    for module in clip.cond_stage_model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings > ROWS:
            _fold(module)
        if isinstance(getattr(module, "layer", None), list):
            _pass_by(module)
    fill(clip.cond_stage_model, seed)
    return clip


@cache
def tiny(name: str) -> tuple[Any, Any]:
    """MODEL and CLIP of a family, the same ones until `tiny.cache_clear()`."""
    return tiny_model(name), tiny_clip(name)


def sample(name: str, model: Any, clip: Any, prompt: str, steps: int = 0, cfg: float = 1.0, seed: int = 3) -> Tensor:
    """A latent drawn by the host; in as many steps as the plan says, where none are given."""
    import comfy.sample

    noise = torch.randn(1, *PLANS[name].latent, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        given = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, "")]
        return comfy.sample.sample(
            model,
            noise,
            steps or PLANS[name].steps,
            cfg,
            "euler",
            "normal",
            *given,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=seed,
        )


def fill(module: nn.Module, seed: int) -> None:
    """Give every weight a value that depends on its name and the seed alone; norms become ones, biases zeros."""
    places = [*module.named_parameters(), *(b for b in module.named_buffers() if "pos_embed" in b[0])]
    for name, value in places:
        if not value.is_floating_point():
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
        if value.ndim < 2:
            value.data.fill_(1.0 if name.endswith(("weight", "scale")) else 0.0)
        else:
            is_table = any(part in name for part in ("embed_tokens", "shared", "token_embedding", "word_embeddings"))
            spread = 1.0 if is_table else value[0].numel() ** -0.5
            value.data.copy_(torch.randn(value.shape, generator=generator) * spread)


@contextmanager
def _sightless() -> Iterator[None]:
    """Language models that can see are built without their eyes, which no configuration reduces."""
    import comfy.text_encoders.llama as llama
    import comfy.text_encoders.qwen3vl as qwen3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama.qwen_vl, "Qwen2VLVisionTransformer", lambda *args, **kwargs: nn.Identity())
        patch.setattr(qwen3, "Qwen3VLVisionModel", lambda *args, **kwargs: nn.Identity())
        yield


def _patcher(plan: Plan, changes: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    wanted = {**plan.full, **changes}
    config = getattr(comfy.supported_models, plan.config)(dict(wanted))
    config.unet_config = {**config.unet_config, **changes}
    config.set_inference_dtype(dtype, None)
    cpu = torch.device("cpu")
    return ModelPatcher(config.get_model({}, "", device=device), cpu, cpu)


class _Passing(nn.Module):
    """A layer of a language model that changes nothing."""

    def forward(self, x: Tensor, **_: Any) -> tuple[Tensor, None]:
        return x, None


def _pass_by(encoder: Any) -> None:
    """Leave of a text encoder of which some layers are read those alone that come right before one of them."""
    layers = encoder.transformer.model.layers
    for index in range(len(layers)):
        if index + 1 not in encoder.layer:
            layers[index] = _Passing()


def _fold(module: nn.Embedding) -> None:
    """Make a token embedding small: ids that differ by a multiple of its rows share one."""
    base = type(module)

    def forward(self: Any, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return base.forward(self, ids % ROWS, *args, **kwargs)

    module.weight = nn.Parameter(torch.empty(ROWS, module.embedding_dim), requires_grad=False)
    module.num_embeddings = ROWS
    module.__class__ = type("Folded", (base,), {"forward": forward})
