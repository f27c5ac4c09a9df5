"""Tensors by item, computed once and kept on disk: built in shards, resumable, checked by content."""

import hashlib
import json
import logging
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from zsseg.durable_files import flush_to_disk

logger = logging.getLogger(__name__)

SHARD_PATTERN = re.compile(r"items-\d{8}-\d{8}\.safetensors")
TEMPORARY_SUFFIX = ".incomplete"
METADATA_KEY = "zsseg_tensor_store"
LENGTHS_SUFFIX = ".lengths"

Compute = Callable[[range], Sequence[Mapping[str, Tensor]]]


class TensorStoreError(RuntimeError):
    """A store that cannot be used: absent, incomplete, damaged, or of something else."""


class _ShardHeader(NamedTuple):
    """What a shard says of itself, in its file's metadata."""

    identity: dict[str, str]
    num_items: int
    shard_size: int
    start: int
    stop: int
    digest: str


class TensorStore:
    """Items of a finished store, read from memory-mapped files.

    It can be pickled, and worker processes may share it; files are mapped when first read.

    Example:
        >>> import tempfile
        >>> def square(items):
        ...     return [{"square": torch.tensor([item**2])} for item in items]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = build_tensor_store(
        ...         Path(folder), identity={"of": "squares"}, num_items=5, compute=square, description=""
        ...     )
        ...     store[3]
        {'square': tensor([9])}
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, str], num_items: int, paths: Mapping[int, Path]
    ) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self._num_items = num_items
        self._starts = list(paths)
        self._paths = list(paths.values())
        self._shards: dict[int, dict[str, tuple[Tensor, list[int]]]] = {}

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, str], *, num_items: int) -> "TensorStore":
        """Find all shards of a store; their contents are not read, so damage inside goes unnoticed.

        Args:
            folder: where the store was built.
            identity: what it must be of.
            num_items: how many items it must hold.

        Raises:
            TensorStoreError: if shards are missing or unreadable, or are of another identity or length.
        """
        folder = Path(folder)
        paths: dict[int, Path] = {}
        layouts = []
        stop = 0
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not SHARD_PATTERN.fullmatch(path.name):
                continue
            header, layout = _read_header(path)
            if header is None or (reason := _explain_other_store(header, identity, num_items)):
                reason = "no store wrote it" if header is None else reason
                raise TensorStoreError(f"{path} is of another store: {reason}; build this one first")
            if header.start != stop:
                break
            paths[header.start] = path
            layouts.append(layout)
            stop = header.stop
        if stop != num_items:
            raise TensorStoreError(
                f"{folder} holds the first {stop} of {num_items} items without a gap: build the store, which "
                "goes on from what is there"
            )
        if any(layout != layouts[0] for layout in layouts):
            raise TensorStoreError(
                f"the shards in {folder} hold tensors of different names, dtypes or shapes: what computes "
                "them has changed while the identity has not; remove the folder and build the store again"
            )
        return cls(folder, identity, num_items, paths)

    def __len__(self) -> int:
        return self._num_items

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The tensors of one item, as they were computed.

        Raises:
            IndexError: if ``index`` is outside [0, len).
        """
        if not 0 <= index < self._num_items:
            raise IndexError(f"item index must lie in [0, {self._num_items}), got {index}")
        shard = bisect_right(self._starts, index) - 1
        row = index - self._starts[shard]
        # Copies: a view would keep the whole shard mapped, and writing to it would change later reads.
        return {
            name: tensor[offsets[row] : offsets[row + 1]].clone()
            for name, (tensor, offsets) in self._map_shard(shard).items()
        }

    def read_all(self) -> dict[str, Tensor]:
        """The tensors of all items, one after the other along the first dimension, in memory."""
        shards = [self._map_shard(shard) for shard in range(len(self._paths))]
        return {name: torch.cat([shard[name][0] for shard in shards]) for name in shards[0]}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    def _map_shard(self, shard: int) -> dict[str, tuple[Tensor, list[int]]]:
        """By name, the tensor of all items of a shard and the first row of each item, and the end."""
        if shard not in self._shards:
            with safe_open(self._paths[shard], framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
            self._shards[shard] = {
                name: (tensor, [0, *tensors[name + LENGTHS_SUFFIX].cumsum(0).tolist()])
                for name, tensor in tensors.items()
                if not name.endswith(LENGTHS_SUFFIX)
            }
        return self._shards[shard]


def build_tensor_store(
    folder: Path,
    *,
    identity: Mapping[str, str],
    num_items: int,
    compute: Compute,
    shard_size: int = 512,
    description: str,
    progress: bool = True,
) -> TensorStore:
    """Compute what is missing of a store, shard by shard, and open it.

    A shard appears under its name only when it is complete and on disk. Shards that are there are kept if
    they are of this identity and layout and their digest fits; all others are computed anew, and the log says
    why. Of several processes that call this, on one machine or on several that share the disk, one builds;
    the others wait for it.

    Args:
        folder: of this store alone; made if it is not there.
        identity: what the tensors depend on, such as the hash of the weights that compute them.
        num_items: length of the store, 1 or more.
        compute: range of items → for each the tensors by name, with one dimension or more. Under one name the
            dtype and all dimensions but the first are equal for all items.
        shard_size: items in a file, which is also what is lost when the building is killed.
        description: says in the log and at the progress bar what is computed.
        progress: show a bar on a terminal.

    Raises:
        FileExistsError: if the folder holds files that no store wrote; nothing is changed then.
        ValueError: if an argument is out of range, or ``compute`` breaks its promise.
    """
    if num_items < 1 or shard_size < 1:
        raise ValueError(f"num_items and shard_size must be 1 or more, got {num_items} and {shard_size}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_builder(folder, description) as others_built:
        if others_built:
            # They have checked what is there; where they failed, this process goes on.
            with suppress(TensorStoreError):
                return TensorStore.open(folder, identity, num_items=num_items)
        _build_missing(folder, identity, num_items, compute, shard_size, description, progress=progress)
    return TensorStore.open(folder, identity, num_items=num_items)


@contextmanager
def _only_builder(folder: Path, description: str) -> Iterator[bool]:
    """Let one process after the other build, on any machine that sees the folder; whether this one waited.

    The lock ends with its process, also if that is killed.
    """
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(blocking=False)
        has_waited = False
    except Timeout:
        logger.info("%s: another process builds %s, this one waits", description, folder)
        lock.acquire()
        has_waited = True
    try:
        yield has_waited
    finally:
        lock.release()


def _build_missing(
    folder: Path,
    identity: Mapping[str, str],
    num_items: int,
    compute: Compute,
    shard_size: int,
    description: str,
    *,
    progress: bool,
) -> None:
    ranges = [range(start, min(start + shard_size, num_items)) for start in range(0, num_items, shard_size)]
    wanted = {
        _shard_name(items): _ShardHeader(dict(identity), num_items, shard_size, items.start, items.stop, "")
        for items in ranges
    }
    kept = _drop_unusable(folder, wanted, description)
    if kept:
        logger.info("%s: %d of %d shards are there already", description, len(kept), len(wanted))
    with tqdm(
        total=num_items, desc=description, unit="item", leave=False, disable=None if progress else True
    ) as bar:
        for items in ranges:
            name = _shard_name(items)
            if name not in kept:
                _write_shard(folder / name, wanted[name], compute(items))
            bar.update(len(items))


def _shard_name(items: range) -> str:
    return f"items-{items.start:08d}-{items.stop:08d}.safetensors"


def _drop_unusable(folder: Path, wanted: Mapping[str, _ShardHeader], description: str) -> set[str]:
    """Delete what the building cannot use; the names of the shards that stay.

    Raises:
        FileExistsError: if there are files that no store wrote.
    """
    kept: set[str] = set()
    unusable: dict[Path, str] = {}
    foreign: list[str] = []
    for path in sorted(folder.iterdir()):
        if SHARD_PATTERN.fullmatch(path.name.removesuffix(TEMPORARY_SUFFIX)) is None or not path.is_file():
            foreign.append(path.name)
        elif path.name.endswith(TEMPORARY_SUFFIX):
            unusable[path] = "it is half written"
        else:
            try:
                header, _ = _read_header(path)
            except TensorStoreError:
                unusable[path] = "it is damaged"
                continue
            if header is None:
                foreign.append(path.name)
            elif reason := _explain_unusable(path, header, wanted):
                unusable[path] = reason
            else:
                kept.add(path.name)
    if foreign:
        raise FileExistsError(
            f"{folder} holds what no store wrote: {foreign[:10]}; choose another folder, or remove them"
        )
    for reason, count in Counter(unusable.values()).items():
        logger.warning("%s: %d shard(s) in %s are computed anew: %s", description, count, folder, reason)
    for path in unusable:
        path.unlink()
    return kept


def _explain_unusable(path: Path, header: _ShardHeader, wanted: Mapping[str, _ShardHeader]) -> str | None:
    """Why a shard cannot be kept, None if it can."""
    identity, num_items, shard_size, *_ = next(iter(wanted.values()))
    if reason := _explain_other_store(header, identity, num_items):
        return reason
    if header.shard_size != shard_size:
        return f"a shard held {header.shard_size} items then, holds {shard_size} now"
    if header._replace(digest="") != wanted.get(path.name):
        return f"it says that it holds items {header.start} to {header.stop}, against its name"
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
    return None if _compute_digest(tensors) == header.digest else "its contents do not fit its digest"


def _explain_other_store(header: _ShardHeader, identity: Mapping[str, str], num_items: int) -> str | None:
    """In which way a shard is of another store, None if it is not."""
    changes = [
        f"{key} {_shorten(header.identity.get(key))} then, {_shorten(identity.get(key))} now"
        for key in sorted(header.identity.keys() | identity.keys())
        if header.identity.get(key) != identity.get(key)
    ]
    if changes:
        return f"the identity changed: {'; '.join(changes)}"
    if header.num_items != num_items:
        return f"the store had {header.num_items} items then, has {num_items} now"
    return None


def _read_header(path: Path) -> tuple[_ShardHeader | None, dict[str, tuple[str, list[int]]]]:
    """What a shard says of itself, None if no store wrote it; and dtype and trailing shape by name.

    Raises:
        TensorStoreError: if the file is cut off or is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
        layout = {name: (part.get_dtype(), part.get_shape()[1:]) for name, part in slices.items()}
        return None if text is None else _ShardHeader(**json.loads(text)), layout
    except (SafetensorError, TypeError, ValueError) as error:
        raise TensorStoreError(f"{path} is damaged ({error}): build the store again") from error


def _write_shard(path: Path, header: _ShardHeader, items: Sequence[Mapping[str, Tensor]]) -> None:
    tensors = _concatenate(items, range(header.start, header.stop))
    complete = header._replace(digest=_compute_digest(tensors))
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    metadata = {METADATA_KEY: json.dumps(complete._asdict(), ensure_ascii=False)}
    save_file(tensors, temporary, metadata=metadata)
    flush_to_disk(temporary)
    temporary.rename(path)
    flush_to_disk(path.parent)


def _concatenate(items: Sequence[Mapping[str, Tensor]], indices: range) -> dict[str, Tensor]:
    """One tensor by name over all items, and beside it the length of each item."""
    if len(items) != len(indices):
        raise ValueError(
            f"expected tensors for items {indices.start} to {indices.stop}, got {len(items)} items"
        )
    first = items[0]
    for index, item in zip(indices, items, strict=True):
        if item.keys() != first.keys() or not item:
            raise ValueError(f"item {index} has tensors {sorted(item)}, the first one {sorted(first)}")
        for name, tensor in item.items():
            if name.endswith(LENGTHS_SUFFIX):
                raise ValueError(
                    f"the name {name!r} is the store's own: choose one without {LENGTHS_SUFFIX!r}"
                )
            if tensor.ndim < 1 or (tensor.dtype, tensor.shape[1:]) != (
                first[name].dtype,
                first[name].shape[1:],
            ):
                raise ValueError(
                    f"item {index}: {name} must be of one dtype and one shape but for the first dimension, "
                    f"got {tensor.dtype} {tuple(tensor.shape)} beside {first[name].dtype} "
                    f"{tuple(first[name].shape)}"
                )
    tensors: dict[str, Tensor] = {}
    for name in first:
        tensors[name] = torch.cat([item[name].detach().cpu() for item in items]).contiguous()
        tensors[name + LENGTHS_SUFFIX] = torch.tensor([len(item[name]) for item in items])
    return tensors


def _compute_digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shorten(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= 60 else f"{value[:60]}…"
