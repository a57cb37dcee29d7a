"""Pictures on disk: what is missing, what is the same model, and what a crash leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lethe.erasers.errors import EraserFileError, SettingError
from lethe.erasers.painter import Cue, Shot, alike, prompted
from lethe.erasers.store.album import Album, open_album
from torch import Tensor


class Plain:
    """A painter of one colour."""

    def __init__(self, level: float = 0.5, **settings: int) -> None:
        self.level, self.given = level, {"steps": 4, **settings}

    def paint(self, shots: Sequence[Shot]) -> Tensor:
        return torch.full((len(shots), 3, 2, 2), self.level)

    def settings(self) -> dict[str, int]:
        return self.given

    def sketch(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([self.level, float(len(prompts))])


SHOTS = [Shot(prompted("a"), 0), Shot(prompted("a"), 1), Shot(prompted("b"), 0), Shot(prompted("a"), 0, 2.0)]


def test_pictures_come_back_by_prompt_seed_and_guidance(tmp_path: Path) -> None:
    album = Album(tmp_path)
    assert album.missing(SHOTS) == [0, 1, 2, 3]
    pictures = torch.rand(4, 3, 2, 2)
    album.add(SHOTS[:3], pictures[:3])
    assert album.missing(SHOTS) == [3]
    album.add(SHOTS[3:], pictures[3:])
    assert float((album.read(SHOTS) - pictures).abs().max()) <= 0.5 / 255 + 1e-6
    assert not list(tmp_path.glob("*.part"))


def test_a_model_finds_its_own_album_again_and_no_other(tmp_path: Path) -> None:
    first = open_album(tmp_path, Plain(), ["x"])
    assert open_album(tmp_path, Plain(0.5 + 1e-6), ["x"]).folder == first.folder
    others = [Plain(0.501), Plain(steps=5)]
    folders = {open_album(tmp_path, painter, ["x"]).folder for painter in others}
    assert len(folders | {first.folder}) == 3
    assert open_album(tmp_path, Plain(0.501), ["x"]).folder in folders
    (first.folder / "sketch.safetensors").write_bytes(b"cut")
    assert open_album(tmp_path, Plain(), ["x"]).folder != first.folder


def test_only_prompts_are_kept(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="prompts"):
        Album(tmp_path).missing([Shot(Cue(((1.0, torch.zeros(2, 2)),)), 0)])


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EraserFileError, match="could not be written"):
        Album(tmp_path / "file" / "below").add(SHOTS[:1], torch.zeros(1, 3, 2, 2))


def test_shots_of_one_batch_share_weights_and_guidance() -> None:
    mixed = Shot(Cue(((2.0, "a"), (-1.0, "b"))), 0)
    shots = [*SHOTS, mixed, SHOTS[0], mixed]
    assert alike(shots, 10) == [[0, 1, 2, 5], [3], [4, 6]]
    assert alike(shots, 3) == [[0, 1, 2], [5], [3], [4, 6]]
    assert mixed.cue.text == "+2*[a] -1*[b]"
    assert SHOTS[0].cue.text == "a"
    with pytest.raises(SettingError):
        Cue(())
