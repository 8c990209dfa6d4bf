"""Which files of a folder become voices, and when the folder is read again."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from handler_core.audio import PcmFormat, wav
from handler_core.clients import voices
from handler_core.clients.voices import VoicesFolder

SOUND = wav(PcmFormat(24_000), b"\1\2" * 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "voices"
    path.mkdir()
    (path / "ann.wav").write_bytes(SOUND)
    return path


async def names(folder: VoicesFolder) -> list[str]:
    return list(await folder.recordings())


async def test_a_file_is_a_voice_of_its_name(folder: Path) -> None:
    (folder / "Bob-2_x.WAV").write_bytes(SOUND)
    found = await VoicesFolder(folder).recordings()
    assert list(found) == ["Bob-2_x", "ann"]
    assert found["ann"].read() == SOUND


async def test_what_is_no_voice_is_left_out_and_bad_recordings_are_told(folder: Path) -> None:
    for name in (".hidden.wav", "a b.wav", "a.b.wav", "é.wav", "notes.txt", "README", "x" * 65 + ".wav"):
        (folder / name).write_bytes(SOUND)
    (folder / "noise.wav").write_bytes(b"ID3 something else")
    (folder / "mute.wav").write_bytes(wav(PcmFormat(24_000), b""))
    (folder / "nested.wav").mkdir()
    (folder / "dangling.wav").symlink_to(folder / "gone.wav")
    with capture_logs() as logs:
        assert await names(VoicesFolder(folder)) == ["ann"]
    assert {entry["reason"].split(":")[0] for entry in logs} == {"noise.wav", "mute.wav", "nested.wav", "dangling.wav"}


async def test_a_recording_that_is_too_large_is_not_even_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices, "MAX_RECORDING", len(SOUND) - 1)
    assert await names(VoicesFolder(folder)) == []


async def test_a_link_counts_within_the_folder_and_never_leads_out_of_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(SOUND)
    (folder / "out.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "up.wav").symlink_to("../secret.wav")
    (folder / "..data").mkdir()  # as Kubernetes mounts a ConfigMap
    (folder / "..data" / "eve.wav").write_bytes(SOUND)
    (folder / "eve.wav").symlink_to("..data/eve.wav")
    assert await names(VoicesFolder(folder)) == ["ann", "eve"]


async def test_the_folder_may_itself_be_a_link_and_may_be_missing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert await names(VoicesFolder(tmp_path / "link")) == ["ann"]
    assert await names(VoicesFolder(tmp_path / "nowhere")) == []
    assert await names(VoicesFolder(folder / "ann.wav" / "x")) == []


async def test_a_link_that_leads_to_itself_leaves_the_other_voices(folder: Path) -> None:
    (folder / "loop.wav").symlink_to("loop.wav")
    with capture_logs() as logs:
        assert await names(VoicesFolder(folder)) == ["ann"]
    assert [entry["reason"].split(":")[0] for entry in logs] == ["loop.wav"]


async def test_a_folder_that_is_none_has_no_voices_and_is_told_of_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (folder / "ann.wav", tmp_path / "loop"):
        kept = VoicesFolder(path)
        with capture_logs() as logs:
            assert await names(kept) == await names(kept) == []
        assert [entry["event"] for entry in logs] == ["voices_unreadable"]


async def test_a_new_file_is_found_and_a_removed_one_forgotten(folder: Path) -> None:
    kept = VoicesFolder(folder)
    assert await names(kept) == ["ann"]
    (folder / "bob.wav").write_bytes(SOUND)
    os.utime(folder, ns=(1, 1))  # whatever the clock's resolution, the folder's time is another
    assert await names(kept) == ["ann", "bob"]
    (folder / "ann.wav").unlink()
    os.utime(folder, ns=(2, 2))
    assert await names(kept) == ["bob"]
    (folder / "bob.wav").unlink()
    folder.rmdir()
    with capture_logs() as logs:
        assert await names(kept) == []
        assert await names(kept) == []
    assert [entry["event"] for entry in logs] == ["voices_unreadable"]


async def test_a_recording_replaced_in_place_is_another_version_once_read_anew(folder: Path) -> None:
    kept = VoicesFolder(folder)
    first = (await kept.recordings())["ann"]
    os.utime(folder, ns=(1, 1))
    assert (await kept.recordings())["ann"] is first
    (folder / "ann.wav").write_bytes(SOUND + b"LIST\0\0\0\0")
    assert (await kept.recordings(anew=True))["ann"] != first


async def test_voices_are_named_by_name_file_or_path_at_the_server(folder: Path) -> None:
    kept = VoicesFolder(folder, "/models/voices/")
    recording = (await kept.recordings())["ann"]
    assert kept.at_server(recording) == "/models/voices/ann.wav"
    assert {kept.name_of(name) for name in ("ann", "ann.wav", "/models/voices/ann.wav")} == {"ann"}
    assert VoicesFolder(folder).at_server(recording) == str(folder / "ann.wav")
