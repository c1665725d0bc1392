"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from drpruning.files import clear_partial, new_folder, write_bytes, write_text


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "made") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("text")
        assert not (tmp_path / "deep" / "made").exists()
    assert (tmp_path / "deep" / "made" / "inner" / "file").read_text() == "text"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["made"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with new_folder(tmp_path / "made") as folder:
            (folder / "file").write_text("half")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".made.partial"
    left.mkdir()
    (left / "half").write_text("half")
    with new_folder(tmp_path / "made") as folder:
        (folder / "whole").write_text("whole")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["whole"]


def test_a_writer_at_work_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / ".made.partial"
    theirs.mkdir()
    (theirs / "file").write_text("theirs")
    lock = os.open(theirs, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(BlockingIOError, match="another process"), new_folder(tmp_path / "made"):
            pass
    finally:
        os.close(lock)
    assert (theirs / "file").read_text() == "theirs"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_name_in_use_is_refused_and_left_alone(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "taken"
    if kind == "folder":
        target.mkdir()
        (target / "mine").touch()
    else:
        target.write_text("mine")
    with pytest.raises(FileExistsError, match="expected a new or an empty folder"), new_folder(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_text_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "half a pair: \ud800")
    assert target.read_text() == "old"
    write_text(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_clearing_takes_only_what_is_unfinished(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".b.partial").touch()
    (tmp_path / "kept").touch()
    clear_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_bytes_take_the_name_when_they_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "figure.png"
    write_bytes(target, b"old")

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:1])
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="disk full"):
            write_bytes(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert target.read_bytes() == b"old"
    write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
