"""The node that guards a model while it draws."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..erasers.concepts import ConceptList
from ..erasers.registry import guard_named, guards
from .host.fit import guard_model
from .host.runtime import with_paths
from .model_inputs import model_inputs
from .settings import chosen_method, method_input
from .sockets import Concepts


class LetheGuard(io.ComfyNode):
    """Keep concepts out of pictures while they are drawn; no weight is changed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        specs = sorted((guard.spec for guard in guards().values()), key=lambda s: (s.name != "sld", s.name))
        return io.Schema(
            node_id="LetheGuard",
            display_name="Guard (inference time)",
            category="lethe/guard",
            description="Keeps concepts out of pictures at sampling time. Several guards chain; what stands under "
            "'needs' in the summary tells what each one takes.",
            inputs=[
                *model_inputs(),
                Concepts.Input("concepts", tooltip="What to guard against; what is preserved trains the gate."),
                io.Float.Input(
                    "gate",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Act only on prompts with a word at least this much like the concept: 0 acts on all "
                    "prompts, 1 is the likeness of the concept's own name. The summary tells the likeness of the names "
                    "and of the preserved prompts; start between the two. A prompt that hints at the concept in other "
                    "words passes a gate.",
                ),
                method_input("guard", specs, "The published guard to use; sld is a sane start."),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Pictures, for guards that look at them, with the VAE: of the concept for negtome, which "
                    "draws its own where there are none; for scaling the picture that is drawn anew with less of it.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="The autoencoder that belongs to the model, for pictures."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="What attentive_eraser removes, of any size; of several masks the first counts. Cover the "
                    "whole of it, edges and shadow too.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The guarded model, to draw with or to guard once more."),
                io.Clip.Output(
                    "clip",
                    tooltip="Encode the picture's prompt with this one: it tells guards such as SAFREE the prompt's "
                    "tokens. The features are the same as the connected CLIP's.",
                ),
                io.String.Output("summary", tooltip="What the guard needs and costs, and on which prompts it acts."),
            ],
            search_aliases=["safety", "nsfw", "content filter", "negative prompt", "SLD", "SAFREE", "NAG", "Perp-Neg"],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: Any,
        concepts: ConceptList,
        gate: float,
        guard: dict[str, Any] | None = None,
        images: Any = None,
        vae: Any = None,
        mask: Any = None,
    ) -> io.NodeOutput:
        name, given = chosen_method("guard", guard)
        chosen = guard_named(name)
        settings = with_paths(chosen.spec, chosen.spec.settings(given))
        pictured = {"vae": vae, "pictures": images, "mask": mask}
        return io.NodeOutput(*guard_model(chosen, settings, model, clip, concepts, gate, **pictured))
