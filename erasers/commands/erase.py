"""`python -m lethe erase`: an eraser in closed form, for a pipeline."""

from __future__ import annotations

import argparse

import torch

from ..arguments import (
    add_clip,
    add_concepts,
    add_output,
    add_pipeline,
    add_settings,
    check_free,
    concepts_of,
    device_of,
    open_pipeline,
    settings_of,
)
from ..clip_folder import FolderSight
from ..measure.summary import summarise
from ..registry import method_named, methods
from ..store.eraser_file import save_eraser


class Erase:
    """Fulfils `commands.Command`."""

    name = "erase"
    help = "Fit an eraser by a closed-form method, and say what it will do."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        # Closed forms are solved where the weights are read, on the CPU.
        add_pipeline(parser, "cpu")
        parser.add_argument("--method", default="uce", help=f"{', '.join(methods())}; uce when left out")
        add_concepts(parser)
        add_settings(parser, "method")
        add_clip(parser, "the one the pipeline's text encoder is from; for methods that look at pictures")
        add_output(parser, "the eraser's file, .safetensors")

    def run(self, arguments: argparse.Namespace) -> str:
        from ..pipeline import PairedSight

        method, concepts = method_named(arguments.method), concepts_of(arguments)
        settings, device = settings_of(arguments.set, method.spec), device_of(arguments)
        check_free([arguments.out], arguments.overwrite)
        pipeline = open_pipeline(arguments, device)
        sight = PairedSight(pipeline, FolderSight(arguments.clip)) if arguments.clip else None
        with torch.no_grad():
            task = pipeline.task(concepts, sight)
            eraser = method.fit(task, settings)
            said = summarise(eraser, task)
        save_eraser(eraser, arguments.out)
        return f"{said}\n{arguments.out}"


COMMAND = Erase()
