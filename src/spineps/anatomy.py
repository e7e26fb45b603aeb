"""THE table of structures: ids, names, colours, sides, order.  Command line, docs, outputs and training read it.

Ids are those of the published SPINEPS / TPTBox (``TPTBox.core.vert_constants``), because users' scripts rely on them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Structure:
    """One class of the semantic mask.

    Attributes:
        id: value in the ``seg-spine`` mask.
        key: short machine name, used in files and on the command line.
        name: the field's term.
        color: ``#rrggbb``.
        mirror: id of the structure on the other side (its own id when unpaired).
    """

    id: int
    key: str
    name: str
    color: str
    mirror: int


SACRUM, ARCUS, SPINOSUS = 26, 41, 42
COSTAL_LEFT, COSTAL_RIGHT = 43, 44
SUP_ARTICULAR_LEFT, SUP_ARTICULAR_RIGHT = 45, 46
INF_ARTICULAR_LEFT, INF_ARTICULAR_RIGHT = 47, 48
CORPUS, CORPUS_INNER, DENS = 49, 50, 51
ENDPLATE_SUPERIOR, ENDPLATE_INFERIOR = 52, 53
CORD, CANAL, ENDPLATE, METAL, DISC = 60, 61, 62, 80, 100

STRUCTURES: tuple[Structure, ...] = (
    Structure(ARCUS, "arcus", "vertebral arch", "#ee6677", ARCUS),
    Structure(SPINOSUS, "spinosus", "spinous process", "#228833", SPINOSUS),
    Structure(COSTAL_LEFT, "costal-left", "costal process, left", "#4477aa", COSTAL_RIGHT),
    Structure(COSTAL_RIGHT, "costal-right", "costal process, right", "#66aadd", COSTAL_LEFT),
    Structure(SUP_ARTICULAR_LEFT, "sup-articular-left", "superior articular process, left", "#cc6600", 46),
    Structure(SUP_ARTICULAR_RIGHT, "sup-articular-right", "superior articular process, right", "#ee9944", 45),
    Structure(INF_ARTICULAR_LEFT, "inf-articular-left", "inferior articular process, left", "#882288", 48),
    Structure(INF_ARTICULAR_RIGHT, "inf-articular-right", "inferior articular process, right", "#bb66bb", 47),
    Structure(CORPUS, "corpus", "vertebral body", "#ccbb44", CORPUS),
    Structure(CORD, "cord", "spinal cord", "#ffffff", CORD),
    Structure(CANAL, "canal", "spinal canal", "#33bbee", CANAL),
    Structure(ENDPLATE, "endplate", "vertebral endplate", "#aa3377", ENDPLATE),
    Structure(DISC, "disc", "intervertebral disc", "#009988", DISC),
    Structure(SACRUM, "sacrum", "sacrum", "#997755", SACRUM),
)
BY_ID: dict[int, Structure] = {s.id: s for s in STRUCTURES}

#: Network class order of every bundled semantic model: background, then the 14 structures.
CLASS_IDS: tuple[int, ...] = (0, *(s.id for s in STRUCTURES))
#: For each network class the class that it becomes when left and right are swapped.
CLASS_MIRROR: tuple[int, ...] = (0, *(CLASS_IDS.index(s.mirror) for s in STRUCTURES))

#: Parts of one vertebra in the semantic mask (50 and 51 occur in CT models of the published system).
VERTEBRA_PARTS: tuple[int, ...] = (41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51)
POSTERIOR_PARTS: tuple[int, ...] = (41, 42, 43, 44, 45, 46, 47, 48)
BODY_PARTS: tuple[int, ...] = (CORPUS, CORPUS_INNER, DENS)
CANAL_PARTS: tuple[int, ...] = (CORD, CANAL)

#: Offsets in the ``seg-vert`` mask: 100 + v is the disc below vertebra v, 200 + v its endplates.
DISC_OFFSET, ENDPLATE_OFFSET = 100, 200
T13 = 28

#: Vertebra ids from cranial to caudal.  T13 (28) follows T12 (19); L6 (25) follows L5 (24).
VERTEBRAE: tuple[int, ...] = (*range(1, 20), T13, *range(20, 26))
VERTEBRA_NAMES: dict[int, str] = {
    **{i: f"C{i}" for i in range(1, 8)},
    **{7 + i: f"T{i}" for i in range(1, 13)},
    T13: "T13",
    **{19 + i: f"L{i}" for i in range(1, 7)},
    SACRUM: "S1",
}
VERTEBRA_IDS: dict[str, int] = {name: i for i, name in VERTEBRA_NAMES.items()}


def instance_name(label: int) -> str:
    """Name of a value of the ``seg-vert`` mask.

    >>> instance_name(20), instance_name(120), instance_name(228), instance_name(26)
    ('L1', 'disc below L1', 'endplates of T13', 'S1')
    """
    if label >= ENDPLATE_OFFSET:
        return f"endplates of {instance_name(label - ENDPLATE_OFFSET)}"
    if label >= DISC_OFFSET:
        return f"disc below {instance_name(label - DISC_OFFSET)}"
    return VERTEBRA_NAMES.get(label, {METAL: "metal"}.get(label, f"instance {label}"))


def region(vertebra: int) -> str:
    """``cervical``, ``thoracic``, ``lumbar`` or ``sacral``.

    >>> region(7), region(28), region(25), region(26)
    ('cervical', 'thoracic', 'lumbar', 'sacral')
    """
    if vertebra <= 7:
        return "cervical"
    if vertebra <= 19 or vertebra == T13:
        return "thoracic"
    return "sacral" if vertebra == SACRUM else "lumbar"
