"""Text to tokenised corpora. Needs tokenizers."""

from drpruning.prepare.demo import prepare_demo
from drpruning.prepare.fields import Fields
from drpruning.prepare.from_files import DomainText, prepare
from drpruning.prepare.manifest import Manifest
from drpruning.prepare.split import HeldOut

__all__ = ["DomainText", "Fields", "HeldOut", "Manifest", "prepare", "prepare_demo"]
