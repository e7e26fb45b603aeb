"""``spineps demo`` and ``spineps phantom``: something to look at without owning a scan."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import typer

from spineps.cli.report import Reporter, print_files
from spineps.errors import InputNotFoundError, OptionError
from spineps.outputs.writer import Writer
from spineps.seg_run import segment

#: The real T2w crop with its truth in TPTBox's wheel.  Its own name has a ``label-`` key, which marks masks.
SAMPLE = ("tests", "sample_mri", "sub-mri_label-6_T2w.nii.gz")
#: What a file of each contrast is called.
FORMATS = {"T2": "T2w", "T1": "T1w", "CT": "ct", "Dixon": "dixon", "DixonWater": "dixon", "DixonFat": "dixon"}
#: Level coordinate of the third lumbar vertebra.
L3 = 22.0
#: Voxels and mm (posterior, inferior, right) of a generated scan: a usual sagittal protocol.
SHAPE, ZOOM = (160, 270, 40), (1.0, 1.0, 2.0)


def run_demo(scan: str | None, out: Path, threads: int | None, verbose: bool) -> int:
    """Segment the examples, or one scan of the user's; returns the exit code.

    Everything is written below ``out``.
    """
    out.mkdir(parents=True, exist_ok=True)
    if scan is not None:
        jobs = {f"Your scan {Path(scan).name}": Path(scan)}
    else:
        generated = write_phantom(out, "lumbar", "T2", 3, usual=True)["image"]
        jobs = {"A real lumbar T2w crop (from TPTBox)": real_sample(out), "A generated lumbar scan": generated}
    code = 0
    for title, path in jobs.items():
        typer.echo(f"{title}: {path}")
        with Reporter(verbose) as reporter:
            result = segment(path, derivative_name=str(out.absolute() / "results"), threads=threads, progress=reporter)
        code = code or result.errcode.exit_code
        if result.success:
            print_files(result)
            typer.echo(f"{'':>12}  {result.seconds:.1f} s\n")
    return code


def real_sample(out: Path) -> Path:
    """A copy of TPTBox's T2w crop as ``sub-sample_T2w.nii.gz``.

    Raises:
        InputNotFoundError: this TPTBox carries no sample.
    """
    spec = importlib.util.find_spec("TPTBox")
    source = Path(spec.origin).parent.joinpath(*SAMPLE) if spec and spec.origin else Path(*SAMPLE)
    if not source.is_file():
        raise InputNotFoundError(f"{source} does not exist.", "Give your own scan: spineps demo --input FILE")
    return Path(shutil.copyfile(source, out / "sub-sample_T2w.nii.gz"))


def write_phantom(out: Path, region: str, contrast: str, seed: int, usual: bool = False) -> Mapping[str, Path]:
    """A generated person as ``image``, ``spine`` and ``vert`` files in ``out``; equal arguments give equal files.

    Args:
        out: folder.
        region: what the field of view is centred on.
        contrast: of the image.
        seed: of all that is drawn.
        usual: healthy, twelve thoracic and five lumbar vertebrae, centred on L3.

    Raises:
        OptionError: no such region or contrast.
    """
    from spineps.synth.image import random_image_spec, synthesise
    from spineps.synth.labelmap import field_of_view, render
    from spineps.synth.spec import random_spec

    rng = np.random.default_rng(seed)
    try:
        counts = {"thoracic": 12, "lumbar": 5} if usual else {}
        person = random_spec(rng, region, pathology=0.0 if usual else 0.3, **counts)
        acquisition = random_image_spec(rng, contrast, degrade=0.5)
    except ValueError as error:
        raise OptionError(str(error), "Choose one of these.") from error
    view = replace(person.view, offset=(20.0, 0.0, 0.0), key=L3 if usual else person.view.key)
    phantom = render(replace(person, view=view), field_of_view(SHAPE, ZOOM))
    image = np.asarray(synthesise(phantom, acquisition))
    stem = out / f"sub-phantom{seed}"
    paths = {
        "image": stem.with_name(f"{stem.name}_{FORMATS.get(contrast, contrast)}.nii.gz"),
        "spine": stem.with_name(f"{stem.name}_seg-spine_msk.nii.gz"),
        "vert": stem.with_name(f"{stem.name}_seg-vert_msk.nii.gz"),
    }
    with Writer() as writer:
        writer.image(paths["image"], phantom.volume(np.rint(image).astype(np.int16)))
        writer.mask(paths["spine"], phantom.volume(phantom.semantic))
        writer.mask(paths["vert"], phantom.volume(phantom.instance))
    return paths
