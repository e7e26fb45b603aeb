"""The training loop: averaged weights, cosine schedule, exact resume."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spineps.errors import OptionError
from spineps.inference.network import NEGATIVE_SLOPE, NetSpec, forward, initial_parameters, parameter_shapes
from spineps.inference.torch_engine import TorchOps, memory_format
from spineps.training.config import TrainingConfig
from spineps.training.muon import Muon

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 180
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "muon": Muon}

#: Given (network, step): leaves gradients behind and answers the loss and numbers for the log.
Objective = Callable[[Callable[[Tensor], Any], int], tuple[Tensor, dict[str, float]]]


class Trainer:
    """Trains one network towards one objective.

    Args:
        config: the run.
        objective: called with (network, step).
        device: where to run.
        initial: weights to start from, of this network or of a smaller one; None draws fresh ones from the seed.
        bfloat16: multiply in bfloat16 (weights stay float32); None: on CUDA.  CPUs with AVX512-BF16 gain a factor 2.
    """

    def __init__(
        self,
        config: TrainingConfig,
        objective: Objective,
        device: torch.device,
        initial: Mapping[str, np.ndarray] | None = None,
        bfloat16: bool | None = None,
    ) -> None:
        self.bfloat16 = device.type == "cuda" if bfloat16 is None else bfloat16
        self.config, self.objective, self.device = config, objective, device
        fresh = initial_parameters(config.network, config.seed)
        start = fresh if initial is None else widened(config.network, initial, config.seed)
        self.params = _on_device(config.network, start, device)
        self.average = {name: p.detach().clone() for name, p in self.params.items()}
        if config.optimiser not in OPTIMISERS:
            raise OptionError(f"There is no optimiser {config.optimiser}.", f"Choose one of: {', '.join(OPTIMISERS)}.")
        self.optimiser = OPTIMISERS[config.optimiser](
            list(self.params.items()), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.step, self.elapsed = 0, 0.0

    def run(
        self,
        steps: int | None,
        minutes: float | None,
        leg: float | None,
        out: Path,
        every: int = 100,
        drawn: Callable[[], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train until the schedule or this leg ends; resumable at every checkpoint.

        Args:
            steps: length of the schedule in steps (exactly repeatable), or
            minutes: its length in minutes of training, over all legs.
            leg: minutes that this call may take at most.
            out: folder of ``checkpoint.pt``.
            every: steps between log lines.
            drawn: called after every checkpoint, for sample pictures.
            stop: asked after every step; True ends this leg.

        Returns:
            True when the schedule has ended.
        """
        started = tick = saved = time.monotonic()
        seen: dict[str, list[float]] = {}  # what a step did not meet has no number
        while (done := self._share(steps, minutes)) < 1 and not (leg and tick - started > 60 * leg) and not stop():
            for name, value in self.one_step(done).items():
                seen.setdefault(name, []).append(value)
            self.elapsed, tick = self.elapsed + time.monotonic() - tick, time.monotonic()
            if self.step % every == 0:
                means = "  ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in seen.items())
                logger.info("step %d  %.1f min  %s", self.step, self.elapsed / 60, means)
                seen = {}
            if tick - saved > CHECKPOINT_SECONDS:
                saved = tick
                self.save(out / "checkpoint.pt")
                if drawn:
                    drawn()
        self.save(out / "checkpoint.pt")
        return done >= 1

    def one_step(self, done: float) -> dict[str, float]:
        """One update at share ``done`` (0..1) of the schedule; returns the log's numbers."""
        rate = self.config.learning_rate * min(1, (self.step + 1) / self.config.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * (0.02 + 0.49 * (1 + math.cos(math.pi * min(done, 1))))
        self.optimiser.zero_grad(set_to_none=True)
        loss, numbers = self.objective(self.network, self.step)
        norm = torch.nn.utils.clip_grad_norm_(self.params.values(), self.config.clip)
        if bool(torch.isfinite(norm)):
            self.optimiser.step()
        else:
            logger.warning("step %d skipped: gradient is not finite", self.step)
        self.step += 1
        decay = min(self.config.ema, (self.step + 5) / (self.step + 30))
        with torch.no_grad():
            for name, average in self.average.items():
                average.lerp_(self.params[name], 1 - decay)
        return {"loss": float(loss), **numbers}

    def network(self, x: Tensor) -> Any:
        """Logits with the weights in training."""
        x = x.contiguous(memory_format=memory_format(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            return forward(self.config.network, TorchOps(), self.params, x)

    def save(self, path: Path) -> None:
        """Everything that a resumed run needs.  Draws need no state: they follow from (seed, step)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "config": self.config.to_json(),
            "step": self.step,
            "elapsed": self.elapsed,
            "params": {name: p.detach() for name, p in self.params.items()},
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same config."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if set(state["params"]) != set(self.params):
            raise OptionError(f"{path} belongs to another network.", "Give another --out folder.")
        made_by = json.loads(state["config"]).get("optimiser", "adamw")
        if made_by != self.config.optimiser:
            raise OptionError(f"{path} was made with {made_by}.", f"Give --init {path} and another --out folder.")
        with torch.no_grad():
            for name in self.params:
                self.params[name].copy_(state["params"][name])
                self.average[name].copy_(state["average"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.elapsed = int(state["step"]), float(state["elapsed"])
        logger.info("resumed at step %d", self.step)

    def _share(self, steps: int | None, minutes: float | None) -> float:
        if steps is not None:
            return self.step / steps
        if minutes is not None:
            return self.elapsed / 60 / minutes
        raise OptionError("A training run needs an end.", "Give --steps or --minutes.")


def widened(spec: NetSpec, params: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Weights of a wider or deeper network that gives the same answers at first (deeper: nearly the same).

    New channels are drawn afresh and what follows them does not listen yet: its weights for them are 0.
    New blocks at the end of a level hand on what they get.

    Args:
        spec: the larger network; where it is wider its skips must be sums, because joined channels would change places.
        params: weights of a network with the same inputs and answers, and at most as many blocks and channels anywhere.
        seed: of the new channels.

    Raises:
        OptionError: ``params`` are not those of such a network.
    """
    shapes, wide = parameter_shapes(spec), initial_parameters(spec, seed)
    params = _deepened(shapes, params)
    heads = ("enc0.0.conv.weight", "out.", "head.")
    for name, shape in shapes.items():
        old = params.get(name)
        fits = old is not None and old.ndim == len(shape) and all(o <= n for o, n in zip(old.shape, shape, strict=True))
        # Inputs and answers of the network itself may not grow.
        kept = slice(1, None) if name == heads[0] else slice(0, 1) if name.startswith(heads[1:]) else slice(2, None)
        if old is None or not fits or old.shape[kept] != shape[kept] or (spec.skip != "add" and old.shape != shape):
            raise OptionError(f"The initial weights do not fit the network ({name}).", "Give another --init.")
        if old.ndim > 1:
            wide[name][: old.shape[0], old.shape[1] :] = 0
        wide[name][tuple(slice(n) for n in old.shape)] = old
    return wide


def _deepened(shapes: Mapping[str, tuple[int, ...]], params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``params`` with the missing later blocks of levels that they know, each of which hands on what it gets."""
    deep = dict(params)
    for name in shapes:
        block = name.removesuffix(".conv.weight")
        level, _, number = block.partition(".")
        before = f"{level}.{int(number) - 1}" if number.isdigit() else ""
        if block == name or name in deep or f"{before}.norm.bias" not in deep:
            continue
        scale, shift = deep[f"{before}.norm.weight"], deep[f"{before}.norm.bias"]
        kernel = np.zeros((len(scale), len(scale), *shapes[name][2:]), np.float32)
        a, b, c = (n // 2 for n in shapes[name][2:])
        kernel[:, :, a, b, c] = np.eye(len(scale), dtype=np.float32)
        deep[name] = kernel
        # Its norm must undo itself: spread and mean of a normal value behind the LeakyReLU of the block before.
        values = np.linspace(-4, 4, 801)[:, None]
        chance = np.exp(-(values**2) / 2) / np.exp(-(values**2) / 2).sum()
        behind = np.maximum(scale * values + shift, NEGATIVE_SLOPE * (scale * values + shift))
        mean = (chance * behind).sum(0)
        deep[f"{block}.norm.weight"] = np.sqrt((chance * (behind - mean) ** 2).sum(0)).astype(np.float32)
        deep[f"{block}.norm.bias"] = mean.astype(np.float32)
    return deep


def _on_device(spec: NetSpec, params: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    shapes = parameter_shapes(spec)
    tensors = {}
    for name in shapes:
        tensor = torch.tensor(params[name], dtype=torch.float32, device=device)
        if tensor.ndim == 5:
            tensor = tensor.contiguous(memory_format=memory_format(device))
        tensors[name] = tensor.requires_grad_()
    return tensors
