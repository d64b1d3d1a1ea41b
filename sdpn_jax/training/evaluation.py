"""The teacher while it learns: EER on trial lists, and how well crops of held-out speech find each other."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from sdpn_jax import storage
from sdpn_jax.errors import UserError
from sdpn_jax.eval import scoring
from sdpn_jax.eval.metrics import crop_retrieval
from sdpn_jax.eval.trials import read_trials, trial_rows
from sdpn_jax.models.network import Network
from sdpn_jax.speaker.corpus import Notes, embed_in_turn, read_features
from sdpn_jax.speaker.embedder import Embedder

FRAMES_KEPT = 2**22  # of log-mels between evaluations: 1.25 GiB, 11.6 hours of speech


class Evaluator:
    """Embeds the same speech again and again with changing weights."""

    def __init__(
        self,
        network: Network,
        trial_lists: Sequence[str],
        recordings: str,
        crops: tuple[np.ndarray, np.ndarray] | None,
    ):
        """trial_lists speak of `recordings` (folder, list or shards); crops: as pipeline.held_out_crops gives them.

        Raises UserError for lists that cannot be read, have no labels, or name utterances that are not there: now, not
        after hours of training.
        """
        self._embed, self._crops = Embedder(network), crops
        self._trials = {Path(path).stem: read_trials(path) for path in trial_lists}
        self._recordings, self._ids = recordings, []
        self._kept: list[np.ndarray] | None = []  # log-mels; None: they are too many, and read anew each time
        if self._trials:
            if not storage.exists(recordings):
                raise UserError(f"eval.input={recordings} does not exist: it must name what eval.trials speak of")
            notes, frames = Notes(), 0
            for utterance_id, log_mel in read_features(recordings, notes):
                self._ids.append(utterance_id)
                frames += len(log_mel)
                if self._kept is not None and frames <= FRAMES_KEPT:
                    self._kept.append(log_mel)
                else:
                    self._kept = None
            for trials in self._trials.values():
                trials.known_labels()
                trial_rows(self._ids, trials)
            logging.info("evaluation on %d utterances, %d files skipped", len(self._ids), len(notes.skipped))
        if crops:
            logging.info("crop retrieval on %d crops of %d utterances", len(crops[0]), len(np.unique(crops[1])))

    def __call__(self, variables: dict[str, Any]) -> dict[str, float]:
        """Evaluates the teacher's variables: {"eer_percent/<list>": ..., "crop_retrieval_percent": ..., ...}."""
        row: dict[str, float] = {}
        variables = self._embed.put(variables)
        if self._crops:
            row |= crop_retrieval(self._embed(variables, list(self._crops[0])), self._crops[1])
            logging.info(
                "of held-out crops %.1f %% find one of their utterance, EER %.2f %%",
                row["crop_retrieval_percent"],
                row["crop_eer_percent"],
            )
        embeddings = self._embeddings(variables) if self._trials else np.zeros((0, 0))
        for name, trials in self._trials.items():
            try:
                results = scoring.evaluate(embeddings, self._ids, trials)
            except UserError as error:
                logging.warning("no evaluation on %s: %s", name, error)
                continue
            eer, min_dcf = results["eer_percent"], results["min_dcf_0.05"]
            row |= {f"eer_percent/{name}": eer, f"min_dcf_0.05/{name}": min_dcf}
            logging.info("EER on %s: %.2f %%, minDCF(0.05) %.3f", name, eer, min_dcf)
        return row

    def _embeddings(self, variables: dict[str, Any]) -> np.ndarray:
        """Embeds all recordings in bounded memory; UserError when they are not those of the beginning."""
        embed = partial(self._embed, variables)
        if self._kept is not None:
            return embed(self._kept)
        ids: list[str] = []

        def read() -> Iterator[np.ndarray]:
            for utterance_id, log_mel in read_features(self._recordings, Notes()):
                ids.append(utterance_id)
                yield log_mel

        embeddings = np.concatenate(list(embed_in_turn(embed, read())))
        if ids != self._ids:
            raise UserError(f"the recordings in {self._recordings} have changed since the run began: start it again")
        return embeddings
