"""Many inputs through a network, as many at once as memory allows."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator

import numpy as np

from spineps.errors import OutOfMemoryError
from spineps.inference.engine import Network

logger = logging.getLogger(__name__)


def in_batches(
    network: Network, inputs: Callable[[slice], np.ndarray], count: int, batch: int
) -> Iterator[tuple[slice, np.ndarray | dict[str, np.ndarray]]]:
    """Answers of the network; the batch is halved whenever memory does not suffice, and never grows again.

    Args:
        network: answers float32 (N, C, X, Y, Z).
        inputs: makes the inputs of a range.
        count: inputs in all.
        batch: inputs at once, to begin with.

    Yields:
        (range, answer), in order.

    Raises:
        OutOfMemoryError: not even one input fits.  Any other error is raised as it is.
    """
    done = 0
    while done < count:
        part = slice(done, min(done + batch, count))
        x = inputs(part)
        try:
            answer = network(x)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if batch == 1:
                shape = " x ".join(str(n) for n in x.shape[2:])
                raise OutOfMemoryError(
                    f"There is not enough memory for one input of {shape} voxels.", "Close other programs or use --cpu."
                ) from error
            batch //= 2
            logger.warning("Not enough memory for %d inputs at once: going on with %d.", len(x), batch)
            continue
        yield part, answer
        done = part.stop


def on_gpu(network: Network) -> bool:
    """Whether the network runs on something else than the CPU."""
    return getattr(getattr(network, "device", None), "type", "cpu") != "cpu"


def _is_out_of_memory(error: Exception) -> bool:
    # Without importing torch where it does not run.
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))
