"""Both generations of flag spelling: ``-model_semantic`` (SPINEPS 1) becomes ``--model-semantic`` (SPINEPS 2)."""

from __future__ import annotations

from collections.abc import Sequence

#: Flags that were renamed, not only respelt.
RENAMED = {
    "-der_name": "--derivative-name",
    "-raw_name": "--rawdata-name",
    "-nocrop": "--no-crop",
    "-nc": "--no-crop",
    "-non4": "--no-n4",
    "-no_tltv_labeling": "--enforce-12-thoracic",
    "-ntl": "--enforce-12-thoracic",
    "-model_vert": "--model-instance",
    "-save_snaps_folder": "--save-snaps-folder",
}


def modern(arguments: Sequence[str]) -> list[str]:
    """Arguments with every flag in today's spelling; values are left alone.

    >>> modern(["sample", "-model_semantic", "t2w", "-der_name=out", "-nc", "--save_debug", "-i", "my_scan.nii"])
    ['sample', '--model-semantic', 't2w', '--derivative-name=out', '--no-crop', '--save-debug', '-i', 'my_scan.nii']
    >>> modern(["-cpu", "-5", "--", "-der_name"])
    ['--cpu', '-5', '--', '-der_name']
    """
    out: list[str] = []
    for number, argument in enumerate(arguments):
        if argument == "--":
            return [*out, *arguments[number:]]
        flag, equals, value = argument.partition("=")
        out.append(_modern_flag(flag) + equals + value if flag.startswith("-") else argument)
    return out


def _modern_flag(flag: str) -> str:
    short = flag if not flag.startswith("--") else flag[1:]
    if short in RENAMED:
        return RENAMED[short]
    word = flag.lstrip("-").replace("_", "-")
    if flag.startswith("--"):
        return f"--{word}"
    # Three letters and less are today's short flags (-ms, -ssl, -iic, -rcp), except -cpu and -amp.
    long = (len(word) > 4 or word in ("cpu", "amp", "tta")) and not word[0].isdigit()
    return f"--{word}" if long else flag
