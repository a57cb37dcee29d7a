"""The node that shows what an erasure did: same prompts and seeds through both models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..erasers.concepts import split_lines
from ..erasers.errors import SettingError
from ..erasers.measure.grid import comparison_grid
from .host.runtime import progress
from .host.sampling import Sampling, draw, encode_prompt
from .sampling_inputs import preview, sampling_inputs


class LetheCompare(io.ComfyNode):
    """Before and after, side by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheCompare",
            display_name="Before / After",
            category="lethe/measure",
            description="Draws the same prompts with the same seeds through both models and sets the pictures side "
            "by side.",
            inputs=[
                io.Model.Input("before", tooltip="The untouched model, as it is before the eraser or guard."),
                io.Model.Input("after", tooltip="The model with concepts erased."),
                io.Clip.Input("clip", tooltip="The text encoder of both, or of 'before' if clip_after is connected."),
                io.Vae.Input("vae", tooltip="The autoencoder that belongs to the models."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="One prompt per line: what is erased, and what has to stay.",
                ),
                *sampling_inputs(),
                io.ImageCompare.Input(
                    "view", optional=True, tooltip="Shows both after a run: slide between before and after."
                ),
                io.Clip.Input("clip_after", optional=True, tooltip="The text encoder of 'after', where it differs."),
            ],
            outputs=[
                io.Image.Output("grid", tooltip="Labelled grid: a row per prompt, before and after."),
                io.Image.Output("images_before", tooltip="The pictures of the untouched model, prompt by prompt."),
                io.Image.Output("images_after", tooltip="The pictures of the other, in the same order."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            search_aliases=["compare", "side by side", "image compare", "A/B test", "grid"],
        )

    @classmethod
    def execute(
        cls,
        before: ModelPatcher,
        after: ModelPatcher,
        clip: Any,
        vae: Any,
        prompts: str,
        negative: str,
        count: int,
        view: Any = None,
        clip_after: Any = None,
        **sampling: Any,
    ) -> io.NodeOutput:
        lines = split_lines(prompts)
        if not lines:
            raise SettingError("There is no prompt to compare.", "Write one per line.")
        how = Sampling(**sampling)
        arms = ((before, clip), (after, clip_after or clip))
        with progress(len(arms) * len(lines)) as step:
            first, second = (_draw_all(*arm, vae, lines, negative, how, count, step) for arm in arms)
        grid = comparison_grid(lines, first, second)
        pictures = {name: preview(batch, cls) for name, batch in (("a_images", first), ("b_images", second))}
        return io.NodeOutput(grid, first, second, ui={"images": preview(grid, cls), **pictures})


def _draw_all(
    model: ModelPatcher,
    clip: Any,
    vae: Any,
    prompts: tuple[str, ...],
    negative: str,
    how: Sampling,
    count: int,
    step: Callable[[], None],
) -> Tensor:
    """`[prompts * count, h, w, 3]`; one arm at a time, since switching patched clones is slow."""
    against, drawn = encode_prompt(clip, negative), []
    for positive in [encode_prompt(clip, prompt) for prompt in prompts]:
        drawn.append(draw(model, positive, against, vae, how, count))
        step()
    return torch.cat(drawn)
