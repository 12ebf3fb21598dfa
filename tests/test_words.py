"""Durations, clocks, strategies and temperatures."""

import math

import catalogue
import pytest
import torch

import falseneg as fn


@pytest.mark.parametrize(
    "text, steps",
    [("7 steps", 7), ("1 step", 1), ("2 epochs", 20), ("1.5 epochs", 15), ("10%", 10), ("0.5%", 1), ("0%", 0)],
)
def test_durations(text, steps):
    assert fn.Duration.parse(text).steps(steps_per_epoch=10, epochs=10) == steps


@pytest.mark.parametrize("text", ["soon", "10", "-1 epochs", "101%", "5 minutes"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="write"):
        fn.Duration.parse(text)


def test_a_duration_reads_back_as_it_is_written():
    for text in ("500 steps", "30 epochs", "10%"):
        assert str(fn.Duration.parse(text)) == text


def test_clock():
    clock = fn.Clock(step=25, steps_per_epoch=10, epochs=5)
    assert (clock.epoch, clock.total_steps, clock.progress) == (2, 50, 0.5)


@pytest.mark.parametrize("positive, negative", [(-1, 0), (math.inf, 0), (0, 1.5), (0, -0.1)])
def test_strategies_out_of_range(positive, negative):
    with pytest.raises(ValueError, match="strategy: "):
        fn.Strategy(positive, negative)


def test_learned_temperature_learns_and_keeps_within_bounds():
    contrast, _ = catalogue.contrast_of("batch")
    temperature = fn.LearnedTemperature(initial=0.5, minimum=0.1, maximum=0.9)
    tau = temperature(contrast)
    stats = fn.negative_stats(contrast, tau, fn.NoPairs(), fn.IGNORE)
    fn.InfoNCE()(contrast, stats, tau, fn.IGNORE).mean().backward()
    assert float(temperature.log_tau.grad.abs()) > 0
    with torch.no_grad():
        temperature.log_tau.fill_(5.0)
    assert float(temperature(contrast).detach()) == pytest.approx(0.9)


def test_temperatures_out_of_range():
    for make in (lambda: fn.FixedTemperature(0.0), lambda: fn.LearnedTemperature(initial=2.0)):
        with pytest.raises(fn.UserError, match="give a"):
            make()


def test_every_public_name_is_there():
    for name in fn.__all__:
        assert getattr(fn, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Simclr'"):
        _ = fn.Simclr
