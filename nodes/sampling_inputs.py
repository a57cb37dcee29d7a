"""How to draw pictures: the inputs that every node has that draws, and the previews that it shows."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from .host.sampling import SAMPLERS, SCHEDULERS


def sampling_inputs() -> list[io.Input]:
    """Negative prompt, seed, pictures per prompt, and the settings of a KSampler with the picture's size."""
    return [
        io.String.Input(
            "negative",
            default="",
            multiline=True,
            tooltip="What no picture shall show: one negative prompt for all of them.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=False,
            tooltip="Noise seed, the same for every prompt and both models.",
        ),
        io.Int.Input(
            "count",
            default=1,
            min=1,
            max=64,
            tooltip="Pictures per prompt, 1 to 64, each from noise of its own. Start at 1 to look, at 4 or more to "
            "judge.",
        ),
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=1000,
            tooltip="Sampling steps, 1 to 1000. Start at 20, which suits the demo model; more only take longer.",
        ),
        io.Float.Input(
            "cfg",
            default=4.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="Guidance scale, 0 to 100. Start at 4 to 7, or at what you draw with; too high burns colours and "
            "shapes in.",
        ),
        io.Combo.Input(
            "sampler", options=SAMPLERS, default="euler", tooltip="One of the host's samplers. Start with euler."
        ),
        io.Combo.Input(
            "scheduler",
            options=SCHEDULERS,
            default="normal",
            tooltip="One of the host's schedulers, which spaces the steps. Start with normal.",
        ),
        io.Int.Input(
            "width",
            default=128,
            min=64,
            max=8192,
            step=8,
            tooltip="Width in pixels, 64 to 8192: 128 suits the demo model, 512 SD 1.5, 1024 SDXL and Flux. Another "
            "size than the model learned gives poor pictures.",
        ),
        io.Int.Input(
            "height",
            default=128,
            min=64,
            max=8192,
            step=8,
            tooltip="Height in pixels, 64 to 8192: 128 suits the demo model, 512 SD 1.5, 1024 SDXL and Flux. Another "
            "size than the model learned gives poor pictures.",
        ),
    ]


def preview(images: Tensor, cls: Any) -> list[Any]:
    """What a node shows of pictures `[n, h, w, 3]`: references to files in the host's temporary folder."""
    return ui.PreviewImage(images, cls=cls).as_dict()["images"]
