"""Files of other programs: the loaded model that they are read against, and where they lie."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import comfy_extras.nodes_model_merging
import folder_paths
from comfy.cli_args import args
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...erasers.errors import EraserFileError, SettingError
from ...erasers.exchange.base import ADAPTERS, TEXT, Base, Owner
from ...erasers.exchange.factors import check_weights_suffice
from ...erasers.exchange.writing import Export, export_eraser, metadata_of
from ...erasers.provenance import eraser_fingerprint
from ...erasers.result import Eraser
from ...erasers.store.atomic import write_with
from .conditioning import encoder_fingerprint
from .patcher import HOOK, WEIGHTS, applied_erasers, apply_to_clip, apply_to_model, effective_weight
from .runtime import SUFFIX, eraser_folder, filling, inside
from .sites import model_sites

FULL_MODEL = "full model"
_IMPORTED_FROM = ("loras", "checkpoints", "diffusion_models", "text_encoders")
_OWN = "lethe"
_UNET, _TRANSFORMER = "diffusion_model.", ".transformer."


def base_of(model: ModelPatcher, clip: Any, own: bool) -> Base:
    """A MODEL with its CLIP as files know it.

    Args:
        clip: None where no text encoder takes part.
        own: read the weights as they were loaded, without the patches of LoRAs and erasers.
    """
    found = model_sites(model)
    patchers, keys = (
        {ADAPTERS: _bare(model) if own else model},
        {(ADAPTERS, name): key for name, key in found.keys.items()},
    )
    shapes: dict[Owner, tuple[int, ...]] = {(ADAPTERS, name): shape for name, shape in found.shapes.items()}
    if clip is not None:
        patchers[TEXT] = _bare(clip.patcher) if own else clip.patcher
        for key, value in clip.patcher.model_state_dict().items():
            stream, inner, name = key.partition(_TRANSFORMER)
            if inner and "." not in stream:
                keys[TEXT, f"{stream}.{name}"] = key
                shapes[TEXT, f"{stream}.{name}"] = tuple(value.shape)

    def read(owner: Owner) -> Tensor:
        return effective_weight(patchers[owner[0]], keys[owner])

    native = {name: key.removeprefix(_UNET) for name, key in found.keys.items()}
    encoder = "" if clip is None else encoder_fingerprint(clip)
    return Base(found.family, found.sites, shapes, read, native, encoder)


def export(model: ModelPatcher, clip: Any, eraser: Eraser, layout: str, rank: int = 0) -> Export:
    """An eraser in a layout of other programs, for a MODEL as it is before the eraser is applied.

    Raises:
        SettingError: the MODEL carries the eraser already, its text encoder is missing, or it does not fit the layout.
        FamilyError: the eraser is for another family.
    """
    _check_before(model, eraser)
    if eraser.text_encoder and clip is None:
        raise SettingError("This eraser edits the text encoder.", "Connect the CLIP that belongs to the model.")
    return export_eraser(eraser, base_of(model, clip, own=False), layout, rank)


def save_export(found: Export, path: Path) -> None:
    """Write an export; without metadata where the host was started so."""
    (Export(found.tensors, {}, found.summary) if args.disable_metadata else found).save(path)


def save_full_model(model: ModelPatcher, clip: Any, vae: Any, eraser: Eraser, path: Path) -> str:
    """Write a checkpoint of a MODEL, and of its CLIP and VAE where there are any, with the eraser in the weights.

    The host's own node for checkpoints does the writing, so that its loaders know the file.

    Returns:
        What was written, in a line.

    Raises:
        SettingError: weights cannot hold the eraser, or one that the MODEL carries.
        EraserFileError: the folder cannot be written to, or the disk is full.
    """
    _check_before(model, eraser)
    check_weights_suffice(eraser)
    if any(entry.form == HOOK for entry in applied_erasers(model)):
        raise SettingError("The model carries an eraser as a hook.", "Apply that one in the form 'weights'.")
    if eraser.text_encoder and clip is None:
        raise SettingError("This eraser edits the text encoder.", "Connect the CLIP that belongs to the model.")
    erased = apply_to_model(model, eraser, 1.0, WEIGHTS)
    text = None if clip is None else apply_to_clip(clip, eraser, 1.0)
    about = metadata_of(eraser, FULL_MODEL)

    parts = {
        "model": erased,
        "CLIP": None if text is None else text.patcher,
        "VAE": None if vae is None else vae.patcher,
    }
    there = {name: patcher for name, patcher in parts.items() if patcher is not None}
    size = sum(patcher.model_size() for patcher in there.values())

    def write(part: Path) -> None:
        with TemporaryDirectory(dir=path.parent, prefix=".lethe") as folder, filling(Path(folder), size):
            comfy_extras.nodes_model_merging.save_checkpoint(
                erased, clip=text, vae=vae, filename_prefix=path.stem, output_dir=folder, extra_pnginfo={"lethe": about}
            )
            next(Path(folder).glob(f"*{SUFFIX}")).replace(part)

    write_with(path, write)
    return f"{FULL_MODEL}: {', '.join(there)}, {path.stat().st_size / 2**20:.0f} MB."


def lora_path(name: str) -> Path:
    """A file under the host's first folder of LoRAs; EraserFileError for a name that leads out of it."""
    return inside(Path(folder_paths.get_folder_paths("loras")[0]), _with_suffix(name))


def checkpoint_path(name: str) -> Path:
    """A file under the host's first folder of checkpoints; EraserFileError for a name that leads out of it."""
    return inside(Path(folder_paths.get_folder_paths("checkpoints")[0]), _with_suffix(name))


def importable_names() -> list[str]:
    """Files that may hold an eraser, each with the host's name of its folder before it."""
    found = {kind: folder_paths.get_filename_list(kind) for kind in _IMPORTED_FROM}
    folder = eraser_folder()
    found[_OWN] = sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{SUFFIX}"))
    return [f"{kind}/{name}" for kind, names in found.items() for name in names]


def importable_path(name: str) -> Path:
    """The file of a name of `importable_names`; EraserFileError where there is none."""
    kind, _, rest = name.partition("/")
    path = folder_paths.get_full_path(kind, rest) if kind in _IMPORTED_FROM else None
    if kind == _OWN:
        path = inside(eraser_folder(), rest)
    if path is None or not Path(path).is_file():
        raise EraserFileError(f"There is no file '{name}'.", f"Put it into {', '.join(_IMPORTED_FROM)} or {_OWN}.")
    return Path(path)


def _with_suffix(name: str) -> str:
    stem = name.strip().removesuffix(SUFFIX)
    if not stem or stem.endswith("/"):
        raise EraserFileError(f"'{name}' is no name for a file.", "Use letters and digits; '/' makes a sub-folder.")
    return f"{stem}{SUFFIX}"


def _bare(patcher: Any) -> Any:
    """The patcher of the same weights without patches."""
    clone = patcher.clone()
    clone.patches = {}
    return clone


def _check_before(model: ModelPatcher, eraser: Eraser) -> None:
    if any(eraser_fingerprint(entry.eraser) == eraser_fingerprint(eraser) for entry in applied_erasers(model)):
        raise SettingError(
            "The connected model carries this eraser already.", "Connect the model as it is before the eraser."
        )
