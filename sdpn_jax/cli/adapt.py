"""`sdpn adapt`: a model brought to a domain by unlabelled recordings of it."""

import json as json_format
from typing import Annotated

from typer import Option

from sdpn_jax.cli.options import (
    MAX_SECONDS,
    PRETRAINED,
    Channel,
    Json,
    MaxSeconds,
    Model,
    keep_compiled_programs,
    reading_of,
)
from sdpn_jax.errors import UserError, one_line, returns_exit_code


@returns_exit_code
def adapt(
    input: Annotated[str, Option(help="Unlabelled recordings of the domain: folder, list, Kaldi data or manifest.")],
    output: Annotated[str, Option("--output", "-o", help="New model folder.")],
    model: Model = PRETRAINED,
    shrinkage: Annotated[
        float | None,
        Option(
            help="1: subtract the mean; towards 0: whiten. Default: chosen by crops of the recordings.",
            min=0.01,
            max=1.0,
        ),
    ] = None,
    crop_seconds: Annotated[float, Option("--crop_seconds", help="Length of the crops.", min=0.5)] = 2.0,
    license: Annotated[str, Option(help="Of the weights, an SPDX identifier.")] = "unknown",
    channel: Channel = "mean",
    max_seconds: MaxSeconds = MAX_SECONDS,
    json: Json = False,
) -> int:
    """Adapt a model to a domain, without labels: its embeddings lose the mean of the domain's and are whitened.

    How much is chosen by how well crops of held-out recordings find each other; nothing is changed where that does not
    help. All commands take the new folder. Its cosines have another scale: its threshold has to be found anew.
    """  # fmt: skip
    keep_compiled_programs()
    from sdpn_jax import storage
    from sdpn_jax.eval import adaptation
    from sdpn_jax.speaker import domain
    from sdpn_jax.weights import export, model_folder

    model_folder.check_output(output)
    found = domain.read(model, input, crop_seconds, reading_of(channel, max_seconds))
    rates = adaptation.crop_rates(found.embeddings, found.crops, found.recordings)
    names = ["none", *(f"{each:g}" for each in adaptation.SHRINKAGES)]
    means = dict(zip(names, rates.mean(0).tolist(), strict=True))
    if shrinkage is None:
        number = adaptation.choose(rates)
        if number == 0:
            best = min(rate for name, rate in means.items() if name != "none")
            raise UserError(
                f"nothing written: of crops of {len(found.embeddings)} recordings the model as it is has an EER of "
                f"{means['none']:.2f} %, adapted {best:.2f} % at best, which is not surely less"
            )
        shrinkage = adaptation.SHRINKAGES[number - 1]
    affine = adaptation.whitening(found.embeddings, shrinkage)
    facts = {"adapted to": f"{len(found.embeddings)} recordings", "shrinkage": shrinkage}
    export.export_adapted(model, output, affine, facts, license)
    if json:
        print(json_format.dumps({"shrinkage": shrinkage, "crop_eer_percent": means, "skipped": found.skipped,
                                 "recordings": len(found.embeddings), "model": output}))  # fmt: skip
        return 0
    print("shrinkage  EER of crops, %")
    for name, rate in means.items():
        print(f"{name:>9s}  {rate:.2f}" + ("  <- taken" if name == f"{shrinkage:g}" else ""))
    for path, reason in found.skipped:
        print(one_line(f"skipped: {path}: {reason}"))
    for name in (model_folder.CONFIG, model_folder.WEIGHTS, model_folder.CARD):
        print(f"wrote {storage.place(output) / name}")
    print(f"adapted to {len(found.embeddings)} recordings; the threshold is to be found anew")
    return 0
