"""What several commands are told in the same words, and what they make of it."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .concepts import Concept, ConceptList, preserve_lists, read_concepts, read_list, split_lines
from .errors import ConceptError, EraserFileError, SettingError
from .result import Eraser
from .spec import MethodSpec, Value
from .stack import Stack, Stacked
from .store.eraser_file import load_eraser

if TYPE_CHECKING:
    from .pipeline import Pipeline

LOG = logging.getLogger("lethe")
DEMO = "demo"
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")


def add_pipeline(parser: argparse.ArgumentParser, device: str = "") -> None:
    """The model that is worked on; `device` where it is not the fastest there is."""
    parser.add_argument(
        "--pipeline",
        required=True,
        metavar="PATH",
        help="folder of a diffusers pipeline (Stable Diffusion 1 or 2), a .safetensors checkpoint with --config, or "
        "demo for the demo world",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FOLDER", help="for a checkpoint: a pipeline of its kind; weights are not read"
    )
    parser.add_argument(
        "--device",
        default=device,
        help="where the denoiser runs, such as cuda or cpu" + (f"; {device}" if device else ""),
    )


def add_concepts(parser: argparse.ArgumentParser, given: str = "") -> None:
    """What is to be erased and kept; `given` says what the first are when they are left out."""
    more = f"; {given} when left out" if given else ""
    parser.add_argument(
        "--concept",
        action="append",
        default=[],
        help=f"what to erase, or 'CONCEPT, REPLACEMENT'; may be repeated{more}",
    )
    parser.add_argument(
        "--concept-file", type=Path, metavar="FILE", help="more of them: a line each, or CSV of concept and replacement"
    )
    parser.add_argument("--replacement", default="", help="what they shall mean instead; empty for nothing")
    parser.add_argument(
        "--synonym", action="append", default=[], help="another name: WORD, or CONCEPT=WORD where there are several"
    )
    parser.add_argument("--preserve", action="append", default=[], help="a prompt to keep; may be repeated")
    parser.add_argument("--preserve-file", type=Path, metavar="FILE", help="more of them, a line each")
    parser.add_argument(
        "--lists", action="append", default=[], help=f"a shipped list to keep: {', '.join(preserve_lists())}"
    )


def add_settings(parser: argparse.ArgumentParser, what: str) -> None:
    """Settings by name, of `what`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"a setting of the {what}; may be repeated; a wrong name lists them",
    )


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    """Where the result goes."""
    parser.add_argument("--out", type=Path, required=True, help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def add_clip(parser: argparse.ArgumentParser, what: str) -> None:
    """A CLIP that sees pictures."""
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help=f"of a whole CLIPModel of transformers: {what}")


def open_pipeline(
    options: argparse.Namespace,
    device: torch.device,
    steps: int = 20,
    cfg: float | None = None,
    batch: int = 8,
    bf16: bool = False,
) -> Pipeline:
    """The pipeline that the command line names; guidance is its own where none is given.

    Raises:
        SettingError: it is missing or broken, or what reads it is not installed.
        FamilyError: it is of another kind.
    """
    if options.pipeline == DEMO:
        from .demo.gallery import Gallery
        from .demo.world import CFG

        return Gallery(steps=steps, cfg=CFG if cfg is None else cfg, device=device)
    from .pipeline import CFG, Pipeline
    from .pipeline_parts import load_parts

    parts = load_parts(Path(options.pipeline), options.config)
    return Pipeline(parts, steps, CFG if cfg is None else cfg, batch, device, bf16)


def device_of(options: argparse.Namespace) -> torch.device:
    """The device that was asked for, or the fastest there is; SettingError where there is no such device."""
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(f"There is no device '{name}': {reason}.", "Leave --device out, or give cpu.") from error


def concepts_of(options: argparse.Namespace) -> ConceptList:
    """What the command line names.

    Raises:
        ConceptError: there is nothing to erase, a file cannot be read, or concepts contradict each other.
    """
    lines = [*options.concept, *([read_list(options.concept_file)] if options.concept_file else [])]
    erase = [concept for line in lines for concept in read_concepts(line, options.replacement)]
    if not erase:
        raise ConceptError("There is no concept to erase.", "Name one with --concept.")
    return ConceptList(tuple(_with_synonyms(erase, options.synonym)), *_kept(options))


def judged_concepts(options: argparse.Namespace, eraser: Eraser) -> ConceptList:
    """What the command line names; without that, what an eraser says it erases.

    Raises:
        ConceptError: neither names a concept, or as `concepts_of`.
    """
    if options.concept or options.concept_file:
        return concepts_of(options)
    if options.replacement:
        raise ConceptError("--replacement is given without --concept.", "Name the concept as well, or neither.")
    erase = Stack((Stacked(eraser),)).concepts().erase
    if not erase:
        raise ConceptError("The eraser does not say what it erases.", "Name it with --concept.")
    return ConceptList(tuple(_with_synonyms(erase, options.synonym)), *_kept(options))


def settings_of(pairs: Sequence[str], spec: MethodSpec) -> dict[str, Value]:
    """Checked settings out of `name=value`; SettingError for unknown names and wrong values."""
    defaults = {parameter.name: parameter.default for parameter in spec.parameters}
    split = [pair.partition("=") for pair in pairs]
    return spec.settings({name: _value(name, text, defaults.get(name, text)) for name, _, text in split})


def open_eraser(path: Path, pipeline: Pipeline) -> Eraser:
    """An eraser for a pipeline; the log says where it was fitted on another text encoder."""
    eraser = load_eraser(path)
    eraser.check_family(pipeline.model.family)
    if eraser.recipe.encoder != pipeline.encoder:
        LOG.warning("This eraser was fitted on another text encoder of the same kind; check its effect.")
    return eraser


def check_free(paths: Iterable[Path], overwrite: bool) -> None:
    """EraserFileError where a file is there already, unless it may be replaced."""
    for path in paths:
        if path.exists() and not overwrite:
            raise EraserFileError(f"'{path}' exists already.", "Choose another name, or give --overwrite.")


def _kept(options: argparse.Namespace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    listed = split_lines(read_list(options.preserve_file)) if options.preserve_file else ()
    return tuple(dict.fromkeys((*options.preserve, *listed))), tuple(dict.fromkeys(options.lists))


def _with_synonyms(erase: Sequence[Concept], words: Sequence[str]) -> list[Concept]:
    more: Mapping[str, list[str]] = {concept.text.lower(): [] for concept in erase}
    for text in words:
        owner, equals, word = text.partition("=")
        if not equals and len(erase) == 1:
            owner, word = erase[0].text, text
        if owner.strip().lower() not in more or not word.strip():
            names = ", ".join(concept.text for concept in erase[:10])
            raise ConceptError(
                f"It is not said whose synonym '{text}' is.", f"Write CONCEPT=WORD; the concepts are: {names}."
            )
        more[owner.strip().lower()].append(word.strip())
    return [replace(c, synonyms=(*c.synonyms, *more[c.text.lower()])) for c in erase]


def _value(name: str, text: str, default: Value) -> Value:
    """A text in the type of a default."""
    if isinstance(default, bool):
        if text.lower() in (*_YES, *_NO):
            return text.lower() in _YES
        raise SettingError(f"Setting '{name}' is '{text}'.", "It has to be true or false.")
    try:
        return type(default)(text)
    except ValueError as error:
        raise SettingError(f"Setting '{name}' is '{text}'.", f"It has to be like {default!r}.") from error
