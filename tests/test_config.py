"""The config: shipped ones, a user's own, flags, and what is refused with which words."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from sdpn_jax import config as configs
from sdpn_jax.data import features
from sdpn_jax.data.pipeline import Views
from sdpn_jax.errors import UserError
from sdpn_jax.models.network import ENCODERS, Network, network_of
from sdpn_jax.training.step import Objective

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_load_by_name_and_by_path_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name, by_path = configs.load(name), configs.load(f"configs/{name}.py")
    assert by_name.to_json() == by_path.to_json()
    configs.check(by_name)


def test_every_field_has_a_meaning_and_is_described():
    shown = configs.describe(configs.default())
    for name, field in configs.FIELDS.items():
        assert field.meaning
        assert f"--config.{name}=" in shown


def test_flags_change_fields_of_every_type():
    config = configs.load(
        "vox2",
        [
            "--config.batch_size=64",
            "--config.learning_rate=1",
            "--config.model.remat",
            "--config.eval.trials=('a.txt', 'b.txt')",
            "--config.store",
            "waveform",
        ],
    )
    assert (config.batch_size, config.learning_rate, config.model.remat) == (64, 1.0, True)
    assert (config.eval.trials, config.store) == (("a.txt", "b.txt"), "waveform")
    assert configs.load("vox2", ["--noconfig.model.remat"]).model.remat is False


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("batch_size=1", "batch_size=1 must be at least 2"),
        ("batch_size=0", "batch_size=0 must be at least 2"),
        ("log_every=0", "log_every=0 must be at least 1"),
        ("eval.every_steps=0", "eval.every_steps=0 must be at least 1"),
        ("num_steps=-5", "num_steps=-5 must be at least 0"),
        ("num_epochs=0", "num_steps=0, num_epochs=0: one of them must be above 0"),
        ("model.dtype=float99", "model.dtype='float99' is unknown: choose one of 'bfloat16'"),
        ("objective.targets=magic", "objective.targets='magic' is unknown"),
        ("objective.sharpening=0", "objective.sharpening=0.0 must be above 0"),
        ("learning_rate=nan", "learning_rate=nan must be at least 0"),
        ("ema_momentum=1.5", "ema_momentum=1.5 must be at most 1"),
        ("model.channels=(8,8,12,8,8)", "model.channels=(8, 8, 12, 8, 8): all but the first and the last"),
        ("model.channels=(8,8)", "ecapa has five frame layers"),
        ("checkpoint_every=150", "checkpoint_every=150, log_every=100: the first must be a multiple"),
        ("objective.koleo_group=100", "objective.koleo_group=100, batch_size=384: the first must divide"),
        ("warmup_epochs=150", "warmup_epochs=150, num_epochs=150: the warm-up must be shorter"),
        ("eval.trials=('a.txt',)", "eval.trials=('a.txt',), eval.input='': eval.input must name the recordings"),
    ],
)
def test_values_that_cannot_work_are_named_with_their_bound(flag, message):
    with pytest.raises(UserError, match=re.escape(message)):
        configs.check(configs.load("vox2", [f"--config.{flag}"]))


def test_groups_have_channels():
    flags = ["--config.model.encoder=eres2netv2", "--config.model.width=2"]
    with pytest.raises(UserError, match="model.width=2: eres2netv2 splits its channels into groups and needs 3 or"):
        configs.check(configs.load("vox2", flags))
    configs.check(configs.load("vox2", [flags[0], "--config.model.width=3"]))


def test_lists_of_one_name_are_refused():
    flags = ["--config.eval.trials=('a/o.txt', 'b/o.txt')", "--config.eval.input=x"]
    with pytest.raises(UserError, match="two lists have the same file name"):
        configs.check(configs.load("vox2", flags))


def test_the_width_of_an_encoder_in_groups():
    flags = ["--config.model.encoder=ecapa_wespeaker", "--config.model.width=12"]
    with pytest.raises(UserError, match=r"model.width=12, model.encoder='ecapa_wespeaker': .* a multiple of 8"):
        configs.check(configs.load("vox2", flags))
    configs.check(configs.load("vox2", flags[1:]))
    configs.check(configs.load("vox2", [flags[0], "--config.model.width=0"]))


def test_all_faults_are_told_at_once():
    with pytest.raises(UserError, match=r"batch_size=0 .*; num_prototypes=0"):
        configs.check(configs.load("vox2", ["--config.batch_size=0", "--config.num_prototypes=0"]))


@pytest.mark.parametrize(
    ("flags", "utterances", "message"),
    [
        (["held_out=50"], 50, "held_out=50 must be less than the 50 prepared utterances"),
        (["batch_size=40"], 30, "batch_size=40 is more than the 30 prepared utterances"),
        (["held_out=20", "batch_size=40"], 50, "than the 30 prepared utterances left of 50, .* held_out=20 are"),
        (["num_steps=1000", "warmup_steps=0"], 1_092_009, "the warm-up of 28430 steps .* the run of 1000 steps"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_data(flags, utterances, message):
    config = configs.load("vox2", [f"--config.{flag}" for flag in flags])
    with pytest.raises(UserError, match=message):
        configs.check_data(config, utterances, "log_mel")


def test_shards_of_another_store():
    with pytest.raises(UserError, match="holds shards of waveform, the config says store='log_mel'"):
        configs.check_data(configs.default(), 10_000, "waveform")


OWN = """from sdpn_jax.config import load

