"""The parts of a Stable Diffusion pipeline, read from disk: a folder of diffusers' or a checkpoint file.

A folder is one that `StableDiffusionPipeline.save_pretrained` writes. A checkpoint file does not say how its model is
built: that is read from a folder of the same kind of pipeline, whose weights are not looked at. Nothing is downloaded,
and pickled weights are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .clip_folder import has_tokenizer
from .diffusers_host import unet_sites
from .errors import FamilyError, SettingError
from .measure.library import need

_FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_FOREIGN = ("transformer", "text_encoder_2", "text_encoder_3", "image_encoder")
_KINDS = "Give a pipeline of Stable Diffusion 1 or 2; for other models there are the nodes in ComfyUI."


@dataclass(frozen=True, eq=False)
class Parts:
    """UNet, text encoder and VAE in float32 on the CPU, the tokenizer, and a DDIM scheduler."""

    unet: Any
    text_model: Any
    tokenizer: Any
    scheduler: Any
    vae: Any


def load_parts(path: Path, config: Path | None = None) -> Parts:
    """The parts of a pipeline in a folder, or of a checkpoint file.

    Args:
        path: the folder or the file.
        config: for a file: the folder of a pipeline of the same kind.

    Raises:
        SettingError: diffusers or transformers is not installed, something is missing or broken, or a file comes
            without `config`.
        FamilyError: the pipeline is of a kind that reads more than one CLIP text encoder, or paints into pictures.
    """
    need("A pipeline", "diffusers", "transformers")
    if not path.exists():
        raise SettingError(f"There is no pipeline at '{path}'.", "Give its folder, a checkpoint file, or demo.")
    with _quiet():
        found = _of_folder(path) if path.is_dir() else _of_file(path, config)
    family, _ = unet_sites(found.unet)
    if not family.is_plain:
        raise FamilyError(f"'{path}' is {family.title}, which reads more than one CLIP text encoder's tokens.", _KINDS)
    width = found.text_model.config.hidden_size
    if width != family.width:
        raise _broken(path, f"its text encoder is {width} wide, and its UNet reads {family.width}")
    if found.unet.config["in_channels"] != found.unet.config["out_channels"]:
        raise FamilyError(f"'{path}' paints into pictures that it is given.", _KINDS)
    if len(found.tokenizer) > found.text_model.config.vocab_size:
        raise _broken(path, "its tokenizer has more tokens than its text encoder")
    return found


def _of_folder(folder: Path) -> Parts:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    foreign = [name for name in _FOREIGN if (folder / name).is_dir()]
    if foreign:
        raise FamilyError(f"'{folder}' has a part '{foreign[0]}', which Stable Diffusion 1 and 2 have not.", _KINDS)
    absent = [name for name in _FOLDERS if not (folder / name).is_dir()]
    if absent:
        raise _broken(folder, f"it has no folder '{absent[0]}'")
    # transformers makes an empty tokenizer of a folder without one.
    if not has_tokenizer(folder / "tokenizer"):
        raise _broken(folder, "its tokenizer has no vocabulary")
    modules = {
        name: _module(kind, folder, name)
        for name, kind in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel), ("vae", AutoencoderKL))
    }
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    # Of a broken file each reader complains in its own way; tokenizers raises plain exceptions.
    except Exception as error:
        raise _broken(folder, str(error)) from error
    return Parts(modules["unet"], modules["text_encoder"], tokenizer, scheduler, modules["vae"])


def _module(kind: Any, folder: Path, name: str) -> Any:
    """A part with weights; in half precision where the folder has it in no other."""
    files = {path.name for path in (folder / name).glob("*.safetensors")}
    if not files:
        raise SettingError(
            f"'{folder / name}' holds no weights as safetensors.",
            "Pickles are not read: make safetensors of them with 'python -m lethe convert FILE'; that of the text "
            "encoder is called model.safetensors.",
        )
    half = {"variant": "fp16"} if all(".fp16." in file for file in files) else {}
    given = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        model, report = kind.from_pretrained(folder / name, **given, **half)
    # As above.
    except Exception as error:
        raise _broken(folder, f"{name}: {error}") from error
    # What a file lacks is filled with random numbers, with no more than a warning.
    lost = sorted(str(key) for key in [*report["missing_keys"], *report["mismatched_keys"]])
    if lost:
        raise _broken(folder, f"{len(lost)} weights of {name} are missing or of another shape, such as {lost[0]}")
    return model.float().eval()


def _of_file(path: Path, config: Path | None) -> Parts:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    # Without it, what the file lacks would be filled with random numbers instead of left empty.
    need("A checkpoint file", "accelerate")
    if path.suffix != ".safetensors":
        raise SettingError(
            f"'{path}' is no safetensors file.",
            "Pickles are not read: make safetensors of it with 'python -m lethe convert FILE'.",
        )
    if config is None or not (config / "model_index.json").is_file():
        said = "" if config is None else f", and there is no pipeline in '{config}'"
        raise SettingError(
            f"'{path}' is a checkpoint, which does not say how its model is built{said}.",
            "Give --config the folder of a pipeline of the same kind: model_index.json, the parts' config.json, the "
            "tokenizer and the scheduler. Weights in it are not read.",
        )
    try:
        whole: Any = StableDiffusionPipeline.from_single_file(
            str(path), config=str(config), local_files_only=True, safety_checker=None, feature_extractor=None
        )
    # As above.
    except Exception as error:
        raise _broken(path, str(error)) from error
    modules = {name: getattr(whole, name) for name in ("unet", "text_encoder", "vae")}
    for name, module in modules.items():
        lost = [key for key, value in module.state_dict().items() if value.is_meta]
        if lost:
            raise _broken(path, f"{len(lost)} weights of {name} are missing, such as {lost[0]}")
    unet, text, vae = (module.float().eval() for module in modules.values())
    return Parts(unet, text, whole.tokenizer, DDIMScheduler.from_config(whole.scheduler.config), vae)


def _broken(path: Path, reason: str) -> SettingError:
    return SettingError(
        f"'{path}' does not hold a whole Stable Diffusion pipeline: {' '.join(reason.split())[:300].rstrip('.')}.",
        f"It needs {', '.join(_FOLDERS)}, each with its configuration.",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the loaders' own progress bars and warnings; what they warn of is checked here."""
    import diffusers.utils.logging as one
    import transformers.utils.logging as other

    with ExitStack() as stack:
        for library in (one, other):
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
            if library.is_progress_bar_enabled():
                stack.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield
