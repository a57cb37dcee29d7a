"""`python -m lethe export FILE`: an eraser as a LoRA that other programs load."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..arguments import add_output, add_pipeline, check_free, device_of, open_eraser, open_pipeline
from ..errors import SettingError
from ..exchange.layouts.comfy_lora import LAYOUT as COMFY
from ..exchange.pipeline import pipeline_base
from ..exchange.writing import export_eraser, writable_layouts

_LAYOUT = "kohya LoRA"


class Export:
    """Fulfils `commands.Command`."""

    name = "export"
    help = "Write an eraser as a LoRA for other programs, exact at strength 1."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("eraser", type=Path, help="the eraser's file")
        add_pipeline(parser, "cpu")
        parser.add_argument(
            "--layout",
            default=_LAYOUT,
            help=f"{', '.join(_layouts())}; {_LAYOUT}, which ComfyUI and most programs read, when left out",
        )
        parser.add_argument("--rank", type=int, default=0, help="the most a weight's factors may have; 0 for exact")
        add_output(parser, "the LoRA's file, .safetensors")

    def run(self, arguments: argparse.Namespace) -> str:
        check_free([arguments.out], arguments.overwrite)
        if arguments.layout == COMFY.name:
            raise SettingError(
                "A pipeline does not know ComfyUI's own names of weights.",
                f"Choose one of: {', '.join(_layouts())}; ComfyUI loads them too.",
            )
        pipeline = open_pipeline(arguments, device_of(arguments))
        eraser, model = open_eraser(arguments.eraser, pipeline), pipeline.model
        base = pipeline_base(model.unet, {model.family.stream: model.text_model}, pipeline.encoder)
        with torch.no_grad():
            found = export_eraser(eraser, base, arguments.layout, arguments.rank)
        found.save(arguments.out)
        return f"{found.summary}\n{arguments.out}"


def _layouts() -> list[str]:
    """Those whose names of weights a pipeline knows."""
    return [name for name in writable_layouts() if name != COMFY.name]


COMMAND = Export()
