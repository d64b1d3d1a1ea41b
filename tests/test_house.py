"""Rooms by role, and which may use which: read from the imports, those inside functions too."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sdpn_jax"
MAY_USE = {  # beside the modules at the root, which all may use
    "models": set(),
    "data": set(),
    "eval": set(),
    "weights": {"models", "data"},
    "speaker": {"models", "data", "weights"},
    "training": {"models", "data", "eval", "weights", "speaker"},
    "compiled": {"models", "data", "training"},
    "diarization": {"data", "speaker"},
    "service": {"models", "data", "weights", "speaker", "diarization"},
    "cli": {"models", "data", "eval", "weights", "speaker", "training", "compiled", "diarization", "service"},
}
AT_THE_ROOT = {"__init__": {"speaker"}, "main": {"cli"}, "demo": {"data", "eval", "speaker", "training"}}
SEE_A_CONFIG = {
    "config",
    "demo",
    "data/survey",
    "training/history",
    "training/loop",
    "training/program",
    "training/stages",
    "compiled/launch_check",
}


def imported_by(path: Path) -> set[str]:
    """Full names of this package's modules, and of what is imported from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def rooms_used_by(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported_by(path) if name.startswith("sdpn_jax."))
    return {part[1] for part in parts if part[1] in MAY_USE}


@pytest.mark.parametrize("room", MAY_USE)
def test_a_room_uses_only_what_is_below_it(room):
    for path in sorted((PACKAGE / room).glob("*.py")):
        above = rooms_used_by(path) - MAY_USE[room] - {room}
        assert not above, f"{path.relative_to(PACKAGE)} imports from {above}"


def test_the_root_holds_what_all_use():
    for path in sorted(PACKAGE.glob("*.py")):
        assert rooms_used_by(path) <= AT_THE_ROOT.get(path.stem, set()), path.name


def test_every_folder_is_a_room():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(MAY_USE)


def test_few_see_a_config():
    """Everything else takes what it uses as arguments."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        sees = bool({"sdpn_jax.config.Config", "ml_collections.ConfigDict"} & imported_by(path))
        assert not sees or name in SEE_A_CONFIG, name


def test_the_smallest_rooms_know_no_files():
    for name in ["models/*", "training/losses", "training/optim", "training/step"]:
        for path in sorted(PACKAGE.glob(f"{name}.py")):
            assert not {"pathlib.Path", "json", "os"} & imported_by(path), path.name
