"""What is copied of Debian's packages, and told of them: no image is needed, nor Debian."""

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "docker/debian_files.py"
LIBRARY = "usr/lib/x86_64-linux-gnu/libz.so.1.3.1"
NOTHING = Path("/nothing")


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, whose Debian is the folder `debian`."""
    spec = importlib.util.spec_from_file_location("debian_files", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("KNOWN", "LICENCES", "SHARED_LICENCES"):
        here = tmp_path / "debian" / getattr(module, name).relative_to("/")
        here.mkdir(parents=True)
        monkeypatch.setattr(module, name, here)
    return module


def under(root: Path, path: Path) -> Path:
    """Where a file of Debian's is in a layer."""
    return root / path.relative_to("/")


def licence(debian: ModuleType, package: str, text: str) -> Path:
    folder: Path = debian.LICENCES / package
    folder.mkdir()
    (folder / "copyright").write_text(text)
    return folder / "copyright"


def test_a_file_behind_links_comes_with_them(debian: ModuleType, tmp_path: Path) -> None:
    there = tmp_path / "lib"
    there.mkdir()
    (there / "libz.so.1.3.1").write_text("code")
    (there / "libz.so.1").symlink_to("libz.so.1.3.1")
    (tmp_path / "lib64").symlink_to("lib")
    for _ in range(2):
        debian.copy(tmp_path / "lib64/libz.so.1", tmp_path / "root")
    link = under(tmp_path / "root", there / "libz.so.1")
    assert link.readlink() == Path("libz.so.1.3.1")
    assert link.read_text() == "code"
    assert not under(tmp_path / "root", tmp_path / "lib64").exists()


def test_a_module_behind_a_link_is_one_of_its_own(debian: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "_build_linux.py").write_text("code")
    (tmp_path / "_build.py").symlink_to("_build_linux.py")
    debian.copy(tmp_path / "_build.py", tmp_path / "root")
    module = under(tmp_path / "root", tmp_path / "_build.py")
    assert not module.is_symlink()
    assert module.read_text() == "code"


def test_licences_come_with_the_texts_that_they_refer_to(debian: ModuleType, tmp_path: Path) -> None:
    shared: Path = debian.SHARED_LICENCES
    (shared / "GPL-3").write_text("the GPL, version 3")
    (shared / "GPL").symlink_to("GPL-3")
    (shared / "Artistic").write_text("another")
    text = licence(debian, "gcc-base", f"The text is in `{shared}/GPL'.\nLong gone: {shared}/BSD.\n")
    (debian.LICENCES / "libgcc").symlink_to("gcc-base")
    copied = debian.licences(["libgcc:amd64"], tmp_path / "root", NOTHING)
    assert copied == {text, shared / "GPL"}
    assert under(tmp_path / "root", debian.LICENCES / "libgcc/copyright").read_text() == text.read_text()
    assert under(tmp_path / "root", shared / "GPL").read_text() == "the GPL, version 3"
    assert not under(tmp_path / "root", shared / "Artistic").exists()


def test_licences_that_the_base_has_are_not_in_a_layer_again(debian: ModuleType, tmp_path: Path) -> None:
    text = licence(debian, "gcc-base", "Free.\n")
    (debian.LICENCES / "libgcc").symlink_to("gcc-base")
    (debian.LICENCES / "libstdc++").symlink_to("gcc-base")
    assert debian.licences(["libgcc"], tmp_path / "base", NOTHING) == {text}
    assert debian.licences(["libstdc++"], tmp_path / "layer", tmp_path / "base") == set()
    layer = under(tmp_path / "layer", debian.LICENCES)
    assert (layer / "libstdc++").readlink() == Path("gcc-base")
    assert not under(tmp_path / "layer", text).exists()


def test_a_package_without_a_licence_fails_the_build(debian: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"zlib1g:amd64 is here without its licence, .*/zlib1g/copyright"):
        debian.licences(["zlib1g:amd64"], tmp_path / "root", NOTHING)


def test_checksums_are_those_of_files_that_are_here_as_they_were_installed(debian: ModuleType, tmp_path: Path) -> None:
    layer, base = tmp_path / "layer", tmp_path / "base"
    for root, path in ((layer, LIBRARY), (base, "usr/share/doc/zlib1g/a licence"), (base, "usr/lib/changed.so")):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(path)
    lines = {
        path: f"{hashlib.md5(content.encode()).hexdigest()}  {path}\n"
        for path, content in (
            (LIBRARY.removeprefix("usr/"), LIBRARY),  # as it was before /usr was merged
            ("usr/share/doc/zlib1g/a licence", "usr/share/doc/zlib1g/a licence"),
            ("usr/lib/changed.so", "as it was"),
            ("usr/lib/left-out.py", "gone"),
        )
    }
    (debian.KNOWN / "zlib1g:amd64.md5sums").write_text("".join(lines.values()))
    assert list(debian.checksums("zlib1g:amd64", (layer, base))) == list(lines.values())[:2]
