"""CSV and JSON lines: every shape that people write comes out as the same table, and what is wrong is named."""

from __future__ import annotations

import io
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning import LossTable, read_losses
from drpruning.errors import ConfigError, LossTableError
from drpruning.loss_table.columns import Pattern, role

WIDE = "step,web,code\n100,3.5,2.5\n200,3.0,2.0\n300,2.8,1.9\n"


def read(tmp_path: Path, text: str | bytes, **arguments: object) -> LossTable:
    path = tmp_path / "losses.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_losses(path, **arguments)  # type: ignore[arg-type]


def assert_same(table: LossTable, other: LossTable) -> None:
    assert table.domains == other.domains
    np.testing.assert_array_equal(table.steps, other.steps)
    np.testing.assert_array_equal(table.tokens, other.tokens)
    np.testing.assert_array_equal(table.params, other.params)
    np.testing.assert_array_equal(table.losses, other.losses)


def test_a_column_per_domain(tmp_path: Path) -> None:
    table = read(tmp_path, WIDE)
    assert table.domains == ("web", "code")
    assert not table.counts_tokens
    assert table.steps.tolist() == table.tokens.tolist() == [100, 200, 300]
    assert table.params.tolist() == [1.0, 1.0, 1.0]
    assert table.losses.tolist() == [[3.5, 2.5], [3.0, 2.0], [2.8, 1.9]]


@pytest.mark.parametrize(
    "text",
    [
        "domain,loss,step\nweb,3.5,100\ncode,2.5,100\nweb,3.0,200\ncode,2.0,200\nweb,2.8,300\ncode,1.9,300\n",
        "Step;web;code;lr\n100;3.5;2.5;1e-4\n200;3.0;2.0;1e-4\n300;2.8;1.9;\n",
        "step\tweb\tcode\r\n100\t3.5\t2.5\r\n200\t3.0\t2.0\r\n300\t2.8\t1.9\r\n",
        "\ufeff" + WIDE,
        "\n" + WIDE.replace("\n", "\n\n"),
        '"step", "web", "code"\n"300", "2.8", "1.9"\n200, 3.0, 2.0\n100.0, 3.5, 2.50\n',
        '{"step": 100, "web": 3.5, "code": 2.5}\n{"step": 200, "web": 3.0, "code": 2.0}\n'
        '{"step": 300, "web": 2.8, "code": 1.9, "lr": 1e-4}\n',
        '{"losses": {"web": 3.5, "code": 2.5}, "step": 100, "note": "begun"}\n'
        '{"losses": {"web": 3.0, "code": 2.0}, "step": 200}\n{"loss": {"web": 2.8, "code": 1.9}, "step": 300}',
        "".join(
            json.dumps({"domain": domain, "loss": loss, "step": step}) + "\n"
            for step, losses in ((100, (3.5, 2.5)), (200, (3.0, 2.0)), (300, (2.8, 1.9)))
            for domain, loss in zip(("web", "code"), losses, strict=True)
        ),
    ],
    ids=["long", "semicolons", "tabs", "mark", "blank lines", "quotes", "json", "nested json", "long json"],
)
def test_other_ways_to_write_the_same(tmp_path: Path, text: str) -> None:
    assert_same(read(tmp_path, text), read(tmp_path, WIDE))


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(WIDE.encode())))
    assert_same(read_losses("-"), read(tmp_path, WIDE))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["again", "gap", "new"]), max_size=12), st.randoms(use_true_random=False))
