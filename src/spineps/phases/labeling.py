"""Naming: which vertebra is which, how sure that is, and what else it could be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from spineps.anatomy import SACRUM, T13, VERTEBRA_NAMES
from spineps.options import LabelingOptions
from spineps.phases.cutouts import SMALLEST_BODY_MM3, cutout_inputs, published_inputs
from spineps.phases.ends import SIDEWAYS, leaves_sideways, unseen_ends
from spineps.phases.landmarks import (
    C1,
    C2,
    DENS_MM3,
    LEAST_SACRUM_MM3,
    PITCH,
    RARE,
    STATURE_SPREAD,
    STATURES,
    TEMPERATURE,
    Body,
    Evidence,
    dens_alone,
    gap_costs,
    gather,
    measure_bodies,
    pitches,
    size_evidence,
    without_skull,
)
from spineps.phases.preprocess import as_stored
from spineps.phases.scores import (
    CLEAR,
    Heads,
    boundary_elsewhere,
    boundary_seen,
    heads_to_costs,
    likely_costs,
)
from spineps.phases.solver import (
    INDEX,
    N_STATES,
    STATES,
    Path,
    Rules,
    best_path,
    missing_between,
    name_probabilities,
)
from spineps.volume import Volume

if TYPE_CHECKING:
    from spineps.models.model import LabelingModel

logger = logging.getLogger(__name__)

#: Names of which half have less than this probability are ambiguous, whatever they rest on (of 94 generated scans with
#: a landmark none had so little; a real chest CT had .66 for all of its names).
LIKELY = 0.7
#: Two next vertebrae are never as far apart as so many times the mean of adults (1,013 pairs of generated people: at
#: most 1.23; two bodies taken for one beside a single one: 1.5).
TOO_FAR = 1.4
#: A narrower scan (mm from left to right) shows no ribs; no row from below T4 on begins in a neck.
RIBS_MM, NECK_END = 40.0, INDEX[11]
#: Tins & Balain, Insights Imaging 2016 (7.7 % of 418 people); Yan et al., J Orthop Surg Res 2018 (9.6 % of 293).
VARIANTS = (
    "counted from the sacrum alone: one person of twelve has a vertebra more or fewer, which only a wider scan shows"
)
#: In the name of a published model's data set: its vertebrae were turned upright.
UPRIGHT = "v4corpus"
#: As good as certain (published).
SURE = 1e6


@dataclass(frozen=True)
class Naming:
    """Names of the vertebrae of one scan.

    Attributes:
        ids: {instance id: vertebra id}; instances that cannot be named are left out.
        confidence: {vertebra id: probability 0..1 that this name is right}.
        alternatives: {vertebra id: (next best vertebra id, its probability)}.
        ambiguous: no landmark that fixes the names (sacrum, C2, a boundary between regions) is in view, or another
            reading of the row is nearly as likely.
        notes: what the names rest on, for people.
    """

    ids: dict[int, int]
    confidence: dict[int, float] = field(default_factory=dict)
    alternatives: dict[int, tuple[int, float]] = field(default_factory=dict)
    ambiguous: bool = False
    notes: tuple[str, ...] = ()


def name_instances(
    image: Volume,
    semantic: Volume,
    instance: Volume,
    model: LabelingModel | None,
    options: LabelingOptions,
    batch_size: int = 8,
    c1: bool = False,
    stored: str | None = None,
) -> Naming:
    """Name the vertebrae by a network (when there is one) and by the landmarks in the masks.

    Args:
        image: the scan, on the grid of the masks.
        semantic: structure ids.
        instance: vertebrae under any ids.
        model: a labelling network; None names by landmarks and sizes alone, a published one by its answers alone.
        options: whether variants of the thoracolumbar numbers may come out.
        batch_size: vertebrae per network call.
        c1: the masks of a published run may show C1 (its semantic model knows it).
        stored: type of the grey values in the file, for a published model.

    Returns:
        A legal, top-to-bottom sequence of names without duplicates.
    """
    sem, inst = semantic.reoriented("PIR"), instance.reoriented("PIR")
    bodies = measure_bodies(sem.array, inst.array, inst.grid)
    if not bodies:
        return _nothing()
    if model is not None and model.config.published:
        image = as_stored(image, stored)
        return _name_as_published(image, semantic, instance, model, options, bodies, batch_size, c1)
    bodies = without_skull(bodies)
    first = _first_state(bodies, model)
    bodies, notes = _nameable(bodies, _rules(options, first, None).capacity)
    heads = _ask(image, semantic, instance, model, bodies, batch_size)
    landmarks = gather(sem, bodies)
    end = next((e.end for e in landmarks if e.end is not None), None)
    problem = _Problem.of(bodies, heads, landmarks, _rules(options, first, end))
    notes += [e.note for e in landmarks]
    decisive = any(e.decisive for e in landmarks)
    naming = _read(problem, bodies, heads, decisive, notes, LIKELY, from_below=end is not None)
    shows_ribs = end is not None and sem.shape[2] * sem.zoom[2] >= RIBS_MM
    naming = _with_counting_doubt(naming, bodies, heads if shows_ribs else None)
    above, below = leaves_sideways(sem.grid, bodies)
    # C2 holds the names whatever happens below it, a sacrum those above it.
    fixed = any(e.decisive and e.end is None for e in landmarks)
    if not fixed and (below or (above and not decisive)):
        naming = replace(naming, ambiguous=True, notes=(*naming.notes, SIDEWAYS))
    sacrum = np.count_nonzero(sem.array == SACRUM) * sem.grid.voxel_volume >= LEAST_SACRUM_MM3
    ends = unseen_ends(image, bodies, [naming.ids[b.id] for b in bodies], bool(sacrum))
    return replace(naming, notes=(*naming.notes, *ends))


def _with_counting_doubt(naming: Naming, bodies: list[Body], heads: Heads | None = None) -> Naming:
    """Nothing counted is sure where neighbours are too far apart, C2 may be two, or ``heads`` see T12 elsewhere."""
    rows = [INDEX[naming.ids[b.id]] for b in bodies]
    far = [
        VERTEBRA_NAMES[STATES[a]]
        # What the border cuts may be more than one body.
        for a, b, mm in list(zip(rows, rows[1:], pitches(bodies), strict=False))[1:-1]
        if b - a == 1 and a >= C2 + 1 and mm > TOO_FAR * PITCH[a]
    ]
    elsewhere = boundary_elsewhere([STATES[row] for row in rows], heads)
    notes = [elsewhere] if elsewhere else []
    if far:
        notes.append(
            f"the vertebra below {', '.join(far)} is further away than in any person: one of two may not be separate"
        )
    if rows[0] <= NECK_END and dens_alone(bodies):
        notes.append("the first body looks like the dens of C2 alone: C2 may be cut in two, and all names one off")
    return replace(naming, ambiguous=True, notes=(*naming.notes, *notes)) if notes else naming


def _name_as_published(
    image: Volume,
    semantic: Volume,
    instance: Volume,
    model: LabelingModel,
    options: LabelingOptions,
    bodies: list[Body],
    batch_size: int,
    c1: bool,
) -> Naming:
    """The answers of the network and the rules of 2.1.3 alone; landmarks only tell how far to trust the names."""
    rules = _published_rules(options, C1 if c1 else C2)
    named, notes = _nameable([b for b in bodies if b.body_mm3 > 0], rules.capacity)
    spec = model.network.spec
    size = getattr(spec, "final_size", model.config.cutout_size)
    upright = UPRIGHT in str(getattr(spec, "ds_name", ""))
    ids = [b.id for b in named]
    x, seen = published_inputs(image, semantic, instance, ids, model.config, size, upright)
    if not seen:
        return _nothing()
    named = [b for b in named if b.id in seen]
    heads = model.classify(x, batch_size)
    problem = _Problem(*published_costs(heads, named if c1 else []), rules, np.zeros((len(named) - 1, 1)))
    decisive = any(e.decisive for e in gather(semantic.reoriented("PIR"), bodies))
    naming = _read(problem, named, heads, decisive, notes)
    if c1 and bodies[0].id not in naming.ids and 2 in naming.ids.values() and 1 not in naming.ids.values():
        # The atlas has no body: what lies above C2 is C1.
        return replace(naming, ids={bodies[0].id: 1, **naming.ids}, confidence={1: 1.0, **naming.confidence})
    return naming


def _published_rules(options: LabelingOptions, first: int) -> Rules:
    """Variants cost nothing there, and L6 stays possible when the thoracic ones are excluded."""
    free = not options.force_no_tl_anomaly
    return Rules(first=first, t13=free, no_t12=free)


def published_costs(heads: Heads, bodies: Sequence[Body] = ()) -> tuple[np.ndarray, np.ndarray | None]:
    """As :func:`heads_to_costs`; a dens in one of ``bodies`` fixes it as C2 and the next above it as C1."""
    costs, relation = heads_to_costs(heads)
    if "VERTEX" not in heads or "VERT" in heads:
        # With 24 classes T13 and L6 are repeats of T12 and L5: no row starts with one.
        costs[0, [INDEX[T13], INDEX[25]]] = SURE
    dens = [row for row, body in enumerate(bodies) if body.dens_mm3 > DENS_MM3]
    for row in dens[:1]:
        costs[row], costs[row, C2] = 0.0, -SURE
        if row:
            costs[row - 1], costs[row - 1, C1] = 0.0, -SURE
    return costs, relation


def _nothing() -> Naming:
    return Naming({}, ambiguous=True, notes=("no vertebra was found",))


@dataclass(frozen=True, eq=False)
class _Problem:
    """Everything that the solver needs."""

    cost: np.ndarray
    relation: np.ndarray | None
    rules: Rules
    gaps: np.ndarray

    @classmethod
    def of(cls, bodies: list[Body], heads: Heads | None, landmarks: list[Evidence], rules: Rules) -> _Problem:
        gaps = gap_costs(bodies)
        cost, relation = (np.zeros((len(bodies), N_STATES)), None) if heads is None else likely_costs(heads)
        for evidence in landmarks:
            cost = cost - evidence.table
        if not _legal(cost, rules, gaps):
            rules = Rules(first=rules.first, t13=rules.t13, l6=rules.l6, no_t12=rules.no_t12)
        if heads is None:
            cost = cost - _best_sizes(cost, bodies, rules, gaps)
        return cls(cost, relation, rules, gaps)

    def solve(self) -> tuple[Path, np.ndarray]:
        path = best_path(self.cost, self.rules, self.relation, self.gaps)
        return path, name_probabilities(self.cost, self.rules, self.relation, self.gaps, TEMPERATURE)


def _rules(options: LabelingOptions, first: int, end: int | None) -> Rules:
    free = not options.force_no_tl_anomaly
    return Rules(
        first=first,
        t13=free,
        l6=free,
        no_t12=free,
        extra_cost=RARE,
        missing_cost=RARE,
        # With the sacrum in view, five lumbar vertebrae mean that the last one before it is L5.
        ends=None if free or end is None else (end,),
    )


def _first_state(bodies: list[Body], model: LabelingModel | None) -> int:
    """C1 is a name only for models that know it, or for a top vertebra without a body."""
    knows = model is not None and model.config.has_c1
    return C1 if knows or (bodies and bodies[0].body_mm3 == 0) else C2


def _nameable(bodies: list[Body], capacity: int) -> tuple[list[Body], list[str]]:
    """At most as many vertebrae as there are names: the smallest are left out."""
    surplus = len(bodies) - capacity
    if surplus <= 0:
        return bodies, []
    left_out = {b.id for b in sorted(bodies, key=lambda b: b.body_mm3)[:surplus]}
    note = f"{surplus} instance(s) more than there are vertebrae: the smallest were left out"
    logger.warning(note)
    return [b for b in bodies if b.id not in left_out], [note]


def _ask(
    image: Volume,
    semantic: Volume,
    instance: Volume,
    model: LabelingModel | None,
    bodies: list[Body],
    batch_size: int,
) -> Heads | None:
    asked = [row for row, body in enumerate(bodies) if body.body_mm3 >= SMALLEST_BODY_MM3]
    if model is None or not asked:
        return None
    x = cutout_inputs(image, semantic, instance, [bodies[row].id for row in asked], model.config)
    heads = {}
    for head, answer in model.classify(x, batch_size).items():
        heads[head] = np.tile(_no_opinion(head, answer.shape[1]), (len(bodies), 1))
        heads[head][asked] = answer
    return heads


def _no_opinion(head: str, classes: int) -> np.ndarray:
    """What a network that sees nothing says: no boundary, no T13, not visible, any level."""
    if head in ("VERTREL", "VT13", "VERTT13", "FULLYVISIBLE"):
        return np.eye(classes, dtype=np.float32)[0]
    return np.full(classes, 1 / classes, np.float32)


def _legal(cost: np.ndarray, rules: Rules, gaps: np.ndarray) -> bool:
    try:
        best_path(cost, rules, None, gaps)
    except ValueError:
        return False
    return True


def _best_sizes(cost: np.ndarray, bodies: list[Body], rules: Rules, gaps: np.ndarray) -> np.ndarray:
    """Size evidence for the stature with which the row fits best."""
    tables = [size_evidence(bodies, gaps.argmin(1).tolist(), stature) for stature in STATURES]
    price = [TEMPERATURE * np.log(stature) ** 2 / (2 * STATURE_SPREAD**2) for stature in STATURES]
    totals = [best_path(cost - t, rules, None, gaps).cost + p for t, p in zip(tables, price, strict=True)]
    return tables[int(np.argmin(totals))]


def _read(
    problem: _Problem,
    bodies: list[Body],
    heads: Heads | None,
    decisive: bool,
    notes: list[str],
    least: float = 0.0,
    from_below: bool = False,
) -> Naming:
    """The best path as names; below ``least`` (median probability) they are ambiguous with a landmark, too.

    Where one seems to be missing, every name must have it, and landmarks hold both ends (``from_below``: the sacrum).
    """
    path, probability = problem.solve()
    rows = [INDEX[v] for v in path.ids]
    confidence = {v: float(probability[i, s]) for i, (v, s) in enumerate(zip(path.ids, rows, strict=True))}
    alternatives = {}
    for i, (vertebra, state) in enumerate(zip(path.ids, rows, strict=True)):
        others = probability[i].copy()
        others[state] = -1
        second = int(others.argmax())
        alternatives[vertebra] = (STATES[second], float(max(others[second], 0)))
    missing = missing_between(path, problem.rules, problem.gaps)
    notes = notes + [
        f"a vertebra seems to be missing below {VERTEBRA_NAMES[v]}"
        for v, count in zip(path.ids, missing, strict=False)
        if count
    ]
    clear, boundary = boundary_seen(path.ids, heads)
    landmark = bool(boundary or decisive)
    likely = list(confidence.values())
    doubtful = float(min(likely) if any(missing) else np.median(likely)) < least
    open_gap = least > 0 and any(missing) and not (from_below and path.ids[0] <= 2)
    if boundary:
        notes.append(boundary)
    elif from_below and path.ids[0] > 2:
        notes.append(VARIANTS)
    unclear = least > 0 and bool(boundary) and not decisive and clear < CLEAR and float(np.median(likely)) < CLEAR
    if unclear:
        notes.append("nothing but the network's word holds the names, and it is not certain: they may be one off")
    elif landmark and doubtful:
        notes.append("another reading of the row is nearly as likely: names may be one off")
    if not landmark:
        notes.append("no trusted landmark (sacrum, C2, boundary between regions) fixes the names: a best guess")
    ids = {b.id: v for b, v in zip(bodies, path.ids, strict=True)}
    naming = Naming(ids, confidence, alternatives, doubtful or unclear or open_gap or not landmark, tuple(notes))
    _log(naming)
    return naming


def _log(naming: Naming) -> None:
    names = [f"{VERTEBRA_NAMES[v]} {naming.confidence[v]:.2f}" for v in naming.ids.values()]
    logger.info("names: %s; %s", ", ".join(names), "; ".join(naming.notes) or "from the network alone")
