"""Writes the token files under `corpus/` with the formats' own packages, and into `expected.json` what is in them.

The packages are no dependency, and their own dependencies exclude one another: install each in a separate environment.

    pip install megatron-core torch && python tests/golden/make_corpus.py megatron    # written by 0.16.1
    pip install mosaicml-streaming && python tests/golden/make_corpus.py mds          # written by 0.13.0
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "corpus"
DTYPES = {"uint8": 200, "int8": 100, "int16": 30_000, "int32": 2**20, "int64": 2**20, "uint16": 60_000}


def ids(count: int, dtype: str) -> np.ndarray:
    """Token i is 7919 i modulo a number that makes use of the dtype."""
    return (np.arange(count) * 7919 % DTYPES[dtype]).astype(dtype)


def megatron() -> dict[str, dict[str, object]]:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    documents = [[12, 3], [1], [7, 7, 10]]  # tokens of each sequence
    expected: dict[str, dict[str, object]] = {}
    names = {dtype: dtype for dtype in DTYPES} | {"float32": "float32", "modes": "int32"}
    for name, dtype in names.items():
        prefix = FOLDER / "megatron" / name
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.dtype(dtype).type, multimodal=name == "modes")
        tokens = ids(40, "int32" if dtype == "float32" else dtype)
        start = 0
        for lengths in documents:
            # The builder converts to its dtype by itself; torch has no uint16 on every version.
            document = torch.tensor(tokens[start : start + sum(lengths)].astype(np.int64))
            modes = list(range(len(lengths))) if name == "modes" else None
            builder.add_document(document, lengths, modes)
            start += sum(lengths)
        builder.finalize(f"{prefix}.idx")
        if dtype != "float32":
            expected[f"megatron/{name}.bin"] = {"dtype": dtype, "tokens": len(tokens), "documents": 3}
    return expected


def mds() -> dict[str, dict[str, object]]:
    from streaming import MDSWriter

    def whole(dtype: str, lengths: list[int]) -> list[np.ndarray]:
        return np.split(ids(sum(lengths), dtype), np.cumsum(lengths)[:-1])

    packed, ragged = [16] * 12, [5, 300, 16, 1, 40]
    # Name: encoding of the tokens, their dtype, tokens of each sample, further columns, options of the writer.
    cases: dict[str, tuple[str, str, list[int], dict[str, str], dict[str, object]]] = {
        "bytes": ("bytes", "uint16", packed, {}, {"size_limit": 400}),
        "bytes-ragged": ("bytes", "uint16", ragged, {}, {}),
        "bytes-zstd": ("bytes", "uint16", packed, {}, {"compression": "zstd:7", "size_limit": 400}),
        "fixed": ("ndarray:uint16:16", "uint16", packed, {}, {"hashes": ["sha1", "xxh64"]}),
        "fixed-zstd": ("ndarray:int32:16", "int32", packed, {}, {"compression": "zstd", "hashes": ["sha256"]}),
        "shaped": ("ndarray:int32", "int32", packed, {}, {}),
        "shaped-ragged": ("ndarray:uint16", "uint16", ragged, {}, {}),
        "shaped-ragged-zstd": ("ndarray:uint16", "uint16", ragged, {}, {"compression": "zstd:3"}),
        "typed": ("ndarray", "int64", packed, {}, {}),
        "columns": ("ndarray:uint16:16", "uint16", packed, {"attention_mask": "ndarray:uint8:16", "id": "str"}, {}),
        "columns-ragged": ("bytes", "uint16", ragged, {"source": "str", "x": "int"}, {}),
        "columns-ragged-zstd": ("bytes", "uint16", ragged, {"source": "str"}, {"compression": "zstd"}),
        "gz": ("bytes", "uint16", packed, {}, {"compression": "gz"}),
    }
    expected: dict[str, dict[str, object]] = {}
    for name, (encoding, dtype, lengths, more, options) in cases.items():
        columns = {"tokens": encoding} | more
        with MDSWriter(out=str(FOLDER / "mds" / name), columns=columns, **options) as writer:
            for number, tokens in enumerate(whole(dtype, lengths)):
                others = {
                    "attention_mask": np.ones(16, np.uint8),
                    "id": f"{number:04}",
                    "source": "from " + "here " * number,
                    "x": number,
                }
                sample = {"tokens": tokens.tobytes() if encoding == "bytes" else tokens}
                writer.write(sample | {column: others[column] for column in more})
        expected[f"mds/{name}"] = {"dtype": dtype, "tokens": sum(lengths), "documents": None}
    return expected


if __name__ == "__main__":
    what = sys.argv[1]
    shutil.rmtree(FOLDER / what, ignore_errors=True)
    (FOLDER / what).mkdir(parents=True)
    path = FOLDER / "expected.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    kept = {name: case for name, case in known.items() if not name.startswith(what)}
    cases = kept | {"megatron": megatron, "mds": mds}[what]()
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(cases[name])}" for name in sorted(cases))
    path.write_text(f"{{\n{lines}\n}}\n")
