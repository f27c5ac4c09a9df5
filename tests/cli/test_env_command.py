import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from zsseg import __version__
from zsseg.cli import environment

TORCHVISION = Path(sys.prefix) / "torchvision"


def test_versions_and_devices_are_listed(run):
    outcome = run("env")
    assert outcome.code == 0
    lines = dict(line.strip().split(maxsplit=1) for line in outcome.stdout.splitlines())
    assert lines["zsseg"] == __version__
    assert lines["torch"] == metadata.version("torch")
    assert lines["accelerate"] == f"{metadata.version('accelerate')} (extra: train)"
    assert lines["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert {"CUDA", "MPS", "CPU", "memory", "platform", "open_clip_torch"} <= lines.keys()
    assert "pytest" not in lines


def test_absent_packages_are_not_installed():
    assert environment.find_version("no-such-package") is None
    names = [package.name for package in environment.list_packages()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("build", "devices", "text"),
    [
        (None, None, "no (torch is built without CUDA)"),
        ("13.0", None, "no (torch is built for CUDA 13.0, but there is no driver)"),
        ("13.0", 0, "no (torch is built for CUDA 13.0, but the driver lists no device)"),
        ("13.0", 1, "yes (torch is built for CUDA 13.0, the driver lists 1 device)"),
        ("13.0", 8, "yes (torch is built for CUDA 13.0, the driver lists 8 devices)"),
    ],
)
def test_cuda_needs_a_build_a_driver_and_a_device(build, devices, text):
    assert environment.describe_cuda(build, devices) == text


def test_the_cuda_build_is_the_one_that_torch_tells():
    import torch

    assert environment.find_torch_cuda_build() == torch.version.cuda


def test_without_a_driver_no_device_is_counted():
    assert environment.count_cuda_devices("libno-such-driver.so") is None


def test_libraries_of_torch_that_are_missing_are_named(tmp_path):
    package, libraries = tmp_path / "torchvision", tmp_path / "torch" / "lib"
    package.mkdir()
    libraries.mkdir(parents=True)
    (package / "_C.so").write_bytes(b"\x7fELF\0libc.so.6\0libtorch_cuda.so\0libc10_cuda.so\0libtorch.so\0")
    (libraries / "libtorch.so").touch()
    assert environment.list_missing_libraries(package, libraries) == ["libc10_cuda.so", "libtorch_cuda.so"]
    (libraries / "libtorch_cuda.so").touch()
    (libraries / "libc10_cuda.so").touch()
    assert environment.list_missing_libraries(package, libraries) == []


def test_a_torchvision_for_another_torch_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").touch()
    information = tmp_path / "torchvision-0.1.0.dist-info"
    information.mkdir()
    text = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1.0\nRequires-Dist: torch (==1.0.0)\n"
    (information / "METADATA").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert "built for torch 1.0.0" in environment.find_torchvision_problem()


@pytest.mark.slow
@pytest.mark.skipif(not TORCHVISION.is_dir(), reason="no torchvision beside the environment")
def test_a_torchvision_is_a_problem_exactly_if_its_import_fails(run, monkeypatch):
    """The usual torchvision does not fit a CPU build of torch."""
    monkeypatch.syspath_prepend(TORCHVISION)
    outcome = run("env")
    imported = subprocess.run(
        [sys.executable, "-c", "import torchvision"],
        env={**os.environ, "PYTHONPATH": str(TORCHVISION)},
        capture_output=True,
        check=False,
    )
    assert ("torchvision does not fit" in outcome.stderr) == (imported.returncode != 0)
