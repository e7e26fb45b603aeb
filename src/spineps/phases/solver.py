"""Which names a row of vertebrae can have, and the most probable of them: exact dynamic programming on one small graph.

A state is a vertebra name, in the order C1 .. T12, T13, L1 .. L6 (:data:`STATES`, 26 of them). A row of vertebrae,
top to bottom, is a walk through the states. Normal steps go to the next name; T13 and L6 are detours behind T12
and L5, T12 may be missing, and where asked single vertebrae may be missing in a region. Because T13 and L6 are
states of their own, no counter of repeats is needed, every walk is anatomically possible, and the optimum is
exact. (The published solver 2.1.3 counts repeats after a greedy choice and can move a whole spine by one.)

Costs add up over a walk; lower is better.  ``softmin`` weights of all walks give each name's probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from spineps.anatomy import T13, VERTEBRAE

STATES: tuple[int, ...] = VERTEBRAE
#: Place of an id in :data:`STATES`.
INDEX: dict[int, int] = {vertebra: k for k, vertebra in enumerate(STATES)}
N_STATES = len(STATES)
#: Region (0 cervical, 1 thoracic, 2 lumbar) of every state, and the state with which each region starts.
REGION = np.array([0] * 7 + [1] * 13 + [2] * 6)
REGION_START: tuple[int, int, int] = (0, 7, 20)
#: Column of a 24-class axis (C1 .. L5) for every state: T13 shares that of T12, L6 that of L5.
CLASS24 = np.array([*range(19), 18, *range(19, 24), 23])

_T11, _T12, _T13, _L1, _L5, _L6 = (INDEX[v] for v in (18, 19, T13, 20, 24, 25))


@dataclass(frozen=True)
class Rules:
    """Which walks are legal, and what the rare ones cost.

    Attributes:
        first: earliest state of the first row (0 for C1, 1 for C2).
        t13: a thirteenth thoracic vertebra may follow T12.
        l6: a sixth lumbar vertebra may follow L5.
        no_t12: L1 may follow T11.
        extra_cost: for T13 and for L6.
        missing_cost: for the missing T12.
        skips: regions (0, 1, 2) in which the next vertebra may be missing from the row.
        skip_cost: for each one that is missing so.
        ends: states in which the last row may be; None for all.
    """

    first: int = 0
    t13: bool = True
    l6: bool = True
    no_t12: bool = True
    extra_cost: float = 0.0
    missing_cost: float = 0.0
    skips: tuple[int, ...] = ()
    skip_cost: float = 0.0
    ends: tuple[int, ...] | None = None

    @property
    def capacity(self) -> int:
        """Vertebrae in the longest legal row."""
        return max((n for n in range(1, N_STATES + 1) if _feasible(n, self)), default=0)


@dataclass(frozen=True)
class Path:
    """A legal walk.

    Attributes:
        ids: vertebra id of every row.
        cost: sum of its costs.
    """

    ids: tuple[int, ...]
    cost: float


def best_path(
    cost: np.ndarray, rules: Rules, relation: np.ndarray | None = None, gaps: np.ndarray | None = None
) -> Path:
    """The cheapest legal walk (the lower name on ties).

    Args:
        cost: (n, 26), cost of each name for each row, top to bottom; finite.
        rules: what is legal.
        relation: (n, 6), further costs when the row is [0 unused, 1 last cervical, 2 first thoracic, 3 last thoracic,
            4 first lumbar, 5 unused]; "last" counts only when the next row is in a later region.
        gaps: (n - 1, k), cost of 0 .. k - 1 vertebrae missing between one row and the next; None for none missing.

    Raises:
        ValueError: no legal walk has n rows.
    """
    moves = _moves(len(cost), rules, relation, gaps)
    total, ends = _start_and_end(cost, rules, relation)
    back = np.zeros(cost.shape, int)
    rows = _emissions(cost, relation)
    for i in range(1, len(cost)):
        candidates = total[:, None] + moves[i - 1]
        back[i] = candidates.argmin(axis=0)
        total = candidates[back[i], np.arange(N_STATES)] + rows[i]
    total = total + ends
    state = int(total.argmin())
    if not np.isfinite(total[state]):
        raise ValueError(f"no legal sequence of {len(cost)} vertebrae exists under {rules}")
    walk = [state]
    for i in range(len(cost) - 1, 0, -1):
        walk.append(int(back[i, walk[-1]]))
    return Path(tuple(STATES[s] for s in reversed(walk)), float(total[state]))


def name_probabilities(
    cost: np.ndarray,
    rules: Rules,
    relation: np.ndarray | None = None,
    gaps: np.ndarray | None = None,
    temperature: float = 1.0,
) -> np.ndarray:
    """Probability of every name for every row, when a walk of cost c has weight exp(-c / temperature).

    Args:
        cost, rules, relation, gaps: as in :func:`best_path`.
        temperature: in units of the costs, > 0.

    Returns:
        (n, 26), rows sum to 1.

    Raises:
        ValueError: no legal walk has n rows.
    """
    n = len(cost)
    rows = _emissions(cost, relation)
    first, ends = _start_and_end(cost, rules, relation)
    forward, backward = np.zeros((n, N_STATES)), np.zeros((n, N_STATES))
    forward[0], backward[-1] = -first / temperature, -ends / temperature
    moves = [-move / temperature for move in _moves(n, rules, relation, gaps)]
    for i in range(1, n):
        forward[i] = _logsumexp(forward[i - 1][:, None] + moves[i - 1], 0) - rows[i] / temperature
    for i in range(n - 2, -1, -1):
        backward[i] = _logsumexp(moves[i] + (backward[i + 1] - rows[i + 1] / temperature)[None, :], 1)
    both = forward + backward
    top = both.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError(f"no legal sequence of {n} vertebrae exists under {rules}")
    weight = np.exp(both - top)
    return weight / weight.sum(axis=1, keepdims=True)


def to_states(table: np.ndarray) -> np.ndarray:
    """(n, 24) values per class C1 .. L5, or (n, 26) with T13 and L6, as (n, 26) per state."""
    if table.shape[1] == N_STATES:
        return table
    if table.shape[1] != 24:
        raise ValueError(f"a table of names has 24 or 26 columns, not {table.shape[1]}")
    return table[:, CLASS24]


def _steps(rules: Rules) -> np.ndarray:
    """(26, 26) cost of going from one state to the next, infinite where that is illegal."""
    steps = np.full((N_STATES, N_STATES), np.inf)
    chain = [s for s in range(N_STATES) if s not in (_T13, _L6)]
    for a, b in pairwise(chain):
        steps[a, b] = 0.0
    if rules.t13:
        steps[_T12, _T13], steps[_T13, _L1] = rules.extra_cost, 0.0
    if rules.l6:
        steps[_L5, _L6] = rules.extra_cost
    if rules.no_t12:
        steps[_T11, _L1] = rules.missing_cost
    for a, b in zip(chain, chain[2:], strict=False):
        if REGION[a] in rules.skips:
            steps[a, b] = min(steps[a, b], rules.skip_cost)
    if rules.t13 and 1 in rules.skips:
        steps[_T13, _L1 + 1] = rules.skip_cost
    return steps


def missing_between(path: Path, rules: Rules, gaps: np.ndarray) -> list[int]:
    """How many vertebrae the path takes to be missing between one row and the next."""
    leaps = _leaps(rules, gaps.shape[1])
    pairs = pairwise(INDEX[v] for v in path.ids)
    return [int((leaps[:, a, b] + gaps[i]).argmin()) for i, (a, b) in enumerate(pairs)]


def _leaps(rules: Rules, most: int) -> np.ndarray:
    """(most, 26, 26) cost of going from one state to another with 0 .. most - 1 states between them left out."""
    leaps = [_steps(rules)]
    while len(leaps) < most:
        leaps.append((leaps[-1][:, :, None] + leaps[0][None]).min(axis=1))
    return np.array(leaps)


def _moves(n: int, rules: Rules, relation: np.ndarray | None, gaps: np.ndarray | None) -> list[np.ndarray]:
    """(26, 26) cost of each of the n - 1 moves from one row to the next."""
    gaps = np.zeros((n - 1, 1)) if gaps is None else gaps
    leaps = _leaps(rules, gaps.shape[1])
    return [(leaps + gaps[i][:, None, None]).min(axis=0) + _leaving(relation, i) for i in range(n - 1)]


def _emissions(cost: np.ndarray, relation: np.ndarray | None) -> np.ndarray:
    rows = np.array(cost, float)
    if relation is not None:
        rows[:, REGION_START[1]] += relation[:, 2]
        rows[:, REGION_START[2]] += relation[:, 4]
    return rows


def _leaving(relation: np.ndarray | None, row: int) -> np.ndarray | float:
    """(26, 26) cost of ``row`` being the last one of its region."""
    if relation is None:
        return 0.0
    last = np.array([relation[row, 1], relation[row, 3], 0.0])[REGION]
    return np.where(REGION[None, :] > REGION[:, None], last[:, None], 0.0)


def _start_and_end(cost: np.ndarray, rules: Rules, relation: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if cost.ndim != 2 or cost.shape[1] != N_STATES or len(cost) == 0:
        raise ValueError(f"costs must be (n, {N_STATES}) with n > 0, not {cost.shape}")
    allowed = np.arange(N_STATES) >= rules.first
    allowed[_T13] &= rules.t13
    allowed[_L6] &= rules.l6
    start = np.where(allowed, _emissions(cost[:1], None if relation is None else relation[:1])[0], np.inf)
    start[[_T13, _L6]] += rules.extra_cost
    end = np.zeros(N_STATES)
    if rules.ends is not None:
        end[:] = np.inf
        end[list(rules.ends)] = 0.0
    return start, end


def _feasible(n: int, rules: Rules) -> bool:
    try:
        best_path(np.zeros((n, N_STATES)), rules)
    except ValueError:
        return False
    return True


def _logsumexp(values: np.ndarray, axis: int) -> np.ndarray:
    top = values.max(axis=axis, keepdims=True)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - safe).sum(axis=axis)) + np.squeeze(safe, axis)
