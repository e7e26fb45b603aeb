"""Sizes of the adult spine, per level, in mm and degrees.

Sources: bodies, canal and pedicles after Panjabi et al. 1991a (cervical), 1991b (thoracic), 1992 (lumbar) and Zindrick
1987 (pedicles), raised by 5-10 % towards living adults (CT of 300 adults, Int J Spine Surg: L5 is 2-4 mm taller than in
Panjabi's cadavers); discs after CT and MR series (PMC11225399, Eur Spine J 10.1007/s00586-015-3925-y); cord after
Sherman 1990 and Frostell 2016; curvature: textbook means of supine MRI.  Posterior elements: landmarks measured by us
in the body frame of one adult (BodyParts3D 4.0), checked against annotated lumbar scans and the volumes of nine VerSe
masks, rounded.

Levels are keyed by a continuous coordinate: 1..7 = C1..C7, 8..19 = T1..T12, 20..24 = L1..L5, 25..29 = S1..S5,
30..32 coccyx.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_FULL = tuple(range(2, 25))
#: Sparse keys of the posterior elements: C2 C3 C5 C7 T1 T4 T7 T10 T12 L1 L3 L5.
_KEYS = (2, 3, 5, 7, 8, 11, 14, 17, 19, 20, 22, 24)

# One value per level C2..L5.
_BODY: dict[str, tuple[float, ...]] = {
    "width_upper": (17.7, 20.2, 21.3, 22.4, 22.9, 26.4, 29.0, 28.4, 27.3, 27.3, 27.8, 28.9, 30.5, 32.1, 33.7,
                    35.3, 38.2, 41.0, 43.5, 45.5, 47.5, 50.0, 51.5),
    "width_lower": (18.2, 19.7, 20.2, 21.8, 23.4, 26.4, 30.6, 30.0, 28.4, 28.4, 29.4, 30.5, 31.9, 33.2, 35.8,
                    38.0, 41.0, 43.5, 45.5, 48.0, 50.5, 52.0, 51.5),
    "depth_upper": (16.4, 15.9, 16.2, 16.3, 17.2, 19.0, 19.8, 21.1, 23.0, 24.5, 26.1, 28.1, 30.0, 31.3, 32.7,
                    34.0, 33.6, 33.9, 33.6, 34.4, 35.0, 35.5, 35.0),
    "depth_lower": (16.5, 16.5, 16.9, 18.0, 18.8, 19.0, 20.9, 22.9, 24.1, 25.9, 27.6, 29.2, 31.1, 32.6, 33.9,
                    34.9, 34.4, 34.7, 34.6, 35.0, 35.3, 35.0, 33.6),
    "height": (21.0, 12.8, 12.6, 12.6, 12.8, 14.1, 15.4, 16.6, 16.8, 17.5, 18.2, 19.0, 19.9, 20.5, 21.3, 22.7,
               23.7, 25.0, 26.8, 27.8, 28.2, 28.2, 27.5),
    # Anterior minus posterior height.
    "wedge": (0.0, -0.4, -0.5, -0.5, -0.5, -0.5, -0.5, -0.6, -0.7, -0.8, -1.0, -1.3, -1.5, -1.5, -1.3, -1.0,
              -1.2, -1.5, -1.2, 0.2, 1.0, 1.7, 4.0),
    "disc": (4.8, 5.0, 5.2, 5.4, 5.6, 5.4, 5.0, 4.7, 4.7, 4.8, 5.1, 5.5, 5.9, 6.1, 6.3, 6.6, 7.0, 7.6, 8.6,
             9.7, 10.7, 11.4, 11.0),
    "canal_width": (24.5, 23.0, 24.7, 24.9, 25.6, 24.5, 21.8, 19.5, 18.1, 17.3, 17.2, 17.3, 17.3, 17.7, 17.9,
                    18.2, 19.4, 22.2, 23.0, 23.5, 24.3, 25.4, 27.1),
    "canal_depth": (18.5, 16.2, 15.5, 15.0, 15.0, 15.0, 15.4, 15.2, 15.6, 15.8, 16.1, 16.2, 16.2, 16.3, 16.0,
                    16.0, 16.3, 17.2, 17.2, 16.8, 16.6, 17.0, 17.6),
    "pedicle_width": (8.2, 6.2, 6.1, 6.2, 6.6, 7.3, 8.6, 7.4, 5.6, 4.8, 4.7, 5.1, 5.2, 5.7, 6.1, 6.4, 7.8, 7.8,
                      8.4, 8.7, 10.0, 12.4, 16.0),
    "pedicle_height": (10.1, 8.3, 8.3, 7.8, 8.2, 8.5, 10.5, 12.7, 12.4, 12.1, 11.9, 12.2, 12.1, 12.5, 13.9,
                       14.9, 16.6, 16.0, 15.4, 15.0, 14.9, 14.6, 13.6),
}  # fmt: skip

# Landmarks in the body frame: p from the posterior body wall, i from mid-height, r from the midline (both sides alike).
# Values in the order of _KEYS.
_POSTERIOR: dict[str, tuple[float, ...]] = {
    "pedicle_i": (-1.0, 0.0, -0.5, -1.5, -2.5, -3.0, -3.5, -4.0, -4.0, -3.8, -3.5, -3.0),
    "facet_up_p": (2.5, 5.5, 5.5, 5.0, 6.5, 9.5, 11.0, 11.0, 12.0, 13.0, 13.3, 11.0),
    "facet_up_i": (-9.5, -7.5, -9.0, -11.5, -15.5, -20.0, -22.5, -22.0, -22.5, -21.0, -20.5, -18.5),
    "facet_up_r": (16.0, 19.0, 20.0, 20.5, 18.0, 12.8, 12.3, 12.3, 12.6, 13.8, 16.0, 20.0),
    "facet_low_p": (11.0, 11.0, 12.0, 14.0, 17.0, 17.5, 17.5, 18.5, 18.5, 19.0, 19.0, 15.0),
    "facet_low_i": (13.0, 9.5, 9.5, 11.5, 14.0, 16.5, 17.5, 19.5, 23.0, 24.5, 26.0, 23.0),
    "facet_low_r": (18.5, 18.5, 19.0, 17.0, 13.5, 11.0, 10.8, 9.8, 9.2, 9.2, 10.0, 15.5),
    "facet_size": (5.6, 5.7, 5.7, 5.7, 5.4, 5.0, 5.1, 5.3, 5.5, 5.6, 6.2, 6.4),
    "transverse_p": (2.0, 2.0, 2.0, 4.0, 9.0, 19.0, 22.0, 19.5, 11.0, 13.5, 13.0, 8.0),
    "transverse_i": (5.0, 2.0, 2.0, -3.0, -6.5, -5.0, -5.0, -3.0, -2.5, -4.5, -3.5, -6.5),
    "transverse_r": (25.0, 26.0, 27.0, 32.5, 35.0, 33.5, 33.0, 30.5, 22.0, 34.5, 41.0, 46.0),
    "transverse_h": (5.4, 5.4, 5.4, 5.8, 7.4, 9.0, 9.0, 8.4, 8.2, 9.0, 9.4, 11.0),
    "lamina_i": (4.5, 2.5, 2.0, 2.0, 3.0, 4.0, 4.5, 5.0, 6.0, 6.0, 6.5, 6.0),
    "lamina_h": (13.0, 11.0, 11.0, 13.0, 17.0, 19.5, 20.5, 20.5, 20.5, 19.5, 18.0, 14.0),
    "lamina_t": (6.0, 5.2, 5.2, 6.4, 7.0, 7.4, 7.5, 7.0, 6.6, 6.2, 6.2, 5.8),
    "spinous_p": (38.0, 33.5, 35.0, 47.0, 45.5, 38.0, 38.0, 44.5, 47.0, 49.0, 52.0, 41.0),
    "spinous_i": (13.0, 9.0, 9.5, 14.5, 19.0, 27.0, 32.0, 25.0, 14.5, 12.5, 13.0, 12.0),
    "spinous_h": (12.5, 9.2, 9.4, 11.0, 11.5, 11.5, 11.5, 12.5, 16.0, 18.5, 20.0, 14.5),
    "spinous_t": (8.0, 7.4, 7.0, 7.2, 7.2, 6.8, 6.5, 6.6, 7.0, 7.3, 7.6, 6.8),
}  # fmt: skip

# Segments of the sacrum S1..S5 and of the coccyx: keys 25..32.
SACRAL_KEYS = (25, 26, 27, 28, 29, 30, 31, 32)
_SACRAL: dict[str, tuple[float, ...]] = {
    "width_upper": (50.0, 36.0, 29.0, 25.0, 21.0, 14.0, 9.0, 6.0),
    "width_lower": (38.0, 30.0, 26.0, 22.0, 17.0, 10.0, 7.0, 4.0),
    "depth_upper": (33.0, 21.0, 15.0, 12.0, 9.5, 7.0, 6.0, 5.0),
    "depth_lower": (23.0, 16.0, 12.5, 10.0, 8.0, 6.5, 5.5, 4.0),
    "height": (29.0, 24.0, 20.0, 17.0, 15.0, 10.0, 8.0, 7.0),
    "disc": (2.6, 1.6, 1.2, 1.0, 1.2, 1.5, 1.2, 1.0),
    "canal_width": (29.0, 25.0, 20.0, 16.0, 12.0, 2.0, 1.0, 1.0),
    "canal_depth": (17.0, 13.0, 9.0, 6.5, 4.5, 1.0, 1.0, 1.0),
    # Half-width of the alae and lateral mass.
    "ala": (54.0, 49.0, 40.0, 31.0, 21.0, 0.0, 0.0, 0.0),
}

# Cord and dural sac against the level coordinate.
CORD_KEYS = (0.5, 2, 4, 5, 6, 7, 8, 10, 13, 16, 18, 19, 26)
CORD_WIDTH = (11.5, 12.4, 13.6, 13.6, 13.0, 11.6, 10.5, 9.2, 8.3, 8.5, 9.3, 9.0, 9.0)
CORD_DEPTH = (9.0, 8.8, 8.6, 8.0, 7.6, 7.3, 7.0, 6.5, 6.3, 6.5, 7.2, 7.2, 7.2)
#: Sac as a fraction of the bony canal's width and depth; lumbar values measured on an annotated T2w crop (20 mm wide).
SAC_KEYS = (1, 4, 7, 11, 17, 20, 22, 23, 24, 25, 26, 27)
SAC_WIDTH = (0.82, 0.82, 0.80, 0.86, 0.87, 0.84, 0.81, 0.78, 0.71, 0.60, 0.48, 0.40)
SAC_DEPTH = (0.80, 0.83, 0.84, 0.82, 0.82, 0.80, 0.77, 0.76, 0.72, 0.64, 0.58, 0.55)
#: Gap in mm between the posterior wall of the bodies and the sac; 0.7 in the lumbar spine as measured on the same crop.
SAC_GAP = (2.0, 1.0, 1.0, 0.9, 0.8, 0.7, 0.7, 0.9, 1.8, 3.5, 3.0, 2.5)

#: Mean and standard deviation of the sagittal angles, degrees.
CURVATURE: dict[str, tuple[float, float]] = {
    "sacral_slope": (39.0, 9.0),
    "lumbar_lordosis": (50.0, 10.0),
    "thoracic_kyphosis": (37.0, 9.0),
    "cervical_lordosis": (14.0, 11.0),
    "sacral_kyphosis": (68.0, 17.0),
}

SIZE_NAMES: tuple[str, ...] = (*_BODY, *_POSTERIOR)


def sizes_at(key: float) -> dict[str, float]:
    """Mean sizes of a vertebra at level coordinate ``key`` (2..24; C1 has its own shape and takes C2's row).

    >>> round(sizes_at(22)["width_upper"], 1), round(sizes_at(22.5)["canal_width"], 2)
    (47.5, 24.85)
    """
    table: dict[str, float] = {}
    for name, row in _BODY.items():
        table[name] = float(np.interp(key, _FULL, row))
    for name, row in _POSTERIOR.items():
        table[name] = float(np.interp(key, _KEYS, row))
    return table


def sacral_sizes(key: float) -> dict[str, float]:
    """Mean sizes of a segment of the sacrum or coccyx, key 25 (S1) .. 32."""
    return {name: float(np.interp(key, SACRAL_KEYS, row)) for name, row in _SACRAL.items()}


def scaled(sizes: Mapping[str, float], factor: float) -> dict[str, float]:
    """All sizes times ``factor``."""
    return {name: value * factor for name, value in sizes.items()}
