"""SIGINT and SIGTERM: noted while a run trains, raised while a child process is waited for."""

import signal

import pytest

from deepjax.training import signals
from deepjax.training.signals import Signals, raising


@pytest.fixture
def acted(monkeypatch):
    """The signals that reach the handlers of before."""
    seen = []
    before = {number: signal.signal(number, lambda number, _: seen.append(number)) for number in signals.NUMBERS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_a_signal_is_noted_and_a_later_second_interrupt_acts(acted, monkeypatch, number):
    monkeypatch.setattr(signals, "AGAIN", 0.0)
    with Signals() as active:
        assert active.received == 0
        signal.raise_signal(number)
        assert (active.received, acted) == (number, [])
        signal.raise_signal(signal.SIGTERM)
        assert acted == []
        signal.raise_signal(signal.SIGINT)
        assert acted == [signal.SIGINT]
    signal.raise_signal(number)
    assert acted == [signal.SIGINT, number]


def test_a_signal_that_is_sent_twice_at_once_is_one(acted):
    """`timeout -s INT` sends it to the process and to its group."""
    with Signals() as active:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert (active.received, acted) == (signal.SIGINT, [])


def test_released_signals_act_at_once(acted):
    with Signals() as active:
        with active.released():
            signal.raise_signal(signal.SIGTERM)
        assert (active.received, acted) == (0, [signal.SIGTERM])
        signal.raise_signal(signal.SIGINT)
        with active.released():  # the one that was noted just before
            assert acted == [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_a_raised_signal_is_a_keyboard_interrupt_with_its_number(acted, number):
    with pytest.raises(KeyboardInterrupt) as interrupt, raising():
        signal.raise_signal(number)
    assert interrupt.value.args == (number,)
    signal.raise_signal(number)
    assert acted == [number]
