"""The node that fits a closed-form eraser and applies it, and the one that applies a finished eraser."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..erasers.concepts import ConceptList
from ..erasers.registry import method_named, methods
from ..erasers.result import Eraser
from ..erasers.spec import MethodSpec
from .host.fit import fit_eraser, warn_of_other_encoder
from .host.patcher import HOOK, WEIGHTS, apply_to_clip, apply_to_model
from .host.sites import model_sites
from .model_inputs import model_inputs, model_outputs
from .settings import chosen_method, method_input
from .sockets import Concepts, EraserSocket


def _form_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=-2.0,
            max=2.0,
            step=0.01,
            tooltip="How much of the edit acts: 0 leaves the model untouched, 1 is the method as published, above 1 "
            "overshoots, negative values strengthen the concept.",
        ),
        io.Combo.Input(
            "form",
            options=[HOOK, WEIGHTS],
            default=HOOK,
            tooltip="hook edits the text features on their way into the model: exact for quantised weights, free to "
            "remove. weights writes the same edit as low-rank patches on the cross-attention weights. Methods whose "
            "edit differs from layer to layer (SPEED, ConceptPrune) write weights either way.",
            advanced=True,
        ),
    ]


def _specs() -> list[MethodSpec]:
    """The methods by name, with the node's default first."""
    return sorted((method.spec for method in methods().values()), key=lambda spec: (spec.name != "uce", spec.name))


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
                *model_inputs(),
                Concepts.Input("concepts", tooltip="What to erase and what to preserve."),
                io.Vae.Input("vae", optional=True, tooltip="Only for methods that look at pictures (SLUG, debias)."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Only for methods that look at pictures: the image half of the pair whose text half the "
                    "model reads.",
                ),
                *_form_inputs(),
                io.Boolean.Input(
                    "pooled",
                    default=False,
                    tooltip="Edit the pooled text features as well (SDXL reads them beside the tokens), by the same "
                    "algebra at their own place. Off, they still carry a trace of the concept. Refused for models "
                    "that read none, such as SD 1.",
                    advanced=True,
                ),
                method_input("method", _specs(), "The published method to use; uce is a sane start."),
            ],
            outputs=[
                *model_outputs(),
                EraserSocket.Output("eraser", tooltip="The fitted eraser, to save, share or apply elsewhere."),
                io.String.Output(
                    "summary",
                    tooltip="What the edit does before a picture is drawn: how far each name moved, how much the "
                    "preserved prompts drift, which pairs nearly coincide, what became of earlier erasures.",
                ),
            ],
            search_aliases=[
                "unlearn",
                "concept erasure",
                "forget",
                "remove concept",
                "UCE",
                "RECE",
                "MACE",
                "SPEED",
                "LEACE",
                "debias",
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: Any,
        concepts: ConceptList,
        strength: float,
        form: str,
        pooled: bool,
        vae: Any = None,
        clip_vision: Any = None,
        method: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        name, given = chosen_method("method", method)
        chosen = method_named(name)
        settings = chosen.spec.settings(given)
        family = model_sites(model).family
        family.require(form)
        eraser, summary = fit_eraser(chosen, settings, model, clip, concepts, pooled, vae, clip_vision)
        if eraser.adapters:
            family.require(WEIGHTS)
        applied = apply_to_model(model, eraser, strength, form)
        return io.NodeOutput(applied, apply_to_clip(clip, eraser, strength), eraser, summary)


class LetheApply(io.ComfyNode):
    """Apply an eraser that was loaded or fitted elsewhere."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheApply",
            display_name="Apply Eraser",
            category="lethe/erase",
            description="Applies a finished eraser to a model of the family it was made for.",
            inputs=[*model_inputs(), EraserSocket.Input("eraser", tooltip="The eraser to apply."), *_form_inputs()],
            outputs=model_outputs(),
            search_aliases=["use eraser", "load eraser", "eraser strength", "unlearn"],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, clip: Any, eraser: Eraser, strength: float, form: str) -> io.NodeOutput:
        warn_of_other_encoder(eraser, clip)
        applied = apply_to_model(model, eraser, strength, form)
        return io.NodeOutput(applied, apply_to_clip(clip, eraser, strength))
