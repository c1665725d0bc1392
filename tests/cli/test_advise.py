"""`drpruning advise`: from somebody's losses to the mixture they should train on now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from torch.utils.tensorboard import SummaryWriter

from drpruning import Constant, DRPruning, parse_learning_rates, read_losses
from drpruning.cli import group, main
from drpruning.errors import ConfigError, DrpruningError, StateError
from tests.conftest import MakeCorpus
from tests.loss_table.test_run import run_folder

RATIO = "web=0.7,code=0.2,books=0.1"
HEADER = "step,tokens,web,code,books"
ENDS = {"web": 2.0, "code": 1.0, "books": 2.4}
BILLIONS = range(10**9, 31 * 10**9, 10**9)
TOKENS = list(range(200, 2001, 200))


def row(tokens: int) -> str:
    return f"{tokens // 10},{tokens}," + ",".join(f"{end + 20 * tokens**-0.4!r}" for end in ENDS.values())


@pytest.fixture
def losses(tmp_path: Path) -> Path:
    path = tmp_path / "losses.csv"
    path.write_text("\n".join([HEADER, *map(row, TOKENS)]) + "\n")
    return path


def run(*arguments: object, **given: Any) -> Result:
    given = {"catch_exceptions": False, **given}
    return CliRunner().invoke(group, ["advise", *map(str, arguments)], **given)


def as_json(*arguments: object) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(run(*arguments, "--json").stdout)
    return body


def test_the_answer_is_that_of_the_strategy(losses: Path) -> None:
    strategy = DRPruning(rho=0.2, min_points=5)
    ratio = {"web": 0.7, "code": 0.2, "books": 0.1}
    reference_loss = {"code": 1.2}
    state = strategy.init(list(ratio), ratio, reference_loss=reference_loss)
    for seen in read_losses(losses).observations(final_tokens=4000):
        state, update = strategy.update(state, seen)
    body = as_json(
        losses, "--ratio", RATIO, "--final-tokens", "4k", "--set", "rho=0.2", "--set", "min_points=5",
        "--reference-loss", "code=1.2",
    )  # fmt: skip
    assert body["weights"] == update.weights
    assert body["reference_loss"] == update.reference_loss
    assert body["predicted_loss"] == update.predicted_loss
    assert body["status"] == update.status
    assert body["settings"]["rho"] == 0.2
    assert body["losses"] == pytest.approx({name: end + 20 * 2000**-0.4 for name, end in ENDS.items()})
    assert (body["step"], body["tokens"], body["final_tokens"], body["unit"]) == (200, 2000, 4000, "tokens")
    assert [entry["tokens"] for entry in body["history"]] == TOKENS
    assert body["history"][-1]["weights"] == update.weights
    assert body["evaluations"] == {"new": 10, "known": 0, "changed": 0, "late": 0}


def test_noise_reaches_the_strategy_and_stays_in_the_state(losses: Path, tmp_path: Path) -> None:
    """Use two domains with nearly equal losses: without noise the difference decides, with noise nothing does."""
    table = tmp_path / "equal.csv"
    table.write_text("step,web,code\n100,2.3,1.6\n200,2.1,1.3999\n")
    given = (table, "--ratio", "web=0.8,code=0.2", "--final-step", 1000)
    assert as_json(*given)["weights"]["web"] > 0.95
    calm = as_json(*given, "--noise", "0.001")
    assert calm["weights"] == pytest.approx({"web": 0.8, "code": 0.2})
    state = tmp_path / "state.json"
    assert as_json(*given, "--noise", "web=0.001,code=0.002", "--state", state)["weights"] == calm["weights"]
    table.write_text(table.read_text() + "300,2.0,1.3\n")
    again = as_json(table, "--state", state)
    assert again["evaluations"] == {"new": 1, "known": 2, "changed": 0, "late": 0}
    assert again["weights"] == pytest.approx({"web": 0.8, "code": 0.2})
    other = run(table, "--state", state, "--noise", "0.5", catch_exceptions=True)
    assert other.exit_code != 0
    assert "--noise" in str(other.exception)


@pytest.mark.parametrize(
    ("noise", "message"), [("-1", "at least 0"), ("wob=0.1", "Did you mean web"), ("x", "--noise")]
)
def test_noise_that_is_none(losses: Path, noise: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(losses, "--ratio", RATIO, "--final-tokens", 4000, "--noise", noise)


def test_the_table(losses: Path) -> None:
    result = run(losses, "--ratio", RATIO, "--final-tokens", 4000, "--reference-loss", "web=2,code=1,books=2.3")
    first, above, titles, *rows, last = result.stdout.splitlines()
    assert first == "drpruning after 2k of 4k tokens (50%), losses in nats per token"
    assert above.split() == ["reference", "predicted", "initial", "reference", "next"]
    assert titles.split() == ["domain", "loss", "loss", "excess", "end", "ratio", "ratio", "weight"]
    assert [line.split()[0] for line in rows] == ["web", "code", "books"]
    assert rows[0].split()[1] == f"{2 + 20 * 2000**-0.4:.3f}"
    assert sum(float(line.split()[-1].rstrip("%")) for line in rows) == pytest.approx(100, abs=0.02)
    assert "divergence" in last
    # Predicted, all three domains have the same way to go: whether a domain falls behind, and is warned of, is rounding
    assert result.stderr.splitlines()[0] == "10 new evaluations"


def table_of(path: Path, curves: dict[str, tuple[float, float, float]]) -> Path:
    """30 evaluations of ``E + A T^-beta`` for each domain."""
    rows = [[E + A * tokens**-beta for E, A, beta in curves.values()] for tokens in BILLIONS]
    lines = [",".join(map(repr, [tokens, *row])) for tokens, row in zip(BILLIONS, rows, strict=True)]
    path.write_text("\n".join(["tokens," + ",".join(curves), *lines]))
    return path


def test_a_domain_starved_without_reference_losses_is_a_warning(tmp_path: Path) -> None:
    """Books fall slowest, are predicted to end high, and so lose their share."""
    curves = {"web": (2.0, 300.0, 0.3), "code": (1.0, 120.0, 0.3), "books": (3.0, 2.0, 0.08)}
    path = table_of(tmp_path / "long.csv", curves)
    options = ["--ratio", RATIO, "--final-tokens", "60B", "--learning-rates", "constant"]
    result = run(path, *options)
    warning, advice = result.stderr.splitlines()[-2:]
    assert warning.startswith("warning: code 20.0% -> 4.0%, books 10.0% -> 2.0%: no reference loss was given")
    assert advice.startswith("Give --reference-loss web=N,code=N,books=N: ")
    (printed,) = as_json(path, *options)["warnings"]
    assert f"warning: {printed}" == f"{warning}\n{advice}"
    for strategy in ("constant", "ado"):
        assert "warning" not in run(path, *options, "--strategy", strategy).stderr


@pytest.mark.parametrize(
    ("settings", "reasons", "names"),
    [
        (
            ["--set", "predictions=replace"],
            ["a prediction, 1.206, replaced it", "the reference ratio moved to 5.3%"],
            "predictions=lower",
        ),
        ([], ["the reference ratio moved to 5.3%"], "ratio_bound=2"),
    ],
)
def test_a_domain_starved_above_its_reference_loss_is_a_warning(
    tmp_path: Path, settings: list[str], reasons: list[str], names: str
) -> None:
    path = table_of(tmp_path / "two.csv", {"web": (2.2, 300.0, 0.3), "code": (1.15, 80.0, 0.3)})
    options = ["--ratio", "web=0.8,code=0.2", "--reference-loss", "web=2.3,code=1.2", "--final-tokens", "32B"]
    options += ["--learning-rates", "constant"]
    warning, advice = run(path, *options, *settings).stderr.splitlines()[-2:]
    begin = "warning: code 20.0% -> 4.0%, with a loss 0.008 above the reference loss given, 1.2: "
    assert warning == f"{begin}{'; '.join(reasons)}."
    assert f"--set {names}" in advice
    assert advice.endswith("or --set min_share=0.1.")


def test_one_step_inside_the_ball_is_no_warning(tmp_path: Path) -> None:
    """Code is nearest to its reference loss and gives more than half of its share: what the strategy is for."""
    path = tmp_path / "losses.csv"
    path.write_text("tokens,web,code,books\n1000,2.968,1.561,3.541\n")
    options = ["--ratio", RATIO, "--final-tokens", "4k", "--reference-loss", "web=2.6,code=1.3,books=3.0"]
    assert as_json(path, *options)["weights"]["code"] < 0.1
    assert run(path, *options).stderr == "1 new evaluation\n"


def test_a_call_after_each_evaluation(losses: Path, tmp_path: Path) -> None:
    whole = as_json(losses, "--ratio", RATIO, "--final-tokens", "4k")
    state = tmp_path / "mixture.json"
    new = tmp_path / "new.csv"
    new.write_text("\n".join([HEADER, *map(row, TOKENS[:4])]))
    assert run(new, "--ratio", RATIO, "--final-tokens", "4k", "--state", state).stderr == (
        "4 new evaluations\nno --reference-loss: excess is over losses that the strategy estimated\n"
    )
    new.write_text("\n".join([HEADER, *map(row, TOKENS[4:7])]))
    assert run(new, "--state", state).stderr == "3 new evaluations\n"
    assert run(new, "--state", state).stderr == "0 new evaluations, 3 counted before\n"
    again = as_json(losses, "--state", state)
    assert again.pop("evaluations") == {"new": 3, "known": 7, "changed": 0, "late": 0}
    del whole["evaluations"]
    assert again == whole


def test_how_the_losses_are_read_is_remembered(tmp_path: Path) -> None:
    path, state = tmp_path / "losses.csv", tmp_path / "mixture.json"
    path.write_text("step,eval/web,eval/code,train\n10,3,2,4\n")
    first = ["--columns", "eval/<domain>", "--tokens-per-step", "4M", "--params", "1B", "--strategy", "constant"]
    run(path, *first, "--ratio", "web=0.5,code=0.5", "--final-tokens", "1B", "--state", state)
    path.write_text("step,eval/web,eval/code,train\n20,3,2,4\n")
    body = as_json(path, "--state", state)
    assert (body["tokens"], body["unit"], list(body["weights"])) == (80_000_000, "tokens", ["web", "code"])


def test_counted_evaluations_are_kept_and_a_note_is_printed(losses: Path, tmp_path: Path) -> None:
    state = tmp_path / "mixture.json"
    new = tmp_path / "new.csv"
    new.write_text("\n".join([HEADER, row(400), row(800)]))
    first = as_json(new, "--ratio", RATIO, "--final-tokens", "4k", "--state", state)
    new.write_text("\n".join([HEADER, row(600), row(800).replace("0,800,", "0,800,9")]))
    result = run(new, "--state", state)
    assert result.stderr.splitlines() == [
        "0 new evaluations, 1 counted before",
        "1 of these have other losses now; the first ones count. To count again, remove the state.",
        "1 not counted: they are before the last one counted. To count again, remove the state.",
    ]
    assert as_json(new, "--state", state)["weights"] == first["weights"]


def test_the_end_of_training_may_move(losses: Path, tmp_path: Path) -> None:
    state = tmp_path / "mixture.json"
    run(losses, "--ratio", RATIO, "--final-tokens", "1k", "--state", state)
    result = run(losses, "--state", state)
    assert "the last evaluation is beyond the end of training, 1k tokens\n" in result.stderr
    assert as_json(losses, "--state", state, "--final-tokens", "8k")["final_tokens"] == 8000
    assert as_json(losses, "--state", state)["final_tokens"] == 8000


def test_steps_instead_of_tokens(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("step,web,code\n10,3,2\n20,2.5,1.9\n")
    ratio = ["--ratio", "web=0.5,code=0.5"]
    in_steps = as_json(path, *ratio, "--final-step", 100)
    in_tokens = as_json(path, *ratio, "--final-tokens", "400M", "--tokens-per-step", "4M")
    both = as_json(path, *ratio, "--final-step", 100, "--tokens-per-step", "4M")
    assert (in_steps["unit"], in_steps["tokens"], in_steps["final_tokens"]) == ("steps", 20, 100)
    assert (in_tokens["unit"], in_tokens["tokens"], in_tokens["final_tokens"]) == ("tokens", 80_000_000, 400_000_000)
    assert both == in_tokens
    assert in_steps["weights"] == in_tokens["weights"]
    assert "after step 20 of 100 (20%)" in run(path, *ratio, "--final-step", 100).stdout


def test_from_tensorboard_to_megatron(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "tensorboard")) as writer:
        for step in range(10, 60, 10):
            writer.add_scalar("lm loss", 3.0, step)
            for name, end in (("web", 2.0), ("code", 1.0)):
                writer.add_scalar(f"lm loss validation {name}", end + 3 / step, step)
                writer.add_scalar(f"lm loss validation {name} vs samples", end + 3 / step, 64 * step)
    result = run(
        tmp_path / "tensorboard", "--columns", "lm loss validation <domain>", "--tokens-per-step", "4M",
        "--ratio", "web=0.8,code=0.2", "--final-tokens", "1B", "--strategy", "constant",
        "--megatron", "data sets/<domain>_text",
    )  # fmt: skip
    assert result.stdout == "--data-path 0.800000 'data sets/web_text' 0.200000 'data sets/code_text'\n"
    assert result.stderr == "5 new evaluations\n"


@pytest.mark.parametrize("text", ["web: 0.7\ncode: 0.2\nbooks: 1e-1\n", '{"web": 0.7, "code": 0.2, "books": 0.1}'])
def test_the_ratio_from_a_file(losses: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "ratio"
    path.write_text(text)
    given = ["--strategy", Constant.name]
    assert as_json(losses, "--ratio", path, *given)["weights"] == as_json(losses, "--ratio", RATIO, *given)["weights"]


def test_the_ratio_from_a_static_mixture(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    corpus = make_corpus({"web": [600, 300], "code": [100]})
    file = tmp_path / "two.csv"
    file.write_text("tokens,web,code\n1000,2.5,1.5\n2000,2.4,1.4\n")
    for name, share in (("natural", 0.9), ("uniform", 0.5), ("temperature:0.5", 0.75), ("unimax:8", 0.8)):
        words = (file, "--ratio", name, "--corpus", corpus, "--final-tokens", 4000, "--strategy", "constant")
        assert as_json(*words)["reference_ratio"] == pytest.approx({"web": share, "code": 1 - share})
    for words, message in (
        (["--ratio", "natural"], "--ratio natural needs the sizes of the domains"),
        (["--ratio", "unimax:2", "--corpus", corpus], "--ratio unimax:2 needs the tokens of the training"),
        (["--ratio", "temperature:hot", "--corpus", corpus], "no static mixture is called 'temperature:hot'"),
        (["--ratio", "web=0.5,code=0.5", "--strategy", "schedule"], "expected --set schedule=FILE"),
    ):
        with pytest.raises(DrpruningError, match=message) as refused:
            run(file, *words)
        assert refused.value.next_step is not None


def test_a_schedule_continues_from_its_state(tmp_path: Path, losses: Path) -> None:
    plan, state = tmp_path / "plan.yaml", tmp_path / "state.json"
    stage = [{"at": 0, "weights": {"web": 0.8, "code": 0.2, "books": 0.0}}]
    stage += [{"at": 1500, "weights": {"web": 0.5, "code": 0.3, "books": 0.2}}]
    text = json.dumps({"unit": "tokens", "stages": {"continue": stage}})
    plan.write_text(text)
    words = (losses, "--ratio", RATIO, "--strategy", "schedule", "--set", f"schedule={plan}", "--state", state)
    first = as_json(*words, "--final-step", 4000)
    assert as_json(*words)["weights"] == first["weights"] == {"web": 0.5, "code": 0.3, "books": 0.2}
    plan.write_text(text.replace("1500", "1400"))
    with pytest.raises(StateError, match="created with --set schedule of other mixtures"):
        run(*words)


def test_epochs_cannot_be_bounded_from_losses_alone(losses: Path) -> None:
    with pytest.raises(ConfigError, match="max_epochs needs the tokens"):
        run(losses, "--ratio", RATIO, "--final-step", 4000, "--set", "max_epochs=4")


def test_more_domains_than_a_file_name_has_room_for(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    names = [f"domain-{number:02}" for number in range(20)]
    path.write_text(f"step,{','.join(names)}\n10,{','.join('3' * 20)}\n")
    ratio = ",".join(f"{name}=0.05" for name in names)
    assert len(ratio) > 255
    assert list(as_json(path, "--ratio", ratio, "--strategy", "constant")["weights"]) == names


def test_a_run_folder_has_its_mixture_and_its_end(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    body = as_json(folder, "--set", "min_points=4")
    assert list(body["weights"]) == ["web", "code"]
    assert (body["tokens"], body["final_tokens"]) == (400, 400)
    assert as_json(folder, "--final-tokens", 800)["final_tokens"] == 800
    assert as_json(folder, "--stage", "prune", "--strategy", "constant")["weights"] == {"web": 0.8, "code": 0.2}


def test_columns_that_are_not_in_the_ratio_are_left_alone(losses: Path) -> None:
    body = as_json(losses, "--ratio", "books=0.5,web=0.5", "--final-tokens", "4k")
    assert list(body["weights"]) == ["books", "web"]


def test_a_domain_without_a_loss_keeps_its_weight(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("step,web,code,books\n10,3,2,1\n20,2.5,nan,2\n")
    body = as_json(path, "--ratio", RATIO, "--final-step", 40, "--reference-loss", "web=1,code=1,books=1")
    assert body["status"] == "incomplete"
    assert body["losses"]["code"] is None
    assert body["weights"]["code"] == pytest.approx(body["history"][0]["weights"]["code"])
    assert "–" in run(path, "--ratio", RATIO, "--final-step", 40).stdout


@pytest.mark.parametrize(("suffix", "end"), [("png", 4000), ("svg", 1000), ("svg", 10**6), ("pdf", 4000)])
def test_figures(losses: Path, tmp_path: Path, suffix: str, end: int) -> None:
    figure = tmp_path / f"mixture.{suffix}"
    run(losses, "--ratio", RATIO, "--final-tokens", end, "--strategy", "sheared", "--plot", figure)
    content = figure.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    if suffix == "svg":
        assert "Mixture chosen by sheared" in content.decode()


def test_a_figure_of_one_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("step,web,code\n0,3,2\n")
    run(path, "--ratio", "web=0.5,code=0.5", "--final-step", 100, "--plot", tmp_path / "mixture.png")
    assert (tmp_path / "mixture.png").stat().st_size > 1000


RATIO_IS_MISSING = (
    "ConfigError: --ratio is missing: the mixture that training started with\n"
    "For example --ratio web=0.333,code=0.333,books=0.333; the shares sum to 1.\n"
)
END = ["--final-tokens", "4k"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], RATIO_IS_MISSING),
        (
            ["--ratio", RATIO],
            "ConfigError: DRPruning predicts losses at the end of the stage, and the observation has no final_tokens\n"
            "Give --final-tokens N.\n",
        ),
        (
            ["--ratio", "web=0.7,code=0.2"],
            "WeightError: --ratio sums to 0.9 without books; expected 1 over all domains\n"
            "Add books=SHARE to --ratio.\n",
        ),
        (
            ["--ratio", "web=70,code=20,books=10"],
            "WeightError: --ratio sums to 100; expected 1\nDivide by 100: --ratio web=0.7,code=0.2,books=0.1\n",
        ),
        (
            ["--ratio", "web=7,code=2,books=1"],
            "WeightError: --ratio sums to 10; expected 1\nFor example --ratio web=0.7,code=0.2,books=0.1\n",
        ),
        (["--ratio", "web=1,code=0"], 'WeightError: reference ratio of domain "code" is 0.0; it must be positive'),
        (["--ratio", "web=nan,code=1"], 'WeightError: reference ratio of domain "web" is nan'),
        (["--ratio", "web=much"], "ConfigError: --ratio: 'much' of domain 'web' is not a number\nFor example"),
        (["--ratio", "web=0.5,web=0.5"], "ConfigError: --ratio names domain 'web' twice"),
        (["--ratio", "nowhere.yaml"], "ConfigError: --ratio is 'nowhere.yaml'; expected A=1,B=2 or the path of a file"),
        (["--ratio", "list.yaml"], "ConfigError: --ratio 'list.yaml' contains no numbers by domain"),
        (["--ratio", "bad.yaml"], "ConfigError: --ratio 'bad.yaml' is neither JSON nor YAML"),
        (
            ["--ratio", "web=0.7,coed=0.3"],
            "LossTableError: losses.csv has no losses of domain 'coed'; it has web, code, books\nDid you mean code?\n",
        ),
        (["--ratio", RATIO, *END, "--strategy", "sheard"], "ConfigError: there is no strategy 'sheard'\nDid you mean"),
        (["--ratio", RATIO, *END, "--set", "rho"], "ConfigError: --set is 'rho'; expected A=B"),
        (["--ratio", RATIO, *END, "--set", "rho=-1"], "ConfigError: rho: expected at least 0, got -1.0"),
        (["--ratio", RATIO, *END, "--reference-loss", "cod=1"], 'WeightError: reference loss names domain "cod"'),
        (["--ratio", RATIO, *END, "--final-step", "9"], "ConfigError: --final-tokens and --final-step are both given"),
        (
            ["--ratio", RATIO, *END, "--megatron", "data"],
            "ConfigError: --megatron is 'data'; expected a pattern with <domain>",
        ),
        (["--ratio", RATIO, *END, "--megatron", "<domain>", "--json"], "ConfigError: --megatron and --json are both"),
        (["--ratio", RATIO, *END, "--state", "no/where.json"], "FileNotFoundError: "),
        (
            ["--ratio", RATIO, *END, "--state", "losses.csv"],
            "StateError: state 'losses.csv' is damaged: it is not JSON",
        ),
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
    (tmp_path / "list.yaml").write_text("[0.5, 0.5]")
    (tmp_path / "bad.yaml").write_text("{web: 0.5")
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["advise", losses.name, *arguments])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message), captured.err
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 2
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "constant"], "the state was created with --strategy drpruning, not constant"),
        (["--set", "rho=0.3"], "the state was created with --set rho 0.1, not 0.3"),
        (["--ratio", "web=0.6,code=0.3,books=0.1"], "the state was created with --ratio {'web': 0.7,"),
        (["--tokens-per-step", "4M"], "the state was created with --tokens-per-step None, not 4000000.0"),
        (["--reference-loss", "web=2"], "the state was created with --reference-loss None, not {'web': 2.0}"),
    ],
)
def test_a_state_that_was_begun_otherwise(
    losses: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "mixture.json"
    run(losses, "--ratio", RATIO, *END, "--state", state)
    before = state.read_bytes()
    assert run(losses, "--ratio", RATIO, *END, "--set", "rho=0.1", "--strategy", "drpruning", "--state", state).stdout
    with pytest.raises(SystemExit) as exit_:
        main(["advise", str(losses), "--state", str(state), *arguments])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith(f"StateError: {message}")
    assert state.read_bytes() == before


@pytest.mark.parametrize(
    ("header", "arguments", "message"),
    [
        ("step", END, "--final-tokens counts tokens, and losses.csv counts steps"),
        ("tokens", ["--final-step", "9"], "--final-step counts steps, and losses.csv counts tokens"),
    ],
)
def test_an_end_in_the_wrong_unit(
    tmp_path: Path,
    header: str,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "losses.csv").write_text(f"{header},web,code\n10,3,2\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["advise", "losses.csv", "--ratio", "web=0.5,code=0.5", *arguments])
    assert f"ConfigError: {message}" in capsys.readouterr().err


def test_the_state_remembers_the_learning_rates(losses: Path, tmp_path: Path) -> None:
    strategy = DRPruning(min_points=5)
    ratio = {"web": 0.7, "code": 0.2, "books": 0.1}
    state = strategy.init(list(ratio), ratio)
    schedule = parse_learning_rates("wsd:warmup=5%,decay=25%", 4000)
    for seen in read_losses(losses).observations(final_tokens=4000, learning_rates=schedule):
        state, update = strategy.update(state, seen)
    kept = tmp_path / "mixture.json"
    first = tmp_path / "first.csv"
    first.write_text("\n".join(losses.read_text().splitlines()[:4]) + "\n")
    run(
        first, "--ratio", RATIO, "--final-tokens", "4k", "--set", "min_points=5", "--state", kept,
        "--learning-rates", "wsd:warmup=5%,decay=25%",
    )  # fmt: skip
    body = as_json(losses, "--state", kept)
    assert body["predicted_loss"] == update.predicted_loss
    assert body["weights"] == update.weights
    figure = tmp_path / "mixture.svg"
    assert run(losses, "--state", kept, "--plot", figure).exit_code == 0
    assert figure.read_text().startswith("<?xml")


def test_a_file_of_learning_rates_is_not_needed_again(losses: Path, tmp_path: Path) -> None:
    rates, kept = tmp_path / "rates.csv", tmp_path / "mixture.json"
    rates.write_text("step,tokens,lr\n0,0,0\n20,200,3\n300,3000,3\n400,4000,0\n")
    more = ["--set", "min_points=5", "--state", kept, "--learning-rates", rates]
    body = as_json(losses, "--ratio", RATIO, "--final-tokens", "4k", *more)
    rates.unlink()
    assert as_json(losses, "--state", kept)["predicted_loss"] == body["predicted_loss"]
