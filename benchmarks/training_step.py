"""The training step of a config: utterances a second, share of the matmul peak and of a roofline, beside PyTorch.

    python benchmarks/training_step.py --config=configs/librispeech.py --batches=32 --torch=eager,compile
    python benchmarks/training_step.py --config=configs/vox2.py --batches=96,384 --precisions=bfloat16,tf32,float32

Batches of random views on the devices already, so that the step alone is measured. The counterpart
(torch_counterpart.py) starts from the same weights and gets the same batch; --check compares the first steps' losses.
They take turns, each in a process of its own. Prints a table for each batch size and precision and writes <output>.
"""

import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measure
import numpy as np
from absl import app, flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from sdpn_jax.models.network import MEL_BINS, initial_variables, network_of
from sdpn_jax.training import memory, optim, sharding
from sdpn_jax.training.program import program_of, view_shapes

ONCE = "se", "embedding", "head"  # modules that work on one vector of an utterance, not on frames
PRECISIONS = {  # of the command: compute type, precision of float32 products
    "bfloat16": ("bfloat16", "default"),
    "tf32": ("float32", "tensorfloat32"),
    "float32": ("float32", "highest"),
}


def forward_flops(params: dict, frames: int) -> float:
    """Floating-point operations of the products of one forward pass over `frames` frames: two a multiplication."""
    total = 0
    for path, kernel in flatten_dict(params).items():
        if path[-1] != "kernel":
            continue
        rows = 1 if any(name in ONCE for name in path) else frames
        if path[-2] == "tdnn_conv":  # of the pooling: a third of it works on frames, the rest on the context
            rows = frames / 3 + 2 / 3
        total += 2 * rows * np.prod(kernel.shape)
    return total


def flops_per_utterance(config: ConfigDict) -> float:
    """Of a training step: the teacher forward, the student forward and twice that backward, and the prototypes."""
    network = network_of(config.model)
    params = jax.eval_shape(lambda: initial_variables(network, 0))["params"]
    views = config.views
    products = 2 * config.num_prototypes * config.model.projection_size
    teacher = views.global_count * (forward_flops(params, views.global_frames) + products)
    student = views.local_count * (forward_flops(params, views.local_frames) + products)
    return float(teacher + 3 * student)


def matmul_rate(dtype: str, size: int, repeats: int = 10) -> float:
    """Floating-point operations per second of a product of two square matrices on one device."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    chain = min(measure.timed(lambda: jax.block_until_ready([product(a) for _ in range(3)])) for _ in range(repeats))
    return 3 * 2 * size**3 / chain


def memory_rate(megabytes: int) -> float:
    """Bytes per second of reading and writing memory on one device."""
    x = jnp.ones(megabytes * 2**18, jnp.float32)
    add_here = jax.jit(lambda x: x + 1, donate_argnums=0)  # no memory that the system would have to clear first
    times = []
    for _ in range(10):
        started = time.perf_counter()
        x = add_here(x).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2 * x.nbytes / min(times)


class Ours:
    """Our step, compiled for a config on all devices."""

    def __init__(self, config: ConfigDict):
        mesh = sharding.make_mesh(config.mesh.fsdp)
        shapes = view_shapes(config.batch_size, config.views)
        network = network_of(config.model)
        self.program = program = program_of(config, network, mesh, 1000, lambda step, batch, bank: batch, shapes)
        self.state = program.init()
        self.first = jax.device_get(self.state)
        self.batch = jax.device_put(views_of(config), sharding.batch_sharding(mesh))
        started = time.perf_counter()
        self.compiled = program.step.lower(self.state, self.batch, {}).compile()
        self.compile_seconds = time.perf_counter() - started

    def step(self) -> float:
        self.state, metrics = self.compiled(self.state, self.batch, {})
        return float(self.program.unpack(jax.device_get(metrics))["loss"])

    def cost(self) -> dict:
        """What XLA counts for one device: operations and bytes, and the memory that the program holds."""
        cost, memory = self.compiled.cost_analysis(), self.compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        held -= memory.alias_size_in_bytes
        return {"flops": cost["flops"], "bytes": cost["bytes accessed"], "GiB": held / 2**30}


def theirs(config: ConfigDict, first, precision: str, compiled: bool) -> Callable[[], float]:
    """The counterpart's step from the same state on the same batch."""
    import torch
    import torch_counterpart

    jax.config.update("jax_platforms", "cpu")  # the accelerator is the counterpart's
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    run = torch_counterpart.counterpart_of(config, first, device, autocast=precision == "bfloat16")
    if compiled:
        run.student, run.teacher = torch.compile(run.student), torch.compile(run.teacher)
    arrays = {name: views.astype(np.float32) for name, views in views_of(config).items()}
    batch = {name: torch.from_numpy(views).to(device) for name, views in arrays.items()}
    rate = optim.warmup_cosine(
        config.learning_rate * config.batch_size / 256, config.final_learning_rate, config.warmup_steps or 10_000, 10**6
    )
    steps = iter(range(10**6))
    return lambda: float(run.step(batch, float(rate(next(steps))), config.ema_momentum))


