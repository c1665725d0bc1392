"""Build one file for a machine without network: this benchmark, the package, and wheels that may be missing there.

    python archive.py --wheel drpruning-*.whl --out gpu-bench.pyz

The wheels are the dependencies of drpruning that torch and transformers do not always install, in the versions
installed here. On the machine, `python gpu-bench.pyz FOLDER` (:mod:`unpack`) unpacks those that are missing.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LARGEST = 60 * 2**20
"""Largest size of an archive in bytes; uploads with a command are limited to a little more."""
IMAGE = ("torch", "transformers", "numpy", "tokenizers", "safetensors")
"""Packages that a machine must have; torch must be built for its GPU."""
OPTIONAL = ("matplotlib", "tensorboard", "jinja2")
"""Dependencies that no case imports: those of the report and of a logger."""
USUAL = ("pydantic", "click", "rich", "scipy", "PyYAML", "typing-extensions")
"""Direct and indirect dependencies that an image may lack, although other installations of torch have them."""
GLIBC = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")
FOLDER = Path(__file__).parent


def carried(python: str) -> dict[str, str]:
    """Return name and version of each distribution in the archive, as installed here.

    Args:
        python: Version of the interpreter there, for example ``3.12``.
    """
    left_out = closure(OPTIONAL, python) | closure(IMAGE, python)
    needed = closure(["drpruning"], python)
    included = {name for name in needed if name not in left_out} | set(closure(USUAL, python)) - set(
        map(canonicalize_name, IMAGE)
    )
    return {name: distribution(name).version for name in sorted(included - {"drpruning"})}


def closure(names: Iterable[str], python: str) -> dict[str, str]:
    """Return these distributions and all their requirements, by canonical name, without those not installed here."""
    found: dict[str, str] = {}
    left = list(names)
    here = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        try:
            known = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = known.version
        for text in known.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(here):
                left.append(requirement.name)
    return found


def download(versions: dict[str, str], python: str, folder: Path) -> list[Path]:
    """Download wheels of these versions for Linux on x86-64 with pip."""
    platforms = [word for name in GLIBC for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-version", python, "--implementation", "cp", *platforms, "--dest", str(folder)]
    subprocess.run([*command, *(f"{name}=={version}" for name, version in versions.items())], check=True)
    return sorted(folder.glob("*.whl"))


def write_archive(out: Path, wheels: Iterable[Path]) -> int:
    """Write the archive, the same bytes for the same wheels and scripts; return its size in bytes.

    Raises:
        SystemExit: It is larger than :data:`LARGEST`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w") as archive:
        for name, content, method in _members(wheels):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, method)
    size = out.stat().st_size
    if size > LARGEST:
        out.unlink()
        raise SystemExit(f"{out}: {size / 2**20:.1f} MiB, expected at most {LARGEST / 2**20:.0f} MiB")
    return size


def _members(wheels: Iterable[Path]) -> Iterator[tuple[str, bytes, int]]:
    yield "__main__.py", (FOLDER / "unpack.py").read_bytes(), zipfile.ZIP_DEFLATED
    for path in sorted(FOLDER.glob("*.py")):
        yield f"bench/{path.name}", path.read_bytes(), zipfile.ZIP_DEFLATED
    for wheel in sorted(wheels, key=lambda path: path.name):
        yield f"wheels/{wheel.name}", wheel.read_bytes(), zipfile.ZIP_STORED  # compressed already


def wheel_of(name: str, folder: Path) -> Path:
    """Build a wheel of a distribution installed here, for this interpreter, without network.

    An editable installation of this package is read from its source.
    """
    found = distribution(name)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in found.files or []:
            path = Path(str(found.locate_file(file)))
            if ".." not in file.parts and "__pycache__" not in file.parts and path.is_file():
                wheel.write(path, str(file))
        if name == "drpruning":
            import drpruning

            package = Path(drpruning.__file__).parent
            for path in package.rglob("*"):
                inside = f"drpruning/{path.relative_to(package)}"
                if path.is_file() and "__pycache__" not in path.parts and inside not in wheel.namelist():
                    wheel.write(path, inside)
    target = folder / f"{name.replace('-', '_')}-{found.version}-py3-none-any.whl"
    target.write_bytes(buffer.getvalue())
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="the package, as maturin builds it")
    parser.add_argument("--python", default="3.12", help="version of Python on the machine (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu-bench.pyz"))
    arguments = parser.parse_args()
    versions = carried(arguments.python)
    with tempfile.TemporaryDirectory() as folder:
        size = write_archive(arguments.out, [arguments.wheel, *download(versions, arguments.python, Path(folder))])
    print(f"{arguments.out}: {size / 2**20:.1f} MiB, with {', '.join(f'{k} {v}' for k, v in versions.items())}")


if __name__ == "__main__":
    main()
