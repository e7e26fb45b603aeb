"""Label numbers of other tools, and the way from one to the other.

Everything passes through the codes of the ``seg-vert`` mask (:mod:`spineps.anatomy`), to which the structure codes 60
(cord) and 61 (canal) are added: no instance uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spineps.anatomy import CANAL, CORD, DISC_OFFSET, ENDPLATE_OFFSET, SACRUM, VERTEBRA_IDS, VERTEBRAE
from spineps.anatomy import instance_name as _instance_name


@dataclass(frozen=True)
class Numbering:
    """One tool's numbers.

    Attributes:
        ids: our code -> theirs.
        aliases: further codes of theirs -> ours (several of theirs may be one of ours).
        note: what it cannot say.
    """

    ids: dict[int, int]
    note: str
    aliases: dict[int, int] = field(default_factory=dict)

    @property
    def ours(self) -> dict[int, int]:
        """Their code -> ours."""
        return {theirs: ours for ours, theirs in self.ids.items()} | self.aliases


def _run(first: str, last: str, start: int, step: int = 1, offset: int = 0) -> dict[int, int]:
    """Consecutive vertebrae (or the discs below them) with consecutive numbers."""
    a, b = VERTEBRA_IDS[first], VERTEBRA_IDS[last]
    return {offset + v: start + step * (v - a) for v in range(a, b + 1)}


#: TotalSpineSeg, table "List of Classes" of its README and ``resources/labels_maps/tss_map.json`` (L6 = 46 stands only
#: in the latter).  Numbers before the release of November 2024 were others (18..41, 200..224).
_TOTALSPINESEG = Numbering(
    {
        **{CORD: 1, CANAL: 2, SACRUM: 50},
        **_run("C1", "C7", 11),
        **_run("T1", "T12", 21),
        **_run("L1", "L6", 41),
        **_run("C2", "C6", 63, offset=DISC_OFFSET),
        **_run("C7", "T11", 71, offset=DISC_OFFSET),
        **_run("T12", "L4", 91, offset=DISC_OFFSET),
        DISC_OFFSET + VERTEBRA_IDS["L5"]: 100,
    },
    "T13, the discs below T13 and L6 have no number; the sacrum is one piece (50).",
)
_BONES = {CORD: 79, SACRUM: 25, **_run("L1", "L5", 31, -1), **_run("T1", "T12", 43, -1), **_run("C1", "C7", 50, -1)}
#: TotalSegmentator 2, ``map_to_binary.py`` class_map["total"]: S1 (26) is cut off the sacrum (25); both read as sacrum.
_TOTALSEGMENTATOR = Numbering(
    _BONES,
    "T13, L6, discs and canal have no number; the sacrum becomes 25, and 25 and 26 (S1) both read as sacrum.",
    {26: SACRUM},
)
#: TotalSegmentator 3 data set (Zenodo 22688904): as version 2, but 26 is L6 and the sacrum is whole.
_TOTALSEGMENTATOR_3 = Numbering(
    {**_BONES, VERTEBRA_IDS["L6"]: 26}, "T13, discs and canal have no number; 26 is L6, the sacrum is whole (25)."
)
#: VerSe 2020 (Sekuboyina et al. 2021): 1..25 C1..L6, 26 sacrum, 27 coccyx, 28 T13.
_VERSE = Numbering({v: v for v in (*VERTEBRAE, SACRUM)}, "Vertebrae and sacrum only; the coccyx (27) is left out.")

_SPINEPS = Numbering(
    {
        v: v
        for v in (
            *(offset + v for offset in (0, DISC_OFFSET, ENDPLATE_OFFSET) for v in (*VERTEBRAE, SACRUM)),
            *(CORD, CANAL),
        )
    },
    "Cord and canal keep the codes of the structure mask, 60 and 61.",
)
NUMBERINGS: dict[str, Numbering] = {
    "spineps": _SPINEPS,
    "totalspineseg": _TOTALSPINESEG,
    "totalsegmentator": _TOTALSEGMENTATOR,
    "totalsegmentator-v3": _TOTALSEGMENTATOR_3,
    "verse": _VERSE,
}


def name_of(code: int) -> str:
    """
    >>> name_of(60), name_of(28), name_of(124)
    ('spinal cord', 'T13', 'disc below L5')
    """
    return {CORD: "spinal cord", CANAL: "spinal canal"}.get(code) or _instance_name(code)


def renumbered(labels: np.ndarray, source: str, target: str) -> tuple[np.ndarray, dict[int, int]]:
    """Labels of one tool in the numbers of another; what the other has no number for becomes background.

    Args:
        labels: integers >= 0, any shape.
        source, target: keys of :data:`NUMBERINGS`.

    Returns:
        Labels as uint16, and voxels lost by their number in ``labels``.

    >>> out, lost = renumbered(np.array([0, 19, 28, 20, 120, 26]), "spineps", "totalspineseg")
    >>> out.tolist(), lost
    ([0, 32, 0, 41, 92, 50], {28: 1})
    >>> renumbered(np.array([25, 26, 27]), "totalsegmentator", "spineps")[0].tolist()
    [26, 26, 24]
    """
    table = np.zeros(int(labels.max(initial=0)) + 1, np.uint16)
    ids = NUMBERINGS[target].ids
    for theirs, ours in NUMBERINGS[source].ours.items():
        if theirs < len(table):
            table[theirs] = ids.get(ours, 0)
    out = table[labels]
    gone, count = np.unique(labels[(out == 0) & (labels != 0)], return_counts=True)
    return out, dict(zip(gone.tolist(), count.tolist(), strict=True))


def lost_names(lost: Sequence[int], source: str) -> list[str]:
    """What the lost numbers were.

    >>> lost_names([28, 98, 99], "spineps")
    ['T13 (28)', 'not of a spine: 98, 99']
    """
    ours = NUMBERINGS[source].ours
    other = ", ".join(str(i) for i in lost if i not in ours)
    return [f"{name_of(ours[i])} ({i})" for i in lost if i in ours] + ([f"not of a spine: {other}"] if other else [])


def itksnap_table(colors: dict[int, tuple[str, str]]) -> str:
    """Label description file of ITK-SNAP: index, red, green, blue, opacity, two visibilities, name.

    Args:
        colors: name and ``#rrggbb`` by label.

    >>> print(itksnap_table({20: ("L1", "#ff8000")}).splitlines()[-1])
       20   255  128    0        1  1  1    "L1"
    """
    lines = ["# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
    lines.append('    0     0    0    0        0  0  0    "Clear Label"')
    for label, (name, color) in sorted(colors.items()):
        red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
        lines.append(f'{label:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{name}"')
    return "\n".join(lines) + "\n"
