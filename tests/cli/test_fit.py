"""`drpruning fit`: laws recovered from a table, as text, JSON and figure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from drpruning import LearningRates
from drpruning.cli import group, main
from drpruning.errors import ConfigError
from drpruning.scaling.law import decay_ahead

FLOORS = {"web": 2.0, "code": 1.0}


def loss(domain: str, tokens: float) -> float:
    return FLOORS[domain] + 30 * tokens**-0.25


@pytest.fixture
def losses(tmp_path: Path) -> Path:
    """Curves that follow the law without noise, and two domains that have none."""
    rows = ["tokens,web,code,flat,never"]
    rows += [f"{at},{loss('web', at)!r},{loss('code', at)!r},3.0," for at in range(10**6, 11 * 10**6, 10**6)]
    path = tmp_path / "losses.csv"
    path.write_text("\n".join(rows))
    return path


def end(domain: str) -> float:
    """Return the loss that the first half of a run of 20M tokens predicts without learning rates."""
    return loss(domain, 2e7) * decay_ahead(0.5)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(group, [*map(str, arguments)], catch_exceptions=False)


def as_json(*arguments: object) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(run(*arguments, "--json").stdout)
    return body


def test_laws_that_are_not_identified_have_a_reason_and_no_prediction(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("step,web,code\n100,3.0,2.0\n200,2.9,1.9\n300,2.8,1.8\n")
    lines = run("fit", path, "--at-step", 10000).stdout.splitlines()
    for line in lines[-3:-1]:
        assert line.split()[-4:] == ["–", "–", "not", "identified"]
    assert lines[-1] == "not identified, web, code: 3 usable points with different T; at least 4 are needed"


def test_exact_curves_are_recovered(losses: Path) -> None:
    body = as_json("fit", losses, "--at", "20M")
    assert (body["unit"], body["at"]) == ("tokens", 2e7)
    web, code, flat, never = body["domains"]
    for row in (web, code):
        assert row["status"] == "identified"
        assert row["points"] == 9  # the first is warm-up
        assert row["E"] == pytest.approx(FLOORS[row["domain"]], abs=1e-3)
        assert row["beta"] == pytest.approx(0.25, abs=1e-3)
        assert row["alpha"] is None
        assert row["last_tokens"] == 10**7
        assert row["predicted_loss"] == pytest.approx(end(row["domain"]), abs=1e-4)
        assert row["band_low"] <= row["predicted_loss"] <= row["band_high"]
    assert flat["status"] == "not_identified"
    assert flat["predicted_loss"] == pytest.approx(3.0)
    assert never == {"domain": "never", "status": "no_losses", "points": 0}


def test_the_table(losses: Path) -> None:
    result = run("fit", losses, "--at", "20M")
    first, above, titles, web, _, flat, never, reason = result.stdout.splitlines()
    assert first == "Held-out loss, nats per token: 10 evaluations up to 10M tokens; predicted for 20M tokens"
    assert above.split() == ["last", "predicted"]
    assert titles.split() == ["domain", "points", "E", "beta", "residual", "loss", "loss", "90%", "band", "law"]
    assert web.split()[:4] == ["web", "9", "2.000", "0.250"]
    assert f"{end('web'):.3f}" in web
    assert flat.split()[-2:] == ["not", "identified"]
    assert never.split()[:2] == ["never", "0"]
    assert reason == "not identified, flat: the loss does not fall visibly with T"


def test_without_an_end_there_is_a_hint(losses: Path) -> None:
    result = run("fit", losses, "--domains", "code,web")
    assert [line.split()[0] for line in result.stdout.splitlines()[3:]] == ["code", "web"]
    assert "predicted" not in result.stdout
    assert result.stderr == "Give --at N to predict the losses.\n"


def test_a_size_that_changes_has_an_exponent(tmp_path: Path) -> None:
    rows = ["step,params,web"]
    for step in range(10, 60):
        params = 2e8 - 2e6 * step
        rows.append(f"{step},{params},{1 + 1e4 * params**-0.5 * step**-0.3!r}")
    path = tmp_path / "losses.csv"
    path.write_text("\n".join(rows))
    (web,) = as_json("fit", path)["domains"]
    assert web["alpha"] == pytest.approx(0.5, abs=0.02)
    assert "alpha" in run("fit", path).stdout


@pytest.fixture
def in_steps(tmp_path: Path) -> Path:
    """Write the curve of web, with a step of a million tokens."""
    path = tmp_path / "steps.csv"
    path.write_text("step,web\n" + "".join(f"{step},{loss('web', step * 1e6)!r}\n" for step in range(1, 11)))
    return path


def test_a_table_of_steps_takes_tokens_only_with_tokens_per_step(in_steps: Path) -> None:
    body = as_json("fit", in_steps, "--at", "20M", "--tokens-per-step", "1M")
    assert (body["unit"], body["at"]) == ("tokens", 20_000_000)
    assert body["domains"][0]["predicted_loss"] == pytest.approx(end("web"), abs=1e-4)
    assert run("fit", in_steps).stderr == "Give --at-step N to predict the losses.\n"
    with pytest.raises(ConfigError) as refusal:
        run("fit", in_steps, "--at", "20M")
    assert str(refusal.value) == (
        f"--at counts tokens, and {in_steps} counts steps\nGive --at-step N instead, or --tokens-per-step N as well."
    )


def test_a_step_to_predict_at(in_steps: Path, losses: Path) -> None:
    body = as_json("fit", in_steps, "--at-step", "20")
    assert (body["unit"], body["at"]) == ("steps", 20)
    assert body["domains"][0]["predicted_loss"] == pytest.approx(end("web"), abs=1e-4)
    converted = as_json("fit", in_steps, "--at-step", "20", "--tokens-per-step", "1M")
    assert converted["at"] == 20_000_000
    with pytest.raises(ConfigError, match=r"--at-step counts steps, and .* counts tokens"):
        run("fit", losses, "--at-step", "20")
    with pytest.raises(ConfigError, match="--at and --at-step are both given"):
        run("fit", in_steps, "--at", "20M", "--at-step", "20")


SCHEDULE = LearningRates.cosine(2e7, warmup=1e6)


@pytest.fixture
def decaying(tmp_path: Path) -> Path:
    """Curves under a cosine, which bends them, with a column of rates."""
    rows = ["tokens,web,lr"]
    for at in range(10**6, 11 * 10**6, 5 * 10**5):
        rate = 3e-4 * float(np.interp(at, SCHEDULE.tokens, SCHEDULE.rates))
        rows.append(f"{at},{loss('web', at) * float(SCHEDULE.bend(at))!r},{rate!r}")
    path = tmp_path / "decaying.csv"
    path.write_text("\n".join(rows))
    return path


@pytest.mark.parametrize("rates", ["cosine:warmup=5%", "cosine:warmup=1M,end=20M", "{file}"])
def test_with_learning_rates_it_finds_the_law_and_the_end(decaying: Path, tmp_path: Path, rates: str) -> None:
    file = tmp_path / "rates.csv"
    pairs = zip(SCHEDULE.tokens, SCHEDULE.rates, strict=True)
    file.write_text("tokens,lr\n" + "".join(f"{round(tokens)},{rate}\n" for tokens, rate in pairs))
    bent = loss("web", 2e7) * float(SCHEDULE.bend(2e7))
    (with_rates,) = as_json("fit", decaying, "--at", "20M", "--learning-rates", rates.format(file=file))["domains"]
    assert with_rates["predicted_loss"] == pytest.approx(bent, abs=1e-3)
    assert with_rates["E"] == pytest.approx(2.0, abs=0.02)
    (without_rates,) = as_json("fit", decaying, "--at", "20M")["domains"]
    assert abs(without_rates["E"] - 2.0) > 0.5
    assert with_rates["band_high"] - with_rates["band_low"] < 0.7 * (
        without_rates["band_high"] - without_rates["band_low"]
    )


def test_rates_in_the_table_go_before_the_description(decaying: Path) -> None:
    """Use a description without warm-up and is wrong about the start; from the last rate on it is right."""
    described = as_json("fit", decaying, "--at", "20M", "--learning-rates", "cosine:warmup=5%")
    wrong = as_json("fit", decaying, "--at", "20M", "--learning-rates", "linear:final=10%")
    assert wrong["domains"][0]["residual"] == pytest.approx(described["domains"][0]["residual"], abs=1e-5)
    assert wrong["domains"][0]["predicted_loss"] == pytest.approx(described["domains"][0]["predicted_loss"], abs=3e-3)


def test_from_standard_input(losses: Path) -> None:
    result = CliRunner().invoke(group, ["fit", "-"], input=losses.read_bytes())
    assert result.exit_code == 0
    assert result.stdout == run("fit", losses).stdout


@pytest.mark.parametrize(("suffix", "at"), [("png", "20M"), ("svg", "5M"), ("svg", "1B"), ("pdf", "20M")])
def test_figures(losses: Path, tmp_path: Path, suffix: str, at: str) -> None:
    figure = tmp_path / f"laws.{suffix}"
    assert run("fit", losses, "--at", at, "--plot", figure).exit_code == 0
    content = figure.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    if suffix == "png":
        pixels = matplotlib.image.imread(figure)
        assert pixels.shape[1] > 2 * pixels.shape[0]
        assert pixels.std() > 0.02
    if suffix == "svg":
        text = content.decode()
        assert all(f">{name}</text>" in text for name in ("web", "code", "flat", "never"))
        assert "no law" in text
        assert "no losses" in text
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted(["losses.csv", figure.name])


def test_names_that_a_table_or_a_figure_could_stumble_over(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("step,$x_{$,网页,<b>&,[red]a,\x1b[31mb\n0,3,3,3,3,3\n1,2,2,2,2,2\n")
    figure = tmp_path / "laws.svg"
    result = run("fit", path, "--plot", figure)
    assert "\x1b" not in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[3:-1]] == [
        "$x_{$",
        "网页",
        "<b>&",
        "[red]a",
        "\ufffd[31mb",
    ]
    text = figure.read_text()
    assert "$x_{$" in text
    assert "网页" in text
    assert "&lt;b&gt;&amp;" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.csv"], "LossTableError: "),
        (
            ["{losses}", "--at", "soon"],
            "ConfigError: --at is 'soon'; expected a positive number\nFor example --at 20B, or --at 2e10\n",
        ),
        (["{losses}", "--at", "0"], "ConfigError: --at is '0'"),
        (["{losses}", "--at", "1..2"], "ConfigError: --at is '1..2'"),
        (
            ["{losses}", "--plot", "laws.txt"],
            "ConfigError: --plot is 'laws.txt'; expected a path that ends in .png, .svg, .pdf\n",
        ),
        (["{losses}", "--plot", "no/where/laws.png"], "FileNotFoundError: "),
        (["{losses}", "--domains", "wbe"], "LossTableError: "),
        (["{losses}", "--columns", "loss"], "ConfigError: "),
        (["{losses}", "--tokens-per-step", "4M"], "LossTableError: "),
        (["{losses}", "--stage", "prune"], "ConfigError: "),
        (["{losses}", "--learning-rates", "cosine"], "ConfigError: learning rates 'cosine' end with the training"),
        (["{losses}", "--learning-rates", "x.csv"], "ConfigError: --learning-rates: there is no file 'x.csv'\n"),
        (
            ["{losses}", "--learning-rates", "{losses}"],
            "LossTableError: {losses} needs a column tokens and a column lr",
        ),
        (["{losses}", "--at", "9M", "--learning-rates", "csine"], "ConfigError: learning rates 'csine': there is no"),
    ],
)
def test_wrong_input_is_two_lines_and_exit_code_two(
    losses: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *(word.format(losses=losses) for word in arguments)])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message.format(losses=losses))
    assert len(captured.err.splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["losses.csv"]


def test_a_table_loads_neither_torch_nor_matplotlib(losses: Path) -> None:
    code = (
        "import sys\n"
        "from drpruning.cli import main\n"
        f"try:\n    main(['fit', {str(losses)!r}, '--at', '20M'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'pydantic', 'tensorboard'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    """Finished models on exact laws, and a domain whose loss does not fall."""
    rows = [f"{P},{1.7 + 400 * P**-0.34!r},{1 + 20 * P**-0.2!r},2.5" for P in (10**9, 3 * 10**9, 10**10)]
    path = tmp_path / "sizes.csv"
    path.write_text("\n".join(["params,web,code,flat", *rows]))
    return path


def test_reference_losses_at_a_size(sizes: Path) -> None:
    body = as_json("fit", sizes, "--at-params", "500M")
    assert (body["source"], body["at_params"]) == (str(sizes), 5e8)
    web, code, flat = body["domains"]
    assert (web["status"], web["sizes"], web["reason"]) == ("identified", 3, "")
    assert web["alpha"] == pytest.approx(0.34, abs=1e-3)
    assert web["reference_loss"] == pytest.approx(1.7 + 400 * 5e8**-0.34, abs=1e-4)
    assert code["reference_loss"] == pytest.approx(1 + 20 * 5e8**-0.2, abs=1e-4)
    assert web["band_low"] < web["reference_loss"] < web["band_high"]
    assert (flat["status"], flat["reference_loss"]) == ("not_identified", 2.5)
    assert "alpha" not in flat
    assert body["mixture"] is None
    setting = as_json("fit", sizes, "--domains", "web", "--at-params", "500M")["mixture"]
    assert setting == {"reference_loss": {"web": round(web["reference_loss"], 4)}}


def test_reference_losses_as_a_table_and_as_a_setting(sizes: Path) -> None:
    first, above, titles, web, _, flat = run("fit", sizes, "--at-params", "500M").stdout.splitlines()
    assert first.startswith(
        "Expected loss of a finished model with 500M parameters, nats per token; from 3 models, 1B to "
    )
    assert above.split() == ["reference"]
    assert titles.split() == ["domain", "sizes", "E", "alpha", "residual", "loss", "90%", "band", "law"]
    assert web.split()[:6] == ["web", "3", "1.700", "0.340", "0.00%", f"{1.7 + 400 * 5e8**-0.34:.4f}"]
    assert flat.endswith("the loss does not fall visibly with the size")
    setting = run("fit", sizes, "--domains", "code,web", "--at-params", "500M", "--yaml").stdout
    losses = {"code": round(1 + 20 * 5e8**-0.2, 4), "web": round(1.7 + 400 * 5e8**-0.34, 4)}
    assert yaml.safe_load(setting) == {"mixture": {"reference_loss": losses}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at-params", "none"], "ConfigError: --at-params is 'none'; expected a positive number\n"),
        (["--at-params", "1B", "--at", "20B"], "ConfigError: --at is for training runs, and --at-params for finished"),
        (["--at-params", "1B", "--plot", "laws.svg"], "ConfigError: --plot is for training runs"),
        (["--at-params", "1B", "--json", "--yaml"], "ConfigError: --json and --yaml are both given\n"),
        (["--yaml"], "ConfigError: --yaml prints reference losses, which need --at-params\n"),
        (["--at-params", "1B", "--yaml"], "LossTableError: {sizes}: domain 'flat' has no law over sizes"),
        (["--at-params", "1B", "--domains", "wbe"], "LossTableError: {sizes} has no losses of domain 'wbe'"),
    ],
)
def test_wrong_options_of_sizes(
    sizes: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", str(sizes), *arguments])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(message.format(sizes=sizes))
    assert len(message.splitlines()) <= 2
