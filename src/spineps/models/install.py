"""Bring published weights, or networks of one's own, into the models folder.

A model is unpacked into a staging folder on the same disk, checked there, and becomes visible by one rename; what was
there before goes only then.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256 as sha256_of
from pathlib import Path
from urllib.parse import unquote, urlsplit

from spineps.errors import InputNotFoundError, ModelError, OptionError, UnreadableInputError
from spineps.models import archive
from spineps.models.config import CONFIG_FILE, read_config
from spineps.models.download import OFFLINE_VARIABLE, DownloadError, Patience, Progress, discard, fetch, is_offline
from spineps.models.installed import homes, name_of, on_disk, receipt_of, works, workshop
from spineps.models.lock import exclusive
from spineps.models.receipt import RECEIPT, sha256, write_receipt
from spineps.models.registry import UnknownModelError, available_models, models_folder
from spineps.models.releases import RELEASES, Release, release

logger = logging.getLogger(__name__)

WEIGHTS = (".npz", ".pth", ".ckpt")


@dataclass(frozen=True)
class Installed:
    """A model that is there now; ``new`` is False when it had been there before."""

    name: str
    folder: Path
    new: bool


@dataclass(frozen=True)
class How:
    """How to install.

    Attributes:
        force: replace what is there.
        offline: never use the network.
        accept_new: take an archive that has changed since it was first installed from its address.
        patience: timeouts and attempts of a download.
        progress: called with (bytes so far, bytes in all or None).
    """

    force: bool = False
    offline: bool = False
    accept_new: bool = False
    patience: Patience | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class _Found:
    """A model in a source: what it is called there, and how it is brought into a new folder."""

    label: str
    unpack: Callable[[Path], None]


def install(names: Sequence[str], source: str | None = None, how: How | None = None) -> list[Installed]:
    """Bring models into the models folder.

    Args:
        names: published ids or ``all``.  With ``source`` also names of one's own; none means all that it holds.
        source: zip archive, folder or address that holds one model or several; None downloads the published ones.
        how: switches.

    Returns:
        the models asked for, in order.

    Raises:
        UnknownModelError: no published model has this name.
        DownloadError: see :func:`spineps.models.download.fetch`; also when the network is forbidden.
        ModelError: what came is no model, is refused, or has changed.
        OptionError: a name cannot be used, or something else is in the way.
        InputNotFoundError: ``source`` does not exist.
        UnreadableInputError: ``source`` may not be read.
        OutputError: the models folder cannot be written.
    """
    how = how or How()
    if source is None:
        return [done for known in releases(names) for done in _from_address(known.address, [known.name], how)]
    names = [] if "all" in names else list(names)
    if "://" in source:
        return _from_address(source, names, how)
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _place_all(_in_folder(path.resolve()), names, path.resolve().name, None, how)
        if path.is_file():
            return _place_all(_in_archive(path, path.stem), names, path.name, sha256(path), how)
    except PermissionError as error:
        raise UnreadableInputError(f"{source} cannot be read ({error.strerror}).", "Check its permissions.") from error
    raise InputNotFoundError(
        f"There is no file or folder {source}.", "Give a zip archive, a folder or an address with --from."
    )


def releases(names: Sequence[str]) -> list[Release]:
    """The published models of these names, each once; ``all`` is every one.

    Raises:
        UnknownModelError: no published model has this name.
    """
    if "all" in names:
        return list(RELEASES)
    found = {name: release(name) for name in names}
    if unknown := [name for name, known in found.items() if known is None]:
        ids = ", ".join(known.name for known in RELEASES)
        message = f"There is no published model called {', '.join(unknown)}."
        raise UnknownModelError(message, f"Choose from: {ids}, all; or give --from.")
    return list(dict.fromkeys(known for known in found.values() if known))


def _from_address(address: str, names: list[str], how: How) -> list[Installed]:
    if not how.force and (there := _there(address, names)):
        return there
    shop = workshop()
    key = sha256_of(address.encode()).hexdigest()[:16]
    part = shop / f"{key}.part"
    with on_disk(part), exclusive(shop / f"{key}.lock"):
        # Again: it may just have been another process's turn.
        if not how.force and (there := _there(address, names)):
            return there
        if how.offline or is_offline():
            raise DownloadError(
                f"{address} is not fetched: --offline or {OFFLINE_VARIABLE} forbids it.",
                f"Fetch it on another machine, then: spineps models install {' '.join(names)} --from FILE",
            )
        logger.info("fetching %s", address)
        fetch(address, part, how.patience, how.progress)
        try:
            digest = sha256(part)
            _check_pin(address, digest, how.accept_new)
            found = _in_archive(part, Path(unquote(urlsplit(address).path)).stem, address)
            placed = _place_all(found, names, address, digest, how)
        except ModelError:
            discard(part)  # these bytes will never do; after any other fault they are worth keeping
            raise
        discard(part)
        return placed


def _there(address: str, names: list[str]) -> list[Installed]:
    """The models asked for if all are installed already: by name, or as what came from this address before."""
    if names:
        answers = {entry.name: entry.folder for entry in available_models() if entry.origin == "installed"}
        ids = [known.name if (known := release(name)) else name.lower() for name in names]
        return [Installed(i, answers[i], new=False) for i in ids] if set(ids) <= set(answers) else []
    came = [home for home in homes() if (r := receipt_of(home)) and r.source == address]
    return [Installed(name_of(home), home, new=False) for home in came] if all(map(works, came)) else []


def _check_pin(address: str, digest: str, accept_new: bool) -> None:
    """The archive must be the one that was installed from this address before, or the one known beforehand."""
    pins = {r.archive for home in homes() if (r := receipt_of(home)) and r.source == address and r.archive}
    pins |= {known.sha256 for known in RELEASES if known.address == address and known.sha256}
    if not pins or digest in pins:
        return
    if accept_new:
        logger.warning("%s has changed; its sha256 is %s now", address, digest)
        return
    raise ModelError(
        f"{address} has changed: its sha256 was {', '.join(sorted(pins))} and is {digest} now.",
        "Ask the publisher whether that is meant; then use --accept-new, or remove the model first.",
    )


def _in_archive(path: Path, stem: str, called: str = "") -> list[_Found]:
    roots = archive.model_roots(path, called or path.name)
    labels = [_label(root.parts, stem) for root in roots]
    if len(roots) == 1 and release(stem) and not release(labels[0]):
        labels = [stem]  # t2w.zip holds t2w, whatever its folder is called
    return [_Found(label, partial(archive.unpack, path, root)) for label, root in zip(labels, roots, strict=True)]


def _in_folder(path: Path) -> list[_Found]:
    """Models, and zip archives of models, in a folder."""
    own = models_folder().resolve()
    if path.is_relative_to(own):
        raise OptionError(f"{path} lies in the models folder already.", "See: spineps models list")
    roots = archive.outermost([file.parent for file in path.rglob(CONFIG_FILE) if not file.is_relative_to(own)])
    found = [_Found(_label(root.parts, root.name), partial(_copy, root)) for root in roots]
    for file in sorted(path.glob("*.zip")):
        found += _in_archive(file, file.stem)
    if not found:
        raise archive.no_model(str(path))
    return found


def _label(parts: Sequence[str], stem: str) -> str:
    """nnU-Net calls folders after their plans; the model's own name is one level up."""
    return next((part for part in reversed(parts) if "nnUNetPlans" not in part), stem)


