"""The node that fits a closed-form eraser and applies it, and the one that applies a finished eraser."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..erasers.concepts import ConceptList
from ..erasers.registry import method_named, methods
from ..erasers.result import Eraser
from ..erasers.task import Task
from .host.conditioning import encoder_fingerprint, text_encoder
from .host.patcher import hook_operator, patch_weights
from .host.runtime import LOG
from .host.sites import model_sites
from .settings import chosen_method, method_input
from .sockets import Concepts, EraserSocket

HOOK, WEIGHTS = "hook", "weights"


def _strength_input() -> io.Float.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-2.0,
        max=2.0,
        step=0.01,
        tooltip="How much of the edit acts: 0 leaves the model untouched, 1 is the method as published, above 1 "
        "overshoots, negative values strengthen the concept.",
    )


def _form_input() -> io.Combo.Input:
    return io.Combo.Input(
        "form",
        options=[HOOK, WEIGHTS],
        default=HOOK,
        tooltip="hook edits the text features on their way into the model: exact for quantised weights, free to "
        "remove. weights writes the same edit as patches on the cross-attention weights.",
    )


class LetheErase(io.ComfyNode):
    """Erase concepts in closed form, in milliseconds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheErase",
            display_name="Erase (closed form)",
            category="lethe/erase",
            description="Fits an eraser for the given concepts and applies it to the model. No training.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to erase from; it stays as it is, a changed clone comes out."
                ),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                Concepts.Input("concepts", tooltip="What to erase and what to preserve."),
                _strength_input(),
                _form_input(),
                method_input("method", [m.spec for m in methods().values()], "The published method to use."),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the concepts erased."),
                io.Clip.Output("clip", tooltip="The text encoder, unchanged by this method."),
                EraserSocket.Output("eraser", tooltip="The fitted eraser, to save, share or apply elsewhere."),
            ],
            search_aliases=["UCE", "unlearn", "concept erasure"],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: Any,
        concepts: ConceptList,
        strength: float,
        form: str,
        method: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        name, given = chosen_method("method", method)
        chosen = method_named(name)
        settings = chosen.spec.settings(given)
        family, _ = model_sites(model)
        task = Task(concepts, family, encoder_fingerprint(clip), text_encoder(clip, family))
        eraser = chosen.fit(task, settings)
        return io.NodeOutput(apply_eraser(model, clip, eraser, strength, form), clip, eraser)


class LetheApply(io.ComfyNode):
    """Apply an eraser that was loaded or fitted elsewhere."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheApply",
            display_name="Apply Eraser",
            category="lethe/erase",
            description="Applies a finished eraser to a model of the family it was made for.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to erase from; it stays as it is, a changed clone comes out."
                ),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                EraserSocket.Input("eraser", tooltip="The eraser to apply."),
                _strength_input(),
                _form_input(),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the eraser applied."),
                io.Clip.Output("clip", tooltip="The text encoder."),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, clip: Any, eraser: Eraser, strength: float, form: str) -> io.NodeOutput:
        return io.NodeOutput(apply_eraser(model, clip, eraser, strength, form), clip)


def apply_eraser(model: ModelPatcher, clip: Any, eraser: Eraser, strength: float, form: str) -> ModelPatcher:
    """A clone of `model` with the eraser applied, as a hook or as weight patches.

    Raises:
        FamilyError: the eraser was made for another family.
    """
    family, sites = model_sites(model)
    operator = eraser.operator_for(family.stream, family.width, family.name)
    if eraser.recipe.encoder != encoder_fingerprint(clip):
        LOG.warning("This eraser was fitted on another text encoder of the same kind; check its effect.")
    if form == WEIGHTS:
        return patch_weights(model, operator, sites, strength)
    return hook_operator(model, operator, strength)
