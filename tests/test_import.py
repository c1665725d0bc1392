"""`import drpruning` and the sampler need numpy and nothing else."""

import subprocess
import sys
import textwrap

import drpruning

HEAVY = ("torch", "transformers", "scipy", "pydantic")


def run(code: str) -> str:
    """Runs `code` in a fresh interpreter, warnings as errors, and returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_loads_nothing_heavy() -> None:
    code = f"""
        import sys
        import drpruning
        drpruning.Corpus, drpruning.DomainSampler, drpruning.__version__
        print([name for name in {HEAVY!r} if name in sys.modules])
    """
    assert run(code) == "[]"


def test_the_sampler_works_where_nothing_heavy_is_installed() -> None:
    code = f"""
        import sys, tempfile

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {HEAVY!r}:
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Missing())
        import numpy as np
        import drpruning as dp

        with tempfile.TemporaryDirectory() as folder:
            np.arange(100, dtype="uint16").tofile(folder + "/web.bin")
            corpus = dp.Corpus({{"web": folder + "/web.bin"}}, dtype="uint16")
            sampler = dp.DomainSampler(corpus, {{"web": 1.0}}, seq_len=5, batch_size=4)
            print(next(sampler).tokens.shape, len(sampler.state_dict()["rows"]))
        try:
            dp.torch
        except ModuleNotFoundError as error:
            print("no", error)
    """
    assert run(code) == "(4, 5) 1\nno torch"


def test_every_public_name_is_there_and_listed() -> None:
    for name in drpruning.__all__:
        assert getattr(drpruning, name) is not None
    assert set(drpruning.__all__) <= set(dir(drpruning))
    assert len(set(drpruning.__all__)) == len(drpruning.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(drpruning, "no_such_name")
