"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drpruning import files
from drpruning.errors import PlatformError
from drpruning.files import (
    MARK,
    clear_partial,
    create_file,
    create_own_folder,
    locked,
    new_file,
    new_folder,
    open_new,
    open_to_append,
    truncate,
    write_bytes,
    write_text,
)


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


def test_without_locks_files_are_written_whole_and_folders_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "HAS_LOCKS", False)  # as on Windows
    closed: list[bool] = []
    replace = Path.replace
    with open_new(tmp_path / "file") as file:
        monkeypatch.setattr(Path, "replace", lambda *paths: (closed.append(file.closed), replace(*paths))[1])
        file.write(b"whole")
    assert closed == [True]  # Windows renames closed files only
    assert (tmp_path / "file").read_text() == "whole"
    (tmp_path / ".file.partial").write_text("of another writer")
    with pytest.raises(TypeError), open_new(tmp_path / "file") as file:
        file.write("no bytes")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.partial", "file"]
    for context in (new_folder(tmp_path / "made"), locked(tmp_path)):
        with pytest.raises(PlatformError, match="expected Linux or macOS, found Windows"), context:
            pass
    assert not (tmp_path / "made").exists()


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".made.partial"
    (left / "made").mkdir(parents=True)
    (left / "made" / "half").write_text("half")
    (left / MARK).touch()
    (tmp_path / ".file.partial").write_text("half")
    write_text(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"
    with new_folder(tmp_path / "made") as folder:
        (folder / "whole").write_text("whole")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["whole"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "made"]


def test_a_killed_process_leaves_what_the_next_one_clears(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from drpruning.files import new_file, new_folder
with new_folder(Path("made")) as folder, new_file(Path("file")) as file:
    (folder / "half").touch()
    file.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".file.partial", ".made.partial"]
    clear_partial(tmp_path)
    assert list(tmp_path.iterdir()) == []


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


def test_clearing_takes_only_what_is_unfinished_and_ours(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".b.partial").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / ".link.partial").symlink_to(tmp_path / "kept")
    (tmp_path / ".other.partial").mkdir()  # a folder that this package did not create
    (tmp_path / ".other.partial" / "file").touch()
    os.mkfifo(tmp_path / ".pipe.partial")
    with new_folder(tmp_path / "running") as folder, open_new(tmp_path / "too") as file:
        clear_partial(tmp_path)
        file.write(b"x")
        (folder / "y").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".link.partial",
        ".other.partial",
        ".pipe.partial",
        "kept",
        "running",
        "too",
    ]
    assert (tmp_path / "kept" / "file").exists()
    assert (tmp_path / ".other.partial" / "file").exists()
    assert (tmp_path / "too").read_bytes() == b"x"


def plant(kind: str, place: Path, outside: Path) -> None:
    """Put a link at ``place``, to a file or a folder with a file, or a folder of another program."""
    outside.mkdir()
    (outside / "mine").write_text("mine")
    if kind == "link to a file":
        place.symlink_to(outside / "mine")
    elif kind == "link to a folder":
        place.symlink_to(outside)
    elif kind == "broken link":
        place.symlink_to(outside / "absent")
    elif kind == "link to a marked folder":
        (outside / MARK).touch()
        place.symlink_to(outside)
    elif kind == "hard link":
        os.link(outside / "mine", place)
    else:
        outside.rename(place)


def write_folder(target: Path) -> None:
    with new_folder(target) as folder:
        (folder / "file").write_text("new")


def write_path(target: Path) -> None:
    with new_file(target) as path:
        path.write_text("new")


WRITERS: dict[str, Callable[[Path], object]] = {
    "write_text": lambda target: write_text(target, "new"),
    "write_bytes": lambda target: write_bytes(target, b"new"),
    "new_file": write_path,
    "new_folder": write_folder,
}
KINDS = ["link to a file", "link to a folder", "broken link", "link to a marked folder", "hard link", "folder"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_through_a_planted_name(writer: str, kind: str, tmp_path: Path) -> None:
    target, outside = tmp_path / "new", tmp_path / "outside"
    place = tmp_path / ".new.partial"
    plant(kind, place, outside)
    WRITERS[writer](target)
    WRITERS[writer](tmp_path / "other")
    content = target / "file" if target.is_dir() else target
    assert content.read_text() == "new"
    assert not target.is_symlink()
    mine = (place if kind == "folder" else outside) / "mine"
    assert mine.read_text() == "mine"
    assert not (outside / "absent").exists()
    left = {path.name for path in tmp_path.iterdir()} - {"new", "other", "outside"}
    assert left <= {".new.partial"}


@pytest.mark.parametrize("writer", ["write_text", "new_file"])
def test_a_link_at_the_target_is_replaced(writer: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "new").symlink_to(tmp_path / "mine")
    WRITERS[writer](tmp_path / "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "new").read_text() == "new"
    assert not (tmp_path / "new").is_symlink()


def test_a_link_at_a_folder_s_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "new").symlink_to(tmp_path / "empty")
    with pytest.raises(FileExistsError, match="symbolic link"):
        write_folder(tmp_path / "new")
    with pytest.raises(FileExistsError, match="is a link"):
        create_own_folder(tmp_path / "new")


@pytest.mark.parametrize("exchange", ["file", "folder"])
def test_a_partial_path_that_is_exchanged_is_an_error(exchange: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").touch()

    def attack() -> None:
        with new_file(tmp_path / "new") if exchange == "file" else new_folder(tmp_path / "new"):
            place = tmp_path / ".new.partial"
            place.rename(tmp_path / "moved")
            place.symlink_to(tmp_path / "outside" / "mine" if exchange == "file" else tmp_path / "outside")

    with pytest.raises(OSError, match="exchanged by another process"):
        attack()
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "outside" / "mine").exists()


def test_appending_and_truncating_follow_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "log").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="is a symbolic link"):
        open_to_append(tmp_path / "log")
    with pytest.raises(OSError, match="is a symbolic link"):
        truncate(tmp_path / "log", 1)
    with create_file(tmp_path / "log") as file:
        file.write(b"new")
    assert (tmp_path / "mine").read_text() == "mine"
    with open_to_append(tmp_path / "log") as text:
        text.write("er")
    truncate(tmp_path / "log", 4)
    assert (tmp_path / "log").read_text() == "newe"


def test_threads_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            write_text(tmp_path / "file", str(number) * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set((tmp_path / "file").read_text())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bytes_take_the_name_when_they_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "figure.png"
    write_bytes(target, b"old")

    def full(handle: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="disk full"):
            write_bytes(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert target.read_bytes() == b"old"
    write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
