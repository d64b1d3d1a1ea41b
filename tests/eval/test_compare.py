"""The comparison of systems by their score files."""

import json

import numpy as np
import pytest

from sdpn_jax.errors import UserError
from sdpn_jax.eval.compare import compare, names_of, verdicts


@pytest.fixture
def systems(tmp_path):
    """A list of 12 speakers, and the scores of a good and a bad system on it."""
    rng = np.random.default_rng(0)
    pairs = [(f"s{a}/{i}", f"s{b}/{j}") for a in range(12) for b in range(a, 12) for i in range(3) for j in range(3, 6)]
    labels = np.array([a.split("/")[0] == b.split("/")[0] for a, b in pairs])
    (tmp_path / "list.txt").write_text("".join(f"{int(k)} {a} {b}\n" for k, (a, b) in zip(labels, pairs, strict=True)))
    for name, distance in (("bad", 1.0), ("good", 3.0)):
        scores = distance * labels + rng.normal(size=len(labels))
        (tmp_path / name).mkdir()
        text = "".join(f"{a} {b} {x:.6f}\n" for (a, b), x in zip(pairs, scores, strict=True))
        (tmp_path / name / "scores.txt").write_text(text)
    return tmp_path


def test_a_better_system_is_found_better(systems):
    rows = compare(systems / "list.txt", [f"{systems}/bad/scores.txt", f"{systems}/good/scores.txt"], systems / "out")
    assert list(rows) == ["bad", "good"]
    assert rows["good"]["eer_percent"] < rows["bad"]["eer_percent"]
    assert rows["good"]["p_value"] < 0.01
    assert json.loads((systems / "out" / "comparison.json").read_text()) == rows
    names = sorted(path.name for path in (systems / "out").iterdir())
    assert names == ["comparison.html", "comparison.json", "comparison.md", "det.png"]


def test_scores_of_another_list_are_refused(systems):
    good, bad = systems / "good" / "scores.txt", systems / "bad" / "scores.txt"
    lines = good.read_text().splitlines(keepends=True)
    good.write_text("".join(lines[1:]))
    with pytest.raises(UserError, match=r"701 scores, but .*list\.txt has 702 trials"):
        compare(systems / "list.txt", [str(bad), str(good)], systems / "out")
    good.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match=r"line 1: 's0/0 s0/4' is not the list's trial 's0/0 s0/3'"):
        compare(systems / "list.txt", [str(bad), str(good)], systems / "out")
    good.write_text("".join([lines[0], "s0/0 s0/4 high\n", *lines[2:]]))
    with pytest.raises(UserError, match="line 2: 'high' is not a score, a finite number"):
        compare(systems / "list.txt", [str(bad), str(good)], systems / "out")
    with pytest.raises(UserError, match="two or more different files"):
        compare(systems / "list.txt", [str(bad), str(bad)], systems / "out")


def test_short_names():
    assert names_of(["a/x/scores.txt", "a/y/scores.txt"]) == ["x", "y"]
    assert names_of(["a/x.txt", "b/y.txt"]) == ["x", "y"]
    assert names_of(["a/cosine_0.1", "a/cosine_0.2"]) == ["cosine_0.1", "cosine_0.2"]  # no suffixes
    assert names_of(["a/x.txt", "a/x.tsv"]) == ["x.txt", "x.tsv"]


def test_two_speakers_prove_nothing(tmp_path):
    rng = np.random.default_rng(3)
    (tmp_path / "t.txt").write_text("1 a/1 a/2\n1 b/1 b/2\n0 a/1 b/1\n0 a/2 b/2\n")
    for name in "xy":
        pairs = ("a/1 a/2", "b/1 b/2", "a/1 b/1", "a/2 b/2")
        (tmp_path / name).write_text("".join(f"{pair} {rng.normal()}\n" for pair in pairs))
    rows = compare(tmp_path / "t.txt", [str(tmp_path / "x"), str(tmp_path / "y")], tmp_path / "out")
    assert rows["x"]["eer_interval_percent"] is None and rows["y"]["p_value"] is None
    assert "too few speakers" in verdicts(rows)
    assert "(too few speakers)" in (tmp_path / "out" / "comparison.md").read_text()
