"""What an installed model was made of: its origin and the hash of every file, kept in its own folder.

Lying inside the folder, the receipt appears and goes together with the model in one rename.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from spineps.errors import ModelError

RECEIPT = "spineps_install.json"
BLOCK = 1 << 20


@dataclass(frozen=True)
class Receipt:
    """Written at installation.

    Attributes:
        source: address, or the name of the file or folder that was given.
        archive: sha256 of the archive, None when a folder was given.
        files: sha256 of every file, by its path below the model's folder.
    """

    source: str
    archive: str | None
    files: Mapping[str, str]


def write_receipt(folder: Path, source: str, archive: str | None) -> Receipt:
    """Hash all files in ``folder`` and keep the receipt among them."""
    receipt = Receipt(source, archive, _hashes(folder))
    (folder / RECEIPT).write_text(json.dumps(asdict(receipt), indent=2) + "\n", encoding="utf-8")
    return receipt


def read_receipt(folder: Path) -> Receipt | None:
    """The receipt; None for a model that was put there by hand.

    Raises:
        ModelError: it cannot be read.
    """
    file = folder / RECEIPT
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Receipt(values["source"], values["archive"], dict(values["files"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is damaged ({error}).", "Install the model again with --force.") from error


def differences(folder: Path, receipt: Receipt) -> list[str]:
    """``"missing: ..."``, ``"changed: ..."`` and ``"added: ..."`` since the installation; all files are read."""
    now = _hashes(folder)
    missing = [f"missing: {name}" for name in receipt.files if name not in now]
    changed = [f"changed: {name}" for name, was in receipt.files.items() if now.get(name, was) != was]
    return missing + changed + [f"added: {name}" for name in now if name not in receipt.files]


def sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal."""
    # hashlib leaves the interpreter to other threads meanwhile; hashlib.file_digest needs Python 3.11.
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != RECEIPT)
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}
