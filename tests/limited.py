"""Run code in a child process that may use only so much more memory and time, to find bombs and hangs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MARGIN = 64 << 20
"""Bytes that hostile input may cost above the valid input of the same kind."""
SECONDS = 60
"""Processor time for what takes milliseconds; a busy machine does not use it up."""

WAIT = 300
"""Seconds until a child that waits, for the writer of a pipe for example, is killed."""

PRELUDE = """
import resource, sys
from pathlib import Path

def limit(memory, seconds):
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if memory and sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
"""


def run_limited(imports: str, code: str, *arguments: str | Path, memory: int = 0, seconds: int = SECONDS) -> str:
    """Run ``imports``, then ``code`` with the limits; return what it prints.

    Args:
        imports: Imports, and what valid input costs: it runs before the limit.
        code: The code; ``sys.argv[1:]`` are the arguments. A typed error is printed by the code itself.
        arguments: Arguments of the code.
        memory: Bytes of memory above those in use after the imports; 0: any.
        seconds: Processor time.
    """
    result = subprocess.run(
        [sys.executable, "-c", f"{PRELUDE}\n{imports}\nlimit({memory}, {seconds})\n{code}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert result.returncode == 0, (result.returncode, result.stdout[-2000:], result.stderr[-3000:])
    return result.stdout
