"""Checkpoints: exact, complete or absent, at most ``keep`` of them, and damage to any byte is found."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from drpruning.errors import DiskError, StateError
from drpruning.hf.tensor_stream import DTYPES
from drpruning.train.checkpoint import FORMAT, Checkpoints
from drpruning.train.cpu_staging import CpuStaging
from tests.train.processes import CONTEXT

SIZES = [(25, torch.float32), (5, torch.bfloat16), (300, torch.int8), (3, torch.int16), (40, torch.float32)]
"""Tensors of 100, 10, 300, 6 and 160 bytes."""


FILES = ["state.json", "complete.json", "tensors.json", "tensors/00000.safetensors"]


def tensors(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {"weight": torch.randn(4, 3, generator=generator), "bias": torch.randn(3, generator=generator)},
        "optimizer": {"state": {"weight": {"step": torch.tensor(float(seed))}}},
    }


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_restores_every_bit(background: bool, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, recipe="a", background=background)
    given = tensors(5)
    checkpoints.save("prune", 5, given, {"numbers": [0.1, 2]})
    given["model"]["weight"].zero_()  # training continues
    found, damaged = checkpoints.newest("prune")
    checkpoints.close()
    assert damaged == []
    assert found is not None
    assert (found.stage, found.step, found.state) == ("prune", 5, {"numbers": [0.1, 2]})
    filled = tensors(0)
    checkpoints.restore(found, filled)
    for name, tensor in tensors(5)["model"].items():
        assert torch.equal(filled["model"][name], tensor)
    assert filled["optimizer"]["state"]["weight"]["step"].item() == 5


def test_the_newest_of_the_stage_is_found_and_old_ones_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpoints.save("prune", step, tensors(step), {})
    checkpoints.save("continue", 3, tensors(3), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "continue-000000003",
        "prune-000000002",
        "prune-000000010",
    ]
    found, _ = checkpoints.newest("prune")
    assert found is not None
    assert found.step == 10
    checkpoints.drop("prune")
    assert checkpoints.newest("prune") == (None, [])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("victim", FILES)
@pytest.mark.parametrize("harm", [cut, flip, empty, Path.unlink])
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(victim: str, harm: Any, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save("prune", step, tensors(step), {})
    newest = tmp_path / "prune-000000002"
    assert {str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file()} == {*FILES}
    harm(newest / victim)
    found, damaged = checkpoints.newest("prune")
    assert found is not None
    assert found.step == 1
    assert len(damaged) == 1
    assert "prune-000000002 is damaged" in damaged[0]


@pytest.mark.parametrize("background", [False, True])
def test_a_damaged_one_is_replaced_and_costs_no_other_its_place(background: bool, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, background=background)
    checkpoints.save("prune", 3, tensors(3), {})
    checkpoints.wait()
    empty(tmp_path / "prune-000000003" / "state.json")
    checkpoints.save("prune", 3, tensors(4), {})
    found, damaged = checkpoints.newest("prune")
    assert (found is not None, damaged) == (True, [])
    empty(tmp_path / "prune-000000003" / "state.json")
    checkpoints.save("prune", 2, tensors(2), {})  # an older one, from which the run continued
    found, damaged = checkpoints.newest("prune")
    checkpoints.close()
    assert found is not None
    assert (found.step, damaged) == (2, [])


def test_every_bit_of_the_mark_counts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save("prune", 1, tensors(1), {})
    mark = tmp_path / "prune-000000001" / "complete.json"
    content = mark.read_bytes()
    for place in range(len(content)):
        for bit in (1, 16):
            mark.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            try:
                same = json.loads(mark.read_bytes()) == json.loads(content)
            except ValueError:
                same = False
            assert (checkpoints.newest("prune")[0] is not None) == same


def seal(folder: Path) -> None:
    """Write the true sizes and sums into ``complete.json``, as an attacker does."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "complete.json"]
    sums = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in files
    }
    (folder / "complete.json").write_text(json.dumps({"format": FORMAT, "files": sums}))


