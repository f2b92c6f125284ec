"""A day of requests, in shapes that published traces of language models have.

What is made here are shapes, not the traces themselves: their authors' statistics with seeds of
ours, so that a day can be repeated, and so that no data set has to be fetched.

diurnal  a working day: a trough at night, two humps, a peak some five times the trough, and noise
         that lasts minutes. As the conversation and coding services of the Azure LLM inference
         traces (github.com/Azure/AzurePublicDataset; Patel et al., Splitwise, ISCA 2024; Stojkovic
         et al., DynamoLLM, HPCA 2025).
bursts   half of that, with bursts of two to ten minutes at two to four times the rate, one in 40
         minutes or so, and arrivals whose counts vary far more than Poisson's (gamma-distributed
         rates). As BurstGPT (Wang et al., arXiv 2401.17644) reports of Azure OpenAI services.
ramps    a low rate, and three times a day a rise to six times of it within 5 to 20 minutes, which
         stays for an hour or two: launches, and the start of working hours elsewhere.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

DAY_S: Final = 86_400
SHAPES: Final = ("diurnal", "bursts", "ramps")
PEAK: Final = 40.0  # requests a second: 20 replicas

Rates = NDArray[np.float64]


def arrivals(shape: str, seed: int, day_s: int = DAY_S) -> list[int]:
    """Requests of each second."""
    random = np.random.default_rng([seed, SHAPES.index(shape)])
    seconds = np.arange(day_s, dtype=np.float64)
    rates = {"diurnal": _diurnal, "bursts": _bursts, "ramps": _ramps}[shape](seconds, random)
    return [int(count) for count in random.poisson(np.maximum(rates, 0.0))]


def _diurnal(seconds: Rates, random: np.random.Generator) -> Rates:
    hours = seconds / 3600
    humps = np.exp(-(((hours - 10.5) / 2.6) ** 2)) + 0.85 * np.exp(-(((hours - 15.5) / 3.0) ** 2))
    return np.asarray(PEAK * (0.2 + 0.75 * humps / humps.max()) * _slow(seconds, random, 0.08))


def _bursts(seconds: Rates, random: np.random.Generator) -> Rates:
    rates = 0.5 * _diurnal(seconds, random)
    at_s = 0.0
    while (at_s := at_s + random.exponential(2400.0)) < len(seconds):
        length_s, factor = random.uniform(120, 600), random.uniform(2.0, 4.0)
        rates[int(at_s) : int(at_s + length_s)] *= factor
    # Ten seconds at a time: counts with a coefficient of variation of about a half.
    mixed = random.gamma(4.0, 1 / 4.0, size=len(seconds) // 10 + 1)
    return np.asarray(np.minimum(rates, 2 * PEAK) * np.repeat(mixed, 10)[: len(seconds)])


def _ramps(seconds: Rates, random: np.random.Generator) -> Rates:
    rates = np.full(len(seconds), PEAK / 7)
    for third in range(3):
        begin_s = len(seconds) * (third + random.uniform(0.1, 0.4)) / 3
        rise_s, stay_s = random.uniform(300, 1200), random.uniform(3600, 7200)
        fall_s = 1800.0
        corners = [begin_s, begin_s + rise_s, begin_s + rise_s + stay_s]
        shape = np.interp(seconds, [*corners, corners[-1] + fall_s], [0.0, 1.0, 1.0, 0.0])
        rates += (PEAK - PEAK / 7) * shape
    return np.asarray(np.minimum(rates, PEAK) * _slow(seconds, random, 0.05))


def _slow(seconds: Rates, random: np.random.Generator, sigma: float) -> Rates:
    """Noise around 1 that is alike for some minutes."""
    steps = random.normal(0.0, 1.0, size=len(seconds) // 60 + 2)
    keep, value, walk = math.exp(-1 / 5), 0.0, []
    for step in steps:
        value = keep * value + math.sqrt(1 - keep * keep) * step
        walk.append(value)
    minutes = np.arange(len(walk)) * 60.0
    return np.asarray(np.exp(sigma * np.interp(seconds, minutes, walk)))
