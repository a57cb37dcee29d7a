"""What 'Evaluate' and 'Red-Team' share: two models side by side, who judges their pictures, and where they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..erasers.clip_folder import FolderSight
from ..erasers.registry import probes
from ..erasers.sight import Sight
from ..erasers.spec import MethodSpec
from .host.model import HostModel
from .host.origin import eraser_title, origin
from .host.painter import HostPainter
from .host.runtime import clip_folder, clip_folders
from .host.sampling import Sampling
from .host.sight import HostSight
from .sampling_inputs import sampling_inputs
from .sockets import Concepts

CONNECTED = "connected"


@dataclass(frozen=True)
class Pair:
    """An untouched and an edited model with the settings that both draw with."""

    before: ModelPatcher
    after: ModelPatcher
    clip: Any
    clip_after: Any
    vae: Any
    vision: Any
    how: Sampling
    negative: str
    batch: int
    title: str
    clip_model: str

    def painters(self) -> tuple[HostPainter, HostPainter]:
        """What draws with each."""
        arms = ((self.before, self.clip), (self.after, self.clip_after))
        first, second = (HostPainter(m, c, self.vae, self.how, self.negative, self.batch) for m, c in arms)
        return first, second

    def sight(self) -> Sight | None:
        """The image encoder that was chosen or connected."""
        if self.clip_model != CONNECTED:
            return FolderSight(clip_folder(self.clip_model))
        return None if self.vision is None else HostSight(HostModel(self.before, self.clip), self.vae, self.vision)

    def name(self) -> str:
        """What reports call the edited model."""
        return self.title.strip() or eraser_title(self.after)

    def made_with(self) -> dict[str, object]:
        """Settings, versions and fingerprints, for a report."""
        return {"sampling": dict(self.painters()[1].settings()), **origin(*self._models())}

    def _models(self) -> tuple[ModelPatcher, ModelPatcher, Any, Any]:
        return self.before, self.after, self.clip, self.clip_after


def pair_of(inputs: Mapping[str, Any]) -> Pair:
    """The pair that a node's inputs describe."""
    how = {name: inputs[name] for name in ("seed", "steps", "cfg", "sampler", "scheduler", "width", "height")}
    return Pair(
        inputs["before"],
        inputs["after"],
        inputs["clip"],
        inputs.get("clip_after") or inputs["clip"],
        inputs["vae"],
        inputs.get("clip_vision"),
        Sampling(**how),
        inputs["negative"],
        inputs["batch"],
        inputs["title"],
        inputs["clip_model"],
    )


def pair_inputs() -> list[io.Input]:
    """Both models, what encodes, decodes and sees for them, and the concepts."""
    return [
        io.Model.Input("before", tooltip="The untouched model, as it is before the eraser or guard."),
        io.Model.Input("after", tooltip="The model with concepts erased or guarded, as it will be used."),
        io.Clip.Input("clip", tooltip="The text encoder of both, or of 'before' if clip_after is connected."),
        io.Vae.Input("vae", tooltip="The autoencoder that belongs to the models."),
        Concepts.Input("concepts", tooltip="What was erased, and what has to stay."),
        io.Clip.Input("clip_after", optional=True, tooltip="The text encoder of 'after', where it differs."),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="Image half of the pair whose text half the model reads; for CLIP scores, distances and zero-shot "
            "recognition. Or choose a complete CLIP in clip_model.",
        ),
    ]


def judging_inputs() -> list[io.Input]:
    """How to draw, how many at a time, under which name, and which CLIP sees."""
    return [
        *sampling_inputs(),
        io.Int.Input(
            "batch",
            default=8,
            min=1,
            max=256,
            tooltip="Pictures drawn at a time, 1 to 256; an interrupted run loses at most one batch. Start at 8, or 1 "
            "to 4 for large models.",
            advanced=True,
        ),
        io.String.Input(
            "title",
            default="",
            tooltip="What the report calls the edited model; empty takes its erasers' names.",
            advanced=True,
        ),
        io.Combo.Input(
            "clip_model",
            options=[CONNECTED, *clip_folders()],
            default=CONNECTED,
            tooltip="What sees pictures and text together: the connected CLIP_VISION with the model's own text "
            "encoder, or a complete CLIP in transformers' form, a folder below models/clip_vision. Nothing is "
            "downloaded.",
            advanced=True,
        ),
    ]


def recognisers() -> list[MethodSpec]:
    """The probes that can judge, the demo model's first."""
    return sorted((p.spec for p in probes().values() if p.recognises), key=lambda spec: spec.name != "demo_judge")
