"""What guards cost while a picture is drawn in ComfyUI: on the demo model and on a full-size one of random weights.

`python -m lethe_host.overhead [GUARD ...] [--model demo|sd1] [--steps 8] [--repeats 40] [--side 32]`. Every round draws
once without and once with each guard, in any order, on one thread. What is printed compares the least of the process's
own seconds for each step, which a busy machine can only make more, summed over the steps, and tells the most memory
that a drawing took beside the model's, and the time that the node itself takes once. The same without a guard, drawn
twice, tells how far ratios can be trusted.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .install import Host

PROMPT = "a large red ball, flat style, on paper"
WORDS = "reweight"
PLAIN, AGAIN = "plain", "plain, again"
PARTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "safree, reattention": ("safree", {"reattention": True, "adaptive": False, "alpha": 0.0}),
    "safree, all steps": ("safree", {"adaptive": False, "alpha": 0.0}),
    "t2i_zero, suppression": ("t2i_zero", {"suppression": 1.0}),
}
"""Guards with a second part, or with an edit that acts at every step whatever the prompt."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_NOW, _MOST = "VmRSS", "VmHWM"


@dataclass
class Drawn:
    """A guarded model and its text encoder, the seconds that the node took, and what each drawing took.

    Attributes:
        seconds: by drawing, of each step; the first has what precedes it, and one more stands for what follows.
    """

    model: Any
    clip: Any
    once: float
    seconds: list[list[float]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def least(self) -> float:
        """Seconds of a drawing whose every step met a quiet machine; the first drawing warms up."""
        return sum(min(own) for own in zip(*self.seconds[1:], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="lethe_host.overhead", description=__doc__)
    parser.add_argument("guards", nargs="*", help="all, and attention reweighting, when left out")
    parser.add_argument("--model", choices=["demo", "sd1"], default="demo")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--side", type=int, default=32, help="latent pixels of a side")
    options = parser.parse_args()
    _start_host()
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        model, clip = _demo() if options.model == "demo" else _stable_diffusion()
        runs = {PLAIN: Drawn(model, clip, 0.0), AGAIN: Drawn(model, clip, 0.0)}
        runs |= {name: _guarded(model, clip, name, options.side) for name in options.guards or _all_guards()}
        order = random.Random(0)
        for _ in range(options.repeats + 1):
            for run in order.sample(list(runs.values()), len(runs)):
                _draw(run, options)
    print(f"{options.model}, {options.steps} steps, latents of {options.side}, CFG 4, one thread:")
    plain = runs.pop(PLAIN)
    least = plain.least()
    print(f"  {least / options.steps * 1000:.0f} ms a step without a guard, {max(plain.memory[1:]) >> 20} MiB")
    for name, run in runs.items():
        ratio, memory = run.least() / least, max(run.memory[1:]) >> 20
        print(
            f"  {name}: {100 * (ratio - 1):+.1f} % of sampling, {memory} MiB, {run.once * 1000:.0f} ms once", flush=True
        )


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

    return [*guards(), *PARTS, WORDS]


class _Flat:
    """In the place of an autoencoder: pictures are all alike."""

    def __init__(self, side: int) -> None:
        self.side = side

    def encode(self, pixels: Any) -> Any:
        return pixels.new_zeros(len(pixels), 4, self.side, self.side)


def _guarded(model: Any, clip: Any, name: str, side: int) -> Drawn:
    import torch
    from lethe.erasers.concepts import Concept, ConceptList
    from lethe.erasers.registry import guard_named
    from lethe.erasers.sites import A_PICTURE
    from lethe.nodes.attention import LetheAttention
    from lethe.nodes.guard import LetheGuard

    started = time.process_time()
    if name == WORDS:
        found = LetheAttention.execute(model, clip, "ball: 0.2", 0.5, 0.0, 1.0, "all", "scale").result
    else:
        guard, settings = PARTS.get(name, (name, {}))
        concepts = ConceptList(preserve=("a red tree", "a blue box", "a fish")).with_concept(Concept("ball", "box"))
        given: dict[str, Any] = {"vae": _Flat(side), "mask": torch.nn.functional.pad(torch.ones(1, 2, 2), (1, 1, 1, 1))}
        if A_PICTURE in guard_named(guard).spec.wants or guard == "negtome":
            given["images"] = torch.zeros(1, 8 * side, 8 * side, 3)
        found = LetheGuard.execute(model, clip, concepts, 0.0, guard={"guard": guard, **settings}, **given).result
    return Drawn(found[0], found[1], time.process_time() - started)


def _draw(run: Drawn, options: argparse.Namespace) -> None:
    """One sampling; the prompts are encoded before."""
    nodes: Any = importlib.import_module("nodes")
    sample: Any = importlib.import_module("comfy.sample")
    positive, negative = (nodes.CLIPTextEncode().encode(run.clip, prompt)[0] for prompt in (PROMPT, ""))
    latent = nodes.EmptyLatentImage().generate(8 * options.side, 8 * options.side, 1)[0]["samples"]
    noise, times = sample.prepare_noise(latent, 3), []
    _forget()
    before = _memory(_NOW)

    def look(*_: object) -> None:
        times.append(time.process_time())

    look()
    schedule = options.steps, 4.0, "ddim", "normal"
    sample.sample(run.model, noise, *schedule, positive, negative, latent, callback=look, disable_pbar=True, seed=3)
    look()
    run.seconds.append([end - start for start, end in itertools.pairwise(times)])
    run.memory.append(_memory(_MOST) - before)


def _memory(kind: str) -> int:
    """Bytes that the process holds now, or the most since `_forget`; 0 where the system does not tell."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(kind)), 0)


def _forget() -> None:
    """Give back what was freed, and count the most memory anew."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    if _CLEAR.exists():
        _CLEAR.write_text("5")


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
