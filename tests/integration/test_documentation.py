"""Every command and example of README.md and docs/, run as printed in a folder that has what their names stand for.

What makes a run small is added behind a command (later flags win); nothing else is changed. The cases run in the
documents' order: files that one command makes are there for the next.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import random_variables
import serving
import soundfile
import torch_files
from commands import sdpn
from small_run import ECAPA, ECAPA_SIZES, flags_of

from sdpn_jax.models.network import network_of
from sdpn_jax.weights import model_folder, sdpn_names

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README data training stages evaluation embeddings service models scaling performance ablation security".split()
)
SIZES = dict(encoder="resnet18", width=4, embedding_size=12, hidden_size=16, projection_size=8)
SHORT = (
    "--config.num_steps=2 --config.warmup_steps=1 --config.batch_size=4 --config.workers=0 --config.log_every=1 "
    "--config.checkpoint_every=2 --config.held_out=2 --config.num_prototypes=16 --config.model.dtype=float32 "
    "--config.views.global_frames=60 --config.views.local_frames=40 --config.views.local_count=2 "
    "--config.objective.koleo_group=2 "
) + shlex.join(flags_of(SIZES))
MORE = {
    "train": SHORT,
    "python -m sdpn_jax.main": SHORT,
    "stages": f"--config.data_dir=data/mine {SHORT} --config.stages.clusters=4 --config.stages.method=kmeans "
    "--config.held_out_frames=40 --config.stages.rounds=1 --config.stages.large_margin= "
    "--config.stages.classify=few_steps.py",
    "demo": SHORT,
    "prepare": "--workers=1 --augmentations=1",
    "cluster": "--clusters=4",
    "launch-check": SHORT.replace("batch_size=4", "batch_size=64"),
    "adapt": "--crop_seconds=0.5 --shrinkage=0.5",
    "benchmarks/adaptation.py": "--recordings=20 --draws=1",
    "benchmarks/data.py": "--files=2 --repeats=1",
    "benchmarks/scoring.py": "--scale=0.001",
    "benchmarks/end_to_end.py": f"--steps=1 --repeats=1 {SHORT}",
    "benchmarks/scaling.py": "--batches=2 --devices=1 --batch=2 --repeats=1 --step_flags="
    "--config.views.global_frames=60,--config.views.local_frames=40,--config.views.local_count=1,"
    "--config.model.encoder=resnet18,--config.model.width=4",
    "benchmarks/extraction.py": "--limit=2 --repeats=1 --long_minutes=0.1",
    "benchmarks/encoders.py": "--encoders=campplus --rows=1 --repeats=1",
    "benchmarks/training_step.py": f"--repeats=1 {SHORT} {shlex.join(ECAPA)}",
    "benchmarks/ablation.py": "--steps=20 --width=16 --seeds=1 --variants=0 --draws=10",
}
FEW_STEPS = """
from sdpn_jax.config import load

def get_config():
    config = load("own_classify")
    config.num_steps, config.warmup_steps, config.batch_size = 2, 1, 4
    config.views.local_frames = 40
    return config
