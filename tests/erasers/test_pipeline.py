"""Pipelines of the user's own: folders of Stable Diffusion 1, checkpoint files, and what is no whole pipeline."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from lethe.erasers.clip_folder import FolderSight
from lethe.erasers.commands import main
from lethe.erasers.concepts import ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.demo.world import WEIGHTS
from lethe.erasers.errors import FamilyError, SettingError
from lethe.erasers.measure.report import from_json
from lethe.erasers.painter import Shot, prompted
from lethe.erasers.pipeline import PairedSight, Pipeline
from lethe.erasers.pipeline_parts import load_parts
from lethe.erasers.store.eraser_file import load_eraser
from safetensors.torch import load_file, save_file
from tiny_pipeline import save_clip, save_pipeline
from transformers import CLIPTextConfig, CLIPTextModel


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random pipeline of Stable Diffusion 1, and a tiny random CLIP beside it."""
    folder = tmp_path_factory.mktemp("models")
    save_pipeline(folder / "sd")
    save_clip(folder / "clip")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of the pipeline to break."""
    return Path(shutil.copytree(whole / "sd", tmp_path / "sd"))


def test_pictures_are_diffusers_own(whole: Path) -> None:
    own: Any = StableDiffusionPipeline.from_pretrained(whole / "sd", safety_checker=None)
    own.scheduler = DDIMScheduler.from_config(own.scheduler.config)
    own.set_progress_bar_config(disable=True)
    pipeline = Pipeline(load_parts(whole / "sd"), steps=4, cfg=5.0, batch=2)
    shots = [Shot(prompted(prompt), seed) for prompt, seed in (("a red ball", 1), ("a box", 2), ("a ball", 3))]
    found = pipeline.paint(shots)
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(shot.seed)) for shot in shots])
    prompts = [shot.cue.text for shot in shots]
    given = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 32, "width": 32, "output_type": "pt"}
    wanted = own(prompts, latents=noise, **given).images
    assert found.shape == (3, 3, 32, 32)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert float((found[0] - found[2]).abs().max()) > 1e-2
    assert pipeline.settings() == {"sampler": "ddim", "steps": 4, "cfg": 5.0, "width": 32, "height": 32}


def test_a_folder_is_erased_from_judged_by_a_clip_and_exported(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, eraser, out = ["--pipeline", str(whole / "sd")], str(tmp_path / "a.safetensors"), tmp_path / "out"
    assert main(["erase", *given, "--concept", "a red ball, a box", "--preserve", "a tree", "--out", eraser]) == 0
    assert load_eraser(Path(eraser)).recipe.family == "sd1"
    judged = [eraser, *given, "--steps", "2", "--preserve", "a tree", "--batch", "3", "--device", "cpu"]
    evaluate = ["evaluate", *judged, "--each-kind", "2", "--out", str(out)]
    capsys.readouterr()
    assert main(evaluate) == 1
    said = capsys.readouterr().err
    assert "Probe 'clip_zero_shot' cannot judge" in said and "--clip FOLDER" in said and "demo_judge" in said
    assert not out.exists()
    assert main([*evaluate, "--clip", str(whole / "clip"), "--set", "template={}"]) == 0
    (report,) = from_json((out / "report.json").read_text(encoding="utf-8"))
    assert report.made_with["probe settings"] == {"template": "{}"}
    assert {row["read"] for row in report.table} >= {"concept", "subject", "clip_score", "pixel_rms"}
    (moved,) = (
        row["after"] for row in report.table if (row["prompts"], row["read"]) == ("erased prompts", "pixel_rms")
    )
    assert not str(moved).startswith("0.00 ")
    attack = ["attack", *judged, "--clip", str(whole / "clip"), "--set", "tries=1", "--set", "limit=1"]
    assert main([*attack, "--prompt", "a red ball", "--out", str(out)]) == 0
    assert (out / "paraphrase.json").is_file()
    lora = str(tmp_path / "lora.safetensors")
    assert main(["export", eraser, *given, "--out", lora]) == 0
    own: Any = StableDiffusionPipeline.from_pretrained(whole / "sd", safety_checker=None)
    own.load_lora_weights(lora)
    assert main(["export", eraser, "--pipeline", "demo", "--out", str(tmp_path / "b.safetensors")]) == 1
    assert "sd1" in capsys.readouterr().err


def test_the_image_half_has_to_be_the_text_encoders_own(whole: Path) -> None:
    with pytest.raises(SettingError, match="width 16, the pipeline in 768"):
        PairedSight(Pipeline(load_parts(whole / "sd")), FolderSight(whole / "clip"))


def test_pictures_and_prompts_meet_in_the_clip_that_the_text_encoder_is_from(whole: Path, tmp_path: Path) -> None:
    save_clip(tmp_path, width=768)
    folder, parts = FolderSight(tmp_path), load_parts(whole / "sd")
    pipeline = Pipeline(parts)
    sight, latents = PairedSight(pipeline, folder), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        other = sight.embed_text(["a red ball"])
        parts.text_model.load_state_dict(folder.model.text_model.state_dict())
        found, wanted = (one.embed_text(["a red ball", "a box"]) for one in (sight, folder))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert float((other - wanted[:1]).norm()) > 1e-2
    assert torch.equal(sight.embed_latents(latents), folder.embed_images(pipeline.decode(latents)))
    assert pipeline.task(ConceptList(), sight).sight is sight
    assert pipeline.task(ConceptList()).sight is None


def _without(*names: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def _short(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _fewer_weights(folder: Path) -> None:
    path = folder / "text_encoder/model.safetensors"
    tensors = load_file(path)
    del tensors[sorted(tensors)[-1]]
    save_file(tensors, path, metadata={"format": "pt"})


def _other_width(folder: Path) -> None:
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder", hidden_size=64)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("vae"), "it has no folder 'vae'"),
        (_without("scheduler/scheduler_config.json"), "scheduler"),
        (_without("text_encoder/model.safetensors"), "holds no weights as safetensors. Pickles are not read"),
        (lambda folder: shutil.rmtree(folder / "tokenizer") or (folder / "tokenizer").mkdir(), "no vocabulary"),
        (_short, "does not hold a whole Stable Diffusion pipeline: unet: "),
        (_fewer_weights, "1 weights of text_encoder are missing"),
        (_other_width, "its text encoder is 64 wide, and its UNet reads 768"),
    ],
)
def test_what_is_no_whole_pipeline_is_refused(folder: Path, change: Callable[[Path], object], words: str) -> None:
    change(folder)
    with pytest.raises(SettingError) as caught:
        load_parts(folder)
    assert words in str(caught.value)


def test_pipelines_of_other_models_are_refused(folder: Path) -> None:
    (folder / "text_encoder_2").mkdir()
    with pytest.raises(FamilyError, match="a part 'text_encoder_2'"):
        load_parts(folder)


def test_half_precision_variants_are_read(folder: Path) -> None:
    for path in sorted(folder.rglob("*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    assert load_parts(folder).unet.dtype == torch.float32


@pytest.mark.slow
def test_a_checkpoint_of_the_hosts_gives_the_same_eraser_as_the_folder(
    comfy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host's own node writes the demo model as one file, under the names of the original checkpoints."""
    from comfy_extras.nodes_model_merging import save_checkpoint
    from lethe.nodes.host.demo import demo_clip, demo_model, demo_vae

    save_checkpoint(demo_model(), clip=demo_clip(), vae=demo_vae(), filename_prefix="demo", output_dir=str(tmp_path))
    (file,) = tmp_path.glob("demo*.safetensors")
    config = Path(shutil.copytree(WEIGHTS, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors")))
    erase = ["erase", "--pipeline", str(file), "--concept", "ball, box", "--out", str(tmp_path / "a.safetensors")]
    assert main(erase) == 1
    assert "Give --config the folder of a pipeline" in capsys.readouterr().err
    assert main([*erase, "--config", str(tmp_path)]) == 1
    assert f"there is no pipeline in '{tmp_path}'" in capsys.readouterr().err
    assert main([*erase, "--config", str(config)]) == 0
    assert main(["erase", "--pipeline", "demo", *erase[3:5], "--out", str(tmp_path / "b.safetensors")]) == 0
    one, other = (load_eraser(tmp_path / f"{name}.safetensors") for name in "ab")
    assert one.recipe == other.recipe
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())
    shots = [Shot(prompted("a red ball"), 3)]
    own, file_parts = load_parts(WEIGHTS), load_parts(file, config)
    pictures = [Pipeline(parts, steps=2, cfg=4.0).paint(shots) for parts in (own, file_parts)]
    assert torch.allclose(*pictures, atol=1e-4)
    assert torch.allclose(pictures[0], Gallery(steps=2).paint(shots), atol=0.1), "bfloat16"
    broken = tmp_path / "broken.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "layers.1.mlp.fc1.weight" not in name}
    save_file(tensors, broken)
    with pytest.raises(SettingError, match="1 weights of text_encoder are missing"):
        load_parts(broken, config)
    with pytest.raises(SettingError, match="Pickles are not read"):
        load_parts(Path(shutil.copy(file, tmp_path / "demo.ckpt")), config)
