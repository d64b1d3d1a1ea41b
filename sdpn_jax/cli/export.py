"""`sdpn export`: a trained encoder as a model folder, or as one program: StableHLO or ONNX."""

from typing import Annotated, Literal

from typer import Option

from sdpn_jax.cli.options import Model
from sdpn_jax.errors import returns_exit_code


@returns_exit_code
def export(
    model: Model,
    output: Annotated[str, Option(help="The folder to write, or a file that ends in .stablehlo.")],
    results: Annotated[
        str | None,
        Option(help="results.json of `sdpn score`: the card's error rate, the threshold of `verify`."),
    ] = None,
    license: Annotated[str, Option(help="Of the weights, for the model card (an SPDX identifier).")] = "unknown",
    encoder: Annotated[Literal["teacher", "student"], Option(help="Of a training run.")] = "teacher",
    step: Annotated[int | None, Option(help="Checkpoint of a training run; default: the newest.")] = None,
) -> int:
    """Write a trained encoder to keep and share.

    A folder (config.json, model.safetensors, model card), which SpeakerEncoder.load takes; or, where
    --output ends in .stablehlo, samples -> embedding as one program that runs with JAX alone.
    """
    from sdpn_jax import storage

    if output.endswith(".stablehlo"):
        from sdpn_jax.weights import stablehlo
        from sdpn_jax.weights.load import load_network

        network, variables, _ = load_network(model, encoder, step)
        size = stablehlo.write(output, network, variables)
        print(f"wrote {output} ({size / 1e6:.1f} MB) for {', '.join(stablehlo.PLATFORMS)}")
        return 0
    from sdpn_jax.weights import export as exporting
    from sdpn_jax.weights import model_folder

    for name, value in exporting.export_model(model, output, encoder, step, results, license).items():
        print(f"{name}: {value}")
    for name in (model_folder.CONFIG, model_folder.WEIGHTS, model_folder.CARD):
        print(f"wrote {storage.place(output) / name}")
    return 0