def get_config():
    config = load("librispeech")
    {line}
    return config
"""


def own(folder, line):
    path = folder / "mine.py"
    path.write_text(OWN.format(line=line))
    return path


def test_a_config_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configs.load(own(tmp_path, "config.model.channels = (16, 16, 16, 16, 48)"), ["--config.seed=3"])
    assert (config.model.channels[-1], config.batch_size, config.seed) == (48, 32, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.batchsize = 3", r"mine\.py, line 5: the config has no field 'batchsize'; did you mean 'batch_size'"),
        ("config.model.dtyp", r"line 5: the config has no field 'dtyp'; did you mean 'dtype'"),
        ("config.batch_size = 'many'", r"line 5: TypeError: .*batch_size"),
        ("import no_such_module", r"line 5: ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", r"line 5: ZeroDivisionError"),
        ("config = config config", r"line 5: SyntaxError"),
        ("config = {}", "returns dict, not a ConfigDict"),
    ],
)
def test_a_mistake_in_it_shows_file_and_line(tmp_path, line, message):
    with pytest.raises(UserError, match=message) as told:
        configs.load(own(tmp_path, line))
    assert "\n" not in str(told.value)


def test_a_path_relative_to_the_working_directory_keeps_its_line(tmp_path, monkeypatch):
    own(tmp_path, "config.batchsize = 3")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^mine\.py, line 5: the config has no field"):
        configs.load("mine.py")


def test_a_converted_run_takes_any_config_but_another_optimizer():
    theirs = {"converted_from": "a.pth", "model": {"embedding_size": 512}}
    configs.check_same_run(configs.load("vox2", ["--config.batch_size=64"]), theirs, "runs/a")
    with pytest.raises(UserError, match="runs/a holds a run with optimizer='sgd', this config has 'adamw'"):
        configs.check_same_run(configs.load("vox2", ["--config.optimizer=adamw"]), theirs, "runs/a")


FITTED = """from sdpn_jax.config import default

def get_config():
    return default()

def fit(config):
    config.num_steps = len(config.data_dir)
    config.held_out = {held_out}
