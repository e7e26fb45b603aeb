"""The flags that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
Amp = Annotated[bool, typer.Option("--amp", help="Half precision on a GPU.", rich_help_panel=STEPS)]
StepSize = Annotated[
    float | None, typer.Option("--step-size", help="Tile step, fraction of the patch.", rich_help_panel=STEPS)
]
Tta = Annotated[
    bool | None,
    typer.Option("--tta/--no-tta", help="Average with the mirrored scan.", rich_help_panel=STEPS),
]
Cpu = Annotated[bool, typer.Option("--cpu", help="Never use a GPU.", rich_help_panel=RUN)]
Threads = Annotated[int | None, typer.Option("--threads", "-t", help="CPU threads.", rich_help_panel=RUN)]
Profile = Annotated[
    bool, typer.Option("--run-cprofiler", "-rcp", help="Write spineps.prof (cProfile).", rich_help_panel=RUN)
]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON, for machines.", rich_help_panel=RUN)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.", rich_help_panel=RUN)]
SnapsFolder = Annotated[
    Path | None, typer.Option("--snapshot-folder", help="Also put the picture there.", rich_help_panel=OUTPUT)
]
