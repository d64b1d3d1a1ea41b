"""`sdpn convert`: weights of other toolkits -> a training run or a model folder; a run's weights -> released names."""

from typing import Annotated, Literal

from typer import Option

from sdpn_jax.errors import UserError, returns_exit_code


@returns_exit_code
def convert(
    input: Annotated[
        str, Option(help="Weights of another toolkit, also of a hub (docs/models.md), or a training workdir.")
    ],
    output: Annotated[str, Option(help="New folder; or, for a workdir's weights, a .safetensors file.")],
    encoder: Annotated[Literal["teacher", "student"], Option(help="Whose weights of a workdir.")] = "teacher",
    step: Annotated[
        int | None, Option(help="Of a workdir: its checkpoint; of a released one: where training goes on.", min=0)
    ] = None,
) -> int:
    """Turn weights of another toolkit into a training run or model folder, or a run's into the released names.

    Checkpoints of SDPN's released PyTorch code, which hold student and teacher, become a run that can go on; encoders
    alone become a model folder, from which training begins by --config.init_from.
    """
    from sdpn_jax import storage
    from sdpn_jax.weights import export, run

    storage.place(output)  # before anything is downloaded: it cannot be in a hub
    if run.is_run(input):
        from sdpn_jax.weights import convert as conversion

        if not output.endswith(".safetensors"):
            raise UserError(f"--output={output} does not end in .safetensors, the format that weights are written in")
        taken = conversion.to_safetensors(input, output, encoder, step)
        print(f"the {encoder} of step {taken} written to {output}, under the released names")
        return 0
    from sdpn_jax.training import converted

    if output.endswith(".safetensors"):
        raise UserError(f"--output={output} is for the weights of a run: give the folder to write")
    if not converted.is_checkpoint(input):
        export.export_model(input, output)
        print(
            f"written to {output}: a model folder with the encoder of {input}\n"
            f"embeddings: sdpn embed RECORDINGS --model={output} --output=embeddings.npz\n"
            f"training begins from it: sdpn train --config=vox2 --config.data_dir=SHARDS --config.init_from={output}"
        )
        return 0
    config = converted.to_workdir(input, output, step or 0)
    print(
        f"written to {output}: config.json and checkpoints/{step or 0}, student and teacher of {input} and prototypes\n"
        f"embeddings: sdpn embed RECORDINGS --model={output} --output=embeddings.npz\n"
        "training goes on: sdpn train --config=vox2_released --config.data_dir=SHARDS "
        f"{converted.size_flags(config)}--workdir={output}"
    )
    return 0
