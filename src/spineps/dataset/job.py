"""One scan: read it, segment it, write what came out, or find that all of it is there already."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import spineps
from spineps.anatomy import instance_name
from spineps.dataset.compatibility import check_input, check_models, needs_hounsfield
from spineps.errors import ErrCode, OptionError, OutOfMemoryError, SpinepsError
from spineps.models.model import Model
from spineps.options import Options
from spineps.outputs import bids, sink
from spineps.outputs.nifti import ImageInfo, file_sha256, from_memory, read_image, read_labels
from spineps.outputs.paths import Scan
from spineps.outputs.poi import poi_document, poi_object
from spineps.outputs.provenance import FORMAT, is_current, read_record, stage_entry, stage_key
from spineps.outputs.writer import Writer, check_writable, sweep
from spineps.phases.semantic import FUSED_MM2, body_on_sacrum
from spineps.pipeline import Models, Progress, Segmentation, SemanticStage, segment_volume
from spineps.volume import Box, Volume

logger = logging.getLogger(__name__)

#: Slices below which a scan can hardly show a spine.
FEW_SLICES = 5
#: Probability below which a name is reported as unsure.
UNSURE = 0.5


@dataclass(frozen=True)
class Job:
    """One scan with all that decides about its result."""

    scan: Scan
    models: Models
    options: Options
    paths: Mapping[str, Path]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    crop: Sequence[slice] | None = None
    override: frozenset[str] = frozenset()
    ignore_compatibility: bool = False
    save: bool = True
    image: Any = None
    progress: Progress | None = None
    mend: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    code: ErrCode
    segmentation: Segmentation | None = None
    warnings: tuple[str, ...] = ()
    error: SpinepsError | None = None
    seconds: float = 0.0


def run_job(job: Job) -> Outcome:
    """Segment one scan and write its files, or use what is there already; errors come back as an outcome."""
    run = JobRun(job)
    run.read()
    run.segment()
    run.write()
    return run.outcome


class JobRun:
    """A job in three steps, so that one scan can be read and another written while a third is in the networks.

    Attributes:
        outcome: valid when :meth:`write` is over.
        ended: nothing is left to do, because of an error or because all was done already.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.outcome = Outcome(ErrCode.UNKNOWN)
        self.ended = False
        self._files: _Files | None = None
        self._volume: Volume | None = None
        self._result: Segmentation | None = None
        self._warnings: list[str] = []

    def read(self) -> None:
        """Find out whether something is to be done, and read the scan."""
        self._step(self._read)

    def segment(self) -> None:
        """The networks; raw stages are written here, so that a killed run can go on from them."""
        self._step(self._segment)

    def write(self) -> None:
        """Write the final files."""
        self._step(self._write)
        self._volume = None

    def _step(self, work: Callable[[], None]) -> None:
        if self.ended:
            return
        start, before, error = time.perf_counter(), self.outcome.seconds, None
        try:
            work()
        except SpinepsError as found:
            error = found
        except MemoryError:
            cure = "Use a machine with more memory, crop the scan, or set proc_inst_batch_size=1."
            error = OutOfMemoryError(f"{self.job.scan.path} needs more memory than there is.", cure)
        if error is not None:
            logger.error("%s: %s", self.job.scan.path.name, error)
            self._end(Outcome(error.code, error=error))
            if self._files is not None:
                self._files.withdraw()
        self.outcome = replace(self.outcome, seconds=before + time.perf_counter() - start)

    def _end(self, outcome: Outcome) -> None:
        self.outcome, self.ended = outcome, True

    def _read(self) -> None:
        job, models = self.job, self.job.models
        check_models(models.semantic, models.instance, models.labeling)
        record: dict[str, Any] = {}
        if job.image is not None:
            self._volume, info, self._warnings = from_memory(job.image)
            keys = stage_keys(job, info.sha256)
        else:
            keys = stage_keys(job, file_sha256(job.scan.path))
            record = read_record(job.paths["out_prov"]) if job.save else {}
            if _all_done(job, record, keys):
                logger.info("%s is done already.", job.scan.path.name)
                self._end(Outcome(ErrCode.ALL_DONE, warnings=tuple(record.get("warnings", ()))))
                self._report()
                return
            self._volume, info, self._warnings = read_image(job.scan.path)
        if not job.ignore_compatibility:
            for model in (models.semantic, models.labeling):
                if model is not None:
                    check_input(model, job.scan, self._volume)
        self._files = _Files(job, info, keys, record)

    def _segment(self) -> None:
        job, files, volume = self.job, self._files, self._volume
        assert files is not None and volume is not None
        semantic, instance = files.earlier()
        self._result = segment_volume(
            volume,
            job.models,
            effective_options(job, volume),
            job.progress,
            crop=_clamped(job.crop, volume),
            semantic=semantic,
            instance=instance,
            done=files.keep,
            mend=None if job.mend is None else lambda mask: _mended(mask, job.mend),
            stored=files.info.values,
        )

    def _write(self) -> None:
        job, result, volume = self.job, self._result, self._volume
        assert self._files is not None and result is not None and volume is not None
        notes = [*self._warnings, *_notes(result, volume)]
        if job.progress is not None:
            job.progress("files", 0, 1)
        self._files.finish(result, volume, notes)
        for text in notes:
            logger.warning("%s: %s", job.scan.path.name, text)
        self._end(Outcome(ErrCode.OK, result, tuple(notes)))
        self._report()

    def _report(self) -> None:
        job = self.job
        if job.save and job.options.output.save_report:
            from spineps.outputs.report.page import try_report

            path = job.scan.path if job.image is None else None
            try_report(job.paths["out_prov"], path, self._volume)


