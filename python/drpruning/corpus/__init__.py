"""Tokenized corpora: token files, ``corpus.json``, MosaicML's index, document boundaries. Needs numpy."""

from drpruning.corpus.corpus import HELD_OUT_KEY, Corpus, held_out_order
from drpruning.corpus.manifest import Split

__all__ = ["HELD_OUT_KEY", "Corpus", "Split", "held_out_order"]
