"""What every node takes and gives that erases: a model and its text encoder."""

from __future__ import annotations

from comfy_api.latest import io


def model_inputs() -> list[io.Input]:
    """The model and its text encoder."""
    return [
        io.Model.Input("model", tooltip="The model to erase from; it stays as it is, a changed clone comes out."),
        io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
    ]


def model_outputs() -> list[io.Output]:
    """The model, and the text encoder, as they are after an erasure."""
    return [
        io.Model.Output("model", tooltip="The model with the concepts erased."),
        io.Clip.Output(
            "clip", tooltip="The text encoder; changed only by what edits it (EMCID, SLUG, AdvUnlearn, few-shot)."
        ),
    ]
