"""`python -m drpruning`: the same as the command `drpruning`; what torchrun starts."""

from drpruning.cli import main

if __name__ == "__main__":
    main()
