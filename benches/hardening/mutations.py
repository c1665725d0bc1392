"""Mutations of files: of bytes, and of the values of JSON and YAML."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

TOKENS = [
    b"[", b"]", b"{", b"}", b'"', b"'", b",", b":", b"\n", b"\r\n", b"\0", b"\t", b"-", b"null", b"true", b"NaN",
    b"Infinity", b"-1", b"1e999", b"9" * 5000, b"0x" + b"f" * 400, b"[" * 3000, b"{a: " * 200, b"!!int x", b"!!float x",
    b"!!timestamp x", b"!!python/object:os.system x", b"2001-99-99", b"&a [*a]", b"*a", b"<<: [1]", b"? [1]\n: 2",
    b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"\x1b[31m", b"\x7f", b"../" * 3, b"/dev/zero", b"a" * 300, b"%YAML 3.0",
    b"12:34:56:78", b"\xef\xbb\xbf", b"--- ", b"...", b"|\n", b">-\n", b"@", b"`", b"\xe2\x80\xa8",
]  # fmt: skip

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "a", "a" * 300, "\ud800", "\0", "\x1b[31m", "../x", "/dev/zero", "/", ".", "NaN", "1e5", [], {},
    [[]], [None], {"": 1}, {"a": {"a": {}}}, [1] * 1000, ["x"] * 3, {"x": "y"}, {str(key): 0 for key in range(1000)},
]  # fmt: skip


def mutated(content: bytes, source: random.Random) -> bytes:
    """Return ``content`` with one to four changes of its bytes."""
    data = bytearray(content)
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        at = source.randrange(len(data) + 1)
        end = min(len(data), at + source.choice((1, 1, 2, 4, 16, 200)))
        match source.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << source.randrange(8)
            case 1 if data:
                data[at % len(data)] = source.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end] * source.choice((1, 2, 50))
            case 4 | 5:
                data[at:at] = source.choice(TOKENS)
            case 6:
                data[at:end] = source.choice(TOKENS)
            case _:
                del data[at:]
    return bytes(data)


def mutated_values(content: bytes, source: random.Random) -> bytes:
    """Return the JSON ``content`` with one or two keys or values changed."""
    body = json.loads(content)
    for _ in range(source.choice((1, 1, 2))):
        places = list(_places(body))
        if not places:
            break
        holder, key = source.choice(places)
        match source.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[source.choice(("", "a", "\ud800", "\x1b[31m", "x" * 300))] = holder.pop(key)
            case 2:
                holder[key] = [holder[key]] * source.choice((1, 2, 3))
            case _:
                holder[key] = deepcopy(source.choice(VALUES))
    return json.dumps(body).encode()


def _places(body: Any) -> Any:
    """Yield each container in ``body`` with each of its keys."""
    if isinstance(body, (dict, list)):
        for key in list(body) if isinstance(body, dict) else range(len(body)):
            yield body, key
            yield from _places(body[key])
