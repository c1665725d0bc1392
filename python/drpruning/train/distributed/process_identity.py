"""The identity of a process on its machine, and the end of a lost one.

A rank that was stopped (SIGSTOP) handles no SIGTERM: `torchrun` sends one, and SIGKILL 30 seconds later; other
launchers wait longer. The other ranks of the machine end it at once, by an identity that no other process can have.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

PROC = Path("/proc")
START_TIME = 21 - 2  # index of the start time in the fields of /proc/PID/stat after the name, see proc_pid_stat(5)


def machine_identity() -> str | None:
    """Return a string that processes share if they see each other's process ids; None if the system has no /proc."""
    try:
        boot = (PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {(PROC / 'self' / 'ns' / 'pid').readlink()}"
    except OSError:
        return None


def process_identity(pid: int) -> str | None:
    """Return machine, process id and start time of a process; None if there is no such process."""
    machine = machine_identity()
    try:
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if machine is None else f"{pid} {int(fields[START_TIME])} {machine}"


def end_lost_process(identity: str | None) -> bool:
    """Send SIGKILL to a process of this machine; return whether it was sent.

    Args:
        identity: What :func:`process_identity` returned in that process.
    """
    if identity is None:
        return False
    pid = int(identity.split()[0])
    if pid == os.getpid() or process_identity(pid) != identity:  # another machine, or a later process
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:  # it has ended meanwhile, or belongs to another user
        return False
    return True
