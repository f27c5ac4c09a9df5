"""The folder of a batch run: which pictures, under which setup, and a table of results for each part.

    setup.json                   what must be equal when the run goes on
    pictures.parquet             the plan: every picture and its part; a row group is a part
    parts/part-000000.parquet    the results of one part

A part's file appears whole or not at all, and its name follows from the plan. So a part is done when its file
is there, and one that is segmented twice, because a worker was thought dead, is there once.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from zsseg.durable_files import replacing_file
from zsseg.image_sources import ImageSource, name_apart

SETUP_FILE = "setup.json"
PLAN_FILE = "pictures.parquet"
PARTS_FOLDER = "parts"
UNFINISHED_PATTERN = ".*.part"
ATTEMPTS_PATTERN = ".part-*.attempts"
SHOWN_CHARACTERS = 80

SEGMENT_TYPE = pa.struct(
    [
        ("id", pa.int32()),
        ("label", pa.string()),
        ("score", pa.float64()),
        ("isthing", pa.bool_()),
        ("area", pa.int64()),
        ("bbox", pa.list_(pa.int32())),
    ]
)
RESULT_SCHEMA = pa.schema(
    [
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("segments", pa.list_(SEGMENT_TYPE)),
        ("panoptic_png", pa.binary()),
        ("error", pa.string()),
        ("seconds", pa.float64()),
    ]
)
"""What is found in one picture; all but ``error`` and ``seconds`` are null where it could not be read."""

ROW_SCHEMA = pa.schema(
    [("image_id", pa.int64()), ("image", pa.string()), ("file_name", pa.string()), *RESULT_SCHEMA]
)
PLAN_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("location", pa.string()),
        ("row", pa.int64()),
        ("file_name", pa.string()),
    ]
)


class ResultsFolderError(ValueError):
    """A folder whose contents are in the way of a run, or are no whole run; the message says what to do."""


class ResultsFolder:
    """Reads and writes the files of a batch run.

    Args:
        folder: where; on several machines, one that all of them see under this path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.parts_folder = self.folder / PARTS_FOLDER
        self._setup_path = self.folder / SETUP_FILE
        self._plan_path = self.folder / PLAN_FILE

    def check(self, *, overwrite: bool) -> None:
        """Refuse, before anything slow, what cannot hold a run.

        Raises:
            ResultsFolderError: if it is a file, or holds something else than a run and ``overwrite`` is not
                given.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ResultsFolderError(f"the output {self.folder} is a file; name a folder")
        is_used = self.folder.is_dir() and any(self.folder.iterdir())
        if is_used and not self._setup_path.is_file() and not overwrite:
            raise ResultsFolderError(
                f"the output {self.folder} is not empty and holds no batch run to go on with; choose another "
                "folder, or overwrite: files of the same names are replaced"
            )

    def claim(
        self,
        setup: Mapping[str, Any],
        sources: Sequence[ImageSource],
        *,
        part_size: int,
        about: Mapping[str, Any],
        overwrite: bool,
    ) -> None:
        """Begin a run, or go on with the one that is there; pictures new to it come behind the old ones.

        Args:
            setup: JSON values that results depend on.
            sources: all pictures of the run.
            part_size: pictures in a part, of those that are new.
            about: JSON values to record and not to compare.
            overwrite: begin anew.

        Raises:
            ResultsFolderError: as :meth:`check`, or if the run there has another setup.
        """
        self.check(overwrite=overwrite)
        setup = json.loads(json.dumps(setup, default=str))
        if overwrite:
            self._remove_run()
        if self._setup_path.is_file():
            self._check_setup(setup)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**about, "setup": setup}, indent=2, ensure_ascii=False)
            with replacing_file(self._setup_path) as path:
                path.write_text(text + "\n", encoding="utf-8")
        self.parts_folder.mkdir(exist_ok=True)
        self._extend_plan(sources, part_size)

    @cached_property
    def num_parts(self) -> int:
        """Parts in the plan."""
        return int(pq.read_metadata(self._plan_path).num_row_groups)

    @cached_property
    def num_pictures(self) -> int:
        """Pictures in the plan."""
        return int(pq.read_metadata(self._plan_path).num_rows)

    def find_pending(self, *, with_failed: bool) -> dict[int, int]:
        """Parts to do → how many of their pictures.

        Args:
            with_failed: parts that are done too, for their pictures that could not be read.
        """
        names = {path.name for path in self.parts_folder.iterdir()}
        plan = pq.read_metadata(self._plan_path)
        pending = {}
        for part in range(plan.num_row_groups):
            if self._part_path(part).name not in names:
                pending[part] = plan.row_group(part).num_rows
            elif with_failed and (failed := _count_errors(self.read_part(part, columns=["error"]))):
                pending[part] = failed
        return pending

    def read_sources(self, part: int) -> list[tuple[int, ImageSource]]:
        """Image ids and pictures of a part."""
        with pq.ParquetFile(self._plan_path) as plan:
            rows = plan.read_row_group(part).to_pylist()
        return [(row["image_id"], ImageSource(row["location"], row["file_name"], row["row"])) for row in rows]

    def read_part(self, part: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]] | None:
        """The rows of a part, or None if it is not done.

        Raises:
            ResultsFolderError: if its file is damaged.
        """
        path = self._part_path(part)
        if not path.is_file():
            return None
        try:
            with pq.ParquetFile(path) as file:
                return file.read(columns=columns).to_pylist()
        except pa.ArrowInvalid as error:
            raise ResultsFolderError(
                f"{path} is damaged ({error}); remove it and run again: its pictures are segmented anew"
            ) from error

    def write_part(self, part: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of a part, which is done from then on."""
        with replacing_file(self._part_path(part)) as path:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=ROW_SCHEMA), path)
        self._attempts_path(part).unlink(missing_ok=True)

    def begin_attempt(self, part: int) -> int:
        """Note that a worker begins with a part; the number of workers that did since the run began."""
        path = self._attempts_path(part)
        with path.open("ab") as file:
            file.write(b".")
        return path.stat().st_size

    def forget_attempts(self) -> None:
        """Begin to count anew: those of a run that was killed say nothing about the parts."""
        for path in self.parts_folder.glob(ATTEMPTS_PATTERN):
            path.unlink(missing_ok=True)

    def iterate_rows(self) -> Iterator[dict[str, Any]]:
        """All rows of the parts that are done, by image id; one part at a time is in memory."""
        for part in range(self.num_parts):
            yield from self.read_part(part) or ()

    def read_failures(self) -> list[tuple[str, str]]:
        """Picture and error, for each that could not be read."""
        table = pyarrow.dataset.dataset(self.parts_folder, schema=ROW_SCHEMA, format="parquet").to_table(
            columns=["image_id", "image", "error"], filter=pyarrow.dataset.field("error").is_valid()
        )
        return [(row["image"], row["error"]) for row in table.sort_by("image_id").to_pylist()]

    def remove_unfinished(self) -> None:
        """Remove what killed workers left half-written; only when no worker runs."""
        for folder in (self.folder, self.parts_folder):
            for path in folder.glob(UNFINISHED_PATTERN):
                path.unlink(missing_ok=True)
        self.forget_attempts()

    def _part_path(self, part: int) -> Path:
        return self.parts_folder / f"part-{part:06}.parquet"

    def _attempts_path(self, part: int) -> Path:
        return self.parts_folder / f".part-{part:06}.attempts"

    def _remove_run(self) -> None:
        # The setup goes last: as long as a result is there, it says what the result is of.
        for path in (*self.parts_folder.glob("part-*.parquet"), self._plan_path, self._setup_path):
            path.unlink(missing_ok=True)

    def _check_setup(self, setup: Mapping[str, Any]) -> None:
        try:
            earlier = json.loads(self._setup_path.read_text(encoding="utf-8"))["setup"]
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsFolderError(
                f"{self._setup_path} is no setup of a batch run ({error!r}); choose another folder, or "
                "overwrite"
            ) from error
        there, now = dict(_flatten(earlier)), dict(_flatten(setup))
        keys = sorted(key for key in {*there, *now} if there.get(key, _ABSENT) != now.get(key, _ABSENT))
        if keys:
            differences = "; ".join(
                f"{key} {_shown(there.get(key))} there, {_shown(now.get(key))} now" for key in keys
            )
            raise ResultsFolderError(
                f"{self.folder} holds results of another setup: {differences}. Run with that setup to go on, "
                "choose another folder, or overwrite to begin anew"
            )

    def _extend_plan(self, sources: Sequence[ImageSource], part_size: int) -> None:
        groups: list[pa.Table] = []
        if self._plan_path.is_file():
            with pq.ParquetFile(self._plan_path) as plan:
                groups = [plan.read_row_group(group) for group in range(plan.num_row_groups)]
        elif next(self.parts_folder.glob("part-*.parquet"), None) is not None:
            raise ResultsFolderError(
                f"{self.folder} holds results, but not their plan {PLAN_FILE}; overwrite to begin anew"
            )
        planned = pa.concat_tables(groups) if groups else PLAN_SCHEMA.empty_table()
        known = set(zip(planned["location"].to_pylist(), planned["row"].to_pylist(), strict=True))
        added = [source for source in sources if (source.location, source.row) not in known]
        if not added:
            return
        taken = {Path(name).stem.casefold(): 1 for name in planned["file_name"].to_pylist()}
        rows = [
            {
                "image_id": len(planned) + number,
                "location": source.location,
                "row": source.row,
                "file_name": name_apart(source.file_name, taken),
            }
            for number, source in enumerate(added, start=1)
        ]
        groups += [
            pa.Table.from_pylist(rows[start : start + part_size], schema=PLAN_SCHEMA)
            for start in range(0, len(rows), part_size)
        ]
        with replacing_file(self._plan_path) as path, pq.ParquetWriter(path, PLAN_SCHEMA) as writer:
            for group in groups:
                writer.write_table(group)


_ABSENT = object()


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested mappings."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _flatten(inner, f"{name}.{key}" if name else key)


def _count_errors(rows: Sequence[Mapping[str, Any]] | None) -> int:
    return sum(row["error"] is not None for row in rows or ())


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
