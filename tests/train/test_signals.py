"""The first signal requests a stop; repetitions by a scheduler change nothing, a second Ctrl-C interrupts."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from drpruning.errors import ExitCode
from drpruning.train.signals import SCHEDULER_SIGNALS, stop_on_signal

NUMBERS = (signal.SIGINT, *SCHEDULER_SIGNALS)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Begin with the usual handlers, which a test run in the background has not, and restore those of before."""
    before = [signal.getsignal(number) for number in NUMBERS]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SCHEDULER_SIGNALS)
def test_a_schedulers_signal_may_be_repeated(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signal("saving") as stop:
        assert not stop()
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        assert stop.exit_code == ExitCode.RESUMABLE == 75
    signal.raise_signal(number)  # while the process ends
    assert capfd.readouterr().err == "saving\n"


def test_ctrl_c_is_a_request_in_training_only_and_the_second_one_interrupts() -> None:
    with stop_on_signal("") as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        stop.include_interrupt()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        assert stop.exit_code == ExitCode.INTERRUPTED == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_after_a_schedulers_signal_interrupts() -> None:
    with stop_on_signal("") as stop:
        signal.raise_signal(signal.SIGUSR1)
        stop.include_interrupt()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_without_a_signal_the_handlers_are_those_of_before() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with stop_on_signal("") as stop:
        stop.include_interrupt()
        assert [signal.getsignal(number) for number in NUMBERS] == [stop.request] * 3
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert not stop()


def test_a_rank_follows_the_others() -> None:
    with stop_on_signal("") as stop:
        stop.follow(by_scheduler=True)
    assert stop()
    assert stop.exit_code == ExitCode.RESUMABLE
    signal.raise_signal(signal.SIGTERM)
