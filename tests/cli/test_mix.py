"""`drpruning mix`: tables, JSON, Megatron, proposals, and wrong input."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from drpruning.cli import main
from drpruning.recipes import load_recipe
from drpruning.swarm import read_swarm

DOMAINS = ("web", "code", "math")
PRIOR = ("--prior", "web=0.8,code=0.2")
TOKENS = ("--domain-tokens", "web=1B,code=1B")


@pytest.fixture
def swarm(tmp_path: Path) -> Path:
    """Return a file of 40 runs in which each domain's loss falls with its own share, and most with math's."""
    mixtures = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], 40)
    losses = [2.0, 1.0, 1.5] + np.array([0.2, 0.3, 0.9]) * (0.05 + mixtures) ** -0.3
    head = ",".join(["run", *(f"mixture/{name}" for name in DOMAINS), *(f"loss/{name}" for name in DOMAINS)])
    numbers = np.hstack([mixtures, losses]).tolist()
    rows = [",".join([f"r{number}", *map(repr, row)]) for number, row in enumerate(numbers)]
    path = tmp_path / "swarm.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main(["mix", *map(str, arguments)])
    return capsys.readouterr().out


def test_tables(swarm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(capsys, swarm)
    lines = [line.split() for line in printed.splitlines()]
    assert ["domain", "prior", "mixture", "90%", "band"] in lines
    assert [line[0] for line in lines if line and line[0] in DOMAINS] == [*DOMAINS, *DOMAINS]
    assert "supported: " in printed
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_json_of_the_worst_target_with_bounds(swarm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "--objective",
        "worst",
        "--max-share",
        "math=0.5",
        "--min-share",
        "0.1",
        "--prior",
        "web=.8,code=.1,math=.1",
    )
    body = json.loads(run(capsys, swarm, *arguments, "--json"))
    shares = {name: entry["share"] for name, entry in body["domains"].items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["math"] <= 0.5 + 1e-9
    assert min(shares.values()) >= 0.1 - 1e-9
    assert body["domains"]["web"]["prior"] == 0.8
    assert body["status"] == "optimal"
    assert body["support"] == "supported"
    assert body["targets"]["math"]["status"] == "good"


def test_text_caps_the_shares(swarm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ("--domain-tokens", "web=10B,code=10B,math=100M", "--target-tokens", "2B", "--max-epochs", "4")
    body = json.loads(run(capsys, swarm, *tokens, "--json"))
    assert body["domains"]["math"]["share"] <= 4 * 0.1 / 2 + 1e-9


def test_megatron(swarm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = run(capsys, swarm, "--megatron", "data/<domain>").split()
    assert words[0] == "--data-path"
    assert words[2::2] == ["data/web", "data/code", "data/math"]
    assert sum(map(float, words[1::2])) == pytest.approx(1, abs=1e-5)

    # the smallest share that the search allows; Megatron refuses a weight of zero
    words = run(capsys, swarm, "--max-share", "math=0", "--megatron", "data/<domain>").split()
    assert float(words[5]) == 1e-6


def test_the_printed_option_sets_names_of_any_characters(swarm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("no", "a,b: c", "it's")
    head, _, rows = swarm.read_text().partition("\n")
    columns = [f'"{kind}/{name}"' for kind in ("mixture", "loss") for name in names]
    swarm.write_text(f"{head.partition(',')[0]},{','.join(columns)}\n{rows}")
    shares = yaml.safe_load(run(capsys, swarm, "--yaml"))["data"]["reference_ratio"]
    printed = run(capsys, swarm).splitlines()[-1]
    option, setting = shlex.split(printed)
    assert option == "--set"
    key, _, value = setting.partition("=")
    assert key == "data.reference_ratio"
    assert yaml.safe_load(value) == shares
    assert tuple(shares) == names


def test_a_section_of_a_recipe(swarm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = run(capsys, swarm, "--yaml")
    shares = yaml.safe_load(section)["data"]["reference_ratio"]
    assert section.startswith("# supported: ")
    assert list(shares) == list(DOMAINS)
    config = load_recipe("quickstart", [f"data.reference_ratio={json.dumps(shares)}"])
    assert config.reference_ratio == shares


def test_a_prior_by_name(swarm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ("--domain-tokens", "web=9B,code=1B,math=10B", "--target-tokens", "1B")
    body = json.loads(run(capsys, swarm, *tokens, "--prior", "natural", "--json"))
    assert [body["domains"][name]["prior"] for name in DOMAINS] == pytest.approx([0.45, 0.05, 0.5])


def test_two_files_and_a_choice_of_targets(swarm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split(",") for line in swarm.read_text().splitlines()]
    (tmp_path / "m.csv").write_text("\n".join(",".join(row[:4]) for row in rows).replace("mixture/", ""))
    (tmp_path / "l.csv").write_text("\n".join(",".join([row[0], *row[4:]]) for row in rows).replace("loss/", ""))
    body = json.loads(run(capsys, tmp_path / "m.csv", "--losses", tmp_path / "l.csv", "--targets", "math", "--json"))
    assert list(body["targets"]) == ["math"]
    assert max(body["domains"], key=lambda name: body["domains"][name]["share"]) == "math"


def test_a_design_is_a_swarm_without_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--design", "8", "--prior", "web=0.8,code=0.2", "--domain-tokens", "web=100B,code=1B")
    main(["mix", *arguments, "--run-tokens", "1B", "--target-tokens", "20B"])
    out, err = capsys.readouterr()
    rows = [line.split(",") for line in out.splitlines()]
    assert rows[0] == ["run", "mixture/web", "mixture/code"]
    assert len(rows) == 9
    assert all(float(web) + float(code) == pytest.approx(1, abs=2e-6) for _, web, code in rows[1:])
    assert max(float(row[2]) for row in rows[1:]) <= 0.2 + 1e-6  # four epochs of 1B tokens in 20B
    assert "read 0.05 of each domain's text" in err


def test_a_design_keeps_bounds_and_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ['web, "clean"', "code"]
    (tmp_path / "prior.json").write_text(json.dumps(dict(zip(names, [0.8, 0.2], strict=True))))
    (tmp_path / "least.json").write_text(json.dumps({names[0]: 0.5}))
    out = run(
        capsys, "--design", 8, "--prior", tmp_path / "prior.json", "--max-share", "code=0.3333337",
        "--min-share", tmp_path / "least.json",
    )  # fmt: skip
    head, *rows = csv.reader(io.StringIO(out))
    assert head == ["run", *(f"mixture/{name}" for name in names)]
    shares = np.array(rows, np.float64)[:, 1:]
    assert shares[:, 1].max() == 0.333333
    assert shares[:, 0].min() >= 0.5
    # the file is half of a swarm: the losses come in another
    (tmp_path / "design.csv").write_text(out)
    (tmp_path / "l.csv").write_text("run,a,b\n" + "".join(f"{n},{n % 3},{n % 2}\n" for n in range(1, 9)))
    assert read_swarm(tmp_path / "design.csv", tmp_path / "l.csv").domains == tuple(names)


def test_a_prior_by_name_and_a_run_of_a_design(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ("--domain-tokens", "web=8B,code=90M", "--run-tokens", "2B")
    rows = run(capsys, "--design", 2, "--prior", "unimax:4", *tokens).splitlines()
    assert rows[1] == "1,0.820000,0.180000"


def test_an_unsupported_answer_keeps_the_caps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    numbers = np.hstack([rng.dirichlet([1.0, 1.0], 20), rng.normal(3, 0.1, (20, 1))]).tolist()
    path = tmp_path / "noise.csv"
    path.write_text("\n".join(["mixture/web,mixture/code,loss/all", *(",".join(map(repr, row)) for row in numbers)]))
    arguments = (path, "--prior", "web=0.3,code=0.7", "--max-share", "code=0.2")
    section = run(capsys, *arguments, "--yaml")
    assert yaml.safe_load(section)["data"]["reference_ratio"] == {"web": 0.8, "code": 0.2}
    assert section.startswith("# unsupported: the runs do not determine a mixture")
    assert "# the prior is outside the bounds" in section
    body = json.loads(run(capsys, *arguments, "--json"))
    assert body["domains"]["code"]["band"] == [None, None]
    assert body["improvement_band"] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "SWARM is missing"),
        (("--design", "4"), "--design needs --prior or --recipe"),
        (("SWARM", "--design", "4", *PRIOR), "SWARM has no effect with --design"),
        (("--design", "4", *PRIOR, "--losses", "x.csv"), "--losses has no effect with --design"),
        (("--design", "4", *PRIOR, "--objective", "mean"), "--objective has no effect with --design"),
        (("--design", "4", *PRIOR, "--json"), "--json has no effect with --design"),
        (("--design", "4", *PRIOR, "--max-share", "coed=0.1"), "--max-share names 'coed'; the domains are web, code"),
        (("--design", "4", *PRIOR, *TOKENS), "--domain-tokens needs --run-tokens or --target-tokens"),
        (("--design", "4", *PRIOR, "--run-tokens", "1B"), "--run-tokens needs --domain-tokens"),
        (("--design", "4", *PRIOR, "--target-tokens", "1B"), "--target-tokens needs --domain-tokens"),
        (("SWARM", "--methods-file", "a.yaml"), "--methods-file needs --design"),
        (("SWARM", "--run-tokens", "1B"), "--run-tokens needs --design"),
        (("SWARM", "--target-tokens", "1B"), "--target-tokens needs --domain-tokens"),
        (("SWARM", "--max-epochs", "4"), "--max-epochs needs --domain-tokens"),
        (("SWARM", "--prior", "natural"), "--prior natural needs the tokens of the domains"),
        (("SWARM", "--prior", "nature"), "--prior is 'nature'; expected A=1,B=2 or the path of a file"),
        (("SWARM", "--prior", "average:none"), "average:none: expected a run folder"),
        (("SWARM", "--min-share", "nan"), "--min-share is 'nan'; expected shares from 0 to 1"),
        (("SWARM", "--max-share", "code=40"), "--max-share is 'code=40'; expected shares from 0 to 1"),
        (("SWARM", "--min-share", "coed=0.1"), "--min-share names 'coed'"),
        (
            ("SWARM", "--max-share", "coed=0.1", "--target-tokens", "1B", "--domain-tokens", "web=1B,code=1B,math=1B"),
            "--max-share names 'coed'; the domains are web, code, math",
        ),
        (("none.csv",), "none.csv: expected a file, found none"),
        (("none.json", "--losses", "SWARM"), "--losses needs a CSV file of shares, and none.json is a comparison"),
        (("SWARM", "--json", "--yaml"), "--json and --yaml are both given"),
        (("SWARM", "--reference-loss", "base", "--rho", "1"), "--reference-loss base needs a comparison"),
        (("SWARM", "--reference-loss", "web=1"), "--reference-loss has no effect on a mean"),
        (("SWARM", "--target-weights", "web=1", "--objective", "worst"), "--target-weights has no effect on the worst"),
        (("SWARM", "--plot", "a.txt"), "--plot is 'a.txt'; expected a path that ends in"),
        (("SWARM", "--rho", "0.1", "--objective", "worst"), "--rho and --objective worst are both given"),
        (("SWARM", "--domain-tokens", "web=1B"), "--domain-tokens needs --target-tokens"),
        (("SWARM", "--domain-tokens", "web=1B", "--target-tokens", "1B"), "no number for domain 'code'"),
        (("SWARM", "--domain-tokens", "web=x", "--target-tokens", "1B"), "'web=x' is not of the form NAME=TOKENS"),
        (("SWARM", "--targets", "law"), "the swarm has no target 'law'"),
        (("SWARM", "--max-share", "0.2"), "no mixture is within the bounds"),
        (("SWARM", "--megatron", "data"), "--megatron is 'data'; expected a pattern with <domain>"),
        (("SWARM", "--prior", "web=1"), "prior has no number for 'code'"),
    ],
)
def test_wrong_input_is_two_lines(
    swarm: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["mix", *(str(swarm) if word == "SWARM" else word for word in arguments)])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) <= 2
