"""Nodes that keep erasers as files: under models/lethe, or in the layouts of other programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..erasers.errors import EraserFileError, SettingError
from ..erasers.exchange.layout import WritableLayout
from ..erasers.measure.report import Report, figures_of
from ..erasers.registry import layouts
from ..erasers.result import Eraser
from ..erasers.store.eraser_file import load_eraser, save_eraser
from .host.exchange import FULL_MODEL, checkpoint_path, export, lora_path, save_export, save_full_model
from .host.runtime import LOG, eraser_names, eraser_path
from .sockets import EraserSocket, ReportSocket

_ERASER = "eraser"


def _layout_input() -> io.DynamicCombo.Input:
    """The layouts that can be written; a rank for those that hold thin factors only."""
    rank = io.Int.Input(
        "rank",
        default=0,
        min=0,
        max=1024,
        tooltip="The most that each weight's factors may have, 0 to 1024. Start at 0: exact, as many as that takes. "
        "Otherwise the best factors of that rank, for a smaller file; the summary says how much they keep.",
    )
    written = {name: entry for name, entry in layouts().items() if isinstance(entry, WritableLayout)}
    options = [
        io.DynamicCombo.Option(_ERASER, []),
        *(io.DynamicCombo.Option(name, [] if entry.whole else [rank]) for name, entry in written.items()),
        io.DynamicCombo.Option(FULL_MODEL, []),
    ]
    return io.DynamicCombo.Input(
        "layout",
        options=options,
        optional=True,
        tooltip="eraser writes models/lethe, with everything needed to make it again. The LoRAs go to models/loras, "
        "for other programs too: exact at strength 1. full model writes a checkpoint with the eraser in its weights "
        "to models/checkpoints. All but eraser need the model.",
    )


class LetheSave(io.ComfyNode):
    """Write an eraser, as itself or as other programs read it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LetheSave",
            display_name="Save Eraser",
            category="lethe/files",
            description="Writes an eraser, with everything needed to make it again, to models/lethe; or as a LoRA or "
            "a whole checkpoint for other programs.",
            inputs=[
                EraserSocket.Input("eraser", tooltip="The eraser to write."),
                io.String.Input(
                    "name", default="my eraser", tooltip="File name without suffix; '/' makes a sub-folder."
                ),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace a file of that name."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Only for layouts other than eraser: the model as it is before the eraser.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For LoRAs only where the eraser edits the text encoder; goes into a full model.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Goes into a full model, which is a checkpoint with it."),
                ReportSocket.Input(
                    "report",
                    optional=True,
                    tooltip="What 'Evaluate' or 'Red-Team' measured of this eraser: its figures go into the file, in "
                    "the layout eraser, for whoever gets it.",
                ),
                _layout_input(),
            ],
            outputs=[
                EraserSocket.Output("eraser", tooltip="The same eraser, to go on with."),
                io.String.Output(
                    "name",
                    tooltip="The name it was written under: for 'Load Eraser', or, as a LoRA or a full model, the "
                    "file's name in the host's list of them.",
                ),
                io.String.Output("summary", tooltip="What was written, how large it is, and what was kept."),
            ],
            is_output_node=True,
            search_aliases=["write eraser", "export lora", "save checkpoint"],
        )

    @classmethod
    def execute(
        cls,
        eraser: Eraser,
        name: str,
        overwrite: bool,
        model: ModelPatcher | None = None,
        clip: Any = None,
        vae: Any = None,
        report: tuple[Report, ...] | None = None,
        layout: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        given = layout or {"layout": _ERASER}
        if report:
            eraser = replace(eraser, figures={**eraser.figures, **figures_of(report, eraser.recipe.names)})
        chosen = given["layout"]
        if chosen == _ERASER:
            save_eraser(eraser, _free(eraser_path(name), overwrite))
            return io.NodeOutput(eraser, name.strip(), "")
        if model is None:
            raise SettingError(f"The layout '{chosen}' needs the model.", "Connect the one the eraser was made on.")
        path = _free(checkpoint_path(name) if chosen == FULL_MODEL else lora_path(name), overwrite)
        if chosen == FULL_MODEL:
            summary = save_full_model(model, clip, vae, eraser, path)
        else:
            found = export(model, clip, eraser, chosen, int(given.get("rank", 0)))
            save_export(found, path)
            summary = found.summary
        LOG.info(summary)
        return io.NodeOutput(eraser, f"{name.strip().removesuffix(path.suffix)}{path.suffix}", summary)


def _free(path: Path, overwrite: bool) -> Path:
    if path.exists() and not overwrite:
        raise EraserFileError(f"'{path.name}' exists already.", "Choose another name, or switch overwrite on.")
    return path


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
            outputs=[EraserSocket.Output("eraser", tooltip="The eraser, for 'Apply Eraser' and stacks.")],
            search_aliases=["open eraser", "read eraser", "use eraser"],
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