def stage_keys(job: Job, input_sha256: str) -> dict[str, str]:
    """For each stage a hash of all that its result depends on; a stage's key covers the stages before it."""
    options, models = job.options.as_dict(), job.models
    semantic = stage_key(
        version=spineps.__version__,
        input=input_sha256,
        name_format=job.scan.format,  # tells CT from MR
        model=identity(models.semantic),
        preprocess=options["preprocess"],
        options=options["semantic"],
        crop=str(job.crop),
    )
    instance = stage_key(semantic=semantic, model=identity(models.instance), options=options["instance"])
    labeling = identity(models.labeling) if models.labeling is not None else f"landmarks: {models.landmarks}"
    final = stage_key(instance=instance, model=labeling, post=options["post"], options=options["labeling"])
    return {"semantic": semantic, "instance": instance, "final": final}


def identity(model: Model) -> str:
    """What decides a model's answers: its files, and the arithmetic where one was asked for."""
    if model.precision is None:
        return model.fingerprint
    return hashlib.sha256(f"{model.fingerprint} {model.precision}".encode()).hexdigest()


def effective_options(job: Job, volume: Volume) -> Options:
    """A CT keeps its Hounsfield units, and its topmost vertebra may be C1 when the model knows C1."""
    options, model = job.options, job.models.semantic
    if not needs_hounsfield(model, job.scan, volume):
        return options
    post = replace(options.post, labeling_offset=0) if model.config.has_c1 else options.post
    return replace(options, preprocess=replace(options.preprocess, normalize=False, n4=False), post=post)


def in_memory(result: Segmentation, job: Job) -> tuple[Any, Any, Any]:
    """Semantic ``NII``, instance ``NII`` and ``POI`` of TPTBox."""
    header = sink.points_header(job.models, job.keywords, spineps.__version__, result.naming)
    points = poi_object(poi_document(result.points, result.semantic.grid, header))
    return as_nii(result.semantic), as_nii(result.instance), points


def as_nii(mask: Volume) -> Any:
    """A mask as TPTBox ``NII``, uint16."""
    import nibabel as nib
    import numpy as np
    from TPTBox import NII

    return NII(nib.Nifti1Image(mask.array.astype(np.uint16), mask.affine), seg=True)


