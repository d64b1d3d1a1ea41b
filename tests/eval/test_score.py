"""The command as a user starts it, and its function as the demo calls it."""

import base64
import json
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_curve

from sdpn_jax.errors import UserError
from sdpn_jax.eval import compare, report
from sdpn_jax.eval import score as module
from sdpn_jax.eval.score import score
from sdpn_jax.eval.trials import Trials, read_trials


@pytest.fixture
def inputs(tmp_path):
    """Embeddings of 6 speakers x 5 utterances with noise, and all their pairs in VoxCeleb's format."""
    rng = np.random.default_rng(0)
    ids = [f"id{speaker}/{take}.wav" for speaker in range(6) for take in range(5)]
    embeddings = np.repeat(rng.normal(size=(6, 16)), 5, axis=0) + 1.2 * rng.normal(size=(30, 16))
    np.savez(tmp_path / "e.npz", ids=np.array(ids), embeddings=embeddings.astype(np.float32))
    pairs = [(a, b) for i, a in enumerate(ids) for b in ids[:i]]
    (tmp_path / "list.txt").write_text("".join(f"{int(a[:3] == b[:3])} wav/{a} wav/{b}\n" for a, b in pairs))
    return tmp_path


def command(*arguments):
    return commands.sdpn("score", *arguments)


def test_speakers_of_a_map_have_the_names_of_their_folders():
    ids = ["x/id1/v/1.wav", "x/id1/w/1.wav", "x/id2/v/1.wav"]
    assert module.speaker_names(ids, np.array([0, 0, 1])) == ["id1", "id1", "v"]
    assert module.speaker_names(["a.wav", "b.wav", "c.wav"], np.array([1, 0, 1])) == ["2", "1", "2"]


def test_files_agree_with_each_other_and_scikit_learn(inputs):
    results = score(inputs / "e.npz", inputs / "list.txt", inputs / "deep" / "out")
    output = inputs / "deep" / "out"
    assert json.loads((output / "results.json").read_text()) == results
    assert results["trials"] == 435
    assert results["targets"] == 60
    assert results["dimension"] == 16
    assert results["embeddings"] == str(inputs / "e.npz")
    assert results["trials_file"] == str(inputs / "list.txt")

    listed = [line.split() for line in (inputs / "list.txt").read_text().splitlines()]
    written = [line.split() for line in (output / "scores.txt").read_text().splitlines()]
    assert [line[:2] for line in written] == [line[1:] for line in listed]
    scores = [float(line[2]) for line in written]
    fpr, tpr, _ = roc_curve([int(line[0]) for line in listed], scores, drop_intermediate=False)
    nearest = np.argmin(np.abs(fpr + tpr - 1))
    low, high = sorted([fpr[nearest], 1 - tpr[nearest]])
    assert 100 * low - 1e-9 <= results["eer_percent"] <= 100 * high + 1e-9
    assert results["min_dcf_0.05"] == pytest.approx(np.min(0.05 * (1 - tpr) + 0.95 * fpr) / 0.05)
    assert results["min_dcf_0.01"] == pytest.approx(np.min(0.01 * (1 - tpr) + 0.99 * fpr) / 0.01)
    for name in ("det.png", "histogram.png"):
        assert min(Image.open(output / name).size) > 500


def test_command_says_what_it_wrote(inputs):
    done = command(f"--embeddings={inputs}/e.npz", f"--trials={inputs}/list.txt", f"--output={inputs}/out")
    assert done.returncode == 0, done.stderr
    results = json.loads((inputs / "out" / "results.json").read_text())
    assert f"| cosine | {results['eer_percent']:.2f} (" in done.stdout
    assert "435 trials (60 target)" in done.stdout
    for name in ("scores.txt", "results.json", "report.md", "det.png", "histogram.png"):
        assert str(inputs / "out" / name) in done.stdout
        assert (inputs / "out" / name).is_file()


