"""The specs say everything about a run: their fields, who is built on whom, and their keys.

Nothing here imports torch: the command line answers from it alone.
"""

# One name for all of it, whatever file it stands in.
from robustlib.specs.checks import *  # noqa: F403 - the names of one room
from robustlib.specs.identity import *  # noqa: F403 - the names of one room
from robustlib.specs.kinds import *  # noqa: F403 - the names of one room
