"""Every error a user can meet, with its cure, its ``ErrCode`` and its exit code.

Inside the package errors are exceptions.  Only the documented entry points (:mod:`spineps.seg_run`) turn them into an
:class:`ErrCode`, and only the command line turns them into an exit status.
"""

from __future__ import annotations

from enum import Enum


class ErrCode(Enum):
    """What the documented entry points return.  1..6 keep the values of the published system; the rest are new."""

    OK = 1
    ALL_DONE = 2
    COMPATIBILITY = 3
    UNKNOWN = 4
    EMPTY = 5
    SHAPE = 6
    NOT_FOUND = 7
    UNREADABLE = 8
    GEOMETRY = 9
    VALUES = 10
    WRITE = 11
    MODEL = 12
    OPTIONS = 13
    MEMORY = 14
    TIMEOUT = 15
    CRASHED = 16

    def __eq__(self, other: object) -> bool:
        """Equal to itself and, as in the published system, to a string holding its name."""
        if isinstance(other, str):
            return self.name == other
        return self is other

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def exit_code(self) -> int:
        """Process exit status: 0 for success (2 is left to the argument parser), else one number per kind of error."""
        return 0 if self in (ErrCode.OK, ErrCode.ALL_DONE) else self.value + 7


class SpinepsError(Exception):
    """A problem that the user can understand and mend.

    Args:
        message: what is wrong, naming the file or option.
        cure: what to do about it, in the imperative.
    """

    code = ErrCode.UNKNOWN

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message} {self.cure}".strip()


class InputNotFoundError(SpinepsError):
    """The input file or folder does not exist."""

    code = ErrCode.NOT_FOUND


class UnreadableInputError(SpinepsError):
    """The file exists but is not a readable NIfTI image (truncated, not NIfTI, no permission)."""

    code = ErrCode.UNREADABLE


class ShapeError(SpinepsError):
    """The image is not one 3-D volume, or is too small in some direction."""

    code = ErrCode.SHAPE


class GeometryError(SpinepsError):
    """Voxel sizes or affine make no sense (zero, negative, NaN, singular)."""

    code = ErrCode.GEOMETRY


class ValueRangeError(SpinepsError):
    """The voxel values cannot be used (RGB, complex, all NaN)."""

    code = ErrCode.VALUES


class EmptyError(SpinepsError):
    """Nothing to segment: constant image, or no spine found in it."""

    code = ErrCode.EMPTY


class CompatibilityError(SpinepsError):
    """Model and input (or two models) do not belong together."""

    code = ErrCode.COMPATIBILITY


class ModelError(SpinepsError):
    """A model is unknown, incomplete or damaged."""

    code = ErrCode.MODEL


class OptionError(SpinepsError):
    """An option has a value that it cannot have."""

    code = ErrCode.OPTIONS


class OutputError(SpinepsError):
    """An output cannot be written (read-only folder, disk full)."""

    code = ErrCode.WRITE


class OutOfMemoryError(SpinepsError):
    """The machine has not enough memory for this scan at this setting."""

    code = ErrCode.MEMORY
