"""``spineps train``, also ``python -m spineps.training``: make caches, train, export."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spineps.errors import InputNotFoundError, OptionError, SpinepsError
from spineps.training.config import TrainingConfig, read_training_config

if TYPE_CHECKING:
    import torch

KINDS = ("semantic", "instance", "labeling")
REAL_NAMES = (
    "structures: *_<format> with *_mod-<format>_seg-spine_msk (a corrected result); or *_T2w with *_seg-coarse_msk; "
    "or *_ct with *_seg-vert_msk"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    try:
        if find_spec("torch") is None:
            raise OptionError("Training needs torch.", "Run: pip install 'spineps[train]'")
        args.command(args)
    except SpinepsError as error:
        logging.getLogger(__name__).error("%s", error)
        return error.code.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="spineps train", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for kind in KINDS:
        train = commands.add_parser(kind, help=f"train the {kind} network")
        train.add_argument("--config", default=kind, help="JSON file, or the name of one that ships")
        train.add_argument(
            "--init", help="weights to start from: bundled, a model folder, weights.npz or checkpoint.pt"
        )
        train.add_argument("--synthetic", type=Path, nargs="+", default=[], help="caches of label maps")
        if kind == "semantic":
            train.add_argument("--real", type=Path, help="cache of real scans")
            train.add_argument("--anatomy", type=Path, nargs="+", default=[], help="caches of real shapes")
        train.add_argument(
            "--out", type=Path, default=Path("runs", kind), help="folder of the run; resumed if it exists"
        )
        train.add_argument("--steps", type=int, help="length of the schedule (exactly repeatable)")
        train.add_argument("--minutes", type=float, help="length of the schedule in minutes, over all legs")
        train.add_argument("--leg", type=float, help="stop after this many minutes, to be resumed")
        train.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
        train.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 products (default: on CUDA)")
        train.add_argument("--threads", type=int, help="CPU threads")
        train.add_argument("--every", type=int, default=100, help="steps between log lines")
        train.set_defaults(command=_train, kind=kind)

    real = commands.add_parser("cache-real", help="own scans with masks, public ones with coarse ones, to a cache")
    real.add_argument("folder", type=Path, nargs="+", help=REAL_NAMES)
    real.add_argument("out", type=Path)
    real.add_argument("--config", default="semantic")
    real.set_defaults(command=_cache_real)

    shapes = commands.add_parser("cache-anatomy", help="label volumes of real people, dressed for painting, to a cache")
    shapes.add_argument("source", type=Path, nargs="+", help="folders of *_seg-vert_msk without *_ct, or files")
    shapes.add_argument("out", type=Path)
    shapes.add_argument("--config", default="semantic")
    shapes.set_defaults(command=_cache_anatomy)

    maps = commands.add_parser("cache", help="label maps of generated spines to one cache")
    maps.add_argument("out", type=Path)
    maps.add_argument("--config", default="semantic")
    maps.add_argument("--count", type=int, default=1000)
    maps.add_argument("--first", type=int, default=0, help="seed of the first; the n-th has first + n")
    maps.add_argument(
        "--region", default="any", help="any, cervical, thoracic, lumbar, sacral or whole: where they lie"
    )
    maps.add_argument("--most-mib", type=float, default=58, help="stop at this size")
    maps.set_defaults(command=_cache_maps)

    export = commands.add_parser("export", help="averaged weights of a run to a model folder")
    export.add_argument("checkpoint", type=Path, nargs="+", help="of several runs from the same weights: their mean")
    export.add_argument("folder", type=Path)
    export.add_argument(
        "--bias", nargs=2, action="append", default=[], metavar=("ID", "ADDED"), help="100 0.4: more disc"
    )
    export.add_argument("--temperature", type=float, default=1.0, help="logits are divided by it")
    export.set_defaults(command=_export)

    ranges = commands.add_parser("ranges", help="measure what 8-bit numbers need to know of a semantic model")
    ranges.add_argument("folder", type=Path, help="model folder, changed in place")
    ranges.set_defaults(command=_ranges)
    return parser


def _train(args: argparse.Namespace) -> None:
    import torch

    from spineps.inference.torch_engine import best_device
    from spineps.training.export import initial_weights
    from spineps.training.loop import Trainer

    if args.threads:
        torch.set_num_threads(args.threads)
    config = read_training_config(args.config)
    device = torch.device(best_device() if args.device == "auto" else args.device)
    objective = _objective(args, config, device)
    trainer = Trainer(config, objective, device, initial_weights(args.init, args.kind), args.bf16)
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.resume(checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(config.to_json() + "\n", encoding="utf-8")
    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))
    ended = trainer.run(
        args.steps,
        args.minutes,
        args.leg,
        args.out,
        args.every,
        drawn=lambda: objective.draw(trainer, args.out),
        stop=lambda: bool(terminated),
    )
    logging.getLogger(__name__).info("the schedule has ended" if ended else "run the same command again to go on")


def _objective(args: argparse.Namespace, config: TrainingConfig, device: torch.device) -> Any:
    """What the network of this kind is trained towards."""
    if args.kind == "semantic":
        from spineps.training.semantic import semantic_objective

        return semantic_objective(config, device, args.synthetic, args.real, args.anatomy)
    if not args.synthetic:
        raise OptionError("This network learns from generated spines.", "Give --synthetic CACHE.")
    if args.kind == "instance":
        from spineps.training.instance import instance_objective

        return instance_objective(config, device, args.synthetic)
    from spineps.training.labeling import labeling_objective

    return labeling_objective(config, device, args.synthetic)


def _cache_real(args: argparse.Namespace) -> None:
    from itertools import chain

    from spineps.training.cache import write_cache
    from spineps.training.real import own_arrays, real_arrays, whole_arrays

    config = read_training_config(args.config)
    meta = {"kind": "real", "zoom": config.zoom, "held_out": config.held_out}
    what = (config.zoom, config.held_out)
    kinds = (real_arrays, whole_arrays, own_arrays)
    scans = chain.from_iterable(kind(folder, *what) for folder in args.folder for kind in kinds)
    if write_cache(args.out, meta, scans) == 0:
        args.out.unlink()
        raise InputNotFoundError("There are no scans with masks in there.", "Names: see cache-real --help.")


def _cache_anatomy(args: argparse.Namespace) -> None:
    from spineps.training.anatomy import anatomy_arrays
    from spineps.training.cache import write_cache

    config = read_training_config(args.config)
    meta = {"kind": "anatomy", "zoom": config.zoom, "held_out": config.held_out}
    if missing := [str(source) for source in args.source if not source.exists()]:
        raise InputNotFoundError(f"There is no {', '.join(missing)}.", "Give folders or files of labels.")
    if write_cache(args.out, meta, anatomy_arrays(args.source, config.zoom, config.held_out)) == 0:
        args.out.unlink()
        raise InputNotFoundError("There are no label volumes in there.", "Names: see cache-anatomy --help.")


def _cache_maps(args: argparse.Namespace) -> None:
    from spineps.synth.spec import REGIONS
    from spineps.training.cache import write_cache
    from spineps.training.phantoms import phantom_arrays

    if args.region not in REGIONS:
        raise OptionError(f"There is no region {args.region}.", f"Choose one of: {', '.join(REGIONS)}.")
    config = read_training_config(args.config)
    meta = {"kind": "synthetic", "zoom": config.zoom, "first": args.first, "region": args.region}
    people = phantom_arrays(config.canvas, config.zoom, args.first, args.count, args.region)
    write_cache(args.out, meta, people, args.most_mib)


def _export(args: argparse.Namespace) -> None:
    from spineps.training.export import export

    bias = {int(structure): float(added) for structure, added in args.bias}
    export(args.checkpoint[0], args.folder, bias, args.temperature, args.checkpoint[1:])


def _ranges(args: argparse.Namespace) -> None:
    from spineps.training.export import measure_ranges

    measure_ranges(args.folder)


if __name__ == "__main__":
    sys.exit(main())
