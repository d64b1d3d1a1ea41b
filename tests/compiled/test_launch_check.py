"""What a compiled program says of itself, read from hand-made text, and, where libtpu is there, from a real one."""

import importlib.util

import pytest

from sdpn_jax import config as configs
from sdpn_jax.compiled import launch_check, program_text
from sdpn_jax.errors import UserError

HLO = """
  %a = f32[128,4]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}
  %b = (f32[10]{0}, bf16[6]{0}) all-reduce-start(%x, %y), channel_id=2
  %b2 = (f32[10]{0}, bf16[6]{0}) all-reduce-done(%b)
  %c = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), channel_id=3, dimensions={0}
  %d = f32[16]{0:T(4,128)S(1)} all-gather(%x), channel_id=3
  %e = s32[] reduce-scatter(%x), channel_id=4
  %f = f32[3]{0} add(%all-reduce.1, %y)
"""


def test_collectives_are_counted_once_with_the_bytes_of_their_result():
    found = program_text.collectives(HLO)
    assert found == {"all-reduce": {2048: 1, 52: 1}, "all-gather": {64: 1}, "reduce-scatter": {4: 1}}


def test_what_a_ring_sends():
    """Four devices: an all-reduce of 8 bytes sends 2 * 3/4 * 8, a gather 3/4 * 8, a scatter to 2 bytes 3 * 2."""
    sent = program_text.sent_bytes({"all-reduce": {8: 2}, "all-gather": {8: 1}, "reduce-scatter": {2: 1}}, 4)
    assert sent == 24 + 6 + 6


def test_main_memory_is_told_from_vector_memory():
    """Read 40 and written 24 bytes by a fusion whose other operand is in vector memory, 40 copied there, 8 fetched."""
    program = """
%inner { %x = f32[1000] add(%y, %z) }

ENTRY %main {
  %a = f32[10]{0:T(128)} parameter(0)
  %start = (f32[10]{0:T(128)S(1)}, f32[10]{0:T(128)}, u32[]) copy-start(%a)
  %b = f32[10]{0:T(128)S(1)} copy-done(%start)
  %c = (bf16[4,3]{1,0:T(8,128)(2,1)}, f32[10]{0:T(128)S(1)}) fusion(%a, %b), kind=kLoop, calls=%inner
  %d = f32[10]{0:T(128)S(1)} get-tuple-element(%c), index=1
  %e = f32[2]{0:T(128)S(1)} slice-done(%d)
  ROOT %f = f32[10]{0:T(128)S(1)} negate(%d)
}
"""
    assert program_text.main_memory_bytes(program) == 40 + 24 + 40 + 8


def test_an_unknown_chip_is_refused():
    with pytest.raises(UserError, match="v5e:4x8; known chips: v4, v5e, v5p, v6e"):
        launch_check.devices_of("v99:2x2")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed: pip install libtpu")
def test_a_small_step_compiled_for_four_absent_chips():
    config = configs.load("vox2")
    config.batch_size = 8
    config.model.channels = (16, 16, 16, 16, 24)
    config.views.global_frames = config.views.local_frames = 40
    config.mesh.fsdp = 2
    devices = launch_check.devices_of("v5e:2x2")
    compiled, program = launch_check.compile_step(config, devices, num_utterances=80)
    assert program.num_steps == 150 * 10
    said = launch_check.report(compiled, program, launch_check.CHIPS["v5e"], len(devices))
    assert "of 16 GB: fits" in said
    assert "all-reduce: " in said
    assert "all-gather: " in said, "the head's large arrays are split over fsdp"
