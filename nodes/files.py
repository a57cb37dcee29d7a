"""Nodes that keep erasers as files under models/lethe."""

from __future__ import annotations

from comfy_api.latest import io

from ..erasers.errors import EraserFileError
from ..erasers.result import Eraser
from ..erasers.store.eraser_file import load_eraser, save_eraser
from .host.runtime import eraser_names, eraser_path
from .sockets import EraserSocket


class LetheSave(io.ComfyNode):
    """Write an eraser to models/lethe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheSave",
            display_name="Save Eraser",
            category="lethe/files",
            description="Writes an eraser, with everything needed to make it again, to models/lethe.",
            inputs=[
                EraserSocket.Input("eraser", tooltip="The eraser to write."),
                io.String.Input(
                    "name", default="my eraser", tooltip="File name without suffix; '/' makes a sub-folder."
                ),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace a file of that name."),
            ],
            outputs=[
                EraserSocket.Output("eraser", tooltip="The same eraser."),
                io.String.Output("name", tooltip="The name it was written under, for 'Load Eraser'."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, eraser: Eraser, name: str, overwrite: bool) -> io.NodeOutput:
        path = eraser_path(name)
        if path.exists() and not overwrite:
            raise EraserFileError(f"'{path.name}' exists already.", "Choose another name, or switch overwrite on.")
        save_eraser(eraser, path)
        return io.NodeOutput(eraser, name.strip())


class LetheLoad(io.ComfyNode):
    """Read an eraser from models/lethe."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheLoad",
            display_name="Load Eraser",
            category="lethe/files",
            description="Reads an eraser from models/lethe and checks it.",
            inputs=[
                io.Combo.Input("name", options=eraser_names(), tooltip="A file under models/lethe."),
                io.String.Input(
                    "saved",
                    optional=True,
                    force_input=True,
                    tooltip="A name from 'Save Eraser', to load what the same graph has just written.",
                ),
            ],
            outputs=[EraserSocket.Output("eraser", tooltip="The eraser.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """The choice is checked when the file is read: it may be written by the same graph."""
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, saved: str | None = None) -> str:
        path = eraser_path(name) if name else None
        return f"{name} {path.stat().st_mtime_ns if path and path.exists() else ''}"

    @classmethod
    def execute(cls, name: str, saved: str | None = None) -> io.NodeOutput:
        return io.NodeOutput(load_eraser(eraser_path(saved or name)))