def _all_done(job: Job, record: Mapping[str, Any], keys: Mapping[str, str]) -> bool:
    if not job.save or job.override or job.mend is not None:
        return False
    wanted, folder = sink.wanted_files(job.paths, job.options.output, job.scan.format), job.paths["out_spine"].parent
    # Raw masks only serve to go on from; without them a finished scan is still finished.
    return is_current(record, "final", keys["final"], wanted.final, folder) and (
        not wanted.extras or is_current(record, "semantic", keys["semantic"], wanted.extras, folder)
    )


def _clamped(crop: Sequence[slice] | None, volume: Volume) -> Box | None:
    if crop is None:
        return None
    box = tuple(slice(*s.indices(n)[:2]) for s, n in zip(crop, volume.shape, strict=True))
    if any(s.stop - s.start < 2 for s in box):
        raise OptionError(f"crop {crop} leaves nothing of {volume.shape} voxels.", "Give slices inside the image.")
    return box[0], box[1], box[2]


def _mended(mask: Volume, mend: Callable[[Any], Any] | None) -> Volume:
    """The semantic mask after the user's own function, which sees and returns a TPTBox ``NII``."""
    import numpy as np

    answer = mend(as_nii(mask)) if mend is not None else mask
    array = np.asarray(answer.get_array() if hasattr(answer, "get_array") else answer.array)
    if array.shape != mask.shape:
        raise OptionError("lambda_semantic changed the shape of the mask.", "Return a mask on the same grid.")
    return mask.with_array(array.astype(np.uint8))


def _notes(result: Segmentation, volume: Volume) -> list[str]:
    """What the user should know about this result."""
    notes = []
    if min(volume.shape) < FEW_SLICES:
        notes.append(f"Only {min(volume.shape)} slices: expect gaps.")
    if body_on_sacrum(result.semantic) > FUSED_MM2:
        notes.append("The lowest body and the sacrum touch without a disc: part of that body may be called sacrum.")
    naming = result.naming
    if naming is None:
        notes.append("Vertebrae are numbered from the top and not named: no labelling model was given.")
        notes += [f"{text[0].upper()}{text[1:]}." for text in result.stage.doubts]
        return notes
    unsure = [f"{instance_name(v)} ({p:.2f})" for v, p in naming.confidence.items() if p < UNSURE]
    if naming.ambiguous:
        notes += [f"Names: {text}." for text in naming.notes]
    elif unsure:
        notes.append(f"Unsure names: {', '.join(unsure)}.")
    return notes


