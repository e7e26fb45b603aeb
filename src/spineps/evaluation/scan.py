"""One scan: a predicted and a reference mask on one grid, structure by structure and instance by instance."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from spineps.anatomy import CANAL, CANAL_PARTS, CORPUS_INNER, DISC_OFFSET, ENDPLATE_OFFSET, STRUCTURES, VERTEBRAE
from spineps.errors import GeometryError, OptionError, ValueRangeError
from spineps.evaluation.coarse import (
    CANAL_GROUP,
    DISC_GROUP,
    GROUPS,
    VERTEBRA_GROUP,
    grouped,
    merged,
    structure_name,
    vertebrae_with_endplates,
)
from spineps.evaluation.instances import KINDS, Quality, match
from spineps.evaluation.metrics import Compared, Score, compare, joint_box
from spineps.evaluation.numbering import NUMBERINGS, lost_names, renumbered
from spineps.volume import Volume

#: Label systems of a reference: the numberings, and coarse masks (1 vertebra, 2 disc, 3 canal).
SPIDER = "spider"
LABELS = (*NUMBERINGS, SPIDER)
#: Voxels by which two grids of one scan may differ: headers keep affines as float32 or quaternions.
SAME_VOXELS = 0.01


@dataclass(frozen=True)
class ScanResult:
    """Everything that is known about one scan.

    Attributes:
        scan: its name.
        structures: scores by name of structure or group of structures.
        instances: by kind (:data:`spineps.evaluation.instances.KINDS`): vertebrae, and kinds that occur in either mask.
        notes: what the reader has to know (ids without meaning, resampling).
    """

    scan: str
    structures: dict[str, Score] = field(default_factory=dict)
    instances: dict[str, Quality] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """Mean of the structures' Dice, the kinds' panoptic quality and the share of right names of vertebrae, by which
        scans are ranked; NaN if there is none.
        """
        values = [s.dice for s in self.structures.values()] + [q.pq for q in self.instances.values()]
        values += [self.instances["vertebra"].names_right] if "vertebra" in self.instances else []
        values = [v for v in values if not np.isnan(v)]
        return float(np.mean(values)) if values else float("nan")


def on_reference(prediction: Volume, reference: Volume, resample: bool = False) -> Volume:
    """The prediction on the grid of the reference.

    Args:
        prediction, reference: masks of the same scan; axes may be permuted and flipped.
        resample: allow any other geometry, too, by nearest neighbour.

    Raises:
        GeometryError: the grids differ by more than the order of their axes.
    """
    turned = prediction.reoriented(reference.axcodes)
    if turned.grid.same_as(reference.grid, SAME_VOXELS):
        return Volume(turned.array, reference.affine)
    if resample:
        return prediction.on(reference.grid)
    sizes = [
        f"{' x '.join(map(str, v.shape))} voxels of {' x '.join(f'{z:.3g}' for z in v.zoom)} mm ({v.axcodes})"
        for v in (turned, reference)
    ]
    raise GeometryError(
        f"Prediction and reference lie on different grids: {sizes[0]} and {sizes[1]}, or elsewhere in space.",
        "Give masks of the same scan, or allow resampling to the reference with --resample.",
    )


def evaluate_structures(
    prediction: Volume, reference: Volume, labels: str = "spineps", strict: bool = False
) -> dict[str, Score]:
    """Scores of every structure and of the groups of :mod:`spineps.evaluation.coarse`.

    Args:
        prediction: codes of the ``seg-spine`` mask.
        reference: the same grid, in the system ``labels``; in a foreign one only groups are compared.
        strict: endplates (52, 53, 62) and bodies (49, 50) are not merged.
    """
    affine, scores = reference.affine, {}
    if labels == "spineps":
        ours = prediction.array, reference.array
        fine = ours if strict else (merged(ours[0]), merged(ours[1]))
        compared = _compared(fine[0], fine[1], affine)
        known = [s.id for s in STRUCTURES]
        others = [i for i in compared.ids.tolist() if i and i not in known]
        scores = {structure_name(i): compared.score(i) for i in (*known, *others)}
        groups, coarse = tuple(GROUPS), grouped(reference.array, affine)
    else:
        groups, coarse = _reference_groups(reference.array, labels)
    compared = _compared(grouped(prediction.array, affine), coarse, affine)
    return scores | {GROUPS[g]: compared.score(g) for g in groups}


def evaluate_instances(
    prediction: Volume, reference: Volume, labels: str = "spineps", threshold: float = 0.5
) -> tuple[dict[str, Quality], list[str]]:
    """Matching and names of every kind of instance, and notes.

    Args:
        prediction: codes of the ``seg-vert`` mask.
        reference: the same grid, in the system ``labels``; a foreign one is compared in the kinds that it has, with the
            nearer half of the endplates joined to the vertebra.
        threshold: smallest IoU of a pair.

    Raises:
        OptionError: coarse labels have no instances.
    """
    if labels == SPIDER:
        raise OptionError("Coarse reference labels have no instances.", "Give structure masks (seg-spine).")
    first, second, notes = prediction.array, reference.array, []
    kinds = list(KINDS)
    if labels != "spineps":
        second, lost = renumbered(second, labels, "spineps")
        notes += [f"not compared, of the reference: {', '.join(lost_names(list(lost), labels))}"] if lost else []
        first = vertebrae_with_endplates(first, reference.affine)
        kinds = [kind for kind in kinds if KINDS[kind] & set(NUMBERINGS[labels].ids)]
        kinds = [kind for kind in kinds if kind != "sacrum" or np.isin(second, list(KINDS["sacrum"])).any()]
    compared = _compared(first, second, reference.affine)
    unknown = [i for i in compared.ids.tolist() if i and not any(i in codes for codes in KINDS.values())]
    notes += [f"no instances: {', '.join(map(str, unknown))}"] if unknown and labels == "spineps" else []
    found = {kind: match(compared, kind, threshold) for kind in kinds}
    # Vertebrae always: a scan with nothing in either mask must not vanish from the table.
    notes += [] if any(q.matched or q.missing or q.surplus for q in found.values()) else ["nothing in either mask"]
    return {k: q for k, q in found.items() if k == "vertebra" or q.matched or q.missing or q.surplus}, notes


def kind_of(mask: np.ndarray) -> str:
    """``semantic`` or ``instance``, by the codes in a mask of ours: only structure masks have parts of vertebrae.

    >>> kind_of(np.array([0, 26, 49, 60])), kind_of(np.array([0, 20, 21, 120]))
    ('semantic', 'instance')
    """
    parts = [s.id for s in STRUCTURES if s.id < DISC_OFFSET and s.id not in VERTEBRAE and s.id != 26]
    return "semantic" if np.isin(mask, [*parts, CORPUS_INNER]).any() else "instance"


def as_labels(volume: Volume, name: str) -> Volume:
    """The same mask as integers.

    Raises:
        ValueRangeError: it holds fractions, negative numbers or numbers beyond 65,535.
        GeometryError: its voxels have no volume.
    """
    array = volume.array
    # NaN is not above anything.
    if not abs(np.linalg.det(volume.affine[:3, :3])) > 1e-9:
        raise GeometryError(f"{name} does not say where its voxels lie: its affine is singular.", "Repair its header.")
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise ValueRangeError(f"{name} has {array.ndim} dimensions, not 3.", "Give a mask of one volume.")
    whole = array.dtype.kind in "uib" or bool((np.isfinite(array) & (array == np.rint(array))).all())
    if not whole or (array.size and (array.min() < 0 or array.max() > 65535)):
        raise ValueRangeError(f"{name} does not hold labels (whole numbers from 0 to 65535).", "Give a mask.")
    small = array.max(initial=0) < 256
    return Volume(array.astype(np.uint8 if small else np.uint16, copy=False), volume.affine)


def _compared(first: np.ndarray, second: np.ndarray, affine: np.ndarray) -> Compared:
    box = joint_box(first, second)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    return compare(np.ascontiguousarray(first[box]), np.ascontiguousarray(second[box]), moved)


def _reference_groups(reference: np.ndarray, labels: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Groups that a foreign reference knows, and its mask in their numbers."""
    if labels == SPIDER:
        return tuple(GROUPS), np.where(reference <= CANAL_GROUP, reference, 0)
    numbering = NUMBERINGS[labels]
    table = np.zeros(65536, np.uint8)
    for theirs, ours in numbering.ours.items():
        vertebra, disc = ours in VERTEBRAE, DISC_OFFSET <= ours < ENDPLATE_OFFSET
        canal = ours in CANAL_PARTS
        table[theirs] = VERTEBRA_GROUP if vertebra else DISC_GROUP if disc else CANAL_GROUP if canal else 0
    mask = table[reference]
    # A cord alone is no canal: the group is compared only where the whole of it has numbers.
    known = [VERTEBRA_GROUP]
    known += [DISC_GROUP] if DISC_GROUP in table else []
    known += [CANAL_GROUP] if CANAL in numbering.ids else []
    return tuple(known), np.where(np.isin(mask, known), mask, 0)
