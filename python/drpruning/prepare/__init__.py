"""Text to tokenised corpora. Needs tokenizers."""

from drpruning.prepare.demo import prepare_demo
from drpruning.prepare.from_files import prepare
from drpruning.prepare.manifest import Manifest
from drpruning.prepare.split import HeldOut

__all__ = ["HeldOut", "Manifest", "prepare", "prepare_demo"]
