"""How to draw pictures: the inputs that every node has that draws, and the previews that it shows."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from .host.sampling import SAMPLERS, SCHEDULERS


def sampling_inputs() -> list[io.Input]:
    """Negative prompt, seed, pictures per prompt, and the settings of a KSampler with the picture's size."""
    return [
        io.String.Input("negative", default="", multiline=True, tooltip="Negative prompt of all of them."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=False,
            tooltip="Noise seed, the same for every prompt and both models.",
        ),
        io.Int.Input("count", default=1, min=1, max=64, tooltip="Pictures per prompt, 1 to 64."),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps; 20 suits the demo model."),
        io.Float.Input("cfg", default=4.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance scale; start at 4 to 7."),
        io.Combo.Input("sampler", options=SAMPLERS, default="euler", tooltip="The host's samplers."),
        io.Combo.Input("scheduler", options=SCHEDULERS, default="normal", tooltip="The host's schedulers."),
        io.Int.Input("width", default=128, min=64, max=8192, step=8, tooltip="Pixels; 128 for the demo model."),
        io.Int.Input("height", default=128, min=64, max=8192, step=8, tooltip="Pixels; 128 for the demo model."),
    ]


def preview(images: Tensor, cls: Any) -> list[Any]:
    """What a node shows of pictures `[n, h, w, 3]`: references to files in the host's temporary folder."""
    return ui.PreviewImage(images, cls=cls).as_dict()["images"]
