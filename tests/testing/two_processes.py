"""Scripts that run as both processes of a distributed run on this machine's CPU."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
PREAMBLE = """
import os, sys
import torch
from zsseg.training.processes import leave_process_group_at_exit
rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
leave_process_group_at_exit()
"""


def run_in_two_processes(script, folder, *arguments, timeout=240, environment=None):
    """The last line that each process printed; ``arguments`` are ``sys.argv[2:]`` of the script."""
    (folder / "init").unlink(missing_ok=True)
    processes = [_start(script, rank, environment or {}, folder / "init", *arguments) for rank in range(2)]
    try:
        outputs, errors = zip(*(process.communicate(timeout=timeout) for process in processes), strict=True)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    # Where one fails, the other often does because of it.
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [output.splitlines()[-1] for output in outputs]


def _start(script, rank, environment, *arguments):
    settings = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "ACCELERATE_USE_CPU": 1,
        "OMP_NUM_THREADS": 1,
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)],
        env={**os.environ, **{name: str(value) for name, value in settings.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
