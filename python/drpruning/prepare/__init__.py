"""Preparation of corpora: text to tokenized, deduplicated domains with a holdout. Needs tokenizers.

In the order of the work:

- ``readers/``: files of a domain -> read units -> blocks of text -> documents.
- ``tokenize/``: documents -> tokenized blocks in a work folder.
- ``dedup/``: exact and near duplicates.
- ``output/``: holdout, layout of the shards, Megatron files, corpus folder.
- ``pipeline/``: tasks and worker processes that run these steps on one machine.
- ``preparation.py`` joins them into :func:`prepare`; ``cluster.py`` runs the same steps on many machines.
- ``demo/``: corpora without a download.

Names are imported on first use: modules of this package that read corpora only do not need tokenizers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drpruning.corpus.manifest import Manifest as Manifest
    from drpruning.prepare.demo.corpus import prepare_demo as prepare_demo
    from drpruning.prepare.output.holdout import Holdout as Holdout
    from drpruning.prepare.preparation import DomainText as DomainText
    from drpruning.prepare.preparation import prepare as prepare
    from drpruning.prepare.readers.field_mapping import FieldMapping as FieldMapping

_MODULE_OF = {
    "DomainText": "drpruning.prepare.preparation",
    "FieldMapping": "drpruning.prepare.readers.field_mapping",
    "Holdout": "drpruning.prepare.output.holdout",
    "Manifest": "drpruning.corpus.manifest",
    "prepare": "drpruning.prepare.preparation",
    "prepare_demo": "drpruning.prepare.demo.corpus",
}

__all__ = ["DomainText", "FieldMapping", "Holdout", "Manifest", "prepare", "prepare_demo"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'drpruning.prepare' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value
