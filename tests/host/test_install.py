"""The installer, without a network: what counts as damaged, what is refused, and what a failure says."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
from lethe_host import install, source
from lethe_host.errors import HostError
from lethe_host.install import Host, damage, ensure_host, host_folder, run
from lethe_host.link import is_link, link_folder


@pytest.fixture
def sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with a host in it that passes the check: this Python, and three small files."""
    monkeypatch.setenv("LETHE_HOST_CACHE", str(tmp_path / "cache"))
    root = host_folder()
    host = Host.below(root)
    for name in ("main.py", "nodes.py", "custom_nodes/other.py"):
        path = host.comfyui / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n", encoding="utf-8")
    monkeypatch.setattr(install, "probe", lambda host: {"torch": "1.2.3", "extra": "1"})
    site = host.python.parents[1] / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (site if sys.platform != "win32" else host.python.parents[1] / "Lib/site-packages").mkdir(parents=True)
    write_stamp(root)
    return root


def write_stamp(root: Path, **changes: object) -> None:
    """Writes a stamp that agrees with what is in the folder, apart from the changes."""
    code = source.digest(root / "ComfyUI")
    stamp = {"fingerprint": install.fingerprint(), "source": code, "packages": {"torch": "1.2.3"}, **changes}
    (root / "stamp.json").write_text(json.dumps(stamp), encoding="utf-8")


def archive(path: Path, *names: str, kind: bytes = tarfile.REGTYPE) -> Path:
    """Returns a tar with the given members, each holding its own name."""
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, "elsewhere", len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


def test_sound_host_is_used_again(sound: Path) -> None:
    assert damage(sound) is None
    (sound / "ComfyUI" / "custom_nodes" / "another.py").write_text("# a user's own", encoding="utf-8")
    assert damage(sound) is None


def test_no_host_is_no_sound_host(tmp_path: Path) -> None:
    assert damage(tmp_path / "nothing") == "it is not there"
    assert damage(tmp_path) == "it was never finished"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"text"', "\x00"])
def test_unreadable_stamp_is_damage(sound: Path, content: str) -> None:
    (sound / "stamp.json").write_text(content, encoding="utf-8")
    assert "can't be read" in (damage(sound) or "")


def test_other_requirements_are_damage(sound: Path) -> None:
    write_stamp(sound, fingerprint="of another time")
    assert "other requirements" in (damage(sound) or "")


@pytest.mark.parametrize("name", ["main.py", "nodes.py"])
def test_changed_or_missing_code_is_damage(sound: Path, name: str) -> None:
    path = sound / "ComfyUI" / name
    path.write_text("# edited\n", encoding="utf-8")
    assert "have changed" in (damage(sound) or "")
    path.unlink()
    assert "have changed" in (damage(sound) or "")


def test_changed_package_is_damage(sound: Path) -> None:
    write_stamp(sound, packages={"torch": "1.2.3", "numpy": "9"})
    assert damage(sound) == "packages are missing or have changed: numpy"


def test_python_that_does_not_run_is_damage(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert "does not run" in (damage(sound) or "")


def test_damaged_host_is_built_again(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The damaged one is gone before building starts, and the checkout it linked to is untouched."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "precious").touch()
    ensure_host(checkout)
    (sound / "stamp.json").unlink()
    seen = []

    def build(root: Path) -> None:
        seen.append(root.exists())
        (root / "ComfyUI").mkdir(parents=True)
        raise HostError("building", "try again")

    monkeypatch.setattr(install, "_build", build)
    with pytest.raises(HostError, match="building failed"):
        ensure_host(checkout)
    assert seen == [False]
    assert not sound.exists()
    assert (checkout / "precious").exists()


def test_checkout_is_linked_and_corrected(sound: Path, tmp_path: Path) -> None:
    for name in ("first", "second", "second"):
        (tmp_path / name).mkdir(exist_ok=True)
        host = ensure_host(tmp_path / name)
        link = host.comfyui / "custom_nodes" / "lethe"
        assert is_link(link)
        assert link.resolve() == (tmp_path / name).resolve()
    (path_file,) = sound.rglob("lethe.pth")
    assert path_file.read_text(encoding="utf-8") == f"{sound / 'ComfyUI' / 'custom_nodes'}\n"


def test_link_that_leads_nowhere_is_corrected(tmp_path: Path) -> None:
    gone, target = tmp_path / "gone", tmp_path / "target"
    gone.mkdir()
    target.mkdir()
    link_folder(tmp_path / "link", gone)
    gone.rmdir()
    link_folder(tmp_path / "link", target)
    assert (tmp_path / "link").resolve() == target.resolve()


def test_folder_in_the_way_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    with pytest.raises(HostError, match="not a link"):
        link_folder(tmp_path / "link", tmp_path)


def test_failed_command_says_everything() -> None:
    code = "import sys; print('\\n'.join(f'line {i}' for i in range(50))); sys.exit('no route to the index')"
    with pytest.raises(HostError) as caught:
        run("installing", [sys.executable, "-c", code], "reach the index")
    text = str(caught.value)
    for part in ("installing failed", sys.executable, "line 49", "no route to the index", "reach the index"):
        assert part in text
    assert "line 10\n" not in text


def test_command_that_is_not_there_is_a_host_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="starting"):
        run("starting", [str(tmp_path / "no-such-program")], "install it")


def test_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real virtual environment whose pip finds no index and no file."""
    monkeypatch.setenv("LETHE_HOST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(HostError, match="pip reaches PyPI") as caught:
        ensure_host()
    assert caught.value.step == "downloading ComfyUI"
    assert caught.value.output
    assert not host_folder().exists()


def test_only_comfyui_is_unpacked(tmp_path: Path) -> None:
    names = ("pkg-1/setup.py", "pkg-1/vendor/ComfyUI/main.py", "pkg-1/vendor/ComfyUI/a/b.py", "pkg-1/vendor/x.py")
    source.unpack(archive(tmp_path / "a.tar.gz", *names), tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.py")}
    assert found == {"main.py", "a/b.py"}


@pytest.mark.parametrize(
    "name", ["pkg-1/vendor/ComfyUI/../../../outside.py", "pkg-1/vendor/ComfyUI/a/../../outside.py"]
)
def test_member_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(HostError, match="leaves the folder"):
        source.unpack(archive(tmp_path / "a.tar.gz", name), tmp_path / "out")
    assert not list(tmp_path.rglob("outside.py"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_an_archive_are_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(HostError, match="not a file"):
        source.unpack(archive(tmp_path / "a.tar.gz", "pkg-1/vendor/ComfyUI/main.py", kind=kind), tmp_path / "out")


def test_another_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="sha256"):
        source.verify(archive(tmp_path / "a.tar.gz", "pkg-1/vendor/ComfyUI/main.py"), source.CURRENT)


def test_python_without_a_host_is_told_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LETHE_COMFYUI", str(tmp_path))
    with pytest.raises(HostError, match="nox -s tests"):
        Host.current()
