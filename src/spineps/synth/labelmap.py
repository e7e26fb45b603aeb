"""From a person's numbers to label maps on a voxel grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spineps import anatomy
from spineps.anatomy import CANAL, CORD, CORPUS, DISC, DISC_OFFSET, ENDPLATE, ENDPLATE_OFFSET, SACRUM
from spineps.synth import surroundings
from spineps.synth.body import BodyField, DiscField, draw_body, draw_disc, make_room
from spineps.synth.canal import SpineSpace, dural_sac
from spineps.synth.canvas import FAR, Canvas, smooth_noise, smooth_union
from spineps.synth.chain import PIR_TO_RAS, Frame, canal_line, frames
from spineps.synth.person import SpineSpec
from spineps.synth.tissues import Tissue
from spineps.synth.vertebra import parts, screws
from spineps.volume import Box, Grid, Volume


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic person on a grid.

    Attributes:
        tissue: uint8, values of :class:`spineps.synth.tissues.Tissue`; images are made from it.
        semantic: uint8, output codes of :mod:`spineps.anatomy`.
        instance: uint8, vertebra ids, 100 + v disc below, 200 + v endplates, 26 sacrum, 226 its upper endplate.
        grid: geometry of all three.
        spec: what they were made from.
    """

    tissue: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    grid: Grid
    spec: SpineSpec

    def volume(self, array: np.ndarray) -> Volume:
        """An array of this phantom's shape as a volume."""
        return Volume(array, self.grid.affine)


def field_of_view(shape: Sequence[int], zoom: Sequence[float], axcodes: str = "PIR") -> Grid:
    """A grid whose middle is the origin of space: the point that a spec's `View` names.

    Args:
        shape: voxels along (p, i, r).
        zoom: mm along (p, i, r).
        axcodes: orientation of the returned grid.
    """
    affine = np.eye(4)
    affine[:3, :3] = PIR_TO_RAS @ np.diag(np.asarray(zoom, float))
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape, float) - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine).reoriented(axcodes)


def render(spec: SpineSpec, grid: Grid) -> Phantom:
    """Draw a person on a grid (RAS affine; its millimetre origin is the point that ``spec.view`` names).

    Deterministic: the same spec and grid give the same arrays.
    """
    rng = np.random.default_rng(spec.seed)
    canvas = Canvas(grid, _warp(spec, grid, rng))
    placed = frames(spec)
    bone = _draw_bones(canvas, placed)
    line = canal_line(placed)
    space = SpineSpace(canvas, line)
    tissue = surroundings.paint(spec, canvas, space, placed, bone.nearest, rng)
    semantic = np.zeros(grid.shape, np.uint8)
    instance = np.zeros(grid.shape, np.uint8)
    inside = bone.nearest < 0
    semantic[inside] = bone.part[inside]
    instance[inside] = bone.owner[inside]
    lookup = np.zeros(256, np.uint8)
    for code in (*anatomy.VERTEBRA_PARTS, SACRUM):
        lookup[code] = Tissue.MARROW_POSTERIOR
    lookup[CORPUS], lookup[SACRUM] = Tissue.MARROW_BODY, Tissue.MARROW_SACRUM
    tissue[inside] = lookup[bone.part[inside]]
    joints = (bone.second < 0.9) & (bone.second - bone.nearest < 1.6) & (bone.nearest < 0.7) & (semantic != CORPUS)
    joints &= (bone.part != anatomy.SPINOSUS) & ~((semantic == SACRUM) & (bone.nearest < -1))
    tissue[joints] = Tissue.CARTILAGE
    maps = Phantom(tissue, semantic, instance, grid, spec)
    # One voxel of the grid, but no more than 2 mm: coarse grids may swallow discs, or they would swallow bone.
    least = min(sorted(grid.zoom)[1], 2.0)
    for n in bone.bodies:
        disc = placed[n].level.disc
        if n + 1 in bone.bodies and placed[n].level.id != SACRUM and disc is not None and not disc.fused:
            room = make_room(bone.bodies[n], bone.bodies[n + 1], least)
            if room is not None:
                box, sheet = room
                semantic[box][sheet] = 0
                instance[box][sheet] = 0
    _marrow_details(maps, placed, bone.bodies)
    _draw_discs(maps, canvas, placed, bone.bodies)
    _draw_canal(maps, space, rng)
    for frame in placed:
        if frame.level.screws:
            for part in screws(frame):
                canvas.fill(frame, part, tissue, Tissue.METAL)
    return maps


def _warp(spec: SpineSpec, grid: Grid, rng: np.random.Generator) -> np.ndarray | None:
    if spec.warp <= 0:
        return None
    zoom = grid.zoom
    coarse = smooth_noise((3, *grid.shape), _cells(float(rng.uniform(16, 34)), zoom), rng)
    fine = smooth_noise((3, *grid.shape), _cells(9.0, zoom), rng)
    return np.float32(spec.warp) * coarse + np.float32(0.3 * spec.warp) * fine


