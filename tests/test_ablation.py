"""The study of settings: which variants go on, and what its intervals are of."""

from types import SimpleNamespace

import ablation
import numpy as np

LIST = SimpleNamespace(name="clean")


def run(factor: str, seed: int, rate: float, crops: float = 0.0) -> dict:
    return {"factor": factor, "seed": seed, "eer_percent": {"clean": rate}, "crop_eer_percent": crops}


def test_the_better_half_goes_on_with_the_first():
    results = [run("a", 0, 50.0), run("b", 0, 10.0), run("c", 0, 12.0), run("d", 0, 11.0), run("b", 1, 15.0)]
    assert ablation.better_half(results, ["a", "b", "c", "d"], LIST) == ["a", "c", "d"]  # b has 12.5
    assert ablation.better_half(results, ["a", "d"], LIST) == ["a", "d"]
    assert ablation.better_half(results, ["a"], LIST) == ["a"]


def test_seeds_are_drawn_again_and_paired():
    """Of three seeds whose rates differ, the deviation of the mean is theirs over root 3; of equal ones it is 0."""
    rates = np.repeat([[10.0], [13.0], [16.0]], 4000, axis=1)
    means = ablation.over_seeds(rates)
    assert abs(means.mean() - 13) < 0.1
    assert abs(means.std() - np.std([10, 13, 16]) / np.sqrt(3)) < 0.05
    np.testing.assert_array_equal(ablation.over_seeds(rates - (rates - 2)), np.full(4000, 2.0))


def test_what_could_be_known_without_labels():
    results = [run("a", seed, rate, crops) for seed, (rate, crops) in enumerate([(9, 30), (8, 20), (7, 25)])]
    text = ablation.label_free(results, LIST)
    assert "over 3 runs: 0.50" in text and "has 8.0 %, the best of all 7.0 %" in text
    assert ablation.label_free(results[:2], LIST) == ""
