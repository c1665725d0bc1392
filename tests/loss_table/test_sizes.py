"""Losses of finished models of several sizes: the kinds of files, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drpruning.errors import LossTableError
from drpruning.loss_table import SizeTable, read_size_losses

SIZES = [1e9, 3e9, 9e9]
LOSSES = {"web": [2.5, 2.3, 2.2], "code": [1.5, 1.3, 1.2]}

WIDE = "model,params,web,code\n" + "".join(
    f"m{k},{size},{web},{code}\n"
    for k, (size, web, code) in enumerate(zip(["1B", 3_000_000_000, "9e9"], *LOSSES.values(), strict=True))
)
LONG = "params,domain,loss,tokens\n" + "".join(
    f"{size:.0f},{domain},{loss},2e12\n"
    for domain, losses in LOSSES.items()
    for size, loss in zip(SIZES, losses, strict=True)
)
ROWS = [
    {"name": f"m{k}", "params": size, "losses": {domain: losses[k] for domain, losses in LOSSES.items()}}
    for k, size in enumerate(SIZES)
]
EVALUATION = {
    "corpus": "corpus",
    "models": [
        {
            "model": f"m{k}",
            "parameters": int(size),
            "ids": "corpus",
            "domains": {
                domain: {"loss": losses[k], "standard_error": 0.01 if domain == "web" else None}
                for domain, losses in LOSSES.items()
            },
        }
        for k, size in enumerate(SIZES)
    ],
}


def read(folder: Path, content: str, **options: object) -> SizeTable:
    path = folder / "sizes"
    path.write_text(content, encoding="utf-8")
    return read_size_losses(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        WIDE,
        "\ufeff" + WIDE.replace(",", ";"),
        LONG,
        "".join(json.dumps(row) + "\n" for row in ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps(EVALUATION, indent=2),
    ],
    ids=["wide", "semicolons", "long", "lines", "array", "evaluation"],
)
def test_every_kind_of_file_gives_the_same_laws(tmp_path: Path, content: str) -> None:
    table = read(tmp_path, content)
    assert table.domains == ("web", "code")
    laws = table.laws()
    expected = read(tmp_path, WIDE).laws()
    for domain, law in laws.items():
        assert law.sizes == 3
        assert law.predict(5e8)[0] == pytest.approx(expected[domain].predict(5e8)[0])


def test_standard_errors_of_an_evaluation_widen_the_band(tmp_path: Path) -> None:
    table = read(tmp_path, json.dumps(EVALUATION))
    assert table.errors[:, 0].tolist() == [0.01] * 3
    assert np.isnan(table.errors[:, 1]).all()
    _, low, high = table.laws()["web"].predict(5e8)
    _, low_without, high_without = read(tmp_path, WIDE).laws()["web"].predict(5e8)
    assert high - low > 1.2 * (high_without - low_without)


def test_domains_are_chosen_in_their_order(tmp_path: Path) -> None:
    assert list(read(tmp_path, WIDE, domains=["code", "web"]).reference_losses(5e8)) == ["code", "web"]
    assert read(tmp_path, WIDE.replace("web", "eval/web"), columns="eval/<domain>").domains == ("web",)


def test_reference_losses_have_four_digits(tmp_path: Path) -> None:
    table = read(tmp_path, WIDE)
    losses = table.reference_losses(5e8)
    assert losses == {domain: round(law.predict(5e8)[0], 4) for domain, law in table.laws().items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("params,web\n", "holds no loss"),
        ("step,params,web\n1,1e9,2\n", "line 2 has a step"),
        ("web,code\n2,1\n", "line 2 has 0 columns of parameters"),
        ("params,num_params,web\n1,1,2\n", "line 2 has 2 columns of parameters"),
        ("params,web\nlarge,2\n", "column 'params' holds 'large'"),
        ("params,web\n-1,2\n", "column 'params' holds '-1'"),
        ("params,web\n,2\n", "column 'params' is empty"),
        ("params,web\n1e9,good\n", "loss of 'web' holds 'good'"),
        ("params,web\n1e9,2,3\n", "line 2 has 3 cells; the header has 2"),
        ("params,web,web\n1e9,2,3\n", "has two columns called 'web'"),
        ("params,domain,loss\n1e9,,3\n", "column 'domain' is empty"),
        ("params,web\n1e9,2\n1.001e9,2.1\n", "losses of domain 'web' at 1 size; expected at least 2 sizes"),
        ("params,web\n1e9,\n2e9,nan\n", "losses of domain 'web' at 0 sizes; expected at least 2 sizes"),
        ("params,web\n1e9,2\n2e9,2\n", "domain 'web' has no law over sizes: the loss does not fall"),
        ('{"params": 1e9, "web": 2}\n{"params": 1e9,\n', "line 2 is not JSON"),
        ("[1, 2]", "entry 1 holds int"),
        ('{"models": [{"parameters": 5}]}', "model 1 has no losses by domain"),
        ('{"models": [{"parameters": null, "domains": {}}]}', "model 1, parameters is empty"),
        (
            json.dumps(EVALUATION).replace('"ids": "corpus"', '"ids": "own"'),
            "model 1, 'm0', was measured with its own tokenizer; expected the corpus's",
        ),
    ],
)
def test_what_is_no_such_table_is_refused_by_place(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(LossTableError) as refusal:
        read(tmp_path, content).reference_losses(5e8)
    assert message in refusal.value.message


def test_a_domain_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LossTableError, match="no losses of domain 'wbe'; it has web, code\nDid you mean web"):
        read(tmp_path, WIDE, domains=["wbe"])
    with pytest.raises(LossTableError, match="is a folder"):
        read_size_losses(tmp_path)
