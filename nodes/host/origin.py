"""Where figures come from: fingerprints of models and of the erasers they carry, and versions."""

from __future__ import annotations

from typing import Any

import comfyui_version
from comfy.model_patcher import ModelPatcher

from ...erasers.provenance import denoiser_fingerprint, eraser_fingerprint, versions
from .conditioning import encoder_fingerprint
from .patcher import applied_erasers


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
        "denoiser": denoiser_fingerprint(before.model_state_dict("diffusion_model.")),
        "text encoder": encoder_fingerprint(clip),
        "text encoder after": encoder_fingerprint(clip_after),
        "patches before": len(before.patches),
        "patches after": len(after.patches),
        "erasers": erasers,
        "versions": versions() | {"comfyui": comfyui_version.__version__},
    }


def eraser_title(model: ModelPatcher) -> str:
    """The methods of the erasers a model carries, e.g. "uce"; "model" where it carries none."""
    return " + ".join(entry.eraser.recipe.method for entry in applied_erasers(model)) or "model"