def test_with_a_cohort_every_way_is_compared(inputs):
    rng = np.random.default_rng(1)
    ids = np.array([f"other{i}" for i in range(40)])
    np.savez(inputs / "cohort.npz", ids=ids, embeddings=rng.normal(size=(40, 16)).astype(np.float32))
    results = score(inputs / "e.npz", inputs / "list.txt", inputs / "out", inputs / "cohort.npz", top=10, draws=50)
    assert list(results["ways"]) == ["cosine", "centred", "whitened", "s_norm", "as_norm"]
    for way, row in results["ways"].items():
        low, high = row["eer_interval_percent"]
        assert low <= row["eer_percent"] <= high
        name = "scores.txt" if way == "cosine" else f"scores_{way}.txt"
        assert len((inputs / "out" / name).read_text().splitlines()) == 435
    assert (inputs / "out" / "report.md").read_text().count("\n") == 7
    whitened = score(
        inputs / "e.npz", inputs / "list.txt", inputs / "w", inputs / "cohort.npz", draws=10, shrinkage=0.2
    )
    assert whitened["ways"]["whitened"]["eer_percent"] != results["ways"]["whitened"]["eer_percent"]
    with np.load(inputs / "e.npz") as tested, np.load(inputs / "cohort.npz") as others:
        units = {
            name: x / np.linalg.norm(x)
            for name, x in zip(tested["ids"], tested["embeddings"].astype(float), strict=True)
        }
        cohort = others["embeddings"].astype(float)
    cohort /= np.linalg.norm(cohort, axis=1, keepdims=True)
    covariance = np.cov(cohort.T, bias=True)
    shrunken = 0.8 * covariance + 0.2 * np.eye(16) * np.trace(covariance) / 16
    precision = np.linalg.inv(shrunken)  # the cosine after whitening is that of this inner product
    enrol, test, score_there = (inputs / "w" / "scores_whitened.txt").read_text().splitlines()[0].split()
    a, b = (units[name.removeprefix("wav/")] - cohort.mean(0) for name in (enrol, test))
    expected = a @ precision @ b / np.sqrt((a @ precision @ a) * (b @ precision @ b))
    assert float(score_there) == pytest.approx(expected, abs=1e-6)

    np.savez(inputs / "other.npz", ids=ids, embeddings=rng.normal(size=(40, 8)).astype(np.float32))
    with pytest.raises(UserError, match="the cohort's embeddings have 8 dimensions, those of the trials 16"):
        score(inputs / "e.npz", inputs / "list.txt", inputs / "out", inputs / "other.npz")


def test_a_list_without_labels_is_scored(inputs):
    (inputs / "blind.txt").write_text("wav/id0/0.wav wav/id0/1.wav\nwav/id0/0.wav wav/id1/0.wav\n")
    results = score(inputs / "e.npz", inputs / "blind.txt", inputs / "out")
    assert results["wrote"] == ["scores.txt", "results.json"]
    assert sorted(path.name for path in (inputs / "out").iterdir()) == ["results.json", "scores.txt"]
    assert len((inputs / "out" / "scores.txt").read_text().splitlines()) == 2
    assert "eer_percent" not in results
    assert "whose labels are unknown" in module.summary(results, inputs / "out")


def test_models_are_scored_by_their_mean(inputs):
    (inputs / "models.txt").write_text("m0 id0/0.wav id0/1.wav\nm1 id1/0.wav\nunused nowhere.wav\n")
    (inputs / "list.csv").write_text("model,test,label\nm0,id0/4.wav,1\nm1,id0/4.wav,0\n")
    score(inputs / "e.npz", inputs / "list.csv", inputs / "out", models_path=inputs / "models.txt")
    with np.load(inputs / "e.npz") as archive:
        unit = {
            name: x / np.linalg.norm(x)
            for name, x in zip(archive["ids"], archive["embeddings"].astype(float), strict=True)
        }
    mean = unit["id0/0.wav"] + unit["id0/1.wav"]
    expected = [mean @ unit["id0/4.wav"] / np.linalg.norm(mean), unit["id1/0.wav"] @ unit["id0/4.wav"]]
    lines = [line.split() for line in (inputs / "out" / "scores.txt").read_text().splitlines()]
    assert [line[:2] for line in lines] == [["m0", "id0/4.wav"], ["m1", "id0/4.wav"]]
    np.testing.assert_allclose([float(line[2]) for line in lines], expected, atol=1e-6)


