"""From the answers of a labelling network (VERIDAH heads) to the costs of the solver.

Weights and smoothing are those of the published system 2.1.3, except where it is wrong: it lowers the scores of
the first and last two vertebrae (its visibility smoothing counts what lies beyond the row as invisible), and it reads a
head ``VERTT13`` while its own models call it ``VT13``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from spineps.anatomy import T13, VERTEBRA_NAMES
from spineps.phases.landmarks import TEMPERATURE
from spineps.phases.solver import INDEX, N_STATES, to_states

Heads = Mapping[str, np.ndarray]

#: Heads and their sizes.  VERT: C1 .. L5.  VERTEX: with T13 (19) and L6 (25).  REGION: cervical, thoracic, lumbar.
#: VERTREL: nothing, last cervical, first thoracic, last thoracic, first lumbar, last lumbar.  VERTGRP: groups below.
#: VT13: no, yes.  FULLYVISIBLE: no, yes.
HEADS: dict[str, int] = {
    "VERT": 24,
    "VERTEX": 26,
    "REGION": 3,
    "VERTREL": 6,
    "VERTGRP": 12,
    "VT13": 2,
    "FULLYVISIBLE": 2,
}
#: Vertebrae per group of VERTGRP, top to bottom: C1-2, C3-5, C6-7, T1-2, T3-4, T5-7, T8-9, T10-11, T12, L1-2, L3-4, L5.
GROUP_SIZES: tuple[int, ...] = (2, 3, 2, 2, 2, 3, 2, 2, 1, 2, 2, 1)
WEIGHTS: dict[str, float] = {"VERT": 0.9, "VERTEX": 0.9, "VERTGRP": 0.8, "REGION": 1.1, "VERTREL": 0.6, "VT13": 0.4}
#: First class of each region on the axis of 24 classes and on that of 26.
_STARTS = {24: (0, 7, 19), 26: (0, 7, 20)}
_TINY = 1e-8
#: A boundary between regions counts as seen when the network gives it this much at the vertebra that got that place.
SEEN = 0.5
#: Where nothing else holds the names, they are sure from this probability on, of the boundary or of half of the names
#: (windows of six real scans, turned by up to 25 degrees: 117 of 118 right, and 50 of 65 below it).
CLEAR = 0.9
#: Below this mean of its two vertebrae it does not see it there (20 generated scans with right names: at least .65;
#: three wide real ones in up to fourteen ways: sure and right at least .6, sure and wrong .04 and .05).
UNSEEN = 0.3
#: How far the word of one vertebra counts (neighbours err together, and the sacrum must outvote them), the share of
#: errors without any reason, and the weight of the head for a 13th thoracic vertebra: chosen on 124 generated scans.
TRUST, DOUBT, TRUST_T13 = 0.3, 0.05, 0.3


def score_table(heads: Heads) -> np.ndarray:
    """How well each class fits each vertebra.

    Args:
        heads: {name: (n, k) probabilities}, vertebrae from top to bottom.

    Returns:
        (n, 24) or, when only VERTEX knows levels, (n, 26); rows sum to 1 (less for vertebrae cut off by the image's
        border, whose word counts up to half as much).
    """
    exact = "VERTEX" in heads and "VERT" not in heads
    n = len(next(iter(heads.values())))
    table = np.zeros((n, 26 if exact else 24))
    if "VERT" in heads:
        table += WEIGHTS["VERT"] * _smoothed(heads["VERT"])
    if "VERTEX" in heads:
        table += WEIGHTS["VERTEX"] * _smoothed(heads["VERTEX"] if exact else _without_anomalies(heads["VERTEX"]))
    if "VERTGRP" in heads:
        groups = np.repeat(heads["VERTGRP"], GROUP_SIZES, axis=1)
        table += WEIGHTS["VERTGRP"] * _smoothed(_with_anomalies(groups) if exact else groups)
    if "REGION" in heads:
        sizes = np.diff([*_STARTS[table.shape[1]], table.shape[1]])
        table += WEIGHTS["REGION"] * _normalised(np.repeat(heads["REGION"], sizes, axis=1))
    return table / (table.sum(axis=1, keepdims=True) + _TINY) * visibility(heads)[:, None]


def visibility(heads: Heads) -> np.ndarray:
    """(n,) weight 0.5 .. 1 of each vertebra: 1 where it is fully visible."""
    from scipy.ndimage import gaussian_filter1d

    n = len(next(iter(heads.values())))
    if "FULLYVISIBLE" not in heads:
        return np.ones(n)
    seen = gaussian_filter1d(np.asarray(heads["FULLYVISIBLE"], float)[:, 1], 0.8, radius=2, mode="nearest")
    return np.clip(1 - 0.5 * (1 - np.round(seen, 3)), 0, 1)


def relation_costs(heads: Heads) -> np.ndarray | None:
    """(n, 6) costs for :func:`~spineps.phases.solver.best_path`, negative where a row looks like a region's end."""
    from scipy.ndimage import gaussian_filter1d

    if "VERTREL" not in heads:
        return None
    columns = np.asarray(heads["VERTREL"], float).copy()
    columns[:, 1:] = gaussian_filter1d(columns[:, 1:], 0.6, axis=0, radius=1, mode="nearest")
    total = columns.sum(axis=0)
    # A boundary that no vertebra shows must not be blown up to certainty.
    return -WEIGHTS["VERTREL"] * columns / np.where(total > 1, total, 1 + total)


