"""The node that trains an eraser, by any published recipe."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..erasers.concepts import ConceptList
from ..erasers.measure.curves import curves
from ..erasers.measure.red_team import Shows
from ..erasers.measure.summary import summarise
from ..erasers.registry import probe_named, recipe_named, recipes
from ..erasers.result import Eraser
from .host.fit import task_of
from .host.ordinary import ordinary
from .host.patcher import HOOK, apply_to_clip, apply_to_model
from .host.training import DISCARD, KEEP, Wish, note, train_eraser
from .judging import recognisers
from .model_inputs import model_inputs, model_outputs
from .sampling_inputs import preview
from .settings import chosen_method, method_input
from .sockets import Concepts, EraserSocket

_NEVER = "never"


class LetheTrain(io.ComfyNode):
    """Erase concepts by training an adapter on the model that is on the canvas."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        specs = sorted((recipe.spec for recipe in recipes().values()), key=lambda s: (s.name != "esd", s.name))
        return io.Schema(
            node_id="LetheTrain",
            display_name="Erase (training)",
            category="lethe/erase",
            description="Trains an eraser by a published recipe on the loaded model itself, which stays as it is: one "
            "copy of the weights, the untouched model is the teacher.",
            inputs=[
                *model_inputs(),
                Concepts.Input("concepts", tooltip="What to erase and what to preserve."),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Optimiser steps in all, those before a resume included. 0 takes the recipe's own, as "
                    "published; fewer for the demo model.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="Learning rate at its height. 0 takes the recipe's own. Too high shows as a loss that "
                    "jumps about and kept prompts that move.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Rank of adapters, width of small networks, up to 1024. 0 takes the recipe's own; more "
                    "holds more and makes a larger file. Recipes that train whole weights have none.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=False,
                    tooltip="Of everything random; the same seed gives the same eraser on the same machine.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="For previews, early stopping and reference pictures."),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Pictures of what is to be erased, of the size the model draws; recipes that learn from "
                    "pictures use them instead of drawing their own. Needs the VAE.",
                ),
                io.Mask.Input(
                    "regions",
                    optional=True,
                    tooltip="Where in each picture the concept is; one mask each, or one for all.",
                ),
                EraserSocket.Input(
                    "resume",
                    optional=True,
                    tooltip="An eraser to go on from, as if training had never stopped: same recipe, settings and "
                    "concepts, trained with keep_state on. Connect the model from before that eraser.",
                ),
                io.Int.Input(
                    "look_every",
                    default=25,
                    min=0,
                    max=100000,
                    tooltip="Steps between two looks: how far erased and kept prompts moved, and, with a VAE, a "
                    "preview picture of one of each. Start at 25; fewer show more and take longer, 0 shows nothing.",
                ),
                io.Combo.Input(
                    "stop_when_gone",
                    options=[_NEVER, *(spec.name for spec in recognisers())],
                    default=_NEVER,
                    tooltip="A probe that looks at a few pictures of the concept at each look and ends training when "
                    "it sees the concept in none. Needs the VAE.",
                ),
                io.Combo.Input(
                    "on_interrupt",
                    options=[DISCARD, KEEP],
                    default=DISCARD,
                    tooltip="What Interrupt does: end the whole run, or end training and go on with what was learned.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "keep_state",
                    default=True,
                    advanced=True,
                    tooltip="Put the optimiser's state into the eraser, so that training can go on later. Off, its "
                    "file is about a third as large.",
                ),
                io.Int.Input(
                    "batch",
                    default=0,
                    min=0,
                    max=256,
                    advanced=True,
                    tooltip="Rows of each step, up to 256. 0 takes the recipe's own; more is steadier and needs more "
                    "memory.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=False,
                    advanced=True,
                    tooltip="Compute each block a second time for its gradients: about a third slower, far less "
                    "memory.",
                ),
                io.Boolean.Input(
                    "bf16",
                    default=False,
                    advanced=True,
                    tooltip="Compute in bfloat16 where the model itself is wider; what is trained stays in float32.",
                ),
                io.Int.Input(
                    "pixels",
                    optional=True,
                    default=0,
                    min=0,
                    max=4096,
                    step=64,
                    force_input=True,
                    tooltip="Width and height of the pictures it is trained on, in pixels: a multiple of 64, up to "
                    "4096. Unconnected, or 0, it is the model's own size, such as 512 for SD 1.5, 1024 for Flux; half "
                    "of that makes latents a quarter as large.",
                ),
                method_input("recipe", specs, "The published recipe to use; esd is a sane start."),
            ],
            outputs=[
                *model_outputs(),
                EraserSocket.Output(
                    "eraser", tooltip="The trained eraser, to save, share, apply elsewhere or go on from."
                ),
                io.LossMap.Output("loss_map", tooltip="The loss of every step, for the host's 'Plot Loss Graph'."),
                io.Image.Output("curves", tooltip="Losses, and how far erased and kept prompts moved."),
                io.String.Output("summary", tooltip="What was trained, for how long, and why it ended."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            search_aliases=[
                "unlearn",
                "concept erasure",
                "forget",
                "fine-tune",
                "train lora",
                "ESD",
                "LECO",
                "SPM",
                "slider",
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: Any,
        concepts: ConceptList,
        steps: int = 0,
        learning_rate: float = 0.0,
        rank: int = 0,
        seed: int = 0,
        vae: Any = None,
        images: Any = None,
        regions: Any = None,
        resume: Eraser | None = None,
        look_every: int = 25,
        stop_when_gone: str = _NEVER,
        on_interrupt: str = DISCARD,
        keep_state: bool = True,
        batch: int = 0,
        checkpointing: bool = False,
        bf16: bool = False,
        pixels: int = 0,
        recipe: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        name, given = chosen_method("recipe", recipe)
        chosen = recipe_named(name)
        settings = chosen.spec.settings(given)
        seen = None
        if stop_when_gone != _NEVER and concepts.erase:
            probe = probe_named(stop_when_gone)
            seen = Shows(probe, probe.spec.settings({}), concepts.erase[0], concepts)
        wish = Wish(
            steps,
            learning_rate,
            rank,
            batch,
            seed,
            look_every,
            on_interrupt,
            keep_state,
            checkpointing,
            bf16,
            pixels,
            seen,
        )
        trained, watcher = train_eraser(chosen, settings, model, clip, concepts, wish, vae, images, regions, resume)
        with ordinary(model, clip):
            summary = f"{note(trained)}\n{summarise(trained.eraser, task_of(model, clip, concepts))}"
        chart = curves(trained.losses, watcher.moved, chosen.spec.title)
        totals = [sum(pair) for pair in zip(*trained.losses.values(), strict=True)]
        return io.NodeOutput(
            apply_to_model(model, trained.eraser, 1.0, HOOK),
            apply_to_clip(clip, trained.eraser, 1.0),
            trained.eraser,
            {"loss": totals},
            chart,
            summary,
            ui={"images": preview(chart, cls)},
        )