def set_size(size: str) -> Any:
    def harm(folder: Path) -> None:
        text = (folder / "complete.json").read_text()
        bytes_of_state = (folder / "state.json").stat().st_size
        (folder / "complete.json").write_text(text.replace(f"[{bytes_of_state},", f"[{size},"))

    return harm


def edit(file: str, change: Any, *, sealed: bool = True) -> Any:
    """Return a function that changes the JSON of a file, and then the sums."""

    def harm(folder: Path) -> None:
        body = json.loads((folder / file).read_text())
        change(body)
        (folder / file).write_text(json.dumps(body))
        if sealed:
            seal(folder)

    return harm


def weight(body: Any) -> Any:
    return body["tensors"]["model/weight"]


def link(name: str) -> Any:
    def harm(folder: Path) -> None:
        (folder / name).rename(folder.parent / "outside")
        (folder / name).symlink_to(folder.parent / "outside")

    return harm


def pipe(folder: Path) -> None:
    (folder / "state.json").unlink()
    os.mkfifo(folder / "state.json")


def pickled(name: str) -> Any:
    def harm(folder: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Planted(folder.parent / "executed")))
        seal(folder)

    return harm


@dataclass
class Planted:
    """An object whose unpickling creates a file."""

    file: Path

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


DAMAGES = {
    "size is Infinity": set_size("Infinity"),
    "size is NaN": set_size("NaN"),
    "size is 1e999": set_size("1e999"),
    "size is -1": set_size("-1"),
    "size is true": set_size("true"),
    "size is a text": set_size('"9"'),
    "a path leads outside": edit(
        "complete.json", lambda body: body["files"].update({"../../x": [1, "0" * 64]}), sealed=False
    ),
    "an absolute path": edit(
        "complete.json", lambda body: body["files"].update({"/etc/passwd": [1, "0" * 64]}), sealed=False
    ),
    "files is a list": edit("complete.json", lambda body: body.update(files=[]), sealed=False),
    "no files": edit("complete.json", lambda body: body.pop("files"), sealed=False),
    "no state in the list": edit("complete.json", lambda body: body["files"].pop("state.json"), sealed=False),
    "a sum is missing": edit("complete.json", lambda body: body["files"].update({"state.json": [1]}), sealed=False),
    "format is a list": edit("complete.json", lambda body: body.update(format=[5]), sealed=False),
    "state without step": edit("state.json", lambda body: body.pop("step")),
    "step is a text": edit("state.json", lambda body: body.update(step="2")),
    "another step": edit("state.json", lambda body: body.update(step=7)),
    "recipe is null": edit("state.json", lambda body: body.update(recipe=None)),
    "state is a list": edit("state.json", lambda body: body.update(state=[])),
    "state is checked": edit("state.json", lambda body: body.update(state={"bad": True})),
    "index without tensors": edit("tensors.json", lambda body: body.pop("tensors")),
    "an entry is a list": edit("tensors.json", lambda body: body["tensors"].update({"model/weight": []})),
    "shape is null": edit("tensors.json", lambda body: weight(body).update(shape=None)),
    "shape is infinite": edit("tensors.json", lambda body: weight(body).update(shape=[1e999, 3])),
    "shape is huge": edit("tensors.json", lambda body: weight(body).update(shape=[2**63, 3])),
    "shape is of floats": edit("tensors.json", lambda body: weight(body).update(shape=[4.0, 3])),
    "more rows than in the file": edit("tensors.json", lambda body: weight(body).update(shape=[5, 3])),
    "longer rows than in the file": edit("tensors.json", lambda body: weight(body).update(shape=[4, 5])),
    "another dtype": edit("tensors.json", lambda body: weight(body).update(dtype="I32")),
    "an unknown dtype": edit("tensors.json", lambda body: weight(body).update(dtype="object")),
    "rows overlap": edit("tensors.json", lambda body: weight(body)["rows"].append([SHARD, 2, 4])),
    "a gap": edit("tensors.json", lambda body: weight(body).update(rows=[[SHARD, 1, 4]])),
    "rows of a file outside": edit("tensors.json", lambda body: weight(body).update(rows=[["../x", 0, 4]])),
    "rows are texts": edit("tensors.json", lambda body: weight(body).update(rows=[[SHARD, "0", "4"]])),
    "a tensor is not in the index": edit("tensors.json", lambda body: body["tensors"].pop("model/weight")),
    "a pickle as tensors": pickled("tensors/00000.safetensors"),
    "a pickle as index": pickled("tensors.json"),
    "a pickle as state": pickled("state.json"),
    "a pickle as complete.json": lambda folder: (folder / "complete.json").write_bytes(
        pickle.dumps(Planted(folder.parent / "executed"))
    ),
    "the state is a link": link("state.json"),
    "the tensors are a link": link("tensors/00000.safetensors"),
    "the folder of tensors is a link": link("tensors"),
    "complete.json is a link": link("complete.json"),
    "the state is a pipe": pipe,
    "an infinite number": edit("state.json", lambda body: body.update(state={"seconds": 1e999})),
    "deep JSON": lambda folder: ((folder / "state.json").write_text("[" * 100_000), seal(folder)),
    "a number of 5,000 digits": lambda folder: ((folder / "state.json").write_text("9" * 5000), seal(folder)),
}
SHARD = "00000.safetensors"


