"""Rows of metrics and TensorBoard's files: what a start keeps of them, and what may be wrong with them."""

import datetime

import pytest

from sdpn_jax.training import logs


def test_a_run_without_checkpoint_keeps_no_row(tmp_path):
    (tmp_path / logs.METRICS).write_text('{"step": 0, "eer_percent/t": 54.0}\n{"step": 1, "loss": 3.0}\n')
    writer = logs.MetricsWriter(tmp_path, 1)
    assert [row["step"] for row in writer.rows()] == [0, 1]
    assert not writer.lacks_evaluation(0)
    writer.close()
    writer = logs.MetricsWriter(tmp_path, 0)
    assert writer.rows() == []
    assert writer.lacks_evaluation(0)
    writer.close()


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"5", b"null", b'{"loss": 1}', b'{"step": "1"}', b'{"step": 2, "lo', b"[" * 10**5]
)
def test_lines_that_are_no_rows_are_left_out(tmp_path, line):
    path = tmp_path / logs.METRICS
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + line + b'\n{"step": 2, "loss": 1.0}\n')
    assert logs.read_rows(path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_outlives_tensorboards_thread(tmp_path, monkeypatch):
    """Whose queue nobody would empty any more: after a full disk a run waited for ever."""

    def full(*_):
        raise OSError(28, "No space left on device")

    writer = logs.MetricsWriter(tmp_path, 0)
    events = writer._board._writer.file_writer.event_writer
    monkeypatch.setattr(events._ev_writer, "write_event", full)
    writer.write(1, {"loss": 1.0})
    events._worker.join(timeout=20)
    row = {f"metric_{number}": 1.0 for number in range(50)}
    for step in range(2, 5):
        writer.write(step, row)
    writer.send()
    writer.close()
    assert [row["step"] for row in writer.rows()] == [1, 2, 3, 4]


def test_the_clock_of_a_run_is_not_the_days(monkeypatch):
    timer = logs.Timer()
    monkeypatch.setattr(logs.time, "time", lambda: 0.0)
    timer.steps = 1
    assert 0 < timer.elapsed() < 60
    told = []
    monkeypatch.setattr(logs.logging, "info", lambda form, *values: told.append(form % values))
    logs.log_progress(1, 2**31 - 1, {"loss": 1.0}, 8, timer)
    timer.started -= 1e9
    logs.log_progress(1, 2**31 - 1, {"loss": 1.0}, 8, timer)
    assert told[1].endswith(f"ETA {datetime.timedelta(seconds=1e9)}")
    timer.steps = 0
    logs.log_progress(1, 20, {"loss": 1.0}, 8, timer)
    assert told[2].endswith("ETA unknown")