def views_of(config: ConfigDict) -> dict[str, np.ndarray]:
    """Random log-mel views of one batch, as the pipeline gives them."""
    views, rng = config.views, np.random.default_rng(0)
    shapes = {"global": (views.global_count, views.global_frames), "local": (views.local_count, views.local_frames)}
    draw = lambda shape: rng.standard_normal((config.batch_size, *shape, MEL_BINS), np.float32)  # noqa: E731
    batch = {name: draw(shape).astype(np.float16) for name, shape in shapes.items()}
    return batch


def benchmark(config: ConfigDict, precision: str, peak: float, bandwidth: float) -> dict:
    """{way: its figures} of one batch size and precision."""
    config.model.dtype, multiplication = PRECISIONS[precision]
    jax.config.update("jax_default_matmul_precision", multiplication)
    ours = Ours(config)
    works = {"ours": ours.step}
    for way in filter(None, FLAGS.torch):
        works[f"torch {way}"] = measure.Elsewhere(theirs, config, ours.first, precision, way == "compile")
    warm = {name: [measure.timed(work), work(), work()] for name, work in works.items()}
    if FLAGS.check:
        for name in works:
            np.testing.assert_allclose(warm[name][1:], warm["ours"][1:], rtol=FLAGS.check, err_msg=name)
            print(f"losses of the second and third step, {name}: {warm[name][1:]}")
    seconds = measure.interleaved(works, FLAGS.repeats, settled=len(works) > 1)
    for work in list(works.values())[1:]:
        work.close()
    cost, devices = ours.cost(), jax.device_count()
    flops = flops_per_utterance(config) * config.batch_size / devices
    rows = {}
    for name, took in seconds.items():
        rows[name] = {
            "s": took,
            "utt/s": config.batch_size / took,
            "TFLOP/s": flops * devices / took / 1e12,
            "of peak": f"{100 * flops / took / peak:.1f} % of peak",
            "ratio": took / seconds["ours"],
        }
    roofline = max(flops / peak, cost["bytes"] / bandwidth)
    rows["ours"] |= {
        "roofline": f"{100 * roofline / seconds['ours']:.0f} % of roofline",
        "GiB": cost["GiB"],
        "compile s": ours.compile_seconds,
    }
    print(
        f"\nbatch {config.batch_size}, {precision}: {flops / 1e12:.3f} TFLOP and {cost['bytes'] / 1e9:.1f} GB a device"
    )
    measure.show("", rows, 14)
    return {"config_flops": flops, "xla": cost, **rows}


def main(_) -> None:
    memory.keep_freed()  # as a run does; PyTorch runs as it comes
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the counterpart needs memory too
    on_cpu = jax.default_backend() == "cpu"
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}; {measure.machine()}")
    results = {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "rates": {}}
    config = FLAGS.config
    print(f"{flops_per_utterance(config) / 1e9:.1f} GFLOP an utterance")
    bandwidth = memory_rate(1024 if on_cpu else 4096)
    for precision in FLAGS.precisions:
        dtype, multiplication = PRECISIONS[precision]
        with jax.default_matmul_precision(multiplication):
            # Forced devices share the cores: the peak of each is that of one alone divided by their number.
            peak = matmul_rate(dtype, 2048 if on_cpu else 8192) / (jax.device_count() if on_cpu else 1)
        results["rates"][precision] = {"matmul TFLOP/s": peak / 1e12, "memory GB/s": bandwidth / 1e9}
        print(f"{precision}: products {peak / 1e12:.3f} TFLOP/s, memory {bandwidth / 1e9:.1f} GB/s, measured")
        for batch_size in map(int, FLAGS.batches or [config.batch_size]):
            of_size = config.copy_and_resolve_references()
            of_size.batch_size = batch_size
            results[f"{precision}, batch {batch_size}"] = benchmark(of_size, precision, peak, bandwidth)
    measure.write(FLAGS.output, results)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", "configs/librispeech.py", "The run; --config.FIELD=VALUE overrides.")
    flags.DEFINE_list("batches", [], "Batch sizes; the config's by default.")
    flags.DEFINE_list("precisions", ["float32"], "Of the network: bfloat16, tf32, float32.")
    flags.DEFINE_list("torch", [], "Ways of the PyTorch counterpart: eager, compile.")
    flags.DEFINE_float("check", 0.0, "If not 0: the relative tolerance to which the losses must agree.")
    flags.DEFINE_integer("repeats", 5, "Timed steps of each way.", 1)
    flags.DEFINE_string("output", "training_step_benchmark.json", "Where the figures go.")
    app.run(main)
