"""What a report of a problem should say about the machine, found without importing anything slow."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from zsseg.cli.text_layout import format_count

_REQUIREMENT = re.compile(r"^(?P<name>[\w.-]+)[^;]*(?:;.*extra == [\"'](?P<extra>[\w-]+)[\"'])?")
_TORCH_PIN = re.compile(r"^torch\s*\(?==\s*(?P<version>[\w.]+)")
_TORCH_LIBRARY = re.compile(rb"lib(?:torch|c10)\w*\.so")
_CUDA_BUILD = re.compile(r"^cuda\b[^=]*= *['\"](?P<version>[\w.]+)['\"]", re.MULTILINE)
_CUDA_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
_GIBIBYTE = 1024**3
DEVELOPMENT_EXTRA = "dev"


@dataclass(frozen=True, slots=True)
class Package:
    """A package that zsseg uses.

    Attributes:
        name: as on PyPI.
        extra: of zsseg that brings it; None for those always installed.
        version: None if it is not installed.
    """

    name: str
    extra: str | None
    version: str | None


def list_packages() -> list[Package]:
    """What zsseg requires and what its extras add, development tools left out; required ones first."""
    found = {}
    for requirement in importlib.metadata.requires("zsseg") or ():
        match = _REQUIREMENT.match(requirement)
        if match and match["extra"] != DEVELOPMENT_EXTRA:
            found[match["name"]] = Package(match["name"], match["extra"], find_version(match["name"]))
    return sorted(found.values(), key=lambda package: (package.extra or "", package.name.lower()))


def find_version(package: str) -> str | None:
    """The installed version, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_platform() -> dict[str, str]:
    """Python, operating system, processors and memory."""
    memory = measure_memory()
    return {
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "CPU": f"{os.cpu_count()} × {platform.machine()}",
        "memory": "unknown" if memory is None else f"{memory / _GIBIBYTE:.1f} GiB",
    }


def measure_memory() -> int | None:
    """Bytes of the machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def find_torch_cuda_build() -> str | None:
    """The CUDA version of torch's build, as its version file says."""
    folder = _find_package_folder("torch")
    text = "" if folder is None else (folder / "version.py").read_text(encoding="utf-8")
    match = _CUDA_BUILD.search(text)
    return match["version"] if match else None


def describe_cuda(build: str | None, devices: int | None) -> str:
    """Whether torch can use CUDA, as far as its build and the driver say; torch itself is not asked.

    Args:
        build: the CUDA version that torch is built for.
        devices: how many the driver lists; None without a driver.
    """
    if build is None:
        return "no (torch is built without CUDA)"
    if not devices:
        reason = "there is no driver" if devices is None else "the driver lists no device"
        return f"no (torch is built for CUDA {build}, but {reason})"
    return f"yes (torch is built for CUDA {build}, the driver lists {format_count(devices, 'device')})"


def describe_mps() -> str:
    """Whether torch can use Apple's GPU."""
    is_apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return "yes" if is_apple else "no (not macOS on Apple silicon)"


def count_cuda_devices(driver: str | None = None) -> int | None:
    """How many devices the CUDA driver lists; None without a working driver.

    Args:
        driver: file name of its library; None takes the system's usual one.
    """
    driver = _CUDA_DRIVERS.get(sys.platform) if driver is None else driver
    if driver is None:
        return None
    count = ctypes.c_int()
    try:
        library = ctypes.CDLL(driver)
        if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return count.value


def find_torchvision_problem() -> str | None:
    """Why an installed torchvision would break the imports of transformers; None if nothing speaks for it.

    Its compiled operators load only beside the torch they were built for: of the version that its metadata
    names, with the libraries that its files name.
    """
    folder, torch_folder = _find_package_folder("torchvision"), _find_package_folder("torch")
    if folder is None or torch_folder is None:
        return None
    torch_version = str(find_version("torch"))
    for requirement in importlib.metadata.requires("torchvision") or ():
        pinned = _TORCH_PIN.match(requirement)
        if pinned and pinned["version"] != torch_version.partition("+")[0]:
            return f"it was built for torch {pinned['version']}, but torch {torch_version} is installed"
    missing = list_missing_libraries(folder, torch_folder / "lib")
    if missing:
        return f"its operators need {', '.join(missing)}, which torch {torch_version} does not bring"
    return None


def list_missing_libraries(package: Path, torch_libraries: Path) -> list[str]:
    """Libraries of torch that a package's compiled operators name and that are not there."""
    named = {
        name.decode()
        for operators in package.glob("_C*.so")
        for name in _TORCH_LIBRARY.findall(operators.read_bytes())
    }
    return sorted(name for name in named if not (torch_libraries / name).exists())


def _find_package_folder(name: str) -> Path | None:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
