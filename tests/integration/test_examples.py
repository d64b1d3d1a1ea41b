"""The notebooks of examples/: their code runs as it stands, on speakers that are as different as tones can be."""

from pathlib import Path

import jax
import nbclient
import nbformat
import numpy as np
import pytest
import soundfile

from sdpn_jax.models.network import initial_variables, network_of
from sdpn_jax.weights import model_folder

NOTEBOOK = Path(__file__).parents[2] / "examples" / "speakers.ipynb"
SIZES = {"channels": (16, 16, 16, 16, 24), "se_bottleneck": 8, "attention": 8, "embedding_size": 12, "hidden_size": 16}


def speech_of(speaker: int, rng: np.random.Generator) -> np.ndarray:
    """1 s of noise around a frequency of its own, swelling and fading."""
    seconds = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 200 * (speaker + 1) * seconds) * (1 + np.sin(2 * np.pi * 4 * seconds))
    return 0.1 * tone + 0.01 * rng.normal(size=16000)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """What the notebook expects of `sdpn demo`, in the present folder."""
    rng = np.random.default_rng(0)
    for speaker in range(10):
        folder = tmp_path / "runs" / "demo" / "corpus" / "test" / f"speaker{speaker}"
        folder.mkdir(parents=True)
        for number in range(3):
            soundfile.write(folder / f"{number}.flac", speech_of(speaker, rng), 16000)
    variables = jax.device_get(initial_variables(network_of(SIZES), 0))
    model_folder.write_model(tmp_path / "runs" / "demo", SIZES, variables, {}, None, "CC0-1.0")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_speakers_notebook(demo):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "30 recordings of 10 speakers; embeddings of 12 numbers" in said
    assert "30 pairs of one speaker, 405 of two" in said
    assert said.count("most alike: speaker") == 10
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
