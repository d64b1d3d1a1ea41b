"""The one command: what it is made of, how it ends, and that it starts at once."""

import inspect
import json
import subprocess
import sys

import pytest
from commands import command_of, refused, sdpn

from sdpn_jax import errors
from sdpn_jax.cli import program

COMMANDS = "prepare inspect train demo launch-check embed score compare cluster verify enrol identify export convert"


@pytest.mark.parametrize("name", COMMANDS.split())
def test_every_command_explains_itself(name):
    done = sdpn(name, "--help")
    assert done.returncode == 0
    assert f"Usage: sdpn {name}" in done.stdout
    assert program.app.registered_commands[COMMANDS.split().index(name)].callback.__doc__


@pytest.mark.parametrize("name", COMMANDS.split())
def test_every_command_is_a_function_of_plain_arguments(name):
    function = getattr(program, name.replace("-", "_"))
    parameters = inspect.signature(function).parameters.values()
    assert all(parameter.kind == parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    assert inspect.signature(function).return_annotation is int


def test_functions_return_exit_codes(tmp_path, capsys):
    assert program.embed([str(tmp_path / "no.wav")], str(tmp_path / "e"), encoder="statistics") == 2
    assert capsys.readouterr().err.startswith("error: none of the 1 recordings can be used, first")


def test_without_arguments_the_help_is_shown_and_nothing_else():
    done = sdpn()
    assert done.returncode == 2
    assert "Usage: sdpn" in done.stdout
    assert "error" not in done.stderr


def test_usage_errors_are_one_line():
    assert "--model" in refused("export", "--output=a")
    assert "no_such_command" in refused("no_such_command")
    assert "--no_such_option" in refused("score", "--no_such_option")
    assert "--augmentations" in refused("prepare", "--input=a", "--output=b", "--augmentations=-1")
    assert "unexpected" in refused("train", "--config=vox2", "stray")


@pytest.mark.parametrize("words", [["--config=librispeech", "--help"], ["--help", "--config", "librispeech"]])
def test_the_help_of_train_shows_the_fields_of_its_config(words):
    shown = sdpn("train", *words).stdout
    assert "--config.batch_size=32" in shown
    assert "--config.model.dtype='float32'" in shown


def test_a_crash_of_ours_says_so(capsys):
    @errors.returns_exit_code
    def broken() -> int:
        raise ZeroDivisionError("ours")

    assert broken() == errors.CRASH == 3
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "ZeroDivisionError: ours" in said
    assert said.strip().splitlines()[-1].startswith("error: this is a fault of sdpn_jax")


@pytest.mark.parametrize(
    ("ending", "code"), [(None, 0), (1, 1), (errors.UserError("x"), 2), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(ending, code):
    @errors.returns_exit_code
    def command() -> int:
        if isinstance(ending, BaseException):
            raise ending
        return ending

    assert command() == code


def test_help_imports_nothing_heavy():
    """Nor do absl flags appear that a program which imports a command would then have."""
    code = (
        "import sys, json; from sdpn_jax.cli.program import app; from absl import flags; "
        "heavy = {'jax', 'numpy', 'scipy', 'flax', 'librosa', 'matplotlib', 'sklearn', 'ml_collections'}; "
        "ours = [m for m in flags.FLAGS.flags_by_module_dict() if m.startswith('sdpn')]; "
        "print(json.dumps([sorted(heavy & set(sys.modules)), ours]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], []]


def test_the_installed_program_and_the_module_are_the_same_command():
    missing = ["--config=no_such_config"]
    by_program = subprocess.run(command_of("train", *missing), capture_output=True, text=True)
    by_module = subprocess.run([sys.executable, "-m", "sdpn_jax.main", *missing], capture_output=True, text=True)
    assert by_program.returncode == by_module.returncode == 2
    assert by_program.stderr == by_module.stderr
    assert by_program.stderr.startswith("error: --config=no_such_config: no such file")
