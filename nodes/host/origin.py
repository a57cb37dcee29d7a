"""Where figures come from: fingerprints of models and of the erasers they carry, and versions."""

from __future__ import annotations

from typing import Any

import comfyui_version
from comfy.model_patcher import ModelPatcher

from ...erasers.provenance import eraser_fingerprint, fingerprint, versions
from .conditioning import encoder_fingerprint
from .patcher import applied_erasers

_SAMPLED = 24


def origin(before: ModelPatcher, after: ModelPatcher, clip: Any, clip_after: Any) -> dict[str, object]:
    """What a second run needs to know about both models, for a report."""
    erasers = [
        {
            "method": entry.eraser.recipe.method,
            "settings": dict(entry.eraser.recipe.settings),
            "strength": entry.strength,
            "form": entry.form,
            "fingerprint": eraser_fingerprint(entry.eraser),
        }
        for entry in applied_erasers(after)
    ]
    return {
        "denoiser": denoiser_fingerprint(before),
        "text encoder": encoder_fingerprint(clip),
        "text encoder after": encoder_fingerprint(clip_after),
        "patches before": len(before.patches),
        "patches after": len(after.patches),
        "erasers": erasers,
        "versions": versions() | {"comfyui": comfyui_version.__version__},
    }


def denoiser_fingerprint(model: ModelPatcher) -> str:
    """A short hash of some of the denoiser's own weights, patches aside."""
    weights = {name: value for name, value in model.model_state_dict("diffusion_model.").items() if value.ndim == 2}
    chosen = sorted(weights)[:: max(1, len(weights) // _SAMPLED)]
    return fingerprint((name, weights[name][:16]) for name in chosen)


def eraser_title(model: ModelPatcher) -> str:
    """The methods of the erasers a model carries, e.g. "uce"; "model" where it carries none."""
    return " + ".join(entry.eraser.recipe.method for entry in applied_erasers(model)) or "model"
