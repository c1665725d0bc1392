"""What the archive does on a machine: puts the benchmark and the wheels that are missing there into a folder.

    python gpu-bench.pyz FOLDER

Nothing is installed, and pip is not needed: a wheel is a zip. Standard library alone.
"""

from __future__ import annotations

import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath


def unpack(archive: Path, folder: Path) -> list[str]:
    """Fills ``folder/site``, to be put on PYTHONPATH, and ``folder/bench``.

    A distribution that the interpreter has already does not change, whatever its version: torch and transformers there
    were installed along with it. The package itself always comes from the archive.

    Returns:
        Names and versions of what was put into ``folder/site``.
    """
    taken = []
    with zipfile.ZipFile(archive) as outer:
        for name in outer.namelist():
            path = PurePosixPath(name)
            if path.parts[0] == "bench":
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(outer.read(name))
            elif path.suffix == ".whl":
                distribution, number = path.name.split("-")[:2]
                if distribution != "drpruning" and is_installed(distribution):
                    continue
                with outer.open(name) as file, zipfile.ZipFile(file) as wheel:
                    wheel.extractall(folder / "site")  # wheels of this archive, made on a machine of ours
                taken.append(f"{distribution} {number}")
    return taken


def is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python gpu-bench.pyz FOLDER")
    where = Path(sys.argv[1]).absolute()
    print(f"unpacked into {where}: {', '.join(unpack(Path(sys.argv[0]), where))}")
    print(f"next: PYTHONPATH={where / 'site'} python {where / 'bench' / 'bench.py'} --minutes 9 --out gpu.json")
