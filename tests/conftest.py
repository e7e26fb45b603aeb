"""The same run everywhere: hypothesis draws the same examples, and tools of the dev extra are found unactivated."""

import os
import sys
from pathlib import Path

from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

# An environment that is called by its path is not on PATH: the validator and dcmqi were skipped without a word.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
