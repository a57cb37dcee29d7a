"""How commands draw pictures of a pipeline and its erased copy, and who says what these show."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .arguments import (
    DEMO,
    add_clip,
    add_concepts,
    add_output,
    add_pipeline,
    add_settings,
    check_free,
    device_of,
    judged_concepts,
    open_eraser,
    open_pipeline,
)
from .clip_folder import FolderSight
from .concepts import ConceptList
from .errors import SettingError
from .probe import Probe, View
from .provenance import denoiser_fingerprint, eraser_fingerprint, versions
from .registry import probe_named, probes
from .result import Eraser
from .sight import Sight

if TYPE_CHECKING:
    from .pipeline import Pipeline

_JUDGE, _DEMO_JUDGE = "clip_zero_shot", "demo_judge"


@dataclass(frozen=True)
class Trial:
    """An eraser before its judge.

    Attributes:
        pipeline, edited: without and with the eraser.
        probe: the recogniser.
        sight: an image encoder; None where none is at hand.
        title: what reports call the eraser.
        made_with: settings, versions and fingerprints, for a report.
    """

    pipeline: Pipeline
    edited: Pipeline
    concepts: ConceptList
    probe: Probe
    sight: Sight | None
    title: str
    made_with: dict[str, object]


def add_trial(parser: argparse.ArgumentParser, what: str) -> None:
    """The eraser, the pipeline, how to draw, who judges; `what` has settings."""
    parser.add_argument("eraser", type=Path, help="the eraser's file")
    add_pipeline(parser)
    parser.add_argument("--strength", type=float, default=1.0, help="how much of the eraser acts, 1 as it was made")
    add_concepts(parser, "what the eraser erases")
    add_settings(parser, what)
    parser.add_argument("--probe", default="", help=f"who judges: {', '.join(recognisers())}; fits when left out")
    add_clip(parser, "what sees pictures for clip_zero_shot and CLIP scores")
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps; 20 when left out")
    parser.add_argument("--cfg", type=float, help="guidance scale; 7.5 when left out, 4 for the demo world")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, the same for both models")
    parser.add_argument("--pictures", type=int, default=1, help="per prompt; 1 when left out")
    parser.add_argument("--batch", type=int, default=8, help="pictures drawn at a time; 8 when left out")
    parser.add_argument("--bf16", action="store_true", help="draw in bfloat16")
    parser.add_argument("--title", default="", help="what the report calls the eraser; its method when left out")
    add_output(parser, "folder for the report and its pictures")


def recognisers() -> list[str]:
    """Names of the probes that can judge."""
    return [name for name, probe in probes().items() if probe.recognises]


def open_trial(options: argparse.Namespace, files: list[str]) -> Trial:
    """What `add_trial`'s arguments name.

    Args:
        files: names in the output folder that have to be free.

    Raises:
        LetheError: something is missing or does not fit, or a file is there already.
    """
    check_free([options.out / name for name in files], options.overwrite)
    for name in ("steps", "pictures", "batch"):
        if getattr(options, name) < 1:
            raise SettingError(f"--{name} is {getattr(options, name)}.", "It has to be 1 or more.")
    probe = probe_named(options.probe or (_DEMO_JUDGE if options.pipeline == DEMO else _JUDGE))
    if not probe.recognises:
        raise SettingError(
            f"Probe '{probe.spec.name}' recognises nothing.", f"Choose one of: {', '.join(recognisers())}."
        )
    device = device_of(options)
    pipeline = open_pipeline(options, device, options.steps, options.cfg, options.batch, options.bf16)
    sight = FolderSight(options.clip) if options.clip else pipeline.sight
    _check_judge(probe, sight)
    eraser = open_eraser(options.eraser, pipeline)
    concepts = judged_concepts(options, eraser)
    edited = pipeline.erased(eraser, options.strength)
    made_with = _made_with(options, eraser, pipeline, edited)
    return Trial(pipeline, edited, concepts, probe, sight, options.title.strip() or eraser.recipe.method, made_with)


def _check_judge(probe: Probe, sight: Sight | None) -> None:
    """SettingError where a probe lacks something, before anything is drawn."""
    nothing = torch.zeros(0, 3, 1, 1)
    lacking = probe.lacks(View((), nothing, nothing, ConceptList(), {}, sight))
    if lacking:
        raise SettingError(
            f"Probe '{probe.spec.name}' cannot judge: {lacking[0].lower()}{lacking[1:]}",
            f"Here that is --clip FOLDER; without one there is {_DEMO_JUDGE} alone, for the demo world's pictures.",
        )


def _made_with(options: argparse.Namespace, eraser: Eraser, pipeline: Pipeline, edited: Pipeline) -> dict[str, object]:
    applied = {
        "method": eraser.recipe.method,
        "settings": dict(eraser.recipe.settings),
        "strength": options.strength,
        "fingerprint": eraser_fingerprint(eraser),
    }
    return {
        "sampling": {**edited.settings(), "bf16": edited.model.autocast},
        "pipeline": options.pipeline,
        "denoiser": denoiser_fingerprint(dict(pipeline.model.unet.named_parameters())),
        "text encoder": pipeline.encoder,
        "erasers": [applied],
        "versions": versions("diffusers", "transformers"),
    }
