"""The node that turns a prompt's words up or down."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..erasers.window import Window
from ..erasers.words import BLOCKS, parse_words
from .host.fit import reweight
from .model_inputs import model_inputs

_ALL = "all"
_SCALE, _RENORMALISE = "scale", "renormalise"


class LetheAttention(io.ComfyNode):
    """Reweight or mute words of the prompt in attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheAttention",
            display_name="Reweight Attention",
            category="lethe/guard",
            description="Turns words of the prompt up or down where the picture looks at them; the text stays.",
            inputs=[
                *model_inputs(),
                io.String.Input(
                    "words",
                    default="",
                    multiline=True,
                    tooltip="One per line with its weight, -2 to 10: 'ball: 0.2'. 0 mutes a word (so does a word "
                    "alone), 1 leaves it, 2 doubles it, below 0 pushes away.",
                ),
                io.Float.Input(
                    "end_weight",
                    default=1.0,
                    min=-2.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Weight of what stands behind the prompt (end token, padding, a template's end), -2 to 10. "
                    "With CLIP and language models it carries a summary of the prompt, so a muted word comes back "
                    "through it: start at 0.5 to mute, 1 leaves it.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="Share of sampling at which it begins to act, 0 to 0.99. Start at 0, the first step.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of sampling at which it ends, 0.01 to 1. Start at 1, the last step; 0.8 is usual "
                    "where the layout shall stay.",
                ),
                io.Combo.Input(
                    "blocks",
                    options=[_ALL, *BLOCKS],
                    default=_ALL,
                    tooltip="The part of a UNet it acts in: all of it, or its input, middle or output blocks. Start "
                    "with all, which is the only one for other models.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "mode",
                    options=[_SCALE, _RENORMALISE],
                    default=_SCALE,
                    tooltip="scale multiplies what the word gives and leaves the rest. renormalise gives its share of "
                    "the attention to the other words; it takes no weights below 0.",
                    advanced=True,
                ),
                io.Mask.Input("region", optional=True, tooltip="Where in the picture it acts; everywhere without one."),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model that weighs the words so."),
                io.Clip.Output(
                    "clip", tooltip="Encode the prompt with this one: it tells the model where the words are."
                ),
            ],
            search_aliases=["Prompt-to-Prompt", "mute word", "attention reweighting", "prompt weight", "emphasis"],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: Any,
        words: str,
        end_weight: float,
        start: float,
        end: float,
        blocks: str,
        mode: str,
        region: Tensor | None = None,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            *reweight(
                model,
                clip,
                parse_words(words),
                end_weight=end_weight,
                window=Window(start, end),
                blocks=BLOCKS if blocks == _ALL else (blocks,),
                renormalise=mode == _RENORMALISE,
                region=None if region is None else region[0],
            )
        )
