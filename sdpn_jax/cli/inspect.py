"""`sdpn inspect`: a look into prepared shards."""

from typing import Annotated

from typer import Option

from sdpn_jax.cli.options import Overrides
from sdpn_jax.errors import UserError, returns_exit_code


@returns_exit_code
def inspect(
    input: Annotated[str, Option(help="Folder of shards.")],
    output: Annotated[str | None, Option(help="Folder for the pictures; default: INPUT/inspection.")] = None,
    records: Annotated[int, Option(help="Decode so many records at random; 0: all.", min=0)] = 0,
    config: Annotated[
        str | None, Option(help="A training config, to draw the views that it makes of the batch of --step.")
    ] = None,
    step: Annotated[int, Option(help="Of that batch.", min=0)] = 0,
    overrides: Overrides = None,
) -> int:
    """Check that every record of prepared shards decodes, and draw lengths, features and views."""
    from sdpn_jax import config as configs
    from sdpn_jax import storage
    from sdpn_jax.data import survey
    from sdpn_jax.data.shards import open_shards
    from sdpn_jax.training.loop import to_learn

    folder = storage.place(input)
    found = survey.survey(folder, records)
    if not found.seconds:
        raise UserError(f"no record of {folder} can be read: {'; '.join(found.problems[:3])}")
    pictures = storage.make_folder(output or folder / "inspection")
    survey.plot_lengths(found.seconds, pictures / "lengths.png")
    survey.plot_utterances(found.examples, pictures / "utterances.png")
    wrote = ["lengths.png", "utterances.png"]
    if config:
        chosen = configs.load(config, overrides or ())
        shards = open_shards(folder)
        _, numbers = to_learn(chosen, shards)
        wrote.append(f"views-{step}.png")
        survey.plot_views(survey.views_of_batch(shards, chosen, step, numbers), pictures / wrote[-1])
    print(f"{survey.report(found)}\nwritten: {', '.join(wrote)} in {pictures}")
    if found.problems:
        listed = "\n  ".join(found.problems[:20])
        raise UserError(f"{len(found.problems)} problems:\n  {listed}\ndelete these shards and run sdpn prepare again")
    return 0
