"""Train the demo world: `python -m lethe.erasers.demo.training FOLDER [--stage NAME ...]`.

Stages read what earlier ones left in FOLDER; `export` writes the shipped weights and `table` the
held-out table beside them. On two CPU cores with bfloat16 units they take about 4 (latents),
10 (pair), 60 (denoiser), 12 (autoencoder), 5 (judge), 1 (export) and 5 (table) minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

from transformers import CLIPTextModel, CLIPTokenizer

from ..judge import load_judge
from ..world import WEIGHTS
from . import autoencoder, denoiser, export, heldout, latents, pair

STAGES = ("latents", "pair", "denoiser", "autoencoder", "judge", "export", "table")


def main() -> None:
    parser = argparse.ArgumentParser(prog="lethe.erasers.demo.training", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the stages keep their results")
    parser.add_argument("--stage", choices=STAGES, nargs="*", default=STAGES)
    parser.add_argument("--steps", type=int, default=5600, help="optimiser steps of the denoiser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where `export` writes")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / "training.json"
    for stage in options.stage:
        started = time.perf_counter()
        found = run_stage(stage, options)
        figures = json.loads(log.read_text(encoding="utf-8")) if log.exists() else {}
        figures[stage] = {**found, "minutes": round((time.perf_counter() - started) / 60, 1)}
        log.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def run_stage(stage: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one stage and return the figures to keep."""
    folder, seed = options.folder, options.seed
    path = folder / "latents.safetensors"
    if stage == "latents":
        return latents.train(path, seed)
    if stage == "pair":
        return pair.train(folder, seed)
    teacher = latents.load_latents(path)
    if stage == "judge":
        return pair.harden(folder, teacher, seed)
    if stage == "autoencoder":
        return autoencoder.train(folder / "vae", teacher, seed)
    if stage == "export":
        return export.export(folder, options.weights, teacher)
    if stage == "table":
        return _write_table(options.weights)
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return denoiser.train(folder / "unet", teacher, text, tokenizer, options.steps, seed)


def _write_table(weights: Path) -> dict[str, float]:
    from ..gallery import Gallery

    table = heldout.held_out_table(Gallery(weights), load_judge(weights / "judge.safetensors"))
    heldout.write_table(table, weights)
    return {kind: rate for kind, rate in table["single object, held-out combinations"].items() if kind != "pictures"}


if __name__ == "__main__":
    main()
