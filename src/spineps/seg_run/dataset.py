"""``process_dataset``: every scan of a data set."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spineps.dataset import ledger as book
from spineps.dataset.find import Pair, find_scans, listed_scans
from spineps.dataset.logbook import log_file, talking
from spineps.dataset.memory import BASE_BYTES, available_bytes, cores, gpus
from spineps.dataset.plan import Plan, Resume, make_plan, parse_shard
from spineps.dataset.pool import LocalPool
from spineps.dataset.schedule import Interrupted, Pool, Stop, run
from spineps.dataset.worker import Setup, Task
from spineps.errors import ErrCode, OptionError
from spineps.models.enums import Acquisition, Modality
from spineps.options import options_from_keywords
from spineps.outputs.paths import DERIVATIVE_NAME, Scan, derivative_folder
from spineps.pipeline import Models, Progress
from spineps.seg_run.keywords import OPTION_KEYWORDS, overrides

if TYPE_CHECKING:
    from spineps.models.model import InstanceModel, LabelingModel, SemanticModel

logger = logging.getLogger(__name__)

M = TypeVar("M")


def process_dataset(
    dataset_path: str | Path,
    model_instance: InstanceModel | Sequence[InstanceModel] | None = None,
    model_semantic: SemanticModel | Sequence[SemanticModel] | None = None,
    model_labeling: LabelingModel | Sequence[LabelingModel] | None = None,
    rawdata_name: str = "rawdata",
    derivative_name: str = DERIVATIVE_NAME,
    modalities: Sequence[tuple[Modality, Acquisition]] | tuple[Modality, Acquisition] = (
        (Modality.T2w, Acquisition.sag),
    ),
    save_debug_data: bool = False,
    save_modelres_mask: bool = False,
    save_softmax_logits: bool = False,
    save_log_data: bool = True,
    override_semantic: bool = False,
    override_instance: bool = False,
    override_postpair: bool = False,
    override_ctd: bool = False,
    snapshot_copy_folder: str | Path | bool | None = None,
    pad_size: int = 4,
    proc_sem_crop_input: bool = True,
    proc_sem_n4_bias_correction: bool = True,
    proc_sem_remove_inferior_beyond_canal: bool = False,
    proc_sem_clean_beyond_largest_bounding_box: bool = True,
    proc_sem_clean_small_cc_artifacts: bool = True,
    proc_sem_step_size: float | None = None,
    proc_inst_corpus_clean: bool = True,
    proc_inst_clean_small_cc_artifacts: bool = True,
    proc_inst_largest_k_cc: int = 0,
    proc_inst_detect_and_solve_merged_corpi: bool = True,
    proc_inst_batch_size: int = 4,
    proc_inst_amp: bool = False,
    vertebra_instance_labeling_offset: int = 2,
    proc_lab_force_no_tl_anomaly: bool = False,
    proc_fill_3d_holes: bool = True,
    proc_assign_missing_cc: bool = True,
    proc_clean_inst_by_sem: bool = True,
    proc_vertebra_inconsistency: bool = True,
    ignore_model_compatibility: bool = False,
    ignore_inference_compatibility: bool = False,
    ignore_bids_filter: bool = False,
    tta: bool | None = None,
    log_inference_time: bool = True,
    verbose: bool = False,
    *,
    save_raw: bool = True,
    save_uncertainty: bool = False,
    save_stats: bool = True,
    save_report: bool = False,
    progress: Callable[[Scan, int, int], Progress | None] | None = None,
    landmarks: bool = False,
    scan_list: str | Path | None = None,
    participant_label: Collection[str] = (),
    session_label: Collection[str] = (),
    resume: bool = True,
    retry_failed: bool = False,
    verify: bool = False,
    workers: int | str | None = None,
    threads: int | None = None,
    timeout: float | None = None,
    shard: str | None = None,
    client: Any = None,
    scheduler: str | None = None,
    slurm: str | None = None,
    review: Callable[[Plan], bool] | None = None,
    listener: Callable[[book.Entry], None] | None = None,
    layout: str = "published",
    work_folder: str | Path | None = None,
) -> dict[str, Any]:
    """Segment every scan of a data set; a scan that fails never ends the run.

    What became of each scan stands in the ledger, ``<derivatives>/spineps_ledger``; see
    :func:`spineps.dataset.ledger.read`.  Arguments that are not listed mean the same as in :func:`process_img_nii`.
    A script that uses ``workers`` must guard its call with ``if __name__ == "__main__":``.

    Args:
        dataset_path: its folder.
        model_instance: one for all pairs, or one per pair; None takes ``instance`` (``ct_instance`` for CT).
        model_semantic: likewise; None takes a matching one for each modality.
        model_labeling: likewise; None numbers the vertebrae from the top.
        rawdata_name: folder of the scans below ``dataset_path``; ``"."`` for itself.
        modalities: (modality, plane) pairs to process.
        save_log_data: write ``<dataset>/logs/...log``.
        snapshot_copy_folder: also put pictures there; True means ``<dataset>/snaps_seg``.
        pad_size: voxels of padding at each side.
        ignore_model_compatibility: use models for pairs that they were not made for.
        ignore_inference_compatibility: likewise for single scans.
        ignore_bids_filter: take every NIfTI file.
        progress: called with (scan, number from 1, count); returns the ``progress`` for that scan.  Not in workers.
        landmarks: without ``model_labeling``, name by what the masks show.
        scan_list: tab-separated table with a column ``path``, instead of a search in ``rawdata_name``.
        participant_label: only these subjects, with or without ``sub-``.
        session_label: only these sessions, with or without ``ses-``.
        resume: leave alone what is done; otherwise everything is done again.
        retry_failed: try again what has failed with these settings, models and this very file.
        verify: trust hashes of all files instead of their sizes and times.
        workers: processes on this machine; ``"auto"``: one per GPU, else as many as memory and cores allow; None works
            in this process.
        threads: CPU threads of each worker; None divides the cores.
        timeout: seconds for one scan; works in a worker process then.
        shard: ``"k/N"``: only the k-th of N parts.
        client: ``distributed.Client`` of a Dask cluster whose workers do the scans.
        scheduler: address or file of a Dask scheduler.
        slurm: ``"partition=...,time=...,jobs=..."``: submit Dask workers to Slurm.
        review: called with the plan before anything is done; the run ends there when it returns False.
        listener: called with the ledger's entry of every scan that has ended.
        layout: see :func:`process_img_nii`.
        work_folder: where raw masks go in the ``bids`` layout; ``work`` beside the results by default.

    Returns:
        ``{"seen", "processed", "already_done", "failed", "failures": [(ErrCode, path)]}``.

    Raises:
        ValueError: models and pairs do not fit.
        InputNotFoundError: no such folder.
        OptionError: an option has an impossible value.
        KeyboardInterrupt: the run was ended by Ctrl-C or SIGTERM; call again to go on.
    """
    given = dict(locals())
    dataset = Path(dataset_path).absolute()
    pairs: list[Pair] = [modalities] if isinstance(modalities[0], Modality) else list(modalities)  # type: ignore
    keywords = {"proc_pad_size": pad_size} | {key: given[key] for key in OPTION_KEYWORDS if key in given}
    part = parse_shard(shard) if shard else None
    how = Resume(resume, retry_failed, verify)
    if scan_list is None:
        found = find_scans(dataset, pairs, rawdata_name, ignore_bids_filter, participant_label, session_label)
    else:
        found = listed_scans(Path(scan_list), dataset, pairs, rawdata_name)
    setup = Setup(
        dataset,
        tuple(pairs),
        _models(model_semantic, model_instance, model_labeling, landmarks, pairs, ignore_model_compatibility),
        options_from_keywords(**keywords),
        keywords,
        derivative_folder(dataset, derivative_name, layout).as_posix(),
        dataset / "snaps_seg" if snapshot_copy_folder is True else _folder(snapshot_copy_folder),
        overrides(override_semantic or not resume, override_instance, override_postpair, override_ctd),
        ignore_inference_compatibility,
        timeout,
        work=_folder(work_folder),
    )
    plan = make_plan(found, setup, how, part)
    tally = _Tally(plan, dataset)
    if review is not None and not review(plan):
        return tally.answer()
    number = count(1)

    def tell(task: Task) -> Progress | None:
        return progress(task.scan, next(number), len(plan.todo)) if progress else None

    with talking(verbose), log_file(dataset if save_log_data else None), Stop() as stop:
        logger.info("%d scans found in %s, %d to be done", plan.seen, dataset, len(plan.todo))
        pool = _pool(setup, plan, client, scheduler, slurm, workers, threads)
        try:
            with closing(run(plan, setup, how, stop, pool, tell)) as entries:
                for entry in entries:
                    tally.add(entry)
                    logger.info("%s: %s %s, %.1f s", entry.scan, entry.status, entry.code, entry.seconds)
                    if listener is not None:
                        listener(entry)
        finally:
            if pool is not None:
                pool.close()
        if stop.asked:
            raise Interrupted(stop.signal)
    return tally.answer()


class _Tally:
    """What the run has come to."""

    def __init__(self, plan: Plan, dataset: Path) -> None:
        self.seen, self.dataset = plan.seen, dataset
        self.processed, self.already_done = 0, len(plan.finished)
        self.failures = [self._failure(entry) for entry in plan.failed]

    def add(self, entry: book.Entry) -> None:
        self.processed += entry.code == ErrCode.OK.name
        self.already_done += entry.code == ErrCode.ALL_DONE.name
        if entry.status in (book.FAILED, book.CRASHED):
            self.failures.append(self._failure(entry))

    def answer(self) -> dict[str, Any]:
        """The documented dictionary."""
        return {
            "seen": self.seen,
            "processed": self.processed,
            "already_done": self.already_done,
            "failed": len(self.failures),
            "failures": self.failures,
        }

    def _failure(self, entry: book.Entry) -> tuple[ErrCode, Path]:
        return ErrCode[entry.code], self.dataset / entry.scan


def _pool(
    setup: Setup,
    plan: Plan,
    client: Any,
    scheduler: str | None,
    slurm: str | None,
    workers: int | str | None,
    threads: int | None,
) -> Pool | None:
    """Where the scans are done; None for this process."""
    if not plan.todo and not plan.claimed:
        return None
    if client is not None or scheduler or slurm:
        from spineps.dataset import cluster

        if slurm:
            return cluster.slurm_pool(cluster.parse_slurm(slurm), setup.ledger / "logs")
        return cluster.DaskPool(client, threads) if client is not None else cluster.connected(str(scheduler))
    wanted = [getattr(models.semantic, "device", "cpu") for models in setup.models]
    use_gpus = "cpu" not in wanted and bool(gpus()) and importlib.util.find_spec("torch") is not None
    if workers == "auto":
        fit = max(int((available_bytes() or BASE_BYTES) / (1.5 * BASE_BYTES)), 1)
        workers = len(gpus()) if use_gpus else min(max(cores() // 2, 1), fit)
    if isinstance(workers, str) or (workers or 0) < 0:
        raise OptionError(f"workers is {workers!r}.", "Give a number from 1, or 'auto'.")
    size = workers or (1 if setup.timeout else 0)
    return LocalPool(min(size, max(plan.seen, 1)), threads, use_gpus) if size else None


def _models(
    semantic: SemanticModel | Sequence[SemanticModel] | None,
    instance: InstanceModel | Sequence[InstanceModel] | None,
    labeling: LabelingModel | Sequence[LabelingModel] | None,
    landmarks: bool,
    pairs: Sequence[Pair],
    ignore_compatibility: bool,
) -> tuple[Models, ...]:
    """The models of each pair."""
    from spineps.models.registry import get_instance_model

    semantics = _one_per_pair(semantic, pairs, ignore_compatibility)
    if instance is None:
        by_name = {name: get_instance_model(name) for name in {_instance_name(pair) for pair in pairs}}
        instance = [by_name[_instance_name(pair)] for pair in pairs]
    sets = zip(semantics, _spread(instance, pairs), _spread(labeling, pairs), strict=True)
    return tuple(Models(s, i, n, landmarks and n is None) for s, i, n in sets)


def _folder(given: str | Path | bool | None) -> Path | None:
    return Path(given).absolute() if isinstance(given, (str, Path)) and str(given) else None


def _instance_name(pair: Pair) -> str:
    return "ct_instance" if pair[0] == Modality.CT else "instance"


def _spread(models: M | Sequence[M], pairs: Sequence[Pair]) -> list[M]:
    chosen: list[Any] = list(models) if isinstance(models, (list, tuple)) else [models] * len(pairs)
    if len(chosen) != len(pairs):
        raise ValueError(f"{len(chosen)} models for {len(pairs)} pairs: give one, or one for each pair.")
    return chosen


def _one_per_pair(
    models: SemanticModel | Sequence[SemanticModel] | None,
    pairs: Sequence[Pair],
    ignore_compatibility: bool,
) -> list[SemanticModel]:
    from spineps.models.registry import get_semantic_model

    if models is None:
        names = {Modality.CT: "ct", Modality.T1w: "t1w", Modality.Vibe: "vibe"}
        by_name = {name: get_semantic_model(name) for name in {names.get(m, "t2w") for m, _ in pairs}}
        return [by_name[names.get(modality, "t2w")] for modality, _ in pairs]
    chosen: list[Any] = list(models) if isinstance(models, (list, tuple)) else [models] * len(pairs)
    if len(chosen) != len(pairs):
        raise ValueError(f"{len(chosen)} semantic models for {len(pairs)} pairs: give one, or one for each pair.")
    for model, (modality, plane) in zip(chosen, pairs, strict=True):
        fits = modality in model.modalities and plane in (*model.config.acquisitions, Acquisition.iso)
        if not (fits or ignore_compatibility):
            raise ValueError(
                f"Model {model.name!r} was not made for {modality.name} {plane.name}; choose another model, or set "
                "ignore_model_compatibility=True."
            )
    return chosen
