"""Preparation of corpora: text to tokenized, deduplicated domains with a holdout. Needs tokenizers.

In the order of the work:

- ``readers/``: files of a domain -> read units -> blocks of text -> documents.
- ``tokenize/``: documents -> tokenized blocks in a work folder.
- ``dedup/``: exact and near duplicates.
- ``output/``: holdout, layout of the shards, Megatron files, corpus folder.
- ``pipeline/``: tasks and worker processes that run these steps on one machine.
- ``preparation.py`` joins them into :func:`prepare`; ``cluster.py`` runs the same steps on many machines.
- ``demo/``: corpora without a download.
"""

from drpruning.corpus.manifest import Manifest
from drpruning.prepare.demo.corpus import prepare_demo
from drpruning.prepare.output.holdout import Holdout
from drpruning.prepare.preparation import DomainText, prepare
from drpruning.prepare.readers.field_mapping import FieldMapping

__all__ = ["DomainText", "FieldMapping", "Holdout", "Manifest", "prepare", "prepare_demo"]
