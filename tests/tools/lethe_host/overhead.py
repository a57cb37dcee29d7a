"""What guards cost while a picture is drawn in ComfyUI: on the demo model and on a full-size one of random weights.

`python -m lethe_host.overhead [GUARD ...] [--model demo|sd1] [--steps 8] [--repeats 5] [--side 32]`. Every round draws
once without and once with each guard, in turn, so that a busy machine slows them alike; what is printed are medians of
each round's ratio, and the time that the node itself takes once.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

from .install import Host

PROMPT = "a large red ball, flat style, on paper"
WORDS = "reweight"
PLAIN = "plain"


def main() -> None:
    parser = argparse.ArgumentParser(prog="lethe_host.overhead", description=__doc__)
    parser.add_argument("guards", nargs="*", help="all, and attention reweighting, when left out")
    parser.add_argument("--model", choices=["demo", "sd1"], default="demo")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=32, help="latent pixels of a side")
    options = parser.parse_args()
    _start_host()
    import torch

    with torch.inference_mode():
        model, clip = _demo() if options.model == "demo" else _stable_diffusion()
        drawn = {PLAIN: (model, clip, 0.0)} | {
            name: _guarded(model, clip, name) for name in options.guards or _all_guards()
        }
        seconds: dict[str, list[float]] = {name: [] for name in drawn}
        for _ in range(options.repeats + 1):
            for name, (guarded, encoder, _once) in drawn.items():
                seconds[name].append(_draw(guarded, encoder, options))
    print(
        f"{options.model}, {options.steps} steps, latents of {options.side}, CFG 4, {torch.get_num_threads()} threads:"
    )
    plain = seconds.pop(PLAIN)[1:]
    print(f"  {statistics.median(plain) / options.steps * 1000:.0f} ms a step without a guard")
    for name, own in seconds.items():
        # The first round warms up.
        ratio = statistics.median(mine / base for mine, base in zip(own[1:], plain, strict=True))
        print(f"  {name}: {100 * (ratio - 1):+.1f} % of sampling, {drawn[name][2] * 1000:.0f} ms once", flush=True)


def _start_host() -> None:
    host = Host.current()
    sys.path.insert(0, str(host.comfyui))
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", tempfile.mkdtemp()]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("comfy.cli_args")
    sys.argv = arguments
    for name in ("utils.install_util", "server", "nodes"):
        importlib.import_module(name)
    importlib.import_module("comfy.utils").set_progress_bar_enabled(False)


def _all_guards() -> list[str]:
    from lethe.erasers.registry import guards
    from lethe.erasers.sites import A_PICTURE

    return [*(name for name, guard in guards().items() if A_PICTURE not in guard.spec.wants), WORDS]


def _guarded(model: Any, clip: Any, name: str) -> tuple[Any, Any, float]:
    from lethe.erasers.concepts import Concept, ConceptList
    from lethe.nodes.attention import LetheAttention
    from lethe.nodes.guard import LetheGuard

    started = time.perf_counter()
    if name == WORDS:
        found = LetheAttention.execute(model, clip, "ball: 0.2", 0.5, 0.0, 1.0, "all", "scale").result
    else:
        concepts = ConceptList(preserve=("a red tree", "a blue box", "a fish")).with_concept(Concept("ball", "box"))
        found = LetheGuard.execute(model, clip, concepts, 0.0, guard={"guard": name}).result
    return found[0], found[1], time.perf_counter() - started


def _draw(model: Any, clip: Any, options: argparse.Namespace) -> float:
    """Seconds of a sampling; the prompts are encoded before."""
    nodes: Any = importlib.import_module("nodes")
    positive, negative = (nodes.CLIPTextEncode().encode(clip, prompt)[0] for prompt in (PROMPT, ""))
    latent = nodes.EmptyLatentImage().generate(8 * options.side, 8 * options.side, 1)[0]
    started = time.perf_counter()
    nodes.KSampler().sample(model, 3, options.steps, 4.0, "ddim", "normal", positive, negative, latent)
    return time.perf_counter() - started


def _demo() -> tuple[Any, Any]:
    from lethe.nodes.demo import LetheDemoModel

    return LetheDemoModel.execute().result[:2]


def _stable_diffusion() -> tuple[Any, Any]:
    """Stable Diffusion 1.5 and its text encoder, of random weights."""
    import comfy.model_management as management
    import comfy.sd
    import comfy.sd1_clip
    import torch
    from comfy.model_patcher import CoreModelPatcher
    from comfy.supported_models import SD15

    shape = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": (1, 2, 4, 4), "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * 9 + [0] * 3, "use_spatial_transformer": True, "context_dim": 768,
        "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False, "legacy": False,
        "num_heads": 8, "num_head_channels": -1,
    }  # fmt: skip
    config = SD15(shape)
    config.unet_config = shape
    config.set_inference_dtype(torch.float32, None)
    unet = config.get_model({}, device=torch.device("cpu"))
    _randomise(unet.diffusion_model)
    devices = {"load_device": management.get_torch_device(), "offload_device": management.unet_offload_device()}

    class Target:
        params: ClassVar = {}
        clip = comfy.sd1_clip.SD1ClipModel
        tokenizer = comfy.sd1_clip.SD1Tokenizer

    clip = comfy.sd.CLIP(Target, str(Path(tempfile.mkdtemp())), parameters=1, model_options={"dtype": torch.float32})
    _randomise(clip.cond_stage_model)
    return CoreModelPatcher(unet, **devices), clip


def _randomise(module: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, own in module.named_parameters():
        own.requires_grad_(False)
        if own.ndim > 1:
            own.copy_(torch.randn(own.shape, generator=generator) * 0.02)
        else:
            own.fill_(1.0 if name.endswith("weight") else 0.0)


if __name__ == "__main__":
    main()