def refuse_bad(state: dict[str, Any]) -> None:
    if state.get("bad"):
        raise StateError("the state is bad", "Advice.")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_with_true_sums_is_named_and_nothing_is_executed(damage: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, check=refuse_bad)
    for step in (1, 2):
        checkpoints.save("prune", step, tensors(step), {"numbers": [1]})
    newest = tmp_path / "prune-000000002"
    DAMAGES[damage](newest)
    found, damaged = checkpoints.newest("prune")
    assert found is not None
    assert found.step == 1
    assert len(damaged) == 1
    assert "prune-000000002 is damaged: " in damaged[0]
    assert "\n" not in damaged[0]
    checkpoints.save("prune", 2, tensors(2), {})  # replaces it, and of links the links
    found, damaged = checkpoints.newest("prune")
    assert found is not None
    assert (found.step, damaged) == (2, [])
    assert not (tmp_path / "executed").exists()
    if (tmp_path / "outside").is_file():
        assert (tmp_path / "outside").stat().st_size > 0


def test_a_checkpoint_that_is_a_link_or_a_file_is_damaged_and_replaced(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (1, 2):
        checkpoints.save("prune", step, tensors(step), {})
    (tmp_path / "checkpoints" / "prune-000000002").rename(tmp_path / "outside")
    (tmp_path / "checkpoints" / "prune-000000002").symlink_to(tmp_path / "outside")
    (tmp_path / "checkpoints" / "prune-000000003").touch()
    found, damaged = checkpoints.newest("prune")
    assert found is not None
    assert (found.step, len(damaged)) == (1, 2)
    checkpoints.save("prune", 2, tensors(2), {})
    found, damaged = checkpoints.newest("prune")
    assert found is not None
    assert (found.step, damaged) == (2, [])  # the file was newer than the checkpoint that was saved
    assert {path.name for path in (tmp_path / "outside").iterdir()} >= {"state.json", "tensors"}


def test_random_changes_of_the_json_files_are_typed(tmp_path: Path) -> None:
    """Replace one value of a JSON file, with true sums: the checkpoint is used or damaged, or does not fit."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save("prune", 1, {**tensors(1), "values": {"list": [{"lr": 0.1, "betas": (0.9, 0.99)}]}}, {"a": [1]})
    folder, generator = tmp_path / "prune-000000001", random.Random(0)
    whole = {name: (folder / name).read_bytes() for name in FILES}
    outcomes = Counter[str]()
    for _ in range(150):
        name = generator.choice(["state.json", "complete.json", "tensors.json"])
        body = json.loads(whole[name])
        places = [(body, key) for key in body]
        for container, key in places:
            inner = container[key]
            keys = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
            places += [(inner, each) for each in keys]
        container, key = generator.choice(places)
        container[key] = generator.choice([None, True, -1, 0, 7, 0.5, 1e300, 2**70, "", "x" * 50, [], [[]], {}, [1, 2]])
        (folder / name).write_text(json.dumps(body))
        if name != "complete.json":
            seal(folder)
        found, damaged = checkpoints.newest("prune")
        outcome = "damaged" if damaged else "used"
        if found is not None:
            filled = {**tensors(0), "values": {"list": [{"lr": 0.2, "betas": (0.8, 0.9)}]}}
            try:
                checkpoints.restore(found, filled)
            except StateError as error:
                outcome = "does not fit" if "does not fit this model" in str(error) else str(error)
        outcomes[outcome] += 1
        for each, content in whole.items():
            (folder / each).write_bytes(content)
    assert outcomes["damaged"] > 50
    assert set(outcomes) == {"damaged", "used", "does not fit"}


def test_all_types_and_layouts_are_restored_bit_for_bit(tmp_path: Path) -> None:
    def made(fill: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(fill)
        bits = torch.randint(0, 256, (6, 8), generator=generator, dtype=torch.uint8)  # NaN with payloads among them
        found: dict[str, Any] = {
            str(dtype).removeprefix("torch."): bits.view(dtype) if dtype != torch.bool else bits > 127
            for dtype in DTYPES.values()
        }
        more = {
            "transposed": bits.t().clone().t(),
            "scalar": torch.tensor(float(fill)),
            "empty": torch.empty(0),
            "empty rows": torch.empty(3, 0, dtype=torch.bfloat16),
            "odd": torch.arange(fill, fill + 3, dtype=torch.int8),
        }
        groups = [{"lr": fill / 10, "betas": (fill / 10, 0.999), "fused": None, "params": ["a", "b"]}]
        return {"model": found, "optimizer": {"state": more, "param_groups": groups}}

    checkpoints = Checkpoints(tmp_path, keep=1)
    saved = made(3)
    checkpoints.save("prune", 1, saved, {})
    found, _ = checkpoints.newest("prune")
    assert found is not None
    filled = made(7)
    checkpoints.restore(found, filled)
    for own, expected in (
        (filled["model"], saved["model"]),
        (filled["optimizer"]["state"], saved["optimizer"]["state"]),
    ):
        for name, tensor in expected.items():
            assert tensor.dtype == own[name].dtype
            assert tensor.shape == own[name].shape
            assert (
                tensor.numpy(force=True).tobytes() == own[name].numpy(force=True).tobytes()
                if (tensor.dtype != torch.bfloat16)
                else torch.equal(tensor.view(torch.int16), own[name].view(torch.int16))
            ), name
    assert filled["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    stored = load_file(found.path / "tensors" / SHARD)  # any reader of safetensors reads the file
    assert torch.equal(stored["optimizer/state/odd"], saved["optimizer"]["state"]["odd"])


def save_and_die(folder: Path, at: int) -> None:
    """Save a checkpoint in this process, and kill the process at its ``at``-th flush to the disk."""
    fsync, flushes = os.fsync, 0

    def flush(handle: int) -> None:
        nonlocal flushes
        flushes += 1
        if flushes == at:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = flush
    Checkpoints(folder, keep=2).save("prune", 2, tensors(2), {})


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_process_that_is_killed_in_a_save_leaves_the_checkpoint_before_it(at: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save("prune", 1, tensors(1), {})
    process = CONTEXT.Process(target=save_and_die, args=(tmp_path, at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == [".prune-000000002.partial", "prune-000000001"]
    found, damaged = checkpoints.newest("prune")
    assert found is not None
    assert (found.step, damaged) == (1, [])
    checkpoints.save("prune", 2, tensors(2), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prune-000000001", "prune-000000002"]


def test_what_a_process_leaves_that_is_killed_after_the_rename_goes_with_the_stage(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    process = CONTEXT.Process(target=save_and_die, args=(tmp_path, 8))  # the flush of the folder of checkpoints
    process.start()
    process.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".prune-000000002.partial", "prune-000000002"]
    found, damaged = checkpoints.newest("prune")
    assert found is not None
    assert (found.step, damaged) == (2, [])
    checkpoints.drop("prune")
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_checkpoint_is_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save("prune", 1, tensors(1), {})
    (tmp_path / "prune-000000001").rename(tmp_path / ".prune-000000002.partial")
    assert checkpoints.newest("prune") == (None, [])


def test_a_checkpoint_of_another_recipe_is_skipped(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=1, recipe="one").save("prune", 1, tensors(1), {})
    found, passed = Checkpoints(tmp_path, keep=1, recipe="other").newest("prune")
    assert found is None
    assert passed == [f"checkpoint {tmp_path / 'prune-000000001'} belongs to another recipe"]


def test_a_checkpoint_of_an_older_format_is_skipped(tmp_path: Path) -> None:
    """Skip a checkpoint whose format number is older: its state lacks fields that this version reads."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save("prune", 1, tensors(1), {})
    mark = tmp_path / "prune-000000001" / "complete.json"
    body = json.loads(mark.read_text())
    mark.write_text(json.dumps({**body, "format": body["format"] - 1}))
    found, damaged = checkpoints.newest("prune")
    assert found is None
    assert f"format {body['format'] - 1}; this version reads {body['format']}" in damaged[0]


def test_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save("prune", 1, tensors(1), {})
    found, _ = checkpoints.newest("prune")
    assert found is not None
    with pytest.raises(StateError, match="does not fit this model"):
        checkpoints.restore(
            found, {"model": nn.Linear(2, 2).state_dict(), "optimizer": {"state": {"other": torch.ones(1)}}}
        )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_full_disk_leaves_the_last_checkpoint_intact(background: bool, room: int, small_disk: Path) -> None:
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=2, background=background)
    numbers = {"model": {"weight": torch.arange(60_000.0)}}
    checkpoints.save("prune", 1, numbers, {})
    checkpoints.wait()
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(small_disk).free == 0
    os.truncate(filler, filler.stat().st_size - room)

    def save() -> None:
        checkpoints.save("prune", 2, numbers, {})
        checkpoints.wait()

    with pytest.raises(DiskError, match=r"the last one, prune-000000001, is intact") as raised:
        save()
    assert "240 kB" in str(raised.value) or "No space left" in str(raised.value)
    filler.unlink()
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["prune-000000001"]
    assert checkpoints.newest("prune")[1] == []
    save()
    found, damaged = checkpoints.newest("prune")
    checkpoints.close()
    assert found is not None
    assert (found.step, damaged) == (2, [])


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()  # a file of that name
    with pytest.raises(DiskError, match="could not be written"):
        Checkpoints(tmp_path / "checkpoints", keep=1).save("prune", 1, tensors(1), {})


