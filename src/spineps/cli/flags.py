"""The flags that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

MODELS, OUTPUT, STEPS, RUN = "Models", "Output", "Processing", "Run"

Semantic = Annotated[
    str | None,
    typer.Option("--model-semantic", "-ms", help="Name or folder; default t2w (ct for CT).", rich_help_panel=MODELS),
]
Instance = Annotated[
    str | None,
    typer.Option("--model-instance", "-mi", "-mv", help="Name or folder; default instance.", rich_help_panel=MODELS),
]
Labeling = Annotated[
    str,
    typer.Option("--model-labeling", "-ml", help="Name or folder; 'none', 'landmarks'.", rich_help_panel=MODELS),
]
DerivativeName = Annotated[
    str,
    typer.Option("--derivative-name", "-dn", help="Folder of results, or a whole path.", rich_help_panel=OUTPUT),
]
Layout = Annotated[
    str,
    typer.Option("--layout", help="Names of results: published, or bids (derivatives).", rich_help_panel=OUTPUT),
]
SaveDebug = Annotated[
    bool, typer.Option("--save-debug", "-sd", help="Also write intermediate volumes.", rich_help_panel=OUTPUT)
]
SaveSoftmax = Annotated[
    bool,
    typer.Option("--save-softmax-logits", "-ssl", help="Also write class probabilities.", rich_help_panel=OUTPUT),
]
SaveUncertainty = Annotated[
    bool, typer.Option("--save-uncertainty", "-su", help="Also write the entropy, 0..1.", rich_help_panel=OUTPUT)
]
SaveModelres = Annotated[
    bool,
    typer.Option("--save-modelres-mask", "-smrm", help="Also masks at the model's voxel size.", rich_help_panel=OUTPUT),
]
Stats = Annotated[
    bool, typer.Option("--stats/--no-stats", help="Also a table of measurements.", rich_help_panel=OUTPUT)
]
Report = Annotated[
    bool, typer.Option("--report", help="Also a page to look through in a browser.", rich_help_panel=OUTPUT)
]
OverrideSemantic = Annotated[
    bool, typer.Option("--override-semantic", "-os", help="Do the semantic phase again.", rich_help_panel=RUN)
]
OverrideInstance = Annotated[
    bool, typer.Option("--override-instance", "-oi", help="Do the instance phase again.", rich_help_panel=RUN)
]
OverridePostpair = Annotated[
    bool, typer.Option("--override-postpair", "-opp", help="Do the post-processing again.", rich_help_panel=RUN)
]
OverrideCtd = Annotated[
    bool, typer.Option("--override-ctd", "-oc", help="Do points and picture again.", rich_help_panel=RUN)
]
IgnoreInference = Annotated[
    bool,
    typer.Option(
        "--ignore-inference-compatibility",
        "-iic",
        help="Show the model any scan.",
        rich_help_panel=RUN,
    ),
]
Crop = Annotated[bool, typer.Option("--crop/--no-crop", help="Leave out background.", rich_help_panel=STEPS)]
N4 = Annotated[bool, typer.Option("--n4/--no-n4", help="N4 bias field correction (MR).", rich_help_panel=STEPS)]
Enforce12 = Annotated[
    bool,
    typer.Option(
        "--enforce-12-thoracic/--no-enforce-12-thoracic", help="Exactly 12 thoracic vertebrae.", rich_help_panel=STEPS
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-bs", help="Cutouts per network call.", rich_help_panel=STEPS)]
Amp = Annotated[bool, typer.Option("--amp", help="bfloat16 in the instance network.", rich_help_panel=STEPS)]
StepSize = Annotated[
    float | None, typer.Option("--step-size", help="Tile step, fraction of the patch.", rich_help_panel=STEPS)
]
Tta = Annotated[
    bool | None,
    typer.Option("--tta/--no-tta", help="Average with the mirrored scan.", rich_help_panel=STEPS),
]
Cpu = Annotated[bool, typer.Option("--cpu", help="Never use a GPU.", rich_help_panel=RUN)]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="f32, bf16 or int8; unsaid: bf16 where the processor has it, else int8, both for our own models.",
        rich_help_panel=RUN,
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", "-t", help="CPU threads.", rich_help_panel=RUN)]
Profile = Annotated[
    bool, typer.Option("--run-cprofiler", "-rcp", help="Write spineps.prof (cProfile).", rich_help_panel=RUN)
]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON, for machines.", rich_help_panel=RUN)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.", rich_help_panel=RUN)]
SnapsFolder = Annotated[
    Path | None, typer.Option("--snapshot-folder", help="Also put the picture there.", rich_help_panel=OUTPUT)
]

Series = Annotated[
    str | None, typer.Option("--series", help="DICOM: number, UID or part of the description.", rich_help_panel=RUN)
]
DicomSeg = Annotated[
    bool, typer.Option("--dicom-seg", help="Also the masks as DICOM SEG (DICOM input).", rich_help_panel=OUTPUT)
]

SCANS, PARALLEL = "Scans", "Many at once"
ScanList = Annotated[
    Path | None,
    typer.Option("--list", help="Table (tabs) with a column path, instead of a search.", rich_help_panel=SCANS),
]
Participants = Annotated[
    list[str] | None,
    typer.Option("--participant-label", help="Only these subjects; may be repeated.", rich_help_panel=SCANS),
]
Sessions = Annotated[
    list[str] | None,
    typer.Option("--session-label", help="Only these sessions; may be repeated.", rich_help_panel=SCANS),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only show what would be done, and why the rest not.", rich_help_panel=SCANS)
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Leave alone what is done, or do it again.", rich_help_panel=SCANS)
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try again what has failed before.", rich_help_panel=SCANS)
]
Verify = Annotated[
    bool,
    typer.Option("--verify", help="Trust hashes of all files, not their sizes and times.", rich_help_panel=SCANS),
]
Workers = Annotated[
    str | None,
    typer.Option("--workers", "-w", help="Processes on this machine, or 'auto'.", rich_help_panel=PARALLEL),
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", help="Seconds for one scan, then it is ended.", rich_help_panel=PARALLEL)
]
Group = Annotated[
    bool, typer.Option("--group", help="In the end, tables and a page of all scans.", rich_help_panel=OUTPUT)
]
Shard = Annotated[str | None, typer.Option("--shard", help="k/N: only the k-th of N parts.", rich_help_panel=PARALLEL)]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", help="Dask: tcp://host:8786, or a scheduler file.", rich_help_panel=PARALLEL),
]
Slurm = Annotated[
    str | None,
    typer.Option(
        "--slurm",
        help="Dask workers as Slurm jobs: partition=...,time=...,jobs=...,cores=...,memory=...",
        rich_help_panel=PARALLEL,
    ),
]


def steps(crop: bool, n4: bool, enforce: bool, batch_size: int, amp: bool, step_size: float | None) -> dict[str, Any]:
    """Flags as the keywords of the entry points."""
    return {
        "proc_sem_crop_input": crop,
        "proc_sem_n4_bias_correction": n4,
        "proc_lab_force_no_tl_anomaly": enforce,
        "proc_inst_batch_size": batch_size,
        "proc_inst_amp": amp,
        "proc_sem_step_size": step_size,
    }
