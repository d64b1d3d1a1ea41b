"""What a compiled program says of itself, read from hand-made text, and, where libtpu is there, from a real one."""

import importlib.util
import os
from pathlib import Path

import jax
import pytest

from sdpn_jax import config as configs
from sdpn_jax.compiled import gpu, launch_check, program_text
from sdpn_jax.errors import UserError

absent_gpus = pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda12_plugin") or os.environ.get("JAX_PLATFORMS") != "cpu",
    reason="needs the extra cuda12-aot, and JAX_PLATFORMS=cpu",
)
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


GPU_PROGRAM = """
%scaling (p.1: bf16[100,16], p.2: f32[16]) -> bf16[100,16] {
  %p.1 = bf16[100,16]{1,0} parameter(0)
  %p.2 = f32[16]{0} parameter(1)
  ROOT %m = bf16[100,16]{1,0} multiply(%p.1, %p.2)
}

%halves (p.3: bf16[100,16]) -> bf16[100,8] {
  %p.3 = bf16[100,16]{1,0} parameter(0)
  %left = bf16[100,4]{1,0} slice(%p.3), slice={[0:100], [0:4]}
  %right = bf16[100,4]{1,0} slice(%p.3), slice={[0:100], [8:12]}
  ROOT %both = bf16[100,8]{1,0} concatenate(%left, %right), dimensions={1}
}

ENTRY %main {
  %x = bf16[100,8]{1,0} parameter(0)
  %w = bf16[8,16]{1,0} parameter(1)
  %bias = bf16[16]{0} parameter(2)
  %call = (bf16[100,16]{1,0}, s8[4194304]{0}) custom-call(%x, %w, %bias), CALLED
  %y = bf16[100,16]{1,0} get-tuple-element(%call), index=0
  %sums = f32[16]{0} fusion(%y), kind=kInput, calls=%reduced
  %all-reduce-start = f32[16]{0:S(1)} all-reduce-start(%sums), channel_id=1, to_apply=%add
  %all-reduce-done = f32[16]{0:S(1)} all-reduce-done(%all-reduce-start)
  %scaled = bf16[100,16]{1,0} fusion(%y, %all-reduce-done), kind=kLoop, calls=%scaling
  ROOT %taken = bf16[100,8]{1,0} fusion(%scaled), kind=kLoop, calls=%halves
}
""".replace("CALLED", 'custom_call_target="__cublas$lt$matmul", backend_config={"lhs_contracting_dimensions":["1"]}')


def test_a_gpu_program_is_read_by_hand():
    """Product: 1600 + 256 + 32 read, 3200 written, 2 x 100 x 16 x 8 operations; its workspace does not count.

    The last fusion reads two quarters of its operand.
    """
    found = list(program_text.operations(GPU_PROGRAM, on_chip=""))
    assert found == [
        program_text.Operation("product", 1600 + 256 + 32 + 3200, 25_600),
        program_text.Operation("fusion (input)", 3200 + 64),
        program_text.Operation("all-reduce", 64),
        program_text.Operation("fusion (loop)", 3200 + 64 + 3200),
        program_text.Operation("fusion (loop)", 800 + 800 + 1600),
    ]
    assert [operation.kind for operation in gpu.kernels(found)] == ["product", "fusion (input)"] + 2 * ["fusion (loop)"]


def test_a_hand_written_kernel_counts_for_what_it_states():
    """It is given 4,000 bytes and returns as many, of which it reads and writes 1,000 each."""
    program = r"""
ENTRY %main {
  %x = bf16[100,20]{1,0} parameter(0)
  ROOT %y = bf16[100,20]{1,0} custom-call(%x), custom_call_target="__gpu$xla.gpu.triton", backend_config={name = "k", serialized_metadata = "{\22bytes\22: \222000\22, \22flops\22: \2264000\22}"}
}
"""  # noqa: E501
    assert list(program_text.operations(program, on_chip="")) == [
        program_text.Operation("hand-written kernel", 2000, 64_000)
    ]


def saved(name):
    """A program that XLA compiled, see programs/save.py: one of four devices has a quarter of the batch."""
    return (Path(__file__).parent / "programs" / f"{name}.txt").read_text()


FRAMES, TAPS, CONVOLVED = 64 * 202 * 64 * 2, 3 * 64 * 128 * 2, 64 * 200 * 128 * 2  # bytes
KERNEL, RESULT, SUMS = 128 * 256 * 2, 64 * 200 * 256 * 2, 256 * 4


def test_a_saved_program_for_gpus():
    """The library wants the taps in another order; the sums are first those of 200 frames each, then all."""
    found = list(program_text.operations(saved("h100"), on_chip=""))
    assert found == [
        program_text.Operation("fusion (input)", TAPS + TAPS),
        program_text.Operation("convolution", FRAMES + TAPS + CONVOLVED, 2 * 64 * 200 * 128 * 3 * 64),
        program_text.Operation("product", CONVOLVED + KERNEL + RESULT, 2 * 64 * 200 * 256 * 128),
        program_text.Operation("fusion (input)", RESULT + 64 * SUMS),
        program_text.Operation("fusion (input)", 64 * SUMS + SUMS),
        program_text.Operation("all-reduce", SUMS),
        program_text.Operation("fusion (loop)", RESULT + SUMS + RESULT),
    ]
    assert program_text.collectives(saved("h100")) == {"all-reduce": {SUMS: 1}}


def test_a_saved_program_for_tpus():
    """What the layer hears is fetched, what it says is written back; all in between stays in vector memory."""
    assert program_text.main_memory_bytes(saved("v5e")) == FRAMES + TAPS + KERNEL + RESULT
    assert program_text.collectives(saved("v5e")) == {"all-reduce": {SUMS: 1}}


