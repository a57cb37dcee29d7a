"""The node that shows where a picture looks at the words of its prompt."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..erasers.concepts import split_lines
from ..erasers.measure.heat import heat_pictures
from .host.looking import look_at_words
from .host.pictures import decode_pictures
from .host.runtime import blocked
from .host.sampling import Sampling
from .sampling_inputs import preview, sampling_inputs


class LetheLook(io.ComfyNode):
    """Heat maps of the cross-attention to words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheLook",
            display_name="See Where Words Look",
            category="lethe/guard",
            description="Draws a prompt and shows, word by word, where in the picture its tokens get attention: the "
            "mean over steps, layers and heads. The picture is the same as without looking.",
            inputs=[
                io.Model.Input("model", tooltip="The model to look into; guards and erasers on it take part."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to it."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What to draw, in one prompt that holds the words below.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    multiline=True,
                    tooltip="Words of the prompt, one per line, as they stand in it; 'red ball' counts as one.",
                ),
                *sampling_inputs(),
                io.Vae.Input("vae", optional=True, tooltip="Gives the picture, and lays the maps over it."),
            ],
            outputs=[
                io.Image.Output(
                    "maps", tooltip="A heat map for each word of each picture, from its least to its most."
                ),
                io.Image.Output("picture", tooltip="What was drawn; needs the VAE."),
                io.String.Output("shares", tooltip="The mean share of the attention that a token of each word gets."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            search_aliases=["cross-attention map", "attention map", "heat map", "DAAM", "saliency"],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: Any,
        prompt: str,
        words: str,
        negative: str,
        count: int,
        vae: Any = None,
        **sampling: Any,
    ) -> io.NodeOutput:
        chosen = split_lines(words)
        latents, maps = look_at_words(model, clip, prompt, chosen, Sampling(**sampling), negative, count)
        pictures = None if vae is None else decode_pictures(vae, latents)
        behind = None if pictures is None else torch.repeat_interleave(pictures, len(chosen), 0)
        shown = heat_pictures(maps.flatten(0, 1), behind)
        shares = zip(chosen, maps.mean((0, 2, 3)).tolist(), strict=True)
        return io.NodeOutput(
            shown,
            blocked("Connect a VAE to see the picture.") if pictures is None else pictures,
            "\n".join(f"{word}: {share:.1%}" for word, share in shares),
            ui={"images": preview(shown, cls)},
        )
