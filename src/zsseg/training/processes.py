"""The processes of a run, one or those that ``accelerate launch`` started."""

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def get_process_state() -> PartialState:
    """Which of the processes this one is, how many there are, and its device.

    The first call in a process decides for all of accelerate: several processes on CPUs take each other into
    account only if it says that they are on CPUs.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
