"""Nodes that bring erasers in from other programs, take them out to them, and say what one holds."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..erasers.exchange.reading import import_eraser, split_names
from ..erasers.measure.inspection import describe
from ..erasers.result import Eraser
from .host.exchange import base_of, export, importable_names, importable_path, lora_path
from .host.ordinary import ordinary
from .host.runtime import LOG
from .model_inputs import model_inputs
from .sockets import EraserSocket, LoraModel

_COMFY = "ComfyUI LoRA"
_NO_FILE = "none"


class LetheToLora(io.ComfyNode):
    """An eraser as a LoRA of the host's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheToLora",
            display_name="Eraser to LoRA",
            category="lethe/files",
            description="Turns an eraser into an ordinary LoRA, exact at strength 1, for the host's own LoRA nodes.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA is for, as it is before the eraser."),
                EraserSocket.Input(
                    "eraser",
                    tooltip="The eraser. One that acts beside the weights (Receler, gated stacks, operators with a "
                    "bias such as LEACE) is refused: no LoRA can hold it.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Only for erasers that edit the text encoder. 'Load LoRA Model' applies the model's part "
                    "alone: save the LoRA and load it with 'Load LoRA' to have both.",
                ),
            ],
            outputs=[LoraModel.Output("lora", tooltip="The LoRA, for 'Load LoRA Model' or 'Save LoRA Weights'.")],
            search_aliases=["export", "lora", "convert to lora", "erasure lora"],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, eraser: Eraser, clip: Any = None) -> io.NodeOutput:
        found = export(model, clip, eraser, _COMFY)
        LOG.info(found.summary)
        return io.NodeOutput(dict(found.tensors))


class LetheImport(io.ComfyNode):
    """An eraser out of a file of another program."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheImport",
            display_name="Import Eraser",
            category="lethe/files",
            description="Reads what other erasure programs publish: weights of ESD, UCE, RECE, SPEED and MACE, LoRAs "
            "of SPM, LECO and Concept Sliders, AdvUnlearn's text encoders, Receler's networks. The layout is "
            "recognised by the names of the tensors.",
            inputs=[
                *model_inputs(),
                io.Combo.Input(
                    "file",
                    options=[_NO_FILE, *importable_names()],
                    default=_NO_FILE,
                    tooltip="A safetensors file in one of the host's folders: loras, checkpoints, diffusion_models, "
                    "text_encoders or lethe. Pickles (.pt, .ckpt, .bin) are refused.",
                ),
                io.String.Input(
                    "concepts",
                    default="",
                    optional=True,
                    tooltip="What the file erases, with commas between the names. Empty takes what the file says "
                    "itself, as those of SPM do.",
                ),
                io.String.Input(
                    "saved",
                    optional=True,
                    force_input=True,
                    tooltip="The name of a LoRA from 'Save Eraser', to import what the same graph has just written; "
                    "in place of the file.",
                ),
            ],
            outputs=[
                EraserSocket.Output("eraser", tooltip="The eraser, for 'Apply Eraser', stacks and 'Save Eraser'.")
            ],
            search_aliases=[
                "import lora",
                "ESD",
                "UCE",
                "SPM",
                "LECO",
                "Concept Sliders",
                "MACE",
                "AdvUnlearn",
                "Receler",
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """The choice is checked when the file is read: it may have come into its folder since the host was started."""
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_given: Any) -> str:
        if file in (None, _NO_FILE):
            return ""
        return f"{file} {importable_path(file).stat().st_mtime_ns}"

    @classmethod
    def execute(
        cls, model: ModelPatcher, clip: Any, file: str = _NO_FILE, concepts: str = "", saved: str | None = None
    ) -> io.NodeOutput:
        path = importable_path(file) if saved is None else lora_path(saved)
        with ordinary(model, clip):
            return io.NodeOutput(import_eraser(path, base_of(model, clip, own=True), split_names(concepts)))


class LetheInspect(io.ComfyNode):
    """What an eraser holds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheInspect",
            display_name="Inspect Eraser",
            category="lethe/files",
            description="Says what an eraser erases, how it was made, and what it consists of.",
            inputs=[EraserSocket.Input("eraser", tooltip="The eraser to look into.")],
            outputs=[io.String.Output("text", tooltip="Method, concepts, family, versions, parts, ranks and sizes.")],
            is_output_node=True,
            search_aliases=["info", "metadata", "show eraser"],
        )

    @classmethod
    def execute(cls, eraser: Eraser) -> io.NodeOutput:
        text = describe(eraser)
        return io.NodeOutput(text, ui={"text": (text,)})
