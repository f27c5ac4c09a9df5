import shutil

import numpy as np
import pytest

from testing.official_layouts import WRITERS, write_coco_panoptic
from zsseg.data.semantic_maps import convert_semantic_to_panoptic
from zsseg.metrics import MeanIoU, PanopticQuality
from zsseg.training.evaluation import add_picture, build_metric
from zsseg.training.protocols import list_protocols, load_protocol

COUNTS = {
    "coco-panoptic-119-14": (133, 14),
    "coco-stuff-156-15": (171, 15),
    "ade-150": (150, 0),
    "pc-59": (59, 0),
    "voc-20": (20, 0),
}
LABELS_OF_PICTURES = {
    "coco-panoptic-119-14": [{"cow", "grass"}, {"car"}],
    "coco-stuff-156-15": [{"person", "wood"}, {"cow"}],
    "ade-150": [{"wall", "flag"}, {"building"}],
    "pc-59": [{"bag"}, {"aeroplane", "wood"}],
    "voc-20": [set(), {"aeroplane", "tv monitor"}],
}


@pytest.fixture(params=list_protocols())
def protocol(request):
    return load_protocol(request.param)


def test_labels_are_those_of_the_literature(protocol):
    vocabulary = protocol.load_vocabulary()
    assert (len(vocabulary), len(vocabulary.unseen_label_ids)) == COUNTS[protocol.name]
    assert set(COUNTS) == set(list_protocols()) == set(WRITERS)


def test_figures_that_are_compared_are_among_those_computed(protocol):
    vocabulary = protocol.load_vocabulary()
    metrics = [build_metric(task, vocabulary) for task in protocol.tasks]
    assert type(metrics[0]) is (PanopticQuality if protocol.tasks[0] == "panoptic" else MeanIoU)
    dataset = _AnyPicture(vocabulary)
    for metric in metrics:
        add_picture(metric, dataset.target if type(metric) is PanopticQuality else dataset.label_map, dataset)
    computed = {name for metric in metrics for name in metric.compute()}
    assert set(protocol.headline) <= computed
    # A split is compared by its harmonic mean, in which absent labels count as 0.
    harmonic = [name for name in protocol.headline if name.startswith("h")]
    assert len(harmonic) == (1 if protocol.split else 0)
    assert ("absent ones as 0" in protocol.averages) == bool(protocol.split)


class _AnyPicture:
    def __init__(self, vocabulary):
        self.label_map = np.zeros((1, 2), dtype=np.int32)
        self.target = convert_semantic_to_panoptic(self.label_map, vocabulary)


def test_the_official_layout_is_read(protocol, tmp_path):
    WRITERS[protocol.name](tmp_path)
    dataset = protocol.open_dataset(tmp_path)
    names = dataset.vocabulary.names
    found = [{segment.label for segment in dataset[index].target.segments} for index in range(len(dataset))]
    assert found == LABELS_OF_PICTURES[protocol.name]
    assert found == [{names[i] for i in dataset.label_ids(index)} for index in range(len(dataset))]
    # Half of the second picture is unknown.
    unknown = [float((dataset[index].target.segment_ids == 0).mean()) for index in range(2)]
    assert sorted(unknown) == ([0.0, 1.0] if protocol.name == "voc-20" else [0.0, 0.5])
    raw = protocol.open_dataset(tmp_path, clean_names=False).vocabulary
    assert (raw.names != names) == (protocol.name not in {"ade-150"})


def test_what_is_missing_is_said_with_the_layout_and_where_to_get_it(protocol, tmp_path):
    WRITERS[protocol.name](tmp_path)
    victim = next(
        path
        for places in list(protocol.layout.parts.values())[-1:]
        for root in protocol.layout.roots
        for path in (tmp_path / root / place for place in places)
        if path.exists()
    )
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    with pytest.raises(FileNotFoundError) as error:
        protocol.open_dataset(tmp_path)
    message = str(error.value)
    for places in protocol.layout.parts.values():
        assert all(place in message for place in places)
    missing = message.partition("missing: ")[2].partition("; found: ")[0]
    assert missing == " or ".join(list(protocol.layout.parts.values())[-1])
    assert all(address in message for address in protocol.downloads)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        protocol.open_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"found: none of them; the folder holds nothing"):
        protocol.open_dataset(tmp_path / "empty")


def test_pictures_that_are_missing_are_counted(tmp_path):
    protocol = load_protocol("voc-20")
    WRITERS["voc-20"](tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 pictures .* 2008_000001.*To be had from"):
        protocol.open_dataset(tmp_path)


def test_panoptic_pngs_may_lie_at_the_top(tmp_path):
    write_coco_panoptic(tmp_path / "coco", maps="panoptic_val2017")
    assert len(load_protocol("coco-panoptic-119-14").open_dataset(tmp_path)) == 2


def test_a_folder_with_much_else_in_it(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02d}").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds 00/, 01/, .*07/ and 4 more"):
        load_protocol("ade-150").open_dataset(tmp_path)


def test_no_other_protocol_is_known():
    with pytest.raises(ValueError, match="no protocol 'ade-847'; there are coco-panoptic-119-14, coco-stuff"):
        load_protocol("ade-847")