def _copy(root: Path, into: Path) -> None:
    """All files below ``root``, without their permissions: a read-only source must not make a read-only copy."""
    files, seen = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        # Links to folders are followed (fold_0 often is one), but never in circles.
        seen.add(os.path.realpath(folder))
        subfolders[:] = sorted(s for s in subfolders if os.path.realpath(Path(folder, s)) not in seen)
        files += [Path(folder, name) for name in sorted(names) if not archive.is_clutter(name)]
    if broken := next((file for file in files if not file.is_file()), None):
        raise ModelError(f"{broken} is a broken link or no file.", "Mend or remove it.")
    into.mkdir()
    need = sum(file.stat().st_size for file in files)
    if need > shutil.disk_usage(into).free:
        raise OSError(errno.ENOSPC, f"{need} bytes are needed")
    for file in files:
        target = into / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source = file.open("rb")
        except OSError as error:
            raise ModelError(f"{file} cannot be read ({error.strerror}).", "Check its permissions.") from error
        with source, target.open("xb") as out:
            shutil.copyfileobj(source, out)


def _place_all(found: list[_Found], names: list[str], source: str, digest: str | None, how: How) -> list[Installed]:
    by_folder: dict[str, _Found] = {}
    if len(found) == len(names) == 1:
        by_folder[_folder_name(names[0])] = found[0]
    else:
        for model in found:
            if by_folder.setdefault(_folder_name(model.label), model) is not model:
                raise ModelError(f"{source} holds two models called {model.label}.", "Give one of their folders.")
    wanted = [_folder_name(name) for name in names] or list(by_folder)
    if lacking := [name for name in wanted if name not in by_folder]:
        labels = ", ".join(model.label for model in found)
        raise ModelError(f"{source} does not hold {', '.join(lacking)}.", f"It holds: {labels}.")
    return [_place(by_folder[name], name, source, digest, how.force) for name in dict.fromkeys(wanted)]


def _folder_name(name: str) -> str:
    """Folder of the model called ``name``: the published one's, or the name itself."""
    if known := release(name):
        return known.folder
    if not archive.portable_name(name) or name.startswith("."):
        raise OptionError(f"{name!r} cannot be the name of a model.", "Give another name after 'install'.")
    return name


def _place(found: _Found, name: str, source: str, digest: str | None, force: bool) -> Installed:
    shop, final = workshop(), models_folder() / name
    staging, old = shop / f"{name}.staging", shop / f"{name}.old"
    with on_disk(final), exclusive(shop / f"{name}.lock"):
        if old.exists() and not final.exists():
            old.rename(final)  # a run was killed between the two renames of _swap
        if final.exists() and not force:
            if works(final):
                return Installed(name_of(final), final, new=False)
            raise OptionError(f"{final} is there but is no model that works.", "Use --force to replace it.")
        try:
            shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
            found.unpack(staging)
            _check(staging, name, source)
            write_receipt(staging, source, digest)
            _swap(staging, final, old)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Installed(name_of(final), final, new=True)


def _check(staging: Path, name: str, source: str) -> None:
    """What is about to become visible is a model, and one of the right kind."""
    config, known = read_config(staging), release(name)
    if known and config.phase is not known.phase:
        what = f"{source} holds a {config.phase.name.lower()} model"
        raise ModelError(f"{what}, but {known.name} is for {known.phase.name.lower()}.", "Check the name.")
    if not any(file.suffix in WEIGHTS for file in staging.rglob("*")):
        raise ModelError(f"{source} holds no weights ({', '.join(WEIGHTS)}) for {name}.", "Give the whole folder.")
    (staging / RECEIPT).unlink(missing_ok=True)


def _swap(staging: Path, final: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if final.exists() or final.is_symlink():
        final.rename(old)
    try:
        staging.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    if old.is_symlink():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)
