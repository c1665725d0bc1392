"""Files that the stages of a cluster exchange, in JSON: the layout of the shards, and each written shard.

Files hold names, numbers and checksums, no paths: a reader builds the paths from its own folders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drpruning.corpus.json_object import JsonObject, read_json_object
from drpruning.corpus.manifest import SPLITS, Shard, Split
from drpruning.errors import CorpusError
from drpruning.files import write_text
from drpruning.prepare.output.layout import DROPPED, DomainLayout, shard_prefix
from drpruning.prepare.output.shards import NumberedBlock, ShardTask, WrittenShard
from drpruning.prepare.tokenize.tokenized_blocks import TokenizedBlock

BLOCK_NAME = re.compile(r"[0-9a-f]{40}")
BLOCK_NUMBERS = ("documents", "tokens", "text_bytes", "first")
ADVICE = "Remove the work folder and run all stages again."


@dataclass(frozen=True)
class LayoutFile:
    """The file with the layout of all domains.

    Args:
        work: The work folder.
        shards: Folder of the shards.
        dtype: Type of the tokens.
    """

    work: Path
    shards: Path
    dtype: str

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.work / "layout.json"

    def write(self, layouts: Mapping[str, DomainLayout], notes: dict[str, Any]) -> None:
        """Write the layout, each block once, and the notes for ``corpus.json``."""
        domains = {}
        for name, layout in layouts.items():
            tasks = [task for of_split in layout.shards.values() for task in of_split]
            blocks = {numbered.first: numbered for task in tasks for numbered in task.blocks}
            places = {first: place for place, first in enumerate(sorted(blocks))}
            domains[name] = {
                "blocks": [
                    [each.block.name, each.block.documents, each.block.tokens, each.block.text_bytes, each.first]
                    for _, each in sorted(blocks.items())
                ],
                "shards": {
                    split: [[places[each.first] for each in task.blocks] for task in of_split]
                    for split, of_split in layout.shards.items()
                },
                "fraction": layout.fraction,
                "text_bytes": layout.text_bytes,
                "left_out": layout.left_out,
                "unknown_share": layout.unknown_share,
                "byte_share": layout.byte_share,
            }
        write_text(self.path, json.dumps({"domains": domains, "notes": notes}, allow_nan=False))

    def read(self, domains: Iterable[str]) -> tuple[dict[str, DomainLayout], dict[str, Any]]:
        """Read the layout and the notes.

        Args:
            domains: The domains of the preparation.

        Raises:
            CorpusError: The file is missing or damaged, or is of other domains.
        """
        body = read_json_object(self.path, ADVICE)
        found = body.child("domains")
        if list(found.body) != list(domains):
            raise CorpusError(f"{self.path}: expected the domains {', '.join(domains)}, found others", ADVICE)
        return {name: self._domain(name, found.child(name)) for name in found.body}, body.child("notes").body

    def _domain(self, name: str, body: JsonObject) -> DomainLayout:
        blocks = [self._block(body, entry) for entry in _list(body, "blocks")]
        fraction = _share(body, "fraction")

        shards = body.child("shards")

        def tasks(split: Split) -> list[ShardTask]:
            return [
                ShardTask(
                    prefix=shard_prefix(self.shards, name, split, number),
                    blocks=tuple(blocks[place] for place in _places(shards, split, places, len(blocks))),
                    fraction=fraction,
                    split=split,
                    dropped=self.work / DROPPED,
                    dtype=self.dtype,
                )
                for number, places in enumerate(_list(shards, split))
            ]

        left_out = body.child("left_out")
        return DomainLayout(
            shards={split: tasks(split) for split in SPLITS},
            fraction=fraction,
            text_bytes=body.integer("text_bytes"),
            left_out={reason: left_out.integer(reason) for reason in left_out.body},
            unknown_share=_share(body, "unknown_share"),
            byte_share=_share(body, "byte_share"),
        )

    def _block(self, body: JsonObject, entry: Any) -> NumberedBlock:
        name, *counts = entry if isinstance(entry, list) and len(entry) == 5 else [None]
        if not isinstance(name, str) or not BLOCK_NAME.fullmatch(name):
            raise body.invalid_value("blocks", "a list of blocks: name and four numbers", entry)
        numbers = JsonObject(body.file, f"{body.where}blocks.", dict(zip(BLOCK_NUMBERS, counts, strict=True)))
        documents, tokens, text_bytes, first = (numbers.integer(key) for key in BLOCK_NUMBERS)
        block = TokenizedBlock(name=name, dtype=self.dtype, documents=documents, tokens=tokens, text_bytes=text_bytes)
        return NumberedBlock(block, first)


def write_written(path: Path, written: WrittenShard) -> None:
    """Write the description of a written shard."""
    shard = written.shard
    body = {
        "tokens": shard.tokens,
        "documents": shard.documents,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "index_sha256": shard.index_sha256,
        "groups_sha256": shard.groups_sha256,
        "digests_sha256": written.digests_sha256,
    }
    write_text(path, json.dumps(body))


def read_written(path: Path, task: ShardTask) -> WrittenShard:
    """Read the description of the shard of ``task``.

    Raises:
        CorpusError: The file is missing or damaged.
    """
    body = read_json_object(path, ADVICE)
    shard = Shard(
        path=task.prefix.with_name(f"{task.prefix.name}.bin"),
        dtype=task.dtype,
        tokens=body.integer("tokens"),
        documents=body.integer("documents"),
        bytes=body.integer("bytes"),
        sha256=body.sha256("sha256"),
        index_sha256=body.sha256("index_sha256"),
        groups_sha256=None if task.split == "train" else body.sha256("groups_sha256"),
    )
    return WrittenShard(shard, body.sha256("digests_sha256"))


def _list(body: JsonObject, key: str) -> list[Any]:
    value = body.get(key)
    if not isinstance(value, list):
        raise body.invalid_value(key, "a list", value)
    return value


def _places(body: JsonObject, split: Split, places: Any, blocks: int) -> list[int]:
    if not isinstance(places, list) or not all(type(place) is int and 0 <= place < blocks for place in places):
        raise body.invalid_value(split, "lists of places in the list of blocks", places)
    return places


def _share(body: JsonObject, key: str) -> float:
    value = body.get(key)
    if type(value) not in {int, float} or not 0 <= value <= 1:
        raise body.invalid_value(key, "a number from 0 to 1", value)
    return float(value)
