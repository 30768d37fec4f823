"""The tutorial's exercise: temperatures by seed, and a mean that keeps its digits."""

from __future__ import annotations

import math
from itertools import islice
from statistics import fmean

from kstream_agg.cli.temperatures import Mean, temperatures


def test_a_seed_gives_the_same_temperatures_around_twenty_degrees() -> None:
    found = list(islice(temperatures(7), 2000))
    assert found == list(islice(temperatures(7), 2000))
    assert found != list(islice(temperatures(8), 2000))
    assert all(15 <= celsius <= 25 for celsius in found)
    assert abs(fmean(found) - 20) < 0.2


def test_the_mean_keeps_its_digits_far_from_zero() -> None:
    mean = Mean()
    for number in range(100_000):
        mean.add(1e9 + number % 2)
    assert mean.count == 100_000
    assert math.isclose(mean.value, 1e9 + 0.5, rel_tol=1e-15)
