import json
import re
import subprocess
import sys
import time
from functools import partial
from io import BytesIO
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

ray = pytest.importorskip("ray", reason="needs the extra scale")
pytest.importorskip("ray.data", reason="needs the extra scale")

import pyarrow as pa  # noqa: E402
from pyarrow import parquet  # noqa: E402

from zsseg.batch_inference import segment_dataset, segment_pictures  # noqa: E402
from zsseg.batch_inference.picture_segmenter import PartSegmenter, SegmenterSettings  # noqa: E402
from zsseg.batch_inference.ray_engine import ActorPool, WorkerError, run_parts  # noqa: E402
from zsseg.batch_inference.results_folder import ResultsFolder  # noqa: E402
from zsseg.cli.main import app  # noqa: E402
from zsseg.data.patchwork.dataset import PatchworkDataset  # noqa: E402
from zsseg.vocabulary import Vocabulary  # noqa: E402

SCRIPT = Path(sys.executable).with_name("zsseg")
LABELS = ["road", "car", "tree"]
SCENES, SOME_SCENES = 2000, 500
PART_SIZE = 25
SECONDS_TO_WAIT = 200


@pytest.fixture(scope="module")
def cluster():
    """Ray in the background of this process, with what two cores hold."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 1024**2,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture
def one_thread():
    """A worker has one thread, and sums of another number of threads may be rounded otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_scenes(path, number):
    """Patchwork scenes in one Parquet file; a cell in a hundred holds no whole picture."""
    cells = []
    for index, example in enumerate(PatchworkDataset("easy", num_scenes=number, size=64)):
        buffer = BytesIO()
        example.image.save(buffer, "PNG")
        data = buffer.getvalue()
        cells.append(data[: len(data) // 2] if index % 100 == 50 else data)
    parquet.write_table(pa.table({"image": pa.array(cells, pa.binary())}), path, row_group_size=200)
    return path


class Command:
    """``zsseg segment --engine ray`` in a process of its own, and the workers that it has."""

    def __init__(self, pictures, output, checkpoint):
        arguments = (
            *(SCRIPT, "segment", pictures, "--labels", ",".join(LABELS), "--stuff", "tree"),
            *("--model", checkpoint, "--output", output, "--engine", "ray"),
            *("--workers", 2, "--part-size", PART_SIZE),
        )
        self.parts = output / "parts"
        # Not pipes: what Ray starts holds them open for a while after its driver is dead.
        self.stdout, self.stderr = (output.with_suffix(name) for name in (".stdout", ".stderr"))
        with self.stdout.open("w") as stdout, self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(list(map(str, arguments)), stdout=stdout, stderr=stderr)

    def find_workers(self):
        return {
            child.pid
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if _name(child).startswith("ray::MapWorker")
        }

    def wait_for_parts(self, number):
        until = time.monotonic() + SECONDS_TO_WAIT
        while len(list(self.parts.glob("part-*.parquet"))) < number:
            assert self.process.poll() is None, self.stderr.read_text()
            assert time.monotonic() < until, "no worker writes any more"
            time.sleep(0.05)

    def kill(self):
        """Kill it as the kernel does, and wait until its workers are gone too."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        workers = [child for child in children if _name(child).startswith("ray::MapWorker")]
        assert len(workers) == 2
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
        for child in children:  # Ray's own, which notice later
            if child.is_running():
                child.kill()

    def end(self, scenes):
        """How many of the scenes were segmented now, and before."""
        self.process.wait(SECONDS_TO_WAIT)
        stdout, stderr = self.stdout.read_text(), self.stderr.read_text()
        assert self.process.returncode == 1, stderr  # of the pictures that are cut off
        assert f"{scenes // 100} of {scenes:,} images could not be read" in stderr
        now, before = re.search(r"· ([\d,]+) images? now, ([\d,]+) before", stdout).groups()
        return int(now.replace(",", "")), int(before.replace(",", ""))


def _name(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def assert_complete(output, scenes):
    """Every scene has one row, in order, whole or with its error."""
    rows = parquet.read_table(output / "parts").to_pylist()
    assert [row["image_id"] for row in rows] == list(range(1, scenes + 1))
    assert [row["image"].rsplit("#")[1] for row in rows] == [str(index) for index in range(scenes)]
    assert [row["image_id"] - 1 for row in rows if row["error"]] == list(range(50, scenes, 100))
    for row in rows:
        if row["error"] is None:
            assert (row["width"], row["height"]) == (64, 64)
    assert not list((output / "parts").glob(".*"))


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_row_and_doubles_none(finding_checkpoint, tmp_path):
    output = tmp_path / "out"
    command = Command(write_scenes(tmp_path / "scenes.parquet", SCENES), output, finding_checkpoint)
    command.wait_for_parts(SCENES // PART_SIZE // 2)
    workers = command.find_workers()
    assert len(workers) == 2
    victim = psutil.Process(min(workers))
    victim.kill()
    victim.wait(30)
    assert command.end(SCENES) == (SCENES, 0)
    assert_complete(output, SCENES)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_was(cluster, finding_checkpoint, tmp_path):
    scenes, output = write_scenes(tmp_path / "scenes.parquet", SOME_SCENES), tmp_path / "out"
    command = Command(scenes, output, finding_checkpoint)
    command.wait_for_parts(SOME_SCENES // PART_SIZE // 2)
    command.kill()
    done = {path.name: path.stat().st_mtime_ns for path in (output / "parts").glob("part-*.parquet")}
    report = segment_pictures(
        [str(scenes)],
        candidate_labels=LABELS,
        stuff_labels=["tree"],
        model=str(finding_checkpoint),
        output=output,
        num_workers=1,
    )
    assert len(done) >= SOME_SCENES // PART_SIZE // 2
    assert report.num_segmented == SOME_SCENES - len(done) * PART_SIZE > 0
    assert len(report.failures) == SOME_SCENES // 100
    assert {name: (output / "parts" / name).stat().st_mtime_ns for name in done} == done
    assert_complete(output, SOME_SCENES)


@pytest.mark.slow
def test_both_engines_write_the_same_files(cluster, one_thread, pictures, finding_checkpoint, tmp_path):
    (pictures / "broken.png").write_bytes(b"no picture")
    outputs = {}
    for engine, options in (("local", ()), ("ray", ("--format", "coco", "--workers", 2, "--part-size", 2))):
        outputs[engine] = tmp_path / engine
        arguments = (
            *("segment", pictures, "--labels", ",".join(LABELS), "--stuff", "tree"),
            *("--model", finding_checkpoint, "--output", outputs[engine], "--engine", engine, *options),
        )
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 1, result.output
        assert "1 of 6 images could not be read" in result.stderr
        assert "broken.png': expected a picture" in result.stderr
    local, batch = outputs["local"], outputs["ray"]
    assert (local / "panoptic.json").read_bytes() == (batch / "panoptic.json").read_bytes()
    assert len(json.loads((batch / "panoptic.json").read_text())["annotations"]) == 5
    names = sorted(path.name for path in (local / "panoptic").iterdir())
    assert names == sorted(path.name for path in (batch / "panoptic").iterdir())
    for name in names:
        assert (local / "panoptic" / name).read_bytes() == (batch / "panoptic" / name).read_bytes()
    records = json.loads((local / "segments.json").read_text())["images"]
    rows = [row for row in parquet.read_table(batch / "parts").to_pylist() if row["error"] is None]
    assert [record["segments"] for record in records] == [row["segments"] for row in rows]
    again = CliRunner().invoke(app, list(map(str, arguments)))
    assert (again.exit_code, "· 0 images now, 6 before" in again.stdout) == (1, True)
    other = CliRunner().invoke(app, [*map(str, arguments), "--threshold", "0.3"])
    assert other.exit_code == 2
    assert "thresholds.threshold 0.0 there, 0.3 now" in other.stderr


@pytest.mark.slow
def test_a_data_set_of_ray_gets_columns(cluster, pictures, finding_checkpoint):
    paths = sorted(pictures.glob("*.png"))[:3]
    items = [{"key": path.name, "picture": path.read_bytes()} for path in paths]
    table = segment_dataset(
        ray.data.from_items([*items, {"key": "empty", "picture": b""}], override_num_blocks=2),
        candidate_labels=LABELS,
        image_column="picture",
        model=str(finding_checkpoint),
        num_workers=1,
    )
    rows = {row["key"]: row for row in table.take_all()}
    assert sorted(rows) == ["empty", *(path.name for path in paths)]
    assert "it is empty (0 bytes)" in rows["empty"]["error"]
    for path in paths:
        with Image.open(path) as image:
            assert (rows[path.name]["width"], rows[path.name]["height"]) == image.size
        assert len(rows[path.name]["segments"]) > 1


@pytest.mark.slow
def test_a_worker_without_the_checkpoint_ends_the_run_with_its_reason(cluster, pictures, tmp_path):
    results = ResultsFolder(tmp_path / "out")
    results.claim({}, [], part_size=1, about={}, overwrite=False)
    settings = SegmenterSettings(str(tmp_path / "elsewhere"), Vocabulary.from_labels(LABELS))
    worker = partial(PartSegmenter, settings, results, image_column="image")
    with pytest.raises(
        WorkerError, match=r"a worker failed \(OSError: .*elsewhere.*what was done is kept"
    ) as caught:
        list(run_parts(worker, [0], ActorPool("cpu", 1, 1)))
    assert "load_pipeline" in caught.value.__notes__[0]


def test_workers_are_fitted_to_what_there_is(cluster):
    assert ActorPool.plan(None, None, 1) == ActorPool("cpu", 2, 1)
    assert ActorPool.plan("cpu", None, 2) == ActorPool("cpu", 1, 2)
    assert ActorPool.plan("cpu", 2, 1).at_most(1) == ActorPool("cpu", 1, 1)
    for arguments, message in (
        (("cpu", 3, 1), "3 workers of 1 CPU cores on 'cpu' do not fit"),
        (("cpu", 2, 2), "2 workers of 2 CPU cores"),
        (("cuda", 1, 1), "on 'cuda' do not fit"),
        (("cuda", None, 1), "on 'cuda' do not fit"),
        (("cuda:1", 1, 1), "got 'cuda:1'"),
        (("cpu", 0, 1), "num_workers must be at least 1"),
        (("cpu", 1, 0), "cpus_per_worker must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ActorPool.plan(*arguments)


def test_a_mistake_leaves_no_folder(pictures, finding_checkpoint, tmp_path):
    def segment(**changes):
        options = {"candidate_labels": LABELS, "model": str(finding_checkpoint), **changes}
        segment_pictures([str(pictures)], output=tmp_path / "out", **options)

    with pytest.raises(ValueError, match="part_size must be at least 1"):
        segment(part_size=0)
    with pytest.raises(ValueError, match="leave out stuff_labels"):
        segment(candidate_labels=Vocabulary.from_labels(LABELS), stuff_labels=["tree"])
    with pytest.raises(ValueError, match="tokens"):
        segment(candidate_labels=["a" * 200])
    assert not (tmp_path / "out").exists()