def _cells(mm: float, zoom: Sequence[float]) -> tuple[float, float, float]:
    return mm / zoom[0], mm / zoom[1], mm / zoom[2]


@dataclass(eq=False)
class _Bones:
    """Distance to the nearest and second nearest bone, and whose and which part the nearest is."""

    nearest: np.ndarray
    second: np.ndarray
    part: np.ndarray
    owner: np.ndarray
    bodies: dict[int, BodyField]


def _draw_bones(canvas: Canvas, placed: list[Frame]) -> _Bones:
    shape = canvas.grid.shape
    bones = _Bones(
        nearest=np.full(shape, FAR, np.float32),
        second=np.full(shape, FAR, np.float32),
        part=np.zeros(shape, np.uint8),
        owner=np.zeros(shape, np.uint8),
        bodies={},
    )
    sacrum: list[tuple[Box, np.ndarray, np.ndarray]] = []
    for index, frame in enumerate(placed):
        solids = _solids_of(canvas, frame)
        body = draw_body(canvas, frame)
        if body is not None:
            bones.bodies[index] = body
            code = SACRUM if frame.level.id == SACRUM else CORPUS
            # The body keeps what is near its surface: annotators cut pedicles 1-2 mm behind the posterior wall.
            ranked = np.where(body.distance < 1.0, np.float32(-FAR), body.distance)
            solids.insert(0, (body.box, body.distance, ranked, code))
        if not solids:
            continue
        box = _hull([solid[0] for solid in solids])
        union = np.full(tuple(s.stop - s.start for s in box), FAR, np.float32)
        best = union.copy()
        part = np.zeros(union.shape, np.uint8)
        for where, distance, ranked, code in solids:
            inner = _relative(where, box)
            union[inner] = smooth_union(union[inner], distance, 1.5)
            closer = ranked < best[inner]
            best[inner] = np.where(closer, ranked, best[inner])
            part[inner] = np.where(closer, np.uint8(code), part[inner])
        if frame.level.id == SACRUM:
            sacrum.append((box, union, part))
        else:
            _merge(bones, box, union, part, frame.level.id)
    if sacrum:
        box = _hull([entry[0] for entry in sacrum])
        union = np.full(tuple(s.stop - s.start for s in box), FAR, np.float32)
        for where, distance, _ in sacrum:
            inner = _relative(where, box)
            union[inner] = smooth_union(union[inner], distance, 3.0)
        _merge(bones, box, union, np.full(union.shape, SACRUM, np.uint8), SACRUM)
    return bones


def _solids_of(canvas: Canvas, frame: Frame) -> list[tuple[Box, np.ndarray, np.ndarray, int]]:
    """(box, distance, distance used for ranking, class) of each process in view."""
    solids = []
    for part in parts(frame):
        drawn = canvas.draw(frame, part)
        if drawn is not None:
            box, distance = drawn
            solids.append((box, distance, distance + np.float32(part.bias) if part.bias else distance, part.semantic))
    return solids


def _merge(bones: _Bones, box: Box, union: np.ndarray, part: np.ndarray, owner: int) -> None:
    nearest, second = bones.nearest[box], bones.second[box]
    closer = union < nearest
    second[...] = np.where(closer, nearest, np.minimum(second, union))
    nearest[closer] = union[closer]
    bones.part[box][closer] = part[closer]
    bones.owner[box][closer] = owner


def _hull(boxes: list[Box]) -> Box:
    low = [min(b[a].start for b in boxes) for a in range(3)]
    high = [max(b[a].stop for b in boxes) for a in range(3)]
    return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])


def _relative(inner: Box, outer: Box) -> Box:
    a, b, c = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
    return a, b, c