def test_a_calibration_is_carried_to_another_list(inputs):
    lines = (inputs / "list.txt").read_text().splitlines(keepends=True)
    (inputs / "dev.txt").write_text("".join(line for line in lines if "id5" not in line))
    dev = score(inputs / "e.npz", inputs / "dev.txt", inputs / "dev", draws=20)
    results = score(
        inputs / "e.npz", inputs / "list.txt", inputs / "out", calibration_path=inputs / "dev/results.json", draws=20
    )
    scale, offset = dev["ways"]["cosine"]["calibration"]
    raw, llr = (
        np.array([float(line.split()[2]) for line in (inputs / "out" / name).read_text().splitlines()])
        for name in ("scores.txt", "llr.txt")
    )
    np.testing.assert_allclose(llr, scale * raw + offset, atol=1e-5)
    labels = np.array([int(line[0]) for line in lines])
    cllr = (np.log2(1 + np.exp(-llr[labels == 1])).mean() + np.log2(1 + np.exp(llr[labels == 0])).mean()) / 2
    assert results["cllr"] == pytest.approx(cllr, abs=1e-5)
    assert results["min_cllr"] <= results["cllr"] < 1
    assert "Cllr | DCF 0.01" in (inputs / "out" / "report.md").read_text()
    with pytest.raises(UserError, match=r"--calibration=.*list\.txt is not the results\.json"):
        score(inputs / "e.npz", inputs / "list.txt", inputs / "out", calibration_path=inputs / "list.txt")


def test_the_page_holds_all_its_pictures(inputs):
    with np.load(inputs / "e.npz") as archive:
        seconds = np.random.default_rng(0).uniform(1, 20, len(archive["ids"]))
        np.savez(inputs / "e.npz", **archive, seconds=seconds.astype(np.float32))
    results = score(inputs / "e.npz", inputs / "list.txt", inputs / "out", draws=20, with_page=True)
    assert {path.name for path in (inputs / "out").iterdir()} == set(results["wrote"])
    text = (inputs / "out" / "report.html").read_text()
    for name in ("det.png", "histogram.png", "duration.png", "map.png"):
        assert base64.b64encode((inputs / "out" / name).read_bytes()).decode() in text
    assert f"{results['eer_percent']:.2f} (" in text
    assert "http" not in text  # nothing is fetched


def test_command_without_a_flag_fails_in_one_line(inputs):
    done = command(f"--embeddings={inputs}/e.npz", f"--output={inputs}/out")
    assert done.returncode == 2
    assert "--trials" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_command_with_an_unknown_utterance_fails_in_one_line(inputs):
    with (inputs / "list.txt").open("a") as file:
        file.write("0 wav/id9/0.wav wav/id0/0.wav\n")
    done = command(f"--embeddings={inputs}/e.npz", f"--trials={inputs}/list.txt", f"--output={inputs}/out")
    assert done.returncode == 2
    assert "1 of 436 trials name utterances without an embedding" in done.stderr
    assert "line 436 'wav/id9/0.wav'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (inputs / "out").exists()


def test_output_that_is_a_file(inputs):
    (inputs / "out").write_text("")
    with pytest.raises(UserError, match="cannot write into --output="):
        score(inputs / "e.npz", inputs / "list.txt", inputs / "out")


CASES = Path(__file__).parents[1] / "cases"


