"""`sdpn compare`: is one system better than another on a trial list?"""

from typing import Annotated

from typer import Option

from sdpn_jax.errors import returns_exit_code


@returns_exit_code
def compare(
    trials: Annotated[str, Option(help="The trial list that all systems scored.")],
    scores: Annotated[list[str], Option(help="A score file of `sdpn score`; twice or more.")],
    output: Annotated[str, Option(help="The folder to write into.")],
    draws: Annotated[int, Option(help="Of the bootstrap over speakers.", min=10)] = 1000,
) -> int:
    """Compare systems by their score files on one trial list: is B better than A?

    The first system is compared with each other one, by a bootstrap over speakers in which all meet the same draws.
    """
    from sdpn_jax import storage
    from sdpn_jax.eval import compare as comparison
    from sdpn_jax.eval import report

    rows = comparison.compare(trials, scores, output, draws)
    print(f"{report.markdown(report.table_of(rows))}\n\n{comparison.verdicts(rows)}")
    for name in comparison.FILES:
        print(f"wrote {storage.place(output) / name}")
    return 0
