"""`sdpn export`: a trained encoder as a model folder, or as one program: ONNX or StableHLO."""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from typer import Option

from sdpn_jax.cli.options import Model
from sdpn_jax.errors import UserError, one_line, returns_exit_code

ENDINGS = {".onnx": "onnx", ".stablehlo": "stablehlo"}


@returns_exit_code
def export(
    model: Model,
    output: Annotated[str, Option(help="The folder or file to write.")],
    format: Annotated[
        Literal["folder", "onnx", "stablehlo"] | None,
        Option(help="Default: by --output, which ends in .onnx or .stablehlo or is a folder.", show_default=False),
    ] = None,
    results: Annotated[
        str | None,
        Option(help="Of a folder: results.json of `sdpn score`: the card's error rate, the threshold of `verify`."),
    ] = None,
    license: Annotated[str, Option(help="Of the weights, for a folder's card (an SPDX identifier).")] = "unknown",
    takes: Annotated[
        Literal["samples", "features"],
        Option(help="What the ONNX file takes: samples, or the features that sherpa-onnx and WeSpeaker compute."),
    ] = "samples",
    weights: Annotated[
        Literal["float32", "float16", "int8"], Option(help="How the ONNX file keeps them: whole, half or a quarter.")
    ] = "float32",
    encoder: Annotated[Literal["teacher", "student"], Option(help="Of a training run.")] = "teacher",
    step: Annotated[int | None, Option(help="Checkpoint of a training run; default: the newest.")] = None,
    without_head: Annotated[
        bool,
        Option("--without_head", help="Of a folder: leave out the projection head, with which only training goes on."),
    ] = False,
) -> int:
    """Write a trained encoder to keep and share.

    folder: config.json, model.safetensors and model card, which SpeakerEncoder.load takes. onnx: samples, or features,
    -> embedding, for onnxruntime and what is built on it. stablehlo: samples -> embedding, for JAX alone.
    """
    kind = format or ENDINGS.get(PurePosixPath(output).suffix, "folder")
    if kind != "onnx" and (takes, weights) != ("samples", "float32"):
        raise UserError(f"--takes and --weights are of ONNX files, and --format is {kind}: leave them out")
    if kind != "folder" and (results or without_head):
        raise UserError(f"--results and --without_head are of model folders, and --format is {kind}: leave them out")
    if kind == "folder":
        _folder(model, output, encoder, step, results, license, not without_head)
    elif kind == "onnx":
        _onnx(model, output, encoder, step, takes, weights)
    else:
        _stablehlo(model, output, encoder, step)
    return 0


def _folder(
    model: str, output: str, encoder: str, step: int | None, results: str | None, license: str, with_head: bool
) -> None:
    from sdpn_jax import storage
    from sdpn_jax.weights import export as exporting
    from sdpn_jax.weights import model_folder

    for name, value in exporting.export_model(model, output, encoder, step, results, license, with_head).items():
        print(one_line(f"{name}: {value}"))
    for name in (model_folder.CONFIG, model_folder.WEIGHTS, model_folder.CARD):
        print(f"wrote {storage.place(output) / name}")


def _onnx(
    model: str,
    output: str,
    encoder: str,
    step: int | None,
    takes: Literal["samples", "features"],
    weights: Literal["float32", "float16", "int8"],
) -> None:
    from sdpn_jax.weights import onnx_file
    from sdpn_jax.weights.load import load_network

    network, variables, _ = load_network(model, encoder, step)
    size = onnx_file.write(output, network, variables, takes, weights)
    print(
        f"wrote {output} ({size / 1e6:.1f} MB): {takes} -> embeddings of {network.embedding_size}, weights in {weights}"
    )


def _stablehlo(model: str, output: str, encoder: str, step: int | None) -> None:
    from sdpn_jax.weights import stablehlo
    from sdpn_jax.weights.load import load_network

    network, variables, _ = load_network(model, encoder, step)
    size = stablehlo.write(output, network, variables)
    print(f"wrote {output} ({size / 1e6:.1f} MB) for {', '.join(stablehlo.PLATFORMS)}")
