"""A CLIP model in a folder of the user's, beside transformers' own forward and torchmetrics' score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lethe.erasers.clip_folder import FolderSight
from lethe.erasers.concepts import ConceptList
from lethe.erasers.errors import FamilyError, SettingError
from lethe.erasers.probe import View
from lethe.erasers.prompts import PromptRow
from lethe.erasers.registry import probe_named
from PIL import Image
from tiny_pipeline import save_clip
from torch import Tensor
from torchmetrics.functional.multimodal import clip_score
from transformers import CLIPModel, CLIPProcessor

PROMPTS = ["a red ball", "a box on a field", "a star " * 60]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP as its own library saves it."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "clip"))


def _pictures(count: int = 3) -> Tensor:
    """Smooth, so that resizing does not turn on single pixels; wider than high, so that something is cropped."""
    coarse = torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(48, 64), mode="bilinear")


def test_embeddings_are_transformers_own(whole: Path) -> None:
    sight, images = FolderSight(whole), _pictures()
    saved = [Image.fromarray((p.movedim(0, -1) * 255).round().byte().numpy()) for p in images]
    processor, model = CLIPProcessor.from_pretrained(whole), CLIPModel.from_pretrained(whole).eval()
    given = processor(text=PROMPTS, images=saved, return_tensors="pt", padding=True, truncation=True, max_length=77)
    with torch.no_grad():
        expected = model(**given)
    seen, read = sight.embed_images(images), sight.embed_text(PROMPTS)
    assert seen.shape == read.shape == (3, 12) and seen.dtype == read.dtype == torch.float32
    assert torch.allclose(F.normalize(seen, dim=1), expected.image_embeds, atol=1e-5)
    assert torch.allclose(F.normalize(read, dim=1), expected.text_embeds, atol=1e-5)
    assert float((F.normalize(seen, dim=1)[0] - expected.image_embeds[1]).norm()) > 1e-2
    assert not seen.requires_grad and read.requires_grad


def test_clip_score_is_torchmetrics(whole: Path) -> None:
    """torchmetrics 1.9 expects plain tensors of the model, which transformers 5 wraps; it clips the mean at 0."""
    images, prompts = _pictures(), ["a red ball", "a box", "a star"]
    model = CLIPModel.from_pretrained(whole).eval()

    def plain(found: object) -> Tensor:
        return found if isinstance(found, Tensor) else found.pooler_output  # type: ignore[attr-defined]

    wrapped = SimpleNamespace(
        to=lambda device: wrapped,
        config=model.config,
        get_image_features=lambda pixels: plain(model.get_image_features(pixels)),
        get_text_features=lambda ids, mask: plain(model.get_text_features(ids, mask)),
    )
    view = View(tuple(map(PromptRow, prompts)), images, images, ConceptList(), {}, FolderSight(whole))
    found = probe_named("clip_score").look(view, {})["clip_score"]
    bytes_ = (images * 255).round().byte()
    for picture, prompt, score in zip(bytes_, prompts, found, strict=True):
        with torch.no_grad():
            theirs = clip_score(picture, prompt, lambda: (wrapped, CLIPProcessor.from_pretrained(whole)))  # type: ignore[arg-type]
        assert float(theirs) == pytest.approx(max(float(score), 0.0), abs=1e-3)
    assert len(set(found.round().tolist())) > 1


def test_the_folders_own_image_settings_count(folder: Path) -> None:
    before = FolderSight(folder).embed_images(_pictures())
    for path in folder.glob("*processor_config.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content.get("image_processor", content)["image_mean"] = [0.6, 0.1, 0.4]
        path.write_text(json.dumps(content), encoding="utf-8")
    assert not torch.allclose(FolderSight(folder).embed_images(_pictures()), before, atol=1e-3)


def test_one_picture_is_what_it_is_among_others(whole: Path) -> None:
    sight, images = FolderSight(whole), _pictures()
    assert torch.allclose(sight.embed_images(images[1:2])[0], sight.embed_images(images)[1], atol=1e-5)
    assert torch.allclose(sight.embed_text(PROMPTS[:1])[0], sight.embed_text(PROMPTS)[0], atol=1e-5)


def test_latents_are_not_seen(whole: Path) -> None:
    with pytest.raises(FamilyError, match="not latents"):
        FolderSight(whole).embed_latents(torch.zeros(1, 4, 8, 8))


def test_missing_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path, Path("openai/clip-vit-base-patch32")):
        with pytest.raises(SettingError, match="There is no CLIP model") as caught:
            FolderSight(path)
        assert str(path) in str(caught.value)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _lose_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["visual_projection.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def _pickle(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: (f / "model.safetensors").unlink(),
        lambda f: _cut(f / "model.safetensors"),
        lambda f: (f / "config.json").write_text("{"),
        _lose_a_weight,
        _pickle,
        lambda f: [p.unlink() for p in f.glob("*processor_config.json")],
        lambda f: [p.unlink() for p in f.iterdir() if p.suffix in (".txt", ".json") and "token" in p.name],
        lambda f: [(p.write_text("{}")) for p in f.glob("tokenizer.json")],
    ],
    ids=["no weights", "cut", "no json", "weight lost", "pickle", "no processor", "no tokenizer", "broken tokenizer"],
)
def test_broken_folders_are_named(folder: Path, spoil: object) -> None:
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(SettingError, match="does not hold a whole CLIP model") as caught:
        FolderSight(folder)
    assert str(folder) in str(caught.value)