def _marrow_details(maps: Phantom, placed: list[Frame], bodies: dict[int, BodyField]) -> None:
    """Basivertebral vein, Modic changes, round lesions and endplates of every body in view."""
    for index, body in bodies.items():
        frame = placed[index]
        level, (p, i, r) = frame.level, body.local
        rng = np.random.default_rng(level.seed + 2)
        block, label, owners = maps.tissue[body.box], maps.semantic[body.box], maps.instance[body.box]
        own = (owners == level.id) & (body.distance < 0)
        size = level.sizes["height"] / 25
        if level.key == 2 and rng.random() < 0.6:
            # What is left of the growth plate between C2's body and its dens: no disc.
            seam = np.abs(i + np.float32(frame.half_height + rng.uniform(-2.5, 1.5))) < rng.uniform(0.4, 1.3)
            seam &= p**2 + r**2 < rng.uniform(3, 7) ** 2
            grey = (Tissue.ENDPLATE, Tissue.CARTILAGE, Tissue.ANNULUS)[int(rng.integers(3))]
            block[seam & (owners == level.id) & (label == CORPUS)] = grey
        if level.id != SACRUM and level.key > 2.5:
            slit, wide, deep = rng.uniform(0.7, 1.6) * size, rng.uniform(1.5, 5) * size, rng.uniform(0.1, 0.7)
            vein = (i / np.float32(slit)) ** 2 + (r / np.float32(wide)) ** 2 < 1
            block[own & vein & (p > np.float32(deep * frame.back))] = Tissue.BASIVERTEBRAL
            half = np.float32(frame.half_height)
            if level.modic_upper:
                block[own & (i < level.modic_upper - half) & (body.rho < rng.uniform(0.6, 1.1))] = Tissue.MODIC
            if level.modic_lower:
                block[own & (i > half - level.modic_lower) & (body.rho < rng.uniform(0.6, 1.1))] = Tissue.MODIC
            if level.lesion:
                place = rng.uniform(-0.6, 0.6, 3) * (frame.back, half, level.sizes["width_upper"] / 2)
                ball = (p - place[0]) ** 2 + (i - place[1]) ** 2 + (r - place[2]) ** 2
                block[own & (ball < np.float32(level.lesion**2))] = Tissue.LESION
        plates = (body.upper | body.lower) & ((owners == 0) | (owners == level.id))
        plates &= (label == 0) | (label == CORPUS) | (label == SACRUM)
        label[plates] = ENDPLATE
        owners[plates] = ENDPLATE_OFFSET + level.id
        block[plates] = Tissue.ENDPLATE


def _draw_discs(maps: Phantom, canvas: Canvas, placed: list[Frame], bodies: dict[int, BodyField]) -> None:
    solid = maps.semantic > 0
    for index in range(len(placed) - 1):
        if index not in bodies and index + 1 not in bodies:
            continue
        upper = placed[index]
        disc = draw_disc(canvas, upper, placed[index + 1], solid)
        if disc is None:
            continue
        if upper.level.disc is not None and upper.level.disc.fused:
            _bridge(maps, disc, upper, placed[index + 1])
            continue
        inside_sacrum = upper.level.id == SACRUM
        maps.semantic[disc.box][disc.mask] = SACRUM if inside_sacrum else DISC
        maps.instance[disc.box][disc.mask] = SACRUM if inside_sacrum else DISC_OFFSET + upper.level.id
        block = maps.tissue[disc.box]
        block[disc.mask] = Tissue.ANNULUS
        block[disc.mask & disc.nucleus] = Tissue.NUCLEUS
        if disc.gas is not None:
            block[disc.gas] = Tissue.GAS
        solid[disc.box] |= disc.mask
    _hand_upper_plates_over(placed, bodies, maps.instance)


def _hand_upper_plates_over(placed: list[Frame], bodies: dict[int, BodyField], instance: np.ndarray) -> None:
    """Published numbering: 200 + v are the two plates beside the disc below v (226: the sacrum's own upper plate)."""
    for index, body in bodies.items():
        lower = placed[index].level.id
        if index > 0 and lower != SACRUM:
            owner = instance[body.box]
            owner[body.upper & (owner == ENDPLATE_OFFSET + lower)] = ENDPLATE_OFFSET + placed[index - 1].level.id


def _bridge(maps: Phantom, disc: DiscField, upper: Frame, lower: Frame) -> None:
    """Bone in place of a fused disc and its endplates: each half goes to the body next to it."""
    label, owner, block = maps.semantic[disc.box], maps.instance[disc.box], maps.tissue[disc.box]
    plates = (owner == ENDPLATE_OFFSET + upper.level.id) & (disc.height > -6)
    plates |= (owner == ENDPLATE_OFFSET + lower.level.id) & (disc.height < 6)
    bone = disc.mask | plates
    label[bone] = CORPUS
    block[bone] = Tissue.MARROW_BODY
    owner[bone] = np.where(disc.height[bone] < 0, np.uint8(upper.level.id), np.uint8(lower.level.id))


def _draw_canal(maps: Phantom, space: SpineSpace, rng: np.random.Generator) -> None:
    """Dural sac with cerebrospinal fluid, cord and cauda equina (one class); the sac yields to bodies and discs."""
    sac = dural_sac(maps.spec, space, rng)
    block, label = maps.tissue[sac.box], maps.semantic[sac.box]
    free = sac.inside & (label != CORPUS) & (label != DISC) & (label != ENDPLATE)
    free &= (label != SACRUM) | (sac.core < 0.55)
    block[free] = Tissue.CSF
    label[free] = CANAL
    maps.instance[sac.box][free] = 0
    block[free & sac.strands] = Tissue.CAUDA
    cord = free & sac.cord
    block[cord] = Tissue.CORD
    label[cord | (free & sac.cauda)] = CORD
    grey = cord & sac.grey
    block[grey] = Tissue.CORD_GREY
