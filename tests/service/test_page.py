"""The page in Chromium, with a small untrained model behind it: used as people would, and looked at by axe."""

import importlib
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from commands import command_of
from small_network import SIZES

from sdpn_jax.models.network import initial_variables, network_of
from sdpn_jax.weights import model_folder

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RATE = 16000
TOKEN = "open-sesame-please"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


def speak(pitch: float, seconds: float) -> np.ndarray:
    """A buzz whose loudness and pitch go up and down, in some noise."""
    time_s = np.arange(seconds * RATE) / RATE
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.1 * np.sin(8 * time_s))) / RATE
    buzz = sum(np.sin(k * phase) / k for k in range(1, 20)) * (0.6 + 0.4 * np.sin(20 * time_s))
    return 0.2 * buzz + 0.003 * np.random.default_rng(0).normal(size=len(time_s))


@pytest.fixture
def page():
    """What uses the page; it needs more than the package does."""
    for needed in ("playwright", "axe_playwright_python"):
        pytest.importorskip(needed)
    return importlib.import_module("page")


@pytest.fixture
def model(tmp_path) -> Path:
    network = network_of(SIZES)
    variables = jax.tree.map(np.array, initial_variables(network, 0))
    model_folder.write_model(tmp_path / "model", SIZES, variables, {}, 0.5, "unknown")
    return tmp_path / "model"


@contextmanager
def served(model: Path, **variables):
    """Where `sdpn serve` listens, on a free port."""
    command = command_of("serve", f"--model={model}", "--port=0", "--warm_seconds=1")
    environment = os.environ | variables
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as service:
        lines = iter(service.stderr.readline, "")
        yield next(line.split()[1].rstrip(",") for line in lines if line.startswith("listening:"))
        service.send_signal(signal.SIGTERM)
        service.stderr.read()


def test_the_page_is_used_without_a_fault(model, page, tmp_path):
    recordings = {"a": speak(120, 6), "b": speak(210, 4)}
    recordings["meeting"] = np.concatenate([speak(pitch, 3) for pitch in (120, 210, 160, 120, 210)])
    paths = {name: tmp_path / f"{name}.wav" for name in recordings}
    for name, path in paths.items():
        soundfile.write(path, recordings[name], RATE)
    with served(model) as address:
        assert page.walk(address, *paths.values(), tmp_path / "pictures", CHROMIUM) == []
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 28


def test_a_token_is_asked_for_and_kept_in_the_tab_alone(model, page, tmp_path):
    soundfile.write(tmp_path / "a.wav", speak(120, 2), RATE)
    with served(model, SDPN_JAX_TOKEN=TOKEN) as address, page.chromium_page(CHROMIUM, tmp_path / "a.wav") as tab:
        tab.goto(f"{address}/#who")
        for given, is_asked in (("not-the-token", True), (TOKEN, False)):
            page.expect(tab.locator("#token")).to_be_visible()
            tab.locator("#token-field").fill(given)
            tab.keyboard.press("Enter")
            page.expect(tab.locator("#token")).to_be_visible(visible=is_asked)
            page.expect(tab.locator("#nobody")).to_be_visible(visible=not is_asked)
        tab.reload()
        page.expect(tab.locator("#nobody")).to_be_visible()
        other = tab.context.new_page()
        other.goto(address)
        page.expect(other.locator("#token")).to_be_visible()
        assert other.evaluate("localStorage.length + document.cookie.length") == 0
