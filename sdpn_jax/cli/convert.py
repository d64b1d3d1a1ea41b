"""`sdpn convert`: weights of the released PyTorch code -> a training run, and back."""

from typing import Annotated, Literal

from typer import Option

from sdpn_jax.errors import UserError, returns_exit_code


@returns_exit_code
def convert(
    input: Annotated[str, Option(help="Checkpoint of the released training script, or a training workdir.")],
    output: Annotated[str, Option(help="New workdir; or, for a workdir's weights, a .safetensors file.")],
    encoder: Annotated[Literal["teacher", "student"], Option(help="Whose weights of a workdir.")] = "teacher",
    step: Annotated[
        int | None, Option(help="Of a workdir: its checkpoint; of a released one: where training goes on.", min=0)
    ] = None,
) -> int:
    """Turn a checkpoint of the released PyTorch code into a training run, or a run's weights into its names."""
    from sdpn_jax import storage

    if storage.is_folder(input):
        from sdpn_jax.weights import convert as conversion

        if not output.endswith(".safetensors"):
            raise UserError(f"--output={output} does not end in .safetensors, the format that weights are written in")
        taken = conversion.to_safetensors(input, output, encoder, step)
        print(f"the {encoder} of step {taken} written to {output}, under the released names")
        return 0
    from sdpn_jax.training import converted

    if output.endswith(".safetensors"):
        raise UserError(f"--output={output} is for the weights of a run: give the folder that the run shall be in")
    config = converted.to_workdir(input, output, step or 0)
    print(
        f"written to {output}: config.json and checkpoints/{step or 0}, student and teacher of {input} and prototypes\n"
        f"embeddings: sdpn embed RECORDINGS --model={output} --output=embeddings.npz\n"
        "training goes on: sdpn train --config=vox2_released --config.data_dir=SHARDS "
        f"{converted.size_flags(config)}--workdir={output}"
    )
    return 0
