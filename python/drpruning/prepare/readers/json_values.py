"""``.json`` files as JSON lines: an array, one object, or objects one after the other, whatever their white space."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# A whole string, a bracket or a comma; a quote that begins a string which has not ended yet.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},]|"', re.DOTALL)
_SPACE = b" \t\r\n"


def as_lines(parts: Iterable[bytes], longest: int) -> Iterator[bytes]:
    r"""The elements of the array, or the values, that ``parts`` hold, each on a line of its own.

    The brackets alone are looked at: what is between them is for the reader of the lines to parse or to refuse. A line
    stands for each value, also for one that breaks off.

    Args:
        parts: The file's content.
        longest: A value of more bytes is cut there, so that the reader refuses it, and its rest is passed over.

    >>> list(as_lines([b'[{"text": "a"}, {"te', b'xt":\n "b]"}]'], 100))
    [b'{"text": "a"}\n', b'{"text":  "b]"}\n']
    >>> list(as_lines([b'{"text": "a"} {"text": "b"}'], 100))
    [b'{"text": "a"}\n', b'{"text": "b"}\n']
    """
    scanner = _Scanner(longest)
    for part in parts:
        yield from scanner.feed(part)
    yield from scanner.finish()


class _Scanner:
    """Where the scan of a file has come to."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.waiting = b""
        self.depth = 0
        self.inside = 0  # depth at which values stand: 1 in an array, 0 outside
        self.begun = False
        self.kept = bytearray()  # of the value under way

    def feed(self, part: bytes) -> Iterator[bytes]:
        data = self.waiting + part
        if not self.begun:
            data = data.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
            if not data:
                return
            self.begun = True
            if data.startswith(b"["):
                self.inside = self.depth = 1
                data = data[1:]
        start = end = 0  # of the value under way; of what is scanned
        for token in _TOKEN.finditer(data):
            kind = token[0]
            if kind == b'"':
                end = token.start()
                break
            end = token.end()
            self.depth += (kind in b"[{") - (kind in b"]}")
            if self.depth == self.inside and kind in b"]}":
                self._keep(data[start:end])
            elif self.depth < self.inside or (kind == b"," and self.depth == self.inside == 1):
                self._keep(data[start : token.start()])
                self.inside = min(self.inside, self.depth)
            else:
                continue
            start = end
            yield from self._value()
        else:
            end = len(data)
        self._keep(data[start:end])
        self.waiting = data[end:]
        if len(self.waiting) > self.longest:  # refused later; go on in the string, its beginning forgotten
            self._keep(self.waiting)
            backslashes = len(self.waiting) - len(self.waiting.rstrip(b"\\"))
            self.waiting = b'"' + b"\\" * (backslashes % 2)

    def finish(self) -> Iterator[bytes]:
        self._keep(self.waiting)
        yield from self._value()
        if self.depth > 0 and self.inside > 0:
            yield b"the array is not closed\n"

    def _keep(self, data: bytes) -> None:
        room = self.longest + 1 - len(self.kept)
        self.kept += data[: max(room, 0)]

    def _value(self) -> Iterator[bytes]:
        value = bytes(self.kept).strip(_SPACE)
        self.kept.clear()
        if value:
            yield value.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"
