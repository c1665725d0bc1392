"""`python -m drpruning`: the same as the command `drpruning`; what torchrun starts."""

import sys
from typing import Any

from drpruning.errors import missing_package


def main() -> Any:
    """Run the command line; if click is missing, print in two lines how to install the packages of the commands."""
    try:
        from drpruning.cli import main as run_command_line  # noqa: PLC0415 - needs click
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        print(f"{type(missing).__name__}: {missing}", file=sys.stderr)
        sys.exit(missing.exit_code)
    return run_command_line()


if __name__ == "__main__":
    main()
