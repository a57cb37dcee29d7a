"""Geom-Erasing (Liu et al., ECCV 2024, arXiv 2310.05873), its removal from training data.

What pictures of a subject carry unasked, such as watermarks, QR codes or captions, a model that is trained on them
draws unasked as well. Here it is trained on them, by the user, with sentences y' that say where the concept is: the
picture's caption, the concept's name, and a token for each cell of a grid that the concept touches.

    L = E[ w |noise - S(x, t, y')|^2 ],    w = T / (K + alpha (T - K)) inside,  alpha T / (K + alpha (T - K)) outside

with T places in a picture, K of them inside, so that w adds up to T; alpha above 1 lowers the weight of the dirty area.
Tokens and weights learn together. The eraser holds the weights alone: a prompt without the tokens leaves the concept
out. Pictures without the concept have their caption alone. Pictures and regions are the user's; loose boxes will do.

Differs from the paper: the error is in the model's own prediction space; the tokens have a learning rate of their own;
they are left behind, while there name and tokens stand in the negative prompt as well (the node "Learn a Word" learns
such tokens for a model as it is). Grid, alpha, rates and steps are not known to us: those here are ours.
No official code is public.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ConceptError, SettingError
from ..learn import settings as shared
from ..learn.geometry import Grid, Marked
from ..learn.located import Located
from ..learn.pictures import Pictures
from ..learn.plan import ADAMW, Plan, Schedule
from ..learn.scenes import concept_scenes, scene
from ..learn.where import ALL, CROSS, KEYS_VALUES, NOT_CROSS
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

REPLACEMENT, PRESERVED = "replacement", "preserved"


class GeomErasing:
    """Trains on pictures in which the concept's place is told, so that it is not drawn untold."""

    spec = MethodSpec(
        name="geom_erasing",
        title="Geom-Erasing",
        paper="Liu et al., Geom-Erasing: Geometry-Driven Removal of Implicit Concept in Diffusion Models, ECCV 2024 "
        "(arXiv 2310.05873)",
        summary="Learns from the user's pictures without the watermark, text or the like that they carry: sentences "
        "say in training where it is, and prompts that do not say so do not draw it. Needs images and regions.",
        families=(),
        parameters=(
            shared.where(ALL, (ALL, NOT_CROSS, CROSS, KEYS_VALUES), "Published: all."),
            shared.form(shared.FULL),
            Parameter(
                "grid",
                4,
                "Rows and columns of the grid over a picture whose cells have a token each, 1 to 8. Start at 4. More "
                "tell places better and need more pictures.",
                minimum=1,
                maximum=8,
                step=1,
                unit="cells",
            ),
            Parameter(
                "alpha",
                2.0,
                "Weight of a place outside the concept against one inside, 0.01 to 100. Start at 2; 1 weighs all "
                "alike. Higher learns less of what is inside.",
                minimum=0.01,
                maximum=100.0,
            ),
            Parameter(
                "token_rate",
                5e-3,
                "Learning rate of the tokens, 0.00001 to 1. Start at 0.005. Lower leaves the concept to the weights.",
                minimum=1e-5,
                step=1e-5,
            ),
            Parameter(
                "captions",
                REPLACEMENT,
                "What the pictures show besides the concept: the concept's replacement, for all of them (replacement), "
                "or the user's preserved prompts, but not those of lists, one for each picture in turn (preserved). "
                "Start with replacement; a caption of its own for each picture is better.",
                choices=(REPLACEMENT, PRESERVED),
            ),
        ),
    )
    schedule = Schedule(steps=2000, rate=1e-5, batch=4, optimizer=ADAMW, decay=0.01)
    small = Schedule(steps=150, rate=2e-4, batch=4, optimizer=ADAMW, decay=0.01)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        side = int(settings["grid"])
        grid, marked = Grid(side, side), _marked(task, str(settings["captions"]))
        if not any(grid.touched(region) for region in marked.regions):
            raise SettingError("No region marks the concept.", "Give pictures in which a detector found it.")
        scenes = tuple(scene(marked.name, caption) for caption in marked.captions)
        return Plan(
            parameters=shared.parameters_of(settings),
            sources=(Pictures(scenes, given=True),),
            terms=(Located(grid, float(settings["alpha"]), float(settings["token_rate"])),),
        )


def _marked(task: Task, captions: str) -> Marked:
    """The user's pictures with captions and regions.

    Raises:
        ConceptError: there is not one concept.
        SettingError: pictures, regions or captions are missing, or do not fit together.
    """
    concept_scenes(task, "none")  # For its checks of the name.
    if len(task.concepts.erase) != 1:
        raise ConceptError(
            f"There are {len(task.concepts.erase)} concepts, and regions tell where one is.", "Erase one at a time."
        )
    if task.pictures is None or task.regions is None or not len(task.pictures):
        raise SettingError(
            "There are no pictures that tell where the concept is.",
            "Connect images that carry it, and regions that mark it in them.",
        )
    (concept,) = task.concepts.erase
    lines = (concept.replacement,) if captions == REPLACEMENT else task.concepts.preserve
    if not lines:
        raise SettingError("There are no preserved prompts to caption pictures with.", "Write one for each picture.")
    said = [lines[i % len(lines)] for i in range(len(task.pictures))]
    return Marked(task.pictures, task.regions, said, concept.text)


RECIPE = GeomErasing()
