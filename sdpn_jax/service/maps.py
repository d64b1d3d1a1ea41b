"""A gallery in two dimensions, for looking at."""

import numpy as np
from jaxtyping import Float

from sdpn_jax.speaker.gallery import Gallery
from sdpn_jax.vectors import unit

WIDER = 1.15  # than the speakers: so that a new recording need not lie on the edge


class Map:
    """The two principal axes of a gallery's speakers, as directions; places lie in [-1, 1]."""

    def __init__(self, gallery: Gallery):
        self.gallery = gallery
        units = unit(gallery.sums) if gallery.names else np.zeros((0, gallery.sums.shape[1]))
        self._mean = units.mean(0) if len(units) else np.zeros(units.shape[1])
        self._axes = np.linalg.svd(units - self._mean, full_matrices=False)[2][:2] if len(units) > 1 else None
        places = self._projected(units)
        self._scale = WIDER * max(np.abs(places).max(initial=0), 1e-9)
        self.positions = places / self._scale

    def position(self, embedding: Float[np.ndarray, " D"]) -> list[float] | None:
        """Computes where an embedding lies among the speakers; None without two of them."""
        if self._axes is None:
            return None
        return np.clip(self._projected(unit(embedding)[None])[0] / self._scale, -1, 1).tolist()

    def _projected(self, units: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 2"]:
        if self._axes is None:
            return np.zeros((len(units), 2))
        places = (units - self._mean) @ self._axes.T
        return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