def test_copies_are_made_in_the_same_memory_each_time() -> None:
    staging = CpuStaging()
    first = staging.copy({"weight": torch.ones(4, 3), "bias": torch.ones(3)})
    second = staging.copy({"weight": torch.full((4, 3), 2.0), "bias": torch.ones(3), "more": torch.ones(2)})
    assert first["weight"] is second["weight"]
    assert torch.equal(second["weight"], torch.full((4, 3), 2.0))
    other = staging.copy({"weight": torch.ones(2, 3, dtype=torch.bfloat16)})
    assert torch.equal(other["weight"], torch.ones(2, 3, dtype=torch.bfloat16))
    kept = weakref.ref(second["bias"])
    del second, first
    assert kept() is not None
    staging.release()
    assert kept() is None


def test_memory_for_a_gpu_is_pinned_in_blocks_that_tensors_share(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    empty = torch.empty

    def pretend(*size: Any, pin_memory: bool = False, **named: Any) -> torch.Tensor:
        if pin_memory:
            pinned.append(size)
        return empty(*size, **named)

    monkeypatch.setattr("drpruning.train.cpu_staging.torch.empty", pretend)
    monkeypatch.setattr("drpruning.train.cpu_staging.BLOCK", 256)
    with FakeTensorMode():
        given = [empty(size, dtype=dtype, device="cuda") for size, dtype in SIZES]
        copied = list(CpuStaging().copy({str(number): each for number, each in enumerate(given)}).values())
    assert [(len(each), each.dtype, each.device.type) for each in copied] == [(*pair, "cpu") for pair in SIZES]
    assert [each.storage_offset() * each.element_size() for each in copied] == [0, 128, 0, 0, 64]
    assert pinned == [(256,), (300,), (256,)]