class _Files:
    """The files of one job: stages of an earlier run, and keeping those of this one."""

    def __init__(self, job: Job, info: ImageInfo, keys: Mapping[str, str], record: Mapping[str, Any]) -> None:
        self.job, self.info, self.keys = job, info, keys
        self.folder = job.paths["out_spine"].parent
        self.wanted = sink.wanted_files(job.paths, job.options.output, job.scan.format)
        self.stages: dict[str, Any] = dict(record.get("stages", {}))
        self.kept: list[Path] = []
        if job.save:
            _check_namesake(record, info, job.scan)
            for folder in {path.parent for path in job.paths.values()}:
                sweep(folder)
            check_writable(self.folder)  # better found before minutes of work than after them

    def earlier(self) -> tuple[SemanticStage | None, Volume | None]:
        """Raw stages that may be used again."""
        job = self.job
        if not job.save or not job.options.output.save_raw or job.mend is not None or "semantic" in job.override:
            return None, None
        if not self._current("semantic", self.wanted.semantic + self.wanted.extras):
            return None, None
        semantic = replace(sink.read_semantic(job.paths), doubts=tuple(self.stages["semantic"].get("doubts", ())))
        if "instance" in job.override or not self._current("instance", self.wanted.instance):
            return semantic, None
        return semantic, read_labels(job.paths["out_vert_raw"])

    def keep(self, stage: str, result: Any) -> None:
        """Write a stage as soon as it is there."""
        job, output = self.job, self.job.options.output
        if not job.save:
            return
        with Writer() as writer:
            if stage == "semantic":
                sink.write_semantic(writer, result, job.paths, output, job.scan.format)
            elif output.save_raw:
                writer.mask(job.paths["out_vert_raw"], result)
            more: dict[str, Any] = {"doubts": list(result.doubts)} if stage == "semantic" else {}
            self._vouch(writer, stage, (), **more)

    def finish(self, result: Segmentation, volume: Volume, notes: Sequence[str]) -> None:
        """Write the final files and, last of all, the record that vouches for them."""
        job = self.job
        if not job.save:
            return
        header = sink.points_header(job.models, job.keywords, spineps.__version__, result.naming)
        with Writer() as writer:
            sink.write_final(writer, result, volume, job.paths, job.options, header, job.scan.path.name, notes)
            if job.options.output.layout == "bids":
                bids.prepare_dataset(self.folder.parents[1 + ("ses" in job.scan.entities)], job.scan)
                bids.write_sidecars(writer, result.semantic, result.instance, result.naming, job.scan, job.paths)
            self._vouch(writer, "final", notes, result)

    def withdraw(self) -> None:
        """After a failure: remove what this run has written, so that no part of a result is left."""
        with suppress(OSError):
            for path in self.kept:
                path.unlink(missing_ok=True)
            paths = self.job.paths
            for folder in (paths["out_debug"], paths["out_raw"], paths["out_snap"].parent, self.folder):
                if self.kept and folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def _current(self, stage: str, wanted: Sequence[Path]) -> bool:
        current = is_current({"stages": self.stages}, stage, self.keys[stage], wanted, self.folder)
        if current:
            logger.info("%s: the %s mask of an earlier run is used again.", self.job.scan.path.name, stage)
        return current

    def _vouch(
        self, writer: Writer, stage: str, notes: Sequence[str], result: Segmentation | None = None, **more: Any
    ) -> None:
        """Enter the files written so far, and ``more``, into the record, as the last file of ``writer``."""
        entry = stage_entry(self.keys[stage] if self.job.mend is None else "", writer.written, self.folder)
        entry |= more
        self.stages[stage] = entry
        self.kept += [*writer.written, self.job.paths["out_prov"]]
        writer.json(self.job.paths["out_prov"], self._record(notes, result))

    def _place(self) -> str:
        """The scan's path below its data set, as the ledger has it; no machine paths in a record."""
        path, dataset = self.job.scan.path.absolute(), self.job.scan.dataset.absolute()
        return path.relative_to(dataset).as_posix() if path.is_relative_to(dataset) else path.name

    def _record(self, notes: Sequence[str], result: Segmentation | None) -> dict[str, Any]:
        naming = result.naming if result is not None else None
        return {
            "format": FORMAT,
            "software": {"name": "spineps", "version": spineps.__version__},
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "input": {
                "name": self.info.name,
                "path": self._place(),
                "sha256": self.info.sha256,
                "dtype": self.info.dtype,
            },
            "models": {
                part: {"name": m.name, "log_name": m.config.log_name, "origin": m.origin, "fingerprint": m.fingerprint}
                for part, m in self.job.models.by_phase().items()
            },
            "options": self.job.options.as_dict(),
            "warnings": list(notes),
            "naming": sink.naming_header(naming),
            "stages": self.stages,
        }


def _check_namesake(record: Mapping[str, Any], info: ImageInfo, scan: Scan) -> None:
    """Two scans of one folder can have the same output names (``a b.nii`` and ``a-b.nii``): say so."""
    other = record.get("input", {}).get("name")
    if other and other != info.name and scan.path.with_name(other).exists():
        logger.warning("%s gets the same output names as %s and replaces its results.", info.name, other)
