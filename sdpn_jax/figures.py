"""How every picture of this project looks: sizes, colours, and drawing without pyplot or a screen."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sdpn_jax import storage

# Okabe and Ito's palette, told apart by colour-blind readers too.
BLUE, RED, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", (0, (1, 1)))
COLUMN = 3.5  # inches, the width of a paper's column
STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "savefig.dpi": 300,
    "text.parse_math": False,  # names of files and speakers may hold dollar signs
}


@contextmanager
def drawing(path: str | os.PathLike, width: float, height: float, **style) -> Iterator[Figure]:
    """Opens a figure of width x height inches to draw on and writes it to `path` at the end.

    The path's extension chooses the format (png, pdf, svg); `style` changes single settings of STYLE, with "_" for "."
    in their names.
    """
    changes: dict[Any, Any] = {name.replace("_", ".", 1): value for name, value in style.items()}
    settings: dict[Any, Any] = {**STYLE, **changes}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with storage.written(path) as file:
            figure.savefig(file, format=PurePath(path).suffix[1:] or "png")