@pytest.mark.parametrize(
    ("target", "arrays"), [("Forward", "yxw"), ("BackwardInput", "xyw"), ("BackwardFilter", "wxy")]
)
def test_a_convolution_multiplies_alike_in_all_directions(target, arrays):
    """5 taps of 80 channels make 32 in each of 2 x 100 frames: 2 x 5 x 80 x 32 x 200 operations."""
    shapes = {"x": "f32[2,104,80]", "w": "f32[5,80,32]", "y": "f32[2,100,32]"}
    result, *operands = arrays
    lines = [f"  %{name} = {shapes[name]}{{2,1,0}} parameter({number})" for number, name in enumerate(operands)]
    lines.append(
        f"  ROOT %c = ({shapes[result]}{{2,1,0}}, u8[512]{{0}}) custom-call(%{operands[0]}, %{operands[1]}), "
        f'window={{size=5}}, dim_labels=b0f_0io->b0f, custom_call_target="__cudnn$conv{target}"'
    )
    (found,) = program_text.operations("\nENTRY %main {\n" + "\n".join(lines) + "\n}\n", on_chip="")
    sizes = 4 * (2 * 104 * 80 + 5 * 80 * 32 + 2 * 100 * 32)
    assert found == program_text.Operation("convolution", sizes, 2 * 5 * 80 * 32 * 200)


def test_how_long_a_kernel_takes():
    """At 1 TFLOP/s and 1 GB/s: 3 ms of arithmetic, 2 ms of traffic; nothing takes less than a start."""
    card = gpu.Gpu(memory_gb=1, teraflops=1, memory_gb_s=1)
    assert gpu.seconds_of(program_text.Operation("product", 0, int(2.25e9)), card) == pytest.approx(3e-3)
    assert gpu.seconds_of(program_text.Operation("copy", 1_700_000), card) == pytest.approx(2e-3)
    assert gpu.seconds_of(program_text.Operation("copy", 8), card) == 2e-6


@pytest.mark.parametrize("topology", ["h100", "h100:", "h100:0", "h100:2x", "h200:axb", "h100:-1"])
def test_gpus_without_a_number_are_refused(topology):
    with pytest.raises(UserError, match=r"come hosts x devices, such as h.00:8 or h.00:2x8"):
        launch_check.devices_of(topology)


@absent_gpus
def test_traffic_of_a_program_compiled_for_an_absent_gpu():
    """A product of 512 x 1024 by 1024 x 256 in float32 and the sum of its rows: known arrays, each moved once."""
    (device,) = launch_check.devices_of("h100:1")
    place = jax.sharding.SingleDeviceSharding(device)
    shapes = [jax.ShapeDtypeStruct(shape, "float32", sharding=place) for shape in ((512, 1024), (1024, 256))]
    program = jax.jit(lambda a, b: (a @ b).sum(1), out_shardings=place).lower(*shapes)
    found = list(program_text.operations(program.compile(compiler_options=gpu.COMPILER_OPTIONS).as_text(), on_chip=""))
    product, *others = sorted(found, key=lambda operation: -operation.flops)
    assert product.flops == 2 * 512 * 1024 * 256
    assert product.bytes == 4 * (512 * 1024 + 1024 * 256 + 512 * 256)
    assert sum(operation.bytes for operation in others) == pytest.approx(4 * (512 * 256 + 512), rel=0.05)


@pytest.mark.slow
@absent_gpus
def test_a_step_with_kernels_of_its_own_compiled_for_absent_gpus():
    """On four, with what the blocks keep computed again, and large arrays split."""
    config = configs.load("vox2")
    config.batch_size, config.model.remat, config.mesh.fsdp = 8, True, 2
    config.model.channels = (512, 512, 512, 512, 1536)
    config.views.global_frames = config.views.local_frames = 40
    devices = launch_check.devices_of("h100:4")
    compiled, program = launch_check.compile_step(config, devices, 160, options=gpu.COMPILER_OPTIONS)
    said, figures = launch_check.report_of_gpu(compiled, program, gpu.GPUS["h100"], len(devices), 1, config.batch_size)
    assert figures["main memory of hand-written kernel, MB"] > 0
    assert "of 80 GB: fits" in said


def test_two_programs_are_compared(tmp_path):
    (tmp_path / "before.json").write_text('{"main memory, GB": 60, "kernels": 1000, "gone": 2}')
    before = launch_check.read_figures(tmp_path / "before.json")
    said = launch_check.compared({"main memory, GB": 45.0, "kernels": 1000, "new": 3}, before).splitlines()
    assert said[2:] == [
        "| main memory, GB | 60 | 45 | -25.0 % |",
        "| kernels | 1,000 | 1,000 | +0.0 % |",
        "| gone | 2 | 0 | -100.0 % |",
        "| new | 0 | 3 |  |",
    ]


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "b"}', '{"a": null}', "\0"])
def test_figures_of_something_else_are_refused(tmp_path, text):
    (tmp_path / "figures.json").write_text(text)
    with pytest.raises(UserError, match=r"figures.json: no figures; wanted is what launch-check wrote to --output"):
        launch_check.read_figures(tmp_path / "figures.json")
    with pytest.raises(UserError, match="cannot be read"):
        launch_check.read_figures(tmp_path / "nothing.json")


def test_an_unknown_chip_is_refused():
    with pytest.raises(UserError, match="v5e:4x8 or GPUs such as h100:8; known: v4, v5e, v5p, v6e, h100, h200"):
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
    said, figures = launch_check.report(compiled, program, launch_check.CHIPS["v5e"], len(devices))
    assert figures["all-reduce"] > 0 and figures["step, ms"] > 0
    assert "of 16 GB: fits" in said
    assert "all-reduce: " in said
    assert "all-gather: " in said, "the head's large arrays are split over fsdp"
