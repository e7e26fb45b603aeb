"""What lies in the models folder: find it, check it against its receipt, remove it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from spineps.errors import ModelError
from spineps.models.archive import outermost
from spineps.models.config import CONFIG_FILE, read_config
from spineps.models.download import output_error
from spineps.models.lock import exclusive
from spineps.models.receipt import RECEIPT, Receipt, differences, read_receipt
from spineps.models.registry import UnknownModelError, models_folder
from spineps.models.releases import release

logger = logging.getLogger(__name__)

#: Folder for everything temporary; the registry does not look into hidden folders.
WORKSHOP = ".spineps"


@dataclass(frozen=True)
class Verdict:
    """What :func:`verify` found.

    Attributes:
        name: id.
        folder: where the model lies.
        state: ``"ok"``, ``"damaged"``, or ``"unrecorded"`` for a model that was put there by hand.
        problems: one line per file that is not as it was.
    """

    name: str
    folder: Path
    state: str
    problems: tuple[str, ...] = ()


def homes() -> list[Path]:
    """Folder of every model in the models folder, damaged ones included."""
    root = models_folder()
    files = [file for name in (CONFIG_FILE, RECEIPT) for file in root.rglob(name)]
    folders = {file.parent for file in files if not file.relative_to(root).parts[0].startswith(".")}
    return outermost([f.parent if "nnUNetPlans" in f.name and f.parent != root else f for f in folders])


def homes_of(name: str) -> list[Path]:
    """Folders of the installed model called ``name``; more than one only where someone made copies.

    Raises:
        UnknownModelError: nothing of that name is installed.
    """
    known = release(name)
    wanted = {name.lower(), *(known.names if known else ())}
    every = homes()
    if found := [home for home in every if home.name.lower() in wanted]:
        return found
    ids = ", ".join(name_of(home) for home in every) or "nothing"
    raise UnknownModelError(f"No model called {name!r} is installed in {models_folder()}.", f"Installed: {ids}.")


def name_of(home: Path) -> str:
    """The id that a model in this folder answers to."""
    known = release(home.name)
    return known.name if known else home.name.lower()


def works(home: Path) -> bool:
    """Whether the folder holds a config that can be read."""
    for file in home.rglob(CONFIG_FILE):
        try:
            read_config(file)
        except ModelError as error:
            logger.debug("%s", error)
            continue
        return True
    return False


def receipt_of(home: Path) -> Receipt | None:
    """The receipt of a model; None where there is none that can be read."""
    try:
        return read_receipt(home)
    except ModelError as error:
        logger.warning("%s", error)
        return None


def verify(name: str | None = None) -> list[Verdict]:
    """Hash all files of the installed model ``name`` (or of all) and compare with what its receipt says.

    Raises:
        UnknownModelError: nothing of that name is installed.
    """
    return [_verdict(home) for home in (homes_of(name) if name else homes())]


def remove(home: Path) -> None:
    """Take a model away, at once for everyone else and then from the disk.

    Raises:
        OutputError: the folder may not be written.
    """
    shop = workshop()
    with on_disk(home), exclusive(shop / f"{home.name}.lock"):
        if home.is_symlink():
            home.unlink()
            return
        gone = shop / f"{home.name}.removed"
        shutil.rmtree(gone, ignore_errors=True)
        home.rename(gone)
        shutil.rmtree(gone)


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def workshop() -> Path:
    """The folder for temporary files, made when missing.

    Raises:
        OutputError: it cannot be made.
    """
    folder = models_folder() / WORKSHOP
    with on_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Failures of the file system inside become an OutputError about ``path``."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def _verdict(home: Path) -> Verdict:
    try:
        receipt = read_receipt(home)
        if receipt is None:
            return Verdict(name_of(home), home, "unrecorded")
        problems = differences(home, receipt)
    except ModelError as error:
        problems = [error.message]
    except OSError as error:
        problems = [f"unreadable: {error.filename} ({error.strerror})"]
    return Verdict(name_of(home), home, "damaged" if problems else "ok", tuple(problems))