def t13_costs(heads: Heads) -> np.ndarray | None:
    """(n,) costs of calling each vertebra T13, from the head ``VT13`` or, as some checkpoints say, ``VERTT13``."""
    head = heads.get("VT13", heads.get("VERTT13"))
    if head is None:
        return None
    values = np.asarray(head, float)
    return -WEIGHTS["VT13"] * values[:, 1] / (values[:, 1].sum() + _TINY)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Each region smoothed on its own along the classes (a neighbour is the likeliest mistake), rows sum to 1."""
    from scipy.ndimage import gaussian_filter1d

    bounds = [*_STARTS[values.shape[1]], values.shape[1]]
    parts = [
        gaussian_filter1d(np.asarray(values[:, a:b], float), 0.8, axis=1, radius=2, mode="nearest")
        for a, b in pairwise(bounds)
    ]
    return _normalised(np.concatenate(parts, axis=1))


def _normalised(values: np.ndarray) -> np.ndarray:
    return values / (values.sum(axis=1, keepdims=True) + _TINY)


def _without_anomalies(values: np.ndarray) -> np.ndarray:
    """26 classes to 24: T13 counts for T12, L6 for L5."""
    out = np.array(values, float)
    out[:, 18] += out[:, 19]
    out[:, 24] += out[:, 25]
    return np.delete(out, (19, 25), axis=1)


def _with_anomalies(values: np.ndarray) -> np.ndarray:
    """24 classes to 26: T13 looks like T12, L6 like L5."""
    return np.insert(values, (19, 24), values[:, (18, 23)], axis=1)


def heads_to_costs(heads: Heads) -> tuple[np.ndarray, np.ndarray | None]:
    """Costs (n, 26) and relation costs (n, 6) or None of a network's answers, as the solver wants them."""
    table = score_table(heads)
    costs = -to_states(table)
    extra = t13_costs(heads)
    if extra is not None and table.shape[1] < N_STATES:
        costs[:, INDEX[T13]] += extra
    return costs, relation_costs(heads)


def likely_costs(heads: Heads) -> tuple[np.ndarray, np.ndarray | None]:
    """As :func:`heads_to_costs`, from logarithms, so that names are right as often as their probability says.

    The published sums of probabilities leave a row without a landmark in far more doubt than its answers justify.
    """
    costs, relation = heads_to_costs(heads)
    if "VERT" not in heads:
        return costs, relation
    weight = TEMPERATURE * TRUST * visibility(heads)[:, None]
    level = np.asarray(heads["VERT"], float)
    likely = -weight * np.log(to_states((1 - DOUBT) * level + DOUBT / level.shape[1]))
    supernumerary = heads.get("VT13", heads.get("VERTT13"))
    if supernumerary is not None:
        shown = np.asarray(supernumerary, float)[:, 1].clip(DOUBT, 1 - DOUBT)
        likely[:, INDEX[T13]] -= weight[:, 0] * TRUST_T13 * np.log(2 * shown)
    return likely, relation


def boundary_seen(ids: Sequence[int], heads: Heads | None) -> tuple[float, str]:
    """The best seen boundary between regions that agrees with the names (top to bottom).

    Returns:
        What the network gives it, 0..1, and words for it; (0, "") where none is seen.
    """
    if heads is None or "VERTREL" not in heads:
        return 0.0, ""
    places = {7: (1, "C7"), 8: (2, "T1"), 19: (3, "T12"), T13: (3, "T13"), 20: (4, "L1")}
    seen = [(float(heads["VERTREL"][row, places[v][0]]), places[v][1]) for row, v in enumerate(ids) if v in places]
    value, name = max(seen, default=(0.0, ""))
    return (value, f"the network recognises {name} as the end of its region") if value >= SEEN else (0.0, "")


def boundary_elsewhere(ids: Sequence[int], heads: Heads | None) -> str:
    """Where the network sees the thoracic spine end, if names (top to bottom) put that clearly elsewhere; "" if not."""
    if heads is None or "VERTREL" not in heads:
        return ""
    # Between row k - 1 and row k; at the ends of the row one of the two is out of view.
    last, first = (np.asarray(heads["VERTREL"], float)[:, column] for column in (3, 4))
    seen = np.array([first[0], *((last[:-1] + first[1:]) / 2), last[-1]])
    thoracic = [v <= 19 or v == T13 for v in ids]
    place = thoracic.index(False) if False in thoracic else len(ids)
    best = int(seen.argmax())
    if best == place or seen[best] < SEEN or seen[place] >= UNSEEN:
        return ""
    where = f"above {VERTEBRA_NAMES[ids[best]]}" if best < len(ids) else f"below {VERTEBRA_NAMES[ids[-1]]}"
    return f"the network sees the thoracic spine end {where}: one vertebra more or fewer, or one taken for sacrum"
