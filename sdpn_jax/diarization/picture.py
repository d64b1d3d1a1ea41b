"""A recording as a timeline, a row for each speaker."""

import os
from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter

from sdpn_jax.diarization.turns import Turn
from sdpn_jax.errors import one_line
from sdpn_jax.figures import COLOURS, COLUMN, drawing

LONGEST_NAME = 24  # letters beside a row


def plot_turns(turns: Sequence[Turn], seconds: float, path: str | os.PathLike) -> None:
    """Draws who speaks when in a recording of so many seconds, into one file."""
    speakers = list(dict.fromkeys(turn.speaker for turn in turns))
    with drawing(path, 2 * COLUMN, 0.6 + 0.25 * len(speakers)) as figure:
        axes = figure.add_subplot()
        for row, speaker in enumerate(speakers):
            spans = [(turn.start, turn.end - turn.start) for turn in turns if turn.speaker == speaker]
            axes.broken_barh(spans, (row - 0.35, 0.7), facecolors=COLOURS[row % len(COLOURS)], linewidth=0)
        names = [one_line(name) for name in speakers]
        names = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in names]
        axes.set(xlim=(0, seconds), ylim=(len(speakers) - 0.5, -0.5), yticks=range(len(speakers)), yticklabels=names)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda second, _: f"{int(second // 60)}:{int(second % 60):02d}"))
        axes.set_xlabel("Time, minutes:seconds")
