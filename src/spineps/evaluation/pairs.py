"""Which predicted mask belongs to which reference mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from spineps.errors import InputNotFoundError, OptionError
from spineps.outputs.paths import SUFFIXES

#: Values of the ``seg`` entity that tell the kind of a mask, in both layouts.
KIND_BY_SEG = {"spine": "semantic", "structures": "semantic", "vert": "instance", "vertebrae": "instance"}
#: Last part of a mask's name.
MASK_SUFFIXES = frozenset({"msk", "dseg", "seg", "mask"})
#: What a mask may be stored in; the first of two files of one name counts.
STORED_AS = (*SUFFIXES, ".seg.nrrd", ".nrrd")
#: Entities in which masks of one scan may differ.
FREE = ("seg", "mod", "desc", "label")


@dataclass(frozen=True)
class Pair:
    """Masks of one scan: (prediction, reference) paths and what their names say about the kind (None: nothing)."""

    scan: str
    prediction: Path
    reference: Path
    kind: str | None


def find_pairs(prediction: Path, reference: Path, foreign: bool = False) -> tuple[list[Pair], list[Path]]:
    """Pairs of two files or two folders, and the masks without partner.

    Two files are a pair whatever their names; if both have the other kind of mask beside them, that is a pair too.
    In folders names decide: equal but for the kind of mask, then with the contrast as ``mod-T2w`` or ``_T2w``, then
    with the same entities but for those in :data:`FREE`.  What fits several is left over.

    Args:
        foreign: the reference is in another tool's labels; one file of it may serve both kinds of prediction.

    Raises:
        InputNotFoundError: a path does not exist, or one is a file and the other a folder, or no pair is found.
        OptionError: by its name, the reference is another kind of mask.
    """
    for path in (prediction, reference):
        if not path.exists():
            raise InputNotFoundError(f"{path} does not exist.", "Check the path.")
    if prediction.is_dir() != reference.is_dir():
        raise InputNotFoundError(
            f"{prediction} and {reference} are not both files or both folders.", "Give two files or two folders."
        )
    if not prediction.is_dir():
        kinds = kind_by_name(prediction), None if foreign else kind_by_name(reference)
        if None not in kinds and kinds[0] != kinds[1]:
            raise other_kind_error(prediction, reference)
        kind = kinds[0] or kinds[1]
        pairs = [Pair(scan_name(prediction), prediction, reference, kind)]
        others = other_mask(prediction), reference if foreign else other_mask(reference)
        if others[0] is not None and others[1] is not None and others[0] != prediction:
            pairs.append(Pair(scan_name(prediction), others[0], others[1], kind_by_name(others[0])))
        return pairs, []
    pairs, alone = _paired(masks_below(prediction), masks_below(reference), foreign)
    if not pairs:
        raise InputNotFoundError(
            f"No mask in {prediction} belongs to a mask in {reference}.",
            "Names must agree in their entities (sub-, ses-, acq-, run- ...), or be equal.",
        )
    return pairs, alone


def other_kind_error(prediction: Path, reference: Path) -> OptionError:
    """Structures cannot be held against vertebrae."""
    return OptionError(
        f"{reference} is the other kind of mask than {prediction}.", "Compare seg-spine or seg-vert masks."
    )


def kind_by_name(path: Path) -> str | None:
    """
    >>> kind_by_name(Path("sub-1_seg-vert_msk.nii.gz")), kind_by_name(Path("case3.nii.gz"))
    ('instance', None)
    """
    entities = dict(part.split("-", 1) for part in mask_stem(path).split("_") if "-" in part)
    return KIND_BY_SEG.get(entities.get("seg", ""))


def mask_stem(path: Path) -> str:
    """
    >>> mask_stem(Path("x/a_msk.seg.nrrd")), mask_stem(Path("b.c.nii.gz"))
    ('a_msk', 'b.c')
    """
    suffix = next((s for s in STORED_AS if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)]


def scan_name(path: Path) -> str:
    """Name of the scan, without what tells its masks apart.

    >>> scan_name(Path("x/sub-1_acq-sag_mod-T2w_seg-vert_msk.nii.gz"))
    'sub-1_acq-sag_mod-T2w'
    """
    parts = mask_stem(path).split("_")
    kept = [p for p in parts if not p.startswith("seg-") and p not in MASK_SUFFIXES]
    return "_".join(kept) or parts[0]


def masks_below(folder: Path) -> list[Path]:
    """Masks in a folder and its folders; where no name tells of a mask, every NIfTI and NRRD file."""
    stored = [p for p in folder.rglob("*") if p.name.lower().endswith(STORED_AS) and not p.name.startswith(".")]
    stored.sort(key=lambda p: STORED_AS.index(p.name.lower()[len(mask_stem(p)) :]), reverse=True)
    files = sorted({p.with_name(mask_stem(p)): p for p in stored}.values())  # an exported copy is no second mask
    known = [p for p in files if kind_by_name(p)]
    named = [p for p in files if mask_stem(p).split("_")[-1] in MASK_SUFFIXES]
    return known or named or files


def _exact(name: str) -> frozenset[str]:
    return frozenset(name.split("_"))


def _without_mod(name: str) -> frozenset[str]:
    return frozenset(part.removeprefix("mod-") for part in name.split("_"))


def _entities(name: str) -> frozenset[str]:
    """Never empty for a name without entities: two different such names are two scans."""
    kept = [p for p in name.split("_") if "-" in p and p.split("-", 1)[0] not in FREE]
    return frozenset(kept or [name])


def _paired(predictions: list[Path], references: list[Path], foreign: bool) -> tuple[list[Pair], list[Path]]:
    pairs: list[Pair] = []
    for key in (_exact, _without_mod, _entities):
        found = _level(predictions, references, foreign, key)
        pairs += found
        done = {p.prediction for p in found}
        predictions = [p for p in predictions if p not in done]
        if not foreign:
            done = {p.reference for p in found}
            references = [r for r in references if r not in done]
    used = {p.reference for p in pairs}
    alone = predictions + [r for r in references if r not in used]
    return sorted(pairs, key=lambda p: (p.scan, p.kind or "")), alone


def _level(
    predictions: list[Path], references: list[Path], foreign: bool, key: Callable[[str], frozenset[str]]
) -> list[Pair]:
    def by_key(paths: Iterable[Path], blind: bool) -> dict[tuple[frozenset[str], str | None], list[Path]]:
        groups = defaultdict(list)
        for path in paths:
            groups[key(scan_name(path)), None if blind else kind_by_name(path)].append(path)
        return groups

    left, right = by_key(predictions, False), by_key(references, foreign)
    pairs = []
    for (name, kind), ours in left.items():
        theirs = right.get((name, None if foreign else kind), [])
        if len(ours) == len(theirs) == 1:
            pairs.append(Pair(scan_name(ours[0]), ours[0], theirs[0], kind))
    return pairs


def other_mask(path: Path) -> Path | None:
    """The mask of the other kind of the same scan, if it lies beside this one."""
    swaps = (("seg-spine", "seg-vert"), ("seg-structures", "seg-vertebrae"))
    for first, second in (*swaps, *((b, a) for a, b in swaps)):
        if f"_{first}_" in path.name:
            other = path.with_name(path.name.replace(f"_{first}_", f"_{second}_"))
            return other if other.is_file() else None
    return None