def test_order_and_repeats_change_nothing(extra: list[str], mixer: random.Random) -> None:
    """Rows in any order, repeated cells, and gaps next to them give the same table."""
    cells = [(step, name, step / 100 + place) for step in (100, 200, 300) for place, name in enumerate(("web", "code"))]
    rows = [f"{step},{name},{loss}" for step, name, loss in cells]
    for kind in extra:
        step, name, loss = mixer.choice(cells)
        rows.append({"again": f"{step},{name},{loss}", "gap": f"{step},{name},", "new": f"{step + 1},{name},nan"}[kind])
    mixer.shuffle(rows)
    stream = io.BytesIO(("step,domain,loss\n" + "\n".join(rows)).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        table = read_losses("-", domains=["web", "code"])
    assert table.steps.tolist() == [100, 200, 300]
    assert table.losses.tolist() == [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]


def test_of_a_loss_given_twice_the_later_counts(tmp_path: Path) -> None:
    table = read(tmp_path, WIDE + "200,2.9,\n")
    assert table.losses.tolist() == [[3.5, 2.5], [2.9, 2.0], [2.8, 1.9]]


@pytest.mark.parametrize("gap", ["", "nan", "NaN", "-", "null", "inf", "-inf", "1e999", " "])
def test_gaps(tmp_path: Path, gap: str) -> None:
    table = read(tmp_path, f"step,web,code\n100,3.5,{gap}\n200,{gap},{gap}\n,{gap},{gap}\n300,2.8,1.9\n")
    assert table.steps.tolist() == [100, 300]
    assert math.isnan(table.losses[0, 1])
    first, second = table.observations(final_tokens=500)
    assert first.losses == {"web": 3.5}
    assert second.losses == {"web": 2.8, "code": 1.9}
    assert (second.step, second.tokens, second.final_tokens) == (300, 300, 500)


def test_tokens_and_params(tmp_path: Path) -> None:
    text = "step,tokens,params,web\n10,1000,,3.5\n20,2000,5e7,3.0\n30,3000,,2.8\n40,4000,4e7,2.7\n"
    table = read(tmp_path, text)
    assert table.counts_tokens
    assert table.steps.tolist() == [10, 20, 30, 40]
    assert table.tokens.tolist() == [1000, 2000, 3000, 4000]
    assert table.params.tolist() == [5e7, 5e7, 5e7, 4e7]


def test_tokens_per_step_and_params_from_the_caller(tmp_path: Path) -> None:
    table = read(tmp_path, WIDE, tokens_per_step=4e6, params=1e9)
    assert table.counts_tokens
    assert table.steps.tolist() == [100, 200, 300]
    assert table.tokens.tolist() == [400_000_000, 800_000_000, 1_200_000_000]
    assert table.params.tolist() == [1e9] * 3


def test_some_domains_in_another_order(tmp_path: Path) -> None:
    text = "step,web,code,note\n100,3.5,2.5,fine\n200,3.0,2.0,fine\n"
    table = read(tmp_path, text, domains=["code", "web"])
    assert table.domains == ("code", "web")
    assert table.losses.tolist() == [[2.5, 3.5], [2.0, 3.0]]


def test_a_training_log_in_which_only_some_lines_are_evaluations(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = []
    for step in range(1, 41):
        lines.append({"step": step, "train": {"loss": 4.0 - step / 50}, "phase": "train"})
        if step % 10 == 0:
            lines.append({"step": step, "eval": {"loss": {"web": 3.0 - step / 100, "code": 2.0}}, "took": "3 s"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    table = read(tmp_path, text + '{"step": 50, "eval": {"lo', columns="eval/loss/<domain>")
    assert table.domains == ("web", "code")
    assert table.steps.tolist() == [10, 20, 30, 40]


def test_an_export_of_weights_and_biases(tmp_path: Path) -> None:
    text = (
        '"Step","run - _step","run - eval/loss/web","run - eval/loss/web__MIN","run - eval/loss/web__MAX"\n'
        '"100","100","3.5","3.5","3.5"\n'
    )
    table = read(tmp_path, text, columns="* - eval/loss/<domain>")
    assert table.domains == ("web",)
    assert table.losses.tolist() == [[3.5]]


def test_patterns() -> None:
    assert Pattern("lm loss validation*<domain>").domain("lm loss validation web") == "web"
    assert Pattern("<domain> (eval)").domain("a.b (eval)") == "a.b"
    assert Pattern("loss.<domain>").domain("lossxweb") is None
    assert role("domain_a") is None
    for text in ("eval/loss", "<domain>/<domain>"):
        with pytest.raises(ConfigError, match="<domain> once"):
            Pattern(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("step,web\n", "holds no loss"),
        ("step,web\n1,\n", "holds no loss"),
        ("web,code\n1,2\n", "no column of steps or tokens; the columns are web, code"),
        ("step,lr\n1,2\n", "no column is a domain"),
        ("step,web,web\n1,2,3\n", "two columns called 'web'"),
        ("step,web\n1,2,3\n", "line 2 has 3 cells; the header has 2"),
        ("step,web\n\n1,2\n2\n", "line 4 has 1 cells"),
        ("step,web\n1,2\n2,fine\n", "line 3, column 'web' holds 'fine'; expected a loss"),
        ("step,web\n1,1_0\n", "line 2, column 'web' holds '1_0'"),
        ("step,web\n1,2\n2.5,3\n", "line 3, column 'step' holds '2.5'; expected a whole number"),
        ("tokens,web\n-1,2\n", "column 'tokens' holds '-1'"),
        ("tokens,web\n1e30,2\n", "column 'tokens' holds '1e30'"),
        ("step,web\ninf,2\n", "column 'step' holds 'inf'"),
        ("step,web\n,2\n", "line 2 has a loss but no step"),
        ("step,tokens,web\n1,100,3\n2,,2\n", "line 3 has a loss but no tokens"),
        ("step,iteration,web\n1,1,3\n", "columns 'step' and 'iteration' both hold step"),
        ("step,params,web\n1,0,3\n", "line 2, column 'params' holds '0'"),
        ("step,domain,loss\n1,,3\n", "line 2, column 'domain' is empty"),
        ('step,web\n1,"2\n', "line 2 is not CSV"),
        ('step,web\n1,"2" x\n', "line 2 is not CSV"),
        ("step,web\n1,2\0\n", "column 'web' holds"),
        ("[1, 2]\n", "begins with a JSON array"),
        ('{"step": 1, "web": 2}\nweb\n{"step": 2, "web": 2}\n', "line 2 is not JSON: Expecting value"),
        ('{"step": 1, "web": 2}\n[1]\n', "line 2 holds list"),
        ('{"step": 1, "web": "high"}\n', "line 1, column 'web' holds 'high'"),
        ('{"step": 1, "web": [2]}\n', "line 1, column 'web' holds [2]"),
        ('{"step": true, "web": 2}\n', "column 'step' holds True"),
        ('{"web": 2}\n', "line 1 has a loss but no step"),
        ('{"step": 1' + '0' * 5000 + ', "web": 2}\n', "line 1 is not JSON"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000 + "\n", "line 1 is not JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LossTableError) as caught:
        read(tmp_path, text)
    assert message in caught.value.message
    assert "losses.csv" in caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"step,web\n1,2\n2,\xff3\n", "line 3 is not UTF-8: byte 0xff at place 3"),
        (b"\x00" * (1 << 21), "line 1 is longer than 1 MiB"),
        ("step,web\n1,2\n".encode("utf-16"), "line 1 is not UTF-8"),
    ],
)
def test_what_is_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(LossTableError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"domains": ["web", "cod"]},
            LossTableError,
            "no losses of domain 'cod'; it has web, code\nDid you mean code?",
        ),
        ({"columns": "eval/<domain>"}, LossTableError, "no column matches 'eval/<domain>'"),
        ({"columns": "eval"}, ConfigError, "must hold <domain> once"),
        ({"tokens_per_step": math.nan}, ConfigError, "tokens per step: got nan"),
        ({"params": 0}, ConfigError, "parameters: got 0"),
        ({"stage": "prune"}, ConfigError, "has no stages"),
    ],
)
def test_arguments_that_do_not_fit(
    tmp_path: Path, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        read(tmp_path, WIDE, **arguments)
    assert message in str(caught.value)


def test_tokens_per_step_where_there_are_tokens(tmp_path: Path) -> None:
    with pytest.raises(LossTableError, match="line 2 has tokens"):
        read(tmp_path, "tokens,web\n100,3\n", tokens_per_step=10)


def test_more_tokens_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(LossTableError, match="line 2 is at"):
        read(tmp_path, "step,web\n1000000000000000,3\n", tokens_per_step=1e9)


def test_two_columns_of_one_domain(tmp_path: Path) -> None:
    with pytest.raises(LossTableError, match="'a/web' and 'b/web' both hold domain 'web'"):
        read(tmp_path, "step,a/web,b/web\n1,2,3\n", columns="*/<domain>")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='step,tokenwb{}[]":0123456789.-+e\n\t\0', max_size=80).map(str.encode))
