"""The benchmark as tasks of lm-evaluation-harness: one per domain and a group of all, in a relocatable folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from drpruning.evaluation.benchmark.items import Item
from drpruning.files import write_text

METRICS = ("acc", "acc_norm", "acc_mutual_info")
"""``acc_mutual_info`` subtracts from a choice's log-likelihood that of the choice without the context."""

READER = '''"""Read the items next to this file for lm-evaluation-harness."""

import json
from pathlib import Path

import datasets


def load(domain, **_):
    """Return the items of one domain, as the split `test`."""
    keys = ("id", "context", "choices", "label")
    with (Path(__file__).parent / f"{domain}.jsonl").open(encoding="utf-8") as lines:
        rows = [{key: item[key] for key in keys} for item in map(json.loads, lines)]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
'''


def task_name(benchmark: str, domain: str) -> str:
    """Return the task name of a domain in lm-evaluation-harness."""
    return f"{benchmark}_{domain}"


def write_task_folder(folder: Path, name: str, items: Mapping[str, Sequence[Item]]) -> None:
    """Write ``DOMAIN.jsonl`` and ``DOMAIN.yaml`` for each domain, the group ``NAME.yaml``, and ``items.py``."""
    write_text(folder / "items.py", READER)
    for domain, found in items.items():
        lines = (json.dumps(item.to_json(), ensure_ascii=False) + "\n" for item in found)
        write_text(folder / f"{domain}.jsonl", "".join(lines))
        write_text(folder / f"{domain}.yaml", _task(name, domain))
    metrics = [{"metric": metric, "aggregation": "mean", "weight_by_size": False} for metric in METRICS]
    group = {"group": name, "task": [task_name(name, domain) for domain in items], "aggregate_metric_list": metrics}
    write_text(folder / f"_{name}.yaml", yaml.safe_dump({**group, "metadata": {"version": 1}}, sort_keys=False))


def _task(name: str, domain: str) -> str:
    body: dict[str, Any] = {
        "task": task_name(name, domain),
        "dataset_kwargs": {"domain": domain},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "target_delimiter": "",  # each choice begins with the white space of the text
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in METRICS],
        "metadata": {"version": 1},
    }
    return "custom_dataset: !function items.load\n" + yaml.safe_dump(body, sort_keys=False)
