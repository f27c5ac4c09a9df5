"""``zsseg env``: what to paste into a report of a problem."""

import typer

from zsseg import __version__
from zsseg.cli.messages import print_note


def env() -> None:
    """Print versions and devices, to be pasted into a report.

    Imports none of the packages it lists.
    """
    from zsseg.cli import environment

    packages = environment.list_packages()
    cuda_build = environment.find_torch_cuda_build()
    devices = None if cuda_build is None else environment.count_cuda_devices()
    torch_lines = {
        "  CUDA": environment.describe_cuda(cuda_build, devices),
        "  MPS": environment.describe_mps(),
    }
    lines = {"zsseg": __version__, **environment.describe_platform()}
    for package in packages:
        if package.extra is None:
            lines[package.name] = package.version or "not installed"
            if package.name == "torch":
                lines |= torch_lines
    for package in packages:
        if package.extra is not None:
            lines[package.name] = f"{package.version or 'not installed'} (extra: {package.extra})"
    width = max(map(len, lines))
    for name, value in lines.items():
        typer.echo(f"{name:<{width}}  {value}")
    problem = environment.find_torchvision_problem()
    if problem is not None:
        print_note(
            f"torchvision does not fit: {problem}. Importing transformers' models will fail; uninstall "
            "torchvision, or install the build for this torch"
        )