"""


def test_a_config_may_follow_its_data_and_the_command_line_has_the_last_word(tmp_path):
    path = tmp_path / "fitted.py"
    path.write_text(FITTED.format(held_out=7))
    assert configs.load(path).num_steps == len("data/vox2")
    config = configs.load(path, ["--config.data_dir=four", "--config.held_out=3"])
    assert (config.num_steps, config.held_out) == (4, 3)
    path.write_text(FITTED.format(held_out="'many'"))
    with pytest.raises(UserError, match=r"fitted\.py, line 8: TypeError: .*held_out"):
        configs.load(path)


@pytest.mark.parametrize(
    ("utterances", "chosen"),
    [
        (3, (2, 100, 0)),
        (251, (32, 700, 12)),
        (2251, (32, 2100, 112)),
        (25_000, (64, 7000, 500)),
        (90_000, (128, 13300, 500)),
    ],
)
def test_own_follows_the_number_of_utterances(tmp_path, utterances, chosen):
    """By hand: 700 sqrt(2251 / 250) = 2,100.5; what follows fits the data, whatever their number."""
    metadata = {"format_version": 2, "features": dataclasses.asdict(features.DEFAULT), "shards": []}
    shard = {"name": "a", "utterances": utterances, "bytes": 1}
    (tmp_path / "metadata.json").write_text(json.dumps(metadata | {"utterances": utterances, "shards": [shard]}))
    config = configs.load("own", [f"--config.data_dir={tmp_path}"])
    assert (config.batch_size, config.num_steps, config.held_out) == chosen
    configs.check(config)
    configs.check_data(config, utterances, "log_mel")
    assert configs.load("own", [f"--config.data_dir={tmp_path}", "--config.batch_size=2"]).batch_size == 2


@pytest.mark.parametrize(
    ("flag", "message"),
    [("batch_size=2.5", "batch_size=2.5 is no int"), ("model.remat=maybe", "model.remat=maybe is no bool")],
)
def test_values_of_another_type(flag, message):
    with pytest.raises(UserError, match=message):
        configs.load("vox2", [f"--config.{flag}"])


def test_other_files(tmp_path):
    with pytest.raises(UserError, match=r"--config=nowhere\.py: no such file.*shipped are demo"):
        configs.load("nowhere.py")
    (tmp_path / "c.txt").write_text("")
    with pytest.raises(UserError, match=r"ends in \.py"):
        configs.load(tmp_path / "c.txt")
    (tmp_path / "c.py").write_text("x = 1")
    with pytest.raises(UserError, match="has no attribute 'get_config'"):
        configs.load(tmp_path / "c.py")


def test_what_a_resumed_run_may_change(tmp_path):
    began = configs.as_json(configs.load("vox2"))
    free = ["--config.log_every=10", "--config.checkpoint_every=10", "--config.mesh.fsdp=2", "--config.eval.input=x"]
    free += ["--config.data_dir=moved", "--config.workers=0", "--config.init_from=x"]
    configs.check_same_run(configs.load("vox2", free), began, tmp_path)
    for flag in ("batch_size=64", "model.dtype=float32", "objective.koleo_weight=0"):
        with pytest.raises(UserError, match=f"holds a run with {flag.partition('=')[0]}="):
            configs.check_same_run(configs.load("vox2", [f"--config.{flag}"]), began, tmp_path)


def test_the_schedule_may_change_where_that_is_wanted(tmp_path):
    began = configs.as_json(configs.load("vox2"))
    config = configs.load("vox2", ["--config.num_epochs=200", "--config.learning_rate=0.1"])
    with pytest.raises(
        UserError, match="holds a run with num_epochs=150, learning_rate=0.4, .* has 200, 0.1: .*--extend"
    ):
        configs.check_same_run(config, began, tmp_path)
    configs.check_same_run(config, began, tmp_path, extend=True)
    config.batch_size = 64
    with pytest.raises(UserError, match="batch_size=384, this config has 64: choose another --workdir"):
        configs.check_same_run(config, began, tmp_path, extend=True)


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its config has no field `profile`, and an empty `demo`."""
    began = configs.as_json(configs.load("vox2"))
    del began["profile"]
    began["demo"] = {}
    configs.check_same_run(configs.load("vox2"), json.loads(json.dumps(began)), tmp_path)


def test_defaults_elsewhere_are_those_of_the_fields():
    """Objective and Views have defaults for those who use them without a config."""
    config = configs.default()
    assert Objective(**config.objective) == Objective()
    assert Views(**config.views) == Views()
    assert network_of({**config.model, "dtype": "float32"}) == Network()
    assert tuple(ENCODERS) == configs.ENCODERS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("batch_size = None", "batch_size=None must be of type int"),
        ("learning_rate = float('inf')", "learning_rate=inf must be finite"),
        ("checkpoint_minutes = float('inf')", "checkpoint_minutes=inf must be finite"),
        ("seed = True", "seed=True must be of type int"),
        ("seed = 2**63", "seed=9223372036854775808 must be at most 9.22"),
        ("eval.trials = (1, 2)", "eval.trials=(1, 2) is wrong: each part must be of type str"),
        ("model.channels = (16.0, 16, 16, 16, 16)", "each part must be of type int"),
        ("freeze = None", "freeze=None must be a tuple"),
        ("labels = 'a.txt'", "labels='a.txt', task='sdpn': labels are learnt by task=classify alone"),
        ("views.number = 3", "the config has no field 'views.number'"),
        ("lr = 3", "the config has no field 'lr'"),
        ("model.widht = 3", "the config has no field 'model.widht'; did you mean 'width'?"),
    ],
)
def test_values_that_a_file_puts_into_fields(tmp_path, line, message):
    path = own(tmp_path, "config.unlock(); config." + line)
    with pytest.raises(UserError, match=re.escape(message)):
        configs.check(configs.load(path))


def test_a_config_that_ends_the_program(tmp_path):
    with pytest.raises(UserError, match="SystemExit"):
        configs.load(own(tmp_path, "raise SystemExit(0)"))
