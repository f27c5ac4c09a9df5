"""Weights from files of other projects: PyTorch's, safetensors', detectron2's pickles. No code runs."""

import io
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zsseg.conversion.array_stand_ins import (
    ArrayMarker,
    EncodedText,
    NumberType,
    PickledArray,
    PickledBuffer,
    PickledScalar,
    RefusedPickleError,
)

WEIGHT_ENTRIES = ("model", "state_dict")
"""Where training frameworks put the weights in what they save; optimizer and counters stand beside them."""

HEAD_SIZE = 512
LEGACY_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""The first object of a file that ``torch.save`` wrote before it wrote zip archives."""


ARRAY_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): NumberType,
    ("numpy", "ndarray"): ArrayMarker,
    ("_codecs", "encode"): EncodedText,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", PickledArray),
            ("multiarray", "scalar", PickledScalar),
            ("numeric", "_frombuffer", PickledBuffer),
        )
    },
}
"""All that a pickle may call: what stands in for that which NumPy's arrays are rebuilt with."""

SAFE_TORCH_GLOBALS: tuple[Any, ...] = tuple(
    (value, ".".join(name)) for name, value in ARRAY_GLOBALS.items() if name[0].startswith("numpy")
)
"""The same for NumPy's numbers, which stand among counters and schedules beside the weights."""


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        tensors: by name, on the CPU.
        beside: names of what stands beside the weights and was not read.
    """

    tensors: dict[str, Tensor]
    beside: tuple[str, ...] = ()


def load_weight_file(path: str | os.PathLike[str]) -> WeightFile:
    """Read weights, whatever the file is called; its first bytes say what it is.

    PyTorch's files are read with ``weights_only``, pickles by an unpickler that knows NumPy's arrays of
    numbers and nothing else.

    Args:
        path: of a file of PyTorch (.pth, .pt, .bin), a pickle of detectron2 (.pkl) or safetensors.

    Raises:
        OSError: if there is no such file, it is cut off, or it is something else: a Git LFS pointer, a web
            page, a TorchScript archive.
        ValueError: if it holds objects that would have to be run, or no named tensors.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder: name the file of weights in it" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}")
    head = _read_head(path)
    _check_no_stand_in(path, head)
    if head.startswith(b"PK\x03\x04"):
        _check_torch_archive(path)
        content = _load_torch(path)
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        content = _load_safetensors(path)
    elif head[:1] == b"\x80":
        content = _load_torch(path) if _is_legacy_torch(head) else _load_array_pickle(path)
    else:
        raise OSError(
            f"{path} is no file of weights: it begins with {head[:8]!r}; expected one of PyTorch (.pth, .pt, "
            ".bin), a pickle of detectron2 (.pkl) or safetensors. If it is packed, unpack it first"
        )
    return _find_tensors(path, content)


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_SIZE)


def _check_no_stand_in(path: Path, head: bytes) -> None:
    if not head:
        raise OSError(f"{path} is empty: download it again")
    if head.startswith(b"version https://git-lfs"):
        raise OSError(
            f"{path} is a Git LFS pointer, not the weights it points to: run `git lfs pull` in its "
            "repository, or download the file itself"
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise OSError(
            f"{path} is a web page: the download was answered by a log-in, a quota or an error. Open the "
            "link in a browser to see which, then download the file itself"
        )


def _check_torch_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise _build_damage_error(path, "the archive has no end")
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        raise OSError(
            f"{path} is a TorchScript archive, a program rather than weights, such as OpenAI's own files of "
            "CLIP: use a copy of open_clip or transformers of the same weights"
        )
    if "data.pkl" not in names:
        raise OSError(f"{path} is a zip archive, but not one of torch.save: unpack it first")


def _is_legacy_torch(head: bytes) -> bool:
    try:
        for operation, value, _ in pickletools.genops(io.BytesIO(head)):
            if operation.name not in ("PROTO", "FRAME"):
                return bool(value == LEGACY_TORCH_MAGIC)
    except ValueError:  # cut off: whoever reads it whole will say so
        pass
    return False


def _load_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(list(SAFE_TORCH_GLOBALS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _build_refusal(path, _summarise(error)) from error
    except Exception as error:  # damaged bytes fail with whatever they happen to mean
        raise _build_damage_error(path, _summarise(error)) from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _build_damage_error(path, str(error)) from error


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ARRAY_GLOBALS[module, name]
        except KeyError:
            raise RefusedPickleError(f"{module}.{name}") from None


def _load_array_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            # Pickles of Python 2 hold their bytes as text in this encoding.
            return _ArrayUnpickler(file, encoding="latin1").load()
    except RefusedPickleError as error:
        raise _build_refusal(path, str(error)) from error
    except Exception as error:  # as above
        raise _build_damage_error(path, f"{type(error).__name__}: {error}") from error


def _build_refusal(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} holds more than tensors and numbers ({reason}). Reading that would run code from the file, "
        "so nothing of it was run. If you trust where it comes from, save its weights alone in the "
        "environment that made it: torch.save(model.state_dict(), 'weights.pth')"
    )


def _build_damage_error(path: Path, reason: str) -> OSError:
    return OSError(f"{path} is cut off or damaged ({reason}): download it again")


def _summarise(error: Exception) -> str:
    """The sentence of PyTorch's long message that names what is wrong."""
    text = str(error) or type(error).__name__
    _, found, after = text.partition("WeightsUnpickler error: ")
    return (after if found else text).strip().partition("\n")[0].strip()[:200]


def _find_tensors(path: Path, content: Any) -> WeightFile:
    beside: tuple[str, ...] = ()
    if isinstance(content, Mapping):
        for entry in WEIGHT_ENTRIES:
            if isinstance(content.get(entry), Mapping):
                beside = tuple(str(name) for name in content if name != entry)
                content = content[entry]
                break
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected names with their tensors")
    tensors = {str(name): _as_tensor(value) for name, value in content.items()}
    if others := [name for name, value in tensors.items() if value is None]:
        raise ValueError(
            f"{path} holds {len(others)} entries that are no tensors of numbers, first {others[:5]}; "
            f"expected names with their tensors, by themselves or under one of {list(WEIGHT_ENTRIES)}"
        )
    if not tensors:
        raise ValueError(f"{path} holds no tensor")
    return WeightFile({name: value for name, value in tensors.items() if value is not None}, beside)


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, PickledArray):
        array = value.array
        return torch.from_numpy(array) if array is not None and array.dtype.kind in "bif" else None
    return value.detach() if isinstance(value, Tensor) else None