def test_no_bytes_are_answered_with_anything_but_a_table_or_a_typed_error(content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        try:
            table = read_losses("-")
        except LossTableError:
            return
    assert np.isfinite(table.losses).any(axis=1).all()
    assert (np.diff(table.tokens) > 0).all()


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(LossTableError, match="expected a file, found none"):
        read_losses(tmp_path / "nothing.csv")
    with pytest.raises(LossTableError, match="holds neither metrics"):
        read_losses(tmp_path)


def test_numpy_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text(WIDE)
    code = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "scipy", "pydantic", "yaml", "tensorboard", "click", "rich"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import drpruning as dp
print(dp.read_losses({str(path)!r}).losses.shape)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "(3, 2)\n"


def test_parameters_of_a_source_that_has_them_have_no_effect(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="have no effect"):
        read(tmp_path, "step,params,web\n100,1e9,3.5\n", params=7e9)
    assert read(tmp_path, "step,params,web\n100,,3.5\n", params=7e9).params.tolist() == [7e9]


@pytest.mark.parametrize("last", ["400", "400,2.7", '400,"2.', "400,2.7,"])
def test_a_last_row_that_is_being_written_is_left_out(last: str, tmp_path: Path) -> None:
    expected = read(tmp_path, WIDE)
    found = read(tmp_path, WIDE + last)
    if last.count(",") < 2:
        assert_same(found, expected)
        with pytest.raises(LossTableError, match="line 5"):
            read(tmp_path, f"{WIDE}{last}\n")
    else:  # all cells, the last one empty
        np.testing.assert_array_equal(found.losses[-1], [2.7, math.nan])