def test_trials_without_embeddings_may_be_left_out(inputs):
    more = "1 wav/id0/0.wav gone/1.wav\n0 gone/2.wav wav/id1/0.wav\n"
    (inputs / "more.txt").write_text(more + (inputs / "list.txt").read_text())
    with pytest.raises(UserError, match="2 of 437 trials name utterances without an embedding .*--skip_missing"):
        score(inputs / "e.npz", inputs / "more.txt", inputs / "out")
    results = score(inputs / "e.npz", inputs / "more.txt", inputs / "out", skip_missing=True)
    whole = score(inputs / "e.npz", inputs / "list.txt", inputs / "whole")
    assert (results["trials"], results["skipped_trials"]) == (435, 2)
    assert results["eer_percent"] == whole["eer_percent"]
    listed = (inputs / "out" / "skipped_trials.txt").read_text()
    assert listed == "1 wav/id0/0.wav gone/1.wav\n2 gone/2.wav wav/id1/0.wav\n"
    assert "2 trials left out" in module.summary(results, inputs / "out")
    (inputs / "none.txt").write_text(more)
    with pytest.raises(UserError, match="all 2 trials name utterances without an embedding"):
        score(inputs / "e.npz", inputs / "none.txt", inputs / "none", skip_missing=True)


@pytest.mark.parametrize("name, words", [
    ("swapped.txt", "is above 50 %: the labels look swapped"), ("conflict.txt", "both labels"),
])  # fmt: skip
def test_lists_that_look_wrong_are_warned_of(tmp_path, name, words, caplog):
    results = score(CASES / "trials" / "e.npz", CASES / "trials" / name, tmp_path, draws=10, with_page=True)
    assert any(words in warning for warning in results["warnings"])
    for place in (caplog.text, (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()):
        assert words in place


def test_an_unreadable_recording_costs_its_trials_alone(tmp_path):
    from sdpn_jax.speaker import corpus

    written = corpus.embed_corpus([CASES / "one_bad_file" / "c"], tmp_path / "e.npz", "", "statistics")
    assert (written.embeddings, written.skipped) == (2, 1)
    trials = CASES / "one_bad_file" / "trials.txt"
    kept = read_trials(trials).where(np.array([False, True]))
    assert (kept.enrol, kept.test) == (["s1/a.flac"], ["s2/b.flac"])
    (tmp_path / "list.txt").write_text("s1/a.flac s1/cut.flac\ns1/a.flac s2/b.flac\n")
    results = score(tmp_path / "e.npz", tmp_path / "list.txt", tmp_path / "out", skip_missing=True)
    assert (results["trials"], results["skipped_trials"]) == (1, 1)


def test_ids_cannot_steer_pages_and_tables():
    assert report.in_markdown("a|b<c>\x1b[31m\n") == "a\\|b&lt;c>\\\\x1b[31m\\\\n"
    assert report.in_html("<script>\x1b") == "&lt;script&gt;\\x1b"


def test_scores_of_ids_with_blanks_are_told_apart(inputs):
    trials = Trials(np.array([1]), ["a b"], ["c"])
    assert module.write_scores(inputs, trials, {"cosine": np.array([0.5])}, "scores") == ["scores.txt"]
    assert (inputs / "scores.txt").read_text() == "a b\tc\t0.50000000\n"
    assert compare.read_scores(inputs / "scores.txt", trials).tolist() == [0.5]


def test_a_list_that_cannot_be_assessed_leaves_earlier_results(inputs):
    files = f"--embeddings={inputs}/e.npz", f"--output={inputs}/out"
    assert command(*files, f"--trials={inputs}/list.txt").returncode == 0
    before = {path.name: path.read_bytes() for path in (inputs / "out").iterdir()}
    lines = [line for line in (inputs / "list.txt").read_text().splitlines() if line.startswith("1")]
    (inputs / "targets.txt").write_text("\n".join(lines))
    assert command(*files, f"--trials={inputs}/targets.txt").returncode == 2
    assert {path.name: path.read_bytes() for path in (inputs / "out").iterdir()} == before


def test_a_cohort_that_is_not_finite(inputs):
    np.savez(inputs / "c.npz", ids=np.array(["a", "b"]), embeddings=np.array([[np.inf] * 16, [1.0] * 16]))
    files = f"--embeddings={inputs}/e.npz", f"--output={inputs}/out", f"--cohort={inputs}/c.npz"
    done = command(*files, f"--trials={inputs}/list.txt")
    assert done.returncode == 2
    assert "c.npz: 1 of 2 embeddings hold NaN or infinity, first: 'a'" in done.stderr
