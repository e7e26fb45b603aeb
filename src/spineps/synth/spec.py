"""Draw a synthetic person.  Everything random is drawn here, or is a noise field from a stored seed: specs replay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from spineps.anatomy import SACRUM, T13
from spineps.synth import morphometry
from spineps.synth.person import Canal, Disc, Level, SpineSpec, View

__all__ = ["REGIONS", "Canal", "Disc", "Level", "SpineSpec", "View", "random_spec", "random_view", "vertebra_chain"]

REGIONS = ("any", "cervical", "thoracic", "lumbar", "sacral", "whole")


def vertebra_chain(thoracic: int = 12, lumbar: int = 5) -> list[tuple[int, float]]:
    """(id, level coordinate) of C1 .. last lumbar vertebra.

    >>> [v for v, _ in vertebra_chain(13, 4)][18:]
    [19, 28, 20, 21, 22, 23]
    """
    chain = [(i, float(i)) for i in range(1, 8)]
    thoracic_ids = [*range(8, 20), T13][:thoracic]
    chain += [(v, 8 + 11 * n / (thoracic - 1)) for n, v in enumerate(thoracic_ids)]
    chain += [(20 + n, 20 + 4 * n / (lumbar - 1)) for n in range(lumbar)]
    return chain


def _clipped(rng: np.random.Generator, mean: float, sd: float, limit: float = 2.2) -> float:
    return mean + sd * float(np.clip(rng.standard_normal(), -limit, limit))


def random_spec(
    rng: np.random.Generator,
    region: str = "any",
    *,
    thoracic: int | None = None,
    lumbar: int | None = None,
    pathology: float = 1.0,
    spread: float = 1.0,
) -> SpineSpec:
    """Draw a person and a position in the scanner.

    Args:
        rng: source of all randomness.
        region: what the field of view is centred on, one of `REGIONS`.
        thoracic, lumbar: number of vertebrae; None draws 11..13 and 4..6 with the usual ones most often.
        pathology: factor on the frequency of disease; 0 for a healthy spine.
        spread: factor on all individual variation.
    """
    if region not in REGIONS:
        raise ValueError(f"region {region!r} is none of {REGIONS}")
    if thoracic is None:
        thoracic = int(rng.choice([11, 12, 13], p=[0.06, 0.88, 0.06]))
    if lumbar is None:
        lumbar = int(rng.choice([4, 5, 6], p=[0.06, 0.88, 0.06]))
    scale = float(np.clip(_clipped(rng, 0.99, 0.08 * spread), 0.78, 1.2))
    age = float(rng.uniform(0, 1)) * min(pathology, 1.0)
    levels = _bodies(rng, thoracic, lumbar, scale, age, pathology, spread)
    levels = _posed(rng, levels, spread)
    return SpineSpec(
        levels=tuple(levels),
        canal=_canal(rng, pathology),
        view=random_view(rng, region),
        scale=scale,
        fat=float(rng.choice([rng.uniform(2, 10), rng.uniform(8, 30), rng.uniform(25, 60)], p=[0.3, 0.5, 0.2])),
        muscle_fat=float(np.clip(rng.beta(1.3, 5) + 0.15 * age * rng.random(), 0, 0.7)),
        epidural_fat=float(rng.uniform(0.15, 1.0)),
        warp=float(rng.uniform(0.3, 1.3)) * spread,
        seed=int(rng.integers(2**31)),
    )


def random_view(rng: np.random.Generator, region: str = "any") -> View:
    """Where a field of view of this region is centred: mostly on the spine, sometimes far off or cut off."""
    if region == "any":
        region = str(rng.choice(["lumbar", "cervical", "thoracic", "sacral"], p=[0.45, 0.2, 0.23, 0.12]))
    low, high = {
        "cervical": (1.0, 8.5),
        "thoracic": (8.0, 19.5),
        "lumbar": (19.5, 24.8),
        "sacral": (24.5, 29.5),
        "whole": (14.5, 16.5),
    }[region]
    draw = rng.random()
    if draw < 0.68 or region == "whole":
        p = rng.uniform(-8, 18)
    elif draw < 0.86:
        p = rng.uniform(-32, 38)
    elif draw < 0.94:
        p = rng.choice([-1, 1]) * rng.uniform(35, 80)
    else:  # what a wide scan shows beside the spine: belly, or air behind the back
        p = rng.choice([-1, 1]) * rng.uniform(80, 150)
    r = rng.uniform(-8, 8) if rng.random() < 0.8 else rng.uniform(-24, 24)
    return View(
        key=float(rng.uniform(low, high)),
        offset=(float(p), float(rng.uniform(-12, 12)), float(r)),
        pitch=_clipped(rng, 0, 8),
        yaw=_clipped(rng, 0, 3),
        roll=_clipped(rng, 0, 3),
    )


def _bodies(
    rng: np.random.Generator, thoracic: int, lumbar: int, scale: float, age: float, pathology: float, spread: float
) -> list[Level]:
    """Sizes, discs and diseases of all levels; angles come later."""
    person = {name: 1 + 0.05 * spread * _clipped(rng, 0, 1) for name in morphometry.SIZE_NAMES}
    region_scale = {r: 1 + 0.035 * spread * _clipped(rng, 0, 1) for r in ("cervical", "thoracic", "lumbar")}
    disc_scale = float(rng.uniform(0.85, 1.15))
    concavity, waist = float(rng.uniform(0.4, 1.8)), float(rng.uniform(0.06, 0.19))
    front, back = _clipped(rng, 0, 0.12), _clipped(rng, 0, 0.35)
    levels = []
    for vertebra, key in vertebra_chain(thoracic, lumbar):
        name = "cervical" if key <= 7 else "thoracic" if key < 19.5 else "lumbar"
        size = scale * region_scale[name]
        sizes = {
            n: v * size * person[n] * (1 + 0.025 * spread * _clipped(rng, 0, 1))
            for n, v in morphometry.sizes_at(max(key, 2.0)).items()
        }
        sizes["wedge"] += 0.5 * spread * _clipped(rng, 0, 1)
        sizes["spinous_i"] += 1.5 * spread * _clipped(rng, 0, 1)
        disc = _disc(rng, sizes.pop("disc") * disc_scale, key, age, pathology) if key > 1 else None
        thorax = float(np.clip((key - 7.5) / 2, 0, 1) * np.clip((19.5 - key) / 5, 0, 1))
        sick = _disease(rng, key, size, age, pathology)
        hollow_up = concavity * (0.5 if key < 8 else 1.0 - 0.3 * thorax) * size
        hollow_low = concavity * (0.3 if key < 8 else 1.15 - 0.3 * thorax) * size
        if key > 2.5 and rng.random() < (0.02 + 0.05 * age * (key > 12)) * pathology:
            hollow_up, hollow_low = _fracture(rng, sizes, hollow_up, hollow_low)
        levels.append(
            Level(
                id=vertebra,
                key=key,
                sizes=sizes,
                tilt=0.0,
                disc=disc,
                concavity_upper=hollow_up,
                concavity_lower=hollow_low,
                waist=waist * float(np.interp(key, (2, 8, 19, 21), (0.4, 0.6, 0.8, 1.0))),
                front=2.25 + front - 0.3 * thorax,
                back=2.9 + back,
                hollow=size * (0.3 if key < 8 else 1.0 + 0.3 * thorax - 0.25 * max(key - 22, 0)),
                seed=int(rng.integers(2**31)),
                **sick,
            )
        )
    levels, dome = _junction(rng, levels, scale, pathology)
    if rng.random() < 0.05 * pathology:
        first = int(rng.integers(10, len(levels) - 1))
        for n in range(first, min(first + int(rng.integers(2, 5)), len(levels))):
            levels[n] = replace(levels[n], screws=True)
    segments = [*morphometry.SACRAL_KEYS]
    sacral = scale * region_scale["lumbar"]
    shape = {n: 1 + 0.06 * spread * _clipped(rng, 0, 1) for n in morphometry.sacral_sizes(25)}
    square = float(rng.uniform(0.2, 1.0)) if rng.random() < 0.03 else 0.0
    for key in segments:
        sizes = {
            n: v * sacral * shape[n] * (1 + 0.03 * spread * _clipped(rng, 0, 1))
            for n, v in morphometry.sacral_sizes(key).items()
        }
        height = sizes.pop("disc")
        if key <= 26:
            # A lumbarised sacrum: S1 keeps a body's shape, and between it and S2 lies what is left of a disc.
            end = "lower" if key == 25 else "upper"
            sizes[f"depth_{end}"] *= 1 + 0.35 * square
            sizes[f"width_{end}"] *= 1 + 0.2 * square
            height *= 1 + (26 - key) * 1.8 * square
        levels.append(
            Level(
                id=SACRUM,
                key=float(key),
                sizes=sizes,
                tilt=0.0,
                disc=Disc(height, degeneration=0.5) if key < segments[-1] else None,
                concavity_upper=0.3 if key > 25 else -dome if dome else 0.6 * concavity,
                concavity_lower=0.3,
                waist=0.05,
                seed=int(rng.integers(2**31)),
            )
        )
    return levels


def _junction(
    rng: np.random.Generator, levels: list[Level], scale: float, pathology: float
) -> tuple[list[Level], float]:
    """Low, dark last discs over the last vertebra: more than one person in four, half of them transitional.

    Oversampled: taking such a vertebra for sacrum shifts every name.  A sacralised L5 is commoner than a lumbarised S1.

    Returns:
        The levels, and mm by which the sacrum's upper end is domed and the last vertebra's lower end hollowed to match.
    """
    draw = rng.random() / max(pathology, 1e-9)
    if draw > 0.28:
        return levels, 0.0
    # One in ten of them has it a level higher.
    place = -2 if draw > 0.255 else -1
    level, disc = levels[place], levels[place].disc or Disc(6.0)
    sizes = dict(level.sizes)
    low = float(rng.uniform(2.0, 6.0)) * scale
    transitional = draw < 0.14
    if transitional:
        # Transitional: broad transverse processes that reach for the sacrum, the disc is rudimentary.
        sizes["transverse_h"] *= float(rng.uniform(1.4, 2.2))
        sizes["transverse_i"] += float(rng.uniform(3, 9))
        low = float(rng.uniform(1.5, 4.5)) * scale
    if place == -1 and rng.random() < (0.4 if transitional else 0.75):
        ratio = float(rng.uniform(0.6, 0.87))  # posterior to anterior height
        front = sizes["height"] + sizes["wedge"] / 2
        sizes["height"], sizes["wedge"] = front * (1 + ratio) / 2, front * (1 - ratio)
    dark = rng.random() < 0.8
    disc = replace(
        disc,
        height=low,
        degeneration=float(rng.uniform(0.6, 1.0) if dark else rng.uniform(0.1, 0.5)),
        bulge=disc.bulge * 0.6,
        nucleus=disc.nucleus * 0.8,
    )
    hollow, dome, apart = 0.6 * level.concavity_lower, 0.0, np.random.default_rng(level.seed)
    if place == -1 and apart.random() < (0.6 if transitional else 0.15):
        dome = float(apart.uniform(0.8, 4.0)) * scale
        hollow = dome
    levels[place] = replace(level, sizes=sizes, disc=disc, concavity_lower=hollow)
    return levels, dome


def _disc(rng: np.random.Generator, height: float, key: float, age: float, pathology: float) -> Disc:
    """Worn discs are dark, low and bulging; they are commonest at L4-S1 and C5-C7."""
    load = 0.35 * (key >= 22) + 0.2 * (4.5 <= key <= 7) + 0.1 * (key >= 20)
    wear = float(np.clip(0.75 * age + load * rng.random() * pathology + 0.25 * rng.standard_normal(), 0, 1))
    wear *= min(pathology, 1.0)
    collapse = 1 - wear * rng.uniform(0.0, 0.55) if wear > 0.35 else 1.0
    if 13 < key < 21.5 and rng.random() < 0.15 * pathology:
        # Thin dark discs about the thoracolumbar junction: one in ten of SPIDER's is 4 mm high or less.
        wear, collapse = max(wear, float(rng.uniform(0.5, 0.9))), float(rng.uniform(0.4, 0.75))
    hernia = 0.0
    fused = bool(rng.random() < 0.012 * pathology) and 2.5 < key < 23.9
    if fused:
        collapse = 0.35
    if rng.random() < 0.12 * wear * pathology and not fused:
        hernia = float(rng.uniform(2, 6)) * (1.0 if key > 19 else 0.6)
    return Disc(
        height=height * collapse * float(rng.uniform(0.92, 1.08)),
        degeneration=wear,
        bulge=float(rng.uniform(0.2, 1.3) + 1.8 * wear * rng.random()),
        hernia=hernia,
        hernia_side=float(rng.choice([0.0, rng.uniform(-0.8, 0.8)])),
        nucleus=float(rng.uniform(0.55, 0.78)),
        fused=fused,
    )


def _fracture(rng: np.random.Generator, sizes: dict[str, float], up: float, low: float) -> tuple[float, float]:
    """Compress a body in place (wedge, crush) and return its new endplate concavities (biconcave)."""
    loss = float(rng.uniform(0.12, 0.5)) * sizes["height"]
    kind = rng.integers(3)
    if kind == 0:
        sizes["wedge"] -= loss
        sizes["height"] -= loss / 2
    elif kind == 1:
        return up + 0.55 * loss, low + 0.3 * loss
    else:
        sizes["height"] -= loss
    return up, low


def _disease(rng: np.random.Generator, key: float, size: float, age: float, pathology: float) -> dict[str, Any]:
    """Keyword arguments of `Level` for diseases of one vertebra."""
    sick: dict[str, Any] = {}
    if key < 2.5:
        return sick
    chance = rng.random(7) / max(pathology, 1e-9)
    if chance[1] < 0.15 + 0.5 * age:
        sick["osteophyte"] = float(rng.uniform(0.3, 1.0) + 2.2 * age * rng.random()) * size
    if chance[2] < 0.06 and key > 10:
        sick["schmorl_upper"] = float(rng.uniform(1.5, 4.5)) * size
    if chance[3] < 0.06 and key > 10:
        sick["schmorl_lower"] = float(rng.uniform(1.5, 4.5)) * size
    if chance[4] < 0.07 * (0.3 + age):
        sick["modic_upper"] = float(rng.uniform(2, 8)) * size
    if chance[5] < 0.07 * (0.3 + age):
        sick["modic_lower"] = float(rng.uniform(2, 8)) * size
    if chance[6] < 0.06:
        sick["lesion"] = float(rng.uniform(2.5, 9)) * size
    return sick


def _posed(rng: np.random.Generator, levels: list[Level], spread: float) -> list[Level]:
    """Angles: sagittal from five curvatures, coronal from a scoliosis with coupled rotation."""
    angle = {n: _clipped(rng, m, sd * spread) for n, (m, sd) in morphometry.CURVATURE.items()}
    top = angle["sacral_slope"] - angle["lumbar_lordosis"]
    t1 = top + angle["thoracic_kyphosis"]
    # Shares of the lordosis: two thirds lie below L3; the kyphosis is spread evenly over the thorax.
    keys = [1.0, 2.0, 5.0, 8.0, 11.0, 16.0, 19.5, 21.0, 22.0, 23.0, 24.0, 25.0]
    c2 = t1 - angle["cervical_lordosis"] - 6
    lordosis = angle["lumbar_lordosis"]
    tilts = [
        c2 - _clipped(rng, 4, 4),
        c2,
        c2 + 0.45 * (t1 - c2),
        t1,
        t1 - 0.25 * angle["thoracic_kyphosis"],
        t1 - 0.8 * angle["thoracic_kyphosis"],
        top + 1,
        top + 0.13 * lordosis,
        top + 0.27 * lordosis,
        top + 0.45 * lordosis,
        top + 0.68 * lordosis,
        angle["sacral_slope"],
    ]
    kyphosis = angle["sacral_kyphosis"]
    # Some sacra bend at once below S1 or S2, some only at the coccyx; drawn apart, so that the rest of a person stays.
    late = float(np.exp(0.35 * np.random.default_rng(levels[-1].seed).standard_normal()))
    keys += [26.0, 27.0, 28.0, 29.0, 30.0, 32.0]
    tilts += [angle["sacral_slope"] - share**late * kyphosis for share in (0.02, 0.2, 0.48, 0.78, 1.0, 1.3)]
    # The head stands over the pelvis: most of the mean tilt between T1 and S1 is taken out of the whole.
    trunk = [level for level in levels if 7.5 < level.key < 25]
    heights = [level.sizes["height"] for level in trunk]
    mean = np.average(np.interp([level.key for level in trunk], keys, tilts), weights=heights)
    tilts = [tilt - float(mean) * 0.85 for tilt in tilts]
    curve = _clipped(rng, 0, 3.0) if rng.random() < 0.75 else _clipped(rng, 0, 14.0)
    wave, phase = rng.uniform(5, 13), rng.uniform(0, 2 * np.pi)
    coupling = rng.uniform(0.2, 0.8)
    last = [level for level in levels if level.id != SACRUM][-1]
    if last.disc is not None and last.disc.height < 6.0:
        # A low disc lets the last vertebra stand on the sacrum like one more segment of it.
        angle = np.rad2deg(last.sizes["wedge"] / 2 / last.sizes["depth_lower"]) + rng.uniform(-1, 5)
        at = keys.index(24.0)
        tilts[at] = max(tilts[at], tilts[at + 1] - float(angle))
    posed = []
    for level in levels:
        swing = curve * spread * float(np.sin(2 * np.pi * level.key / (2 * wave) + phase))
        swing *= 0.25 if level.id == SACRUM else 1.0
        twist = curve * spread * coupling * float(np.cos(2 * np.pi * level.key / (2 * wave) + phase))
        free = 0.0 if level.id == SACRUM else spread
        slip = 0.0
        if rng.random() < (0.05 if level.key >= 22 else 0.02) and level.key > 2.5 and level.key < 25.5:
            slip = float(rng.choice([-1, 1], p=[0.6, 0.4])) * float(rng.uniform(1.5, 6)) * spread
        posed.append(
            replace(
                level,
                tilt=float(np.interp(level.key, keys, tilts)) + 1.3 * free * _clipped(rng, 0, 1),
                lean=swing + 0.7 * free * _clipped(rng, 0, 1),
                turn=twist + 0.7 * free * _clipped(rng, 0, 1) + (_clipped(rng, 0, 5) * free if level.key == 1 else 0.0),
                slip_p=slip + 0.3 * free * _clipped(rng, 0, 1),
                slip_r=0.3 * free * _clipped(rng, 0, 1),
            )
        )
    return posed


def _canal(rng: np.random.Generator, pathology: float) -> Canal:
    return Canal(
        sac_width=float(rng.uniform(0.84, 1.08)),
        sac_depth=float(rng.uniform(0.84, 1.1)),
        gap=float(rng.uniform(0.2, 2.0)),
        cord_width=float(rng.uniform(0.86, 1.12)),
        cord_depth=float(rng.uniform(0.86, 1.12)),
        cord_place=float(rng.uniform(-0.6, 0.6)),
        conus=float(np.clip(rng.normal(20.4, 0.7), 18.6, 22.2)),
        sac_end=float(np.clip(rng.normal(26.6, 0.5), 25.4, 27.8)),
        cauda=float(rng.uniform(0.25, 0.75)),
        ripple=float(rng.uniform(0.02, 0.1)) * (1 + 0.5 * min(pathology, 1.0)),
    )