"""  # without `fit`, which would choose a hundred steps
EXTRAS = {
    "launch-check --topology=h100": "jax_cuda12_plugin",
    "launch-check --topology=v": "libtpu",
    ".onnx": "onnx",
    "--torch": "torch",
    "sdpn serve": "uvicorn",
    "encoders.py": "torch",
}  # what some commands need beside the package
DEMO = (
    " --config.demo.train_speakers=3 --config.demo.train_utterances=3 --config.demo.test_speakers=2 "
    "--config.demo.test_utterances=2"
)


def commands_of(text: str) -> list[str]:
    """The commands of a document: lines of its blocks and whatever stands between backticks, with arguments."""
    text = re.sub(r" *\\\n *", " ", text)
    lines = [part.strip() for line in text.splitlines() for part in line.split("&&")]
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [" ".join(part.split()) for part in [*lines, *inline]]
    start = r"(taskset -c 0 |\w+=\S+ )?(sdpn [\w-]+ .|sdpn demo$|python -m sdpn_jax.main --|python benchmarks)"
    return [part for part in found if re.match(start, part)]


def examples_of(text: str) -> list[str]:
    """The blocks of Python of a document."""
    blocks = re.findall(r"(?:^    .*\n|^\n)+", text, flags=re.MULTILINE)
    blocks = [re.sub(r"^    ", "", block, flags=re.MULTILINE).strip() for block in blocks]
    blocks += re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return [block for block in blocks if "import " in block]


def text_of(document: str) -> str:
    return (ROOT / ("README.md" if document == "README" else f"docs/{document}.md")).read_text()


def link(folder: Path, target: str, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(folder / target)


def speak(rng: np.random.Generator, pitch: float, seconds: float = 1.0) -> np.ndarray:
    time_s = np.arange(seconds * rng.integers(14000, 22000)) / 16000
    buzz = sum(np.sin(2 * np.pi * pitch * k * time_s) / k for k in range(1, 20))
    return 0.05 * (buzz + rng.normal(size=len(time_s)))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which every name that the documents use stands for something of its kind."""
    folder = tmp_path_factory.mktemp("documentation")
    rng = np.random.default_rng(0)
    for speaker in range(10):
        for i in range(6):
            path = folder / "audio" / f"s{speaker}" / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, speak(rng, 100 + 40 * speaker, 1.0 if speaker < 9 else 5.0), 16000)
    for name in "a.wav b.wav b.flac x.wav ann1.wav ann2.wav".split():
        soundfile.write(folder / name, speak(rng, 120), 16000)
    for i in range(3):
        (folder / "noise").mkdir(exist_ok=True)
        soundfile.write(folder / "noise" / f"{i}.wav", 0.1 * rng.normal(size=20000), 16000)
        (folder / "rooms").mkdir(exist_ok=True)
        soundfile.write(folder / "rooms" / f"{i}.wav", 0.99 ** np.arange(4000), 16000)
    meeting = [hum for pitch in (100, 300, 100, 300) for hum in (speak(rng, pitch, 3.0), 1e-4 * rng.normal(size=16000))]
    soundfile.write(folder / "meeting.wav", np.concatenate(meeting), 16000)
    (folder / "reference.rttm").write_text("SPEAKER meeting 1 0 3 <NA> <NA> a <NA> <NA>\n")
    ids = [f"s{speaker}/{i}.wav" for speaker in range(10) for i in range(6)]
    pairs = [(a, b) for n, a in enumerate(ids) for b in ids[n + 1 :]]
    (folder / "trials.txt").write_text("".join(f"{int(a[:2] == b[:2])} {a} {b}\n" for a, b in pairs))

    audio = "RECORDINGS OTHER_RECORDINGS AUDIO/train voxceleb1/wav voxceleb2/dev/aac LibriSpeech/train-clean-100"
    link(folder, "audio", *audio.split())
    link(folder, "noise", "MUSAN", "musan", "NOISE")
    link(folder, "rooms", "RIRS_NOISES", "RIRS")
    link(folder, "trials.txt", "TRIALS.txt", "veri_test2.txt", "AUDIO/trials.txt", "AUDIO/trials_degraded.txt")
    link(folder, "runs/mine", "runs/vox2")
    link(folder, "scores", "a")
    link(folder, "vox1_o", "b")

    network = network_of(SIZES)
    variables = random_variables.of_network(network)
    model_folder.write_model(folder / "MODEL", {**SIZES, "dtype": "float32"}, variables, {}, 0.5, "unknown")
    network = network_of(SIZES | ECAPA_SIZES)  # as released
    variables = random_variables.of_network(network)
    state = {f"module.{name}": array for name, array in sdpn_names.to_released(variables, 1).items()}
    prototypes = rng.random((16, network.head.projection_size), np.float32)
    torch_files.write(folder / "checkpoint.pth", {"student": state, "teacher": state, "prototypes": prototypes})
    (folder / "few_steps.py").write_text(FEW_STEPS)
    for name in ("configs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_command(command: str, folder: Path) -> None:
    words = shlex.split(command.replace("--step=STEP", "--step=2"))
    while "=" in words[0]:  # variables are for speed alone
        words.pop(0)
    is_ours = words[0] == "sdpn"
    program = words[1] if is_ours else words[words.index("python") + 1]
    program = "python -m sdpn_jax.main" if program == "-m" else program
    if program == "serve":
        server = serving.Server(*words[2:], "--port=0", "--warm_seconds=1")
        assert server.stop() == 143
        return
    words += shlex.split(MORE.get(program, "") + (DEMO if program == "demo" else ""))
    words += ECAPA if "--config=vox2_released" in words else []
    if is_ours:
        done = sdpn(*words[1:])
    else:
        words[words.index("python")] = sys.executable
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    verdict = program in ("verify", "identify")  # 1: other speakers, or nobody
    assert done.returncode in ((0, 1) if verdict else (0,)), f"{command}\n{done.stderr[-3000:]}"
    if not verdict and "--help" not in words:
        assert re.search("wrote|written|records|fits", done.stdout + done.stderr), f"{command} does not say what it did"


def test_commands_are_found():
    blocks = "    sdpn c \\\n        --z\n\n```\ncd && python benchmarks/d.py\n```\n"
    found = commands_of("`sdpn a --x\n--y` b `sdpn b` `sdpn demo`\n\n" + blocks)
    assert found == ["sdpn c --z", "python benchmarks/d.py", "sdpn a --x --y", "sdpn demo"]
    text = "text\n\n    import a\n\n    a.b\n\ntext\n```python\nimport c\n```\n"
    assert examples_of(text) == ["import a\n\na.b", "import c\n"]


CASES = [(document, command) for document in DOCUMENTS for command in commands_of(text_of(document))]
EXAMPLES = [(document, example) for document in DOCUMENTS for example in examples_of(text_of(document))]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("document", "command"), CASES)
def test_a_command_of_the_documents(document, command, workplace, monkeypatch):
    for name, extra in EXTRAS.items():
        if name in command and importlib.util.find_spec(extra) is None:
            pytest.skip(f"{extra} is not installed")
    monkeypatch.chdir(workplace)
    run_command(command, workplace)


@pytest.mark.slow
@pytest.mark.parametrize(("document", "example"), EXAMPLES)
def test_an_example_of_the_documents(document, example, workplace):
    done = subprocess.run([sys.executable, "-c", example], cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, f"{example}\n{done.stderr[-3000:]}"


def test_the_documents_have_commands_and_examples():
    assert len(CASES) > 25
    assert len(EXAMPLES) > 2
