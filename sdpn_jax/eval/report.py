"""Scored trials as numbers and as a page: the assessment of several systems on one list, tables, one HTML file."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sdpn_jax import storage
from sdpn_jax.errors import one_line
from sdpn_jax.eval import calibration, intervals, scoring
from sdpn_jax.eval.trials import Trials

PRIORS = (0.01, 0.05)  # of a target, for the detection costs
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem }
figure { margin: 1rem 0; flex: 1 1 22rem; max-width: 28rem }
img { width: 100% }
figcaption { color: #555; font-size: .9rem }
"""


def assess(
    systems: Mapping[str, np.ndarray], trials: Trials, draws: int, llrs: Mapping[str, np.ndarray] | None = None
) -> dict[str, dict]:
    """Assesses the scores [N] of several systems on one list with labels: {system: its row}.

    A row is that of `scoring.summarize`, min_cllr, eer_interval_percent (95 %, bootstrap over speakers), calibration
    (scale and offset to log-likelihood ratios, fitted on this list), for all but the first p_value (of being as good
    as the first), and where `llrs` has the system's log-likelihood ratios cllr and actual_dcf_<prior>. Interval and
    p_value are None where there are too few speakers.
    """
    labels = trials.known_labels()
    speakers = intervals.speakers_of(trials.enrol, trials.test, labels)
    bootstrap = intervals.SpeakerBootstrap(labels, *speakers, draws)
    rows, first = {}, None
    for name, scores in systems.items():
        rates = bootstrap.rates(scores)
        low, high = intervals.interval(rates)
        rows[name] = scoring.summarize(scores, labels) | {
            "min_cllr": calibration.min_cllr(scores, labels),
            "eer_interval_percent": None if math.isnan(low) else [100 * low, 100 * high],
            "calibration": list(calibration.fit(scores, labels)),
        }
        if first is None:
            first = rates
        else:
            p = intervals.p_value(rates, first)
            rows[name]["p_value"] = None if math.isnan(p) else p
        if llrs and name in llrs:
            costs = {f"actual_dcf_{prior}": calibration.actual_dcf(llrs[name], labels, prior) for prior in PRIORS}
            rows[name] |= {"cllr": calibration.cllr(llrs[name], labels)} | costs
    return rows


def table_of(rows: Mapping[str, Mapping]) -> list[list[str]]:
    """Turns the rows of `assess` into lines of a table, the heading first."""
    first = next(iter(rows))
    calibrated = any("cllr" in row for row in rows.values())
    heading = ["scores", "EER % (95 % interval)", "minDCF 0.01", "minDCF 0.05", "min Cllr"]
    heading += ["Cllr", "DCF 0.01", "DCF 0.05"] if calibrated else []
    lines = [heading + ([f"p, against {first}"] if len(rows) > 1 else [])]
    for name, row in rows.items():
        limits = row["eer_interval_percent"]
        between = "{:.2f}-{:.2f}".format(*limits) if limits else "too few speakers"
        line = [name, f"{row['eer_percent']:.2f} ({between})"]
        keys = ["min_dcf_0.01", "min_dcf_0.05", "min_cllr"]
        keys += ["cllr", "actual_dcf_0.01", "actual_dcf_0.05"] if calibrated else []
        line += [f"{row[key]:.4f}" if key in row else "" for key in keys]
        p = row.get("p_value")
        line += ["" if p is None else f"{p:.3f}"] if len(rows) > 1 else []
        lines.append(line)
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Formats a table in Markdown; its first line is the heading."""
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(map(in_markdown, cells))} |" for cells in (lines[0], rule, *lines[1:]))


def in_markdown(text: str) -> str:
    """Escapes what would end a table's cell, begin a tag or control a terminal."""
    text = one_line(text).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("&", "&amp;").replace("<", "&lt;")


def in_html(text: str) -> str:
    """Escapes what HTML would not show as it is."""
    return html.escape(one_line(text))


def write_page(path: Path, title: str, lines: Sequence[Sequence[str]], notes: Sequence[str], figures: Mapping) -> None:
    """Writes one self-contained HTML file with a table, paragraphs and embedded pictures {file: caption}."""

    def row(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{in_html(cell)}</{tag}>" for cell in cells) + "</tr>"

    def figure(picture, caption):
        data = base64.b64encode(Path(picture).read_bytes()).decode()
        image = f'<img alt="" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{in_html(caption)}</figcaption></figure>"

    table = row(lines[0], "th") + "".join(row(cells, "td") for cells in lines[1:])
    body = [
        f"<h1>{in_html(title)}</h1>",
        f"<table>{table}</table>",
        *(f"<p>{in_html(note)}</p>" for note in notes),
        '<div class="figures">' + "".join(figure(*item) for item in figures.items()) + "</div>",
    ]
    head = f'<meta charset="utf-8"><title>{in_html(title)}</title><style>{STYLE}</style>'
    text = f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'
    storage.write_text(path, text)
