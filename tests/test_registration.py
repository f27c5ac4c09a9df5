"""Whoever is imported first: transformers knows the families, and nobody hears of it.

Orders of import need fresh processes. What no order depends on (torch above all) is imported once, in
a parent that forks a child per order.
"""

import json
import subprocess
import sys

import pytest

import zsseg
from zsseg.registration import FAMILIES, REGISTERED_AFTER, TASKS

CHECK = """
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY
from zsseg import ConcatConfig, ConcatForPanopticSegmentation, ConcatImageProcessorPil, ConcatProcessor
from zsseg import ScanConfig, ScanForSemanticSegmentation
from zsseg.layers.mobilenet_v2_backbone import MobileNetV2Backbone, MobileNetV2BackboneConfig

assert isinstance(AutoConfig.for_model("zsseg-concat"), ConcatConfig)
assert isinstance(AutoConfig.for_model("zsseg-scan"), ScanConfig)
assert AutoModel._model_mapping[ConcatConfig] is ConcatForPanopticSegmentation
assert AutoModel._model_mapping[ScanConfig] is ScanForSemanticSegmentation
assert AutoBackbone._model_mapping[MobileNetV2BackboneConfig] is MobileNetV2Backbone
for task in ("zero-shot-panoptic-segmentation", "zero-shot-semantic-segmentation"):
    assert task in PIPELINE_REGISTRY.get_supported_tasks(), task
"""

ORDERS = {
    "zsseg, then a model of transformers": "import zsseg\nfrom transformers import Mask2FormerModel",
    "zsseg, then pipelines": "import zsseg\nfrom transformers import pipeline",
    "transformers first": "from transformers import AutoModel, AutoProcessor\nimport zsseg",
    "transformers' pipelines first": "from transformers import pipeline\nimport zsseg",
    "a configuration first": "from zsseg.models.concat.configuration_concat import ConcatConfig",
    "our pipelines first": "import zsseg.pipelines.zero_shot_panoptic_segmentation",
    "layers first": "import zsseg.layers.mobilenet_v2_backbone",
}

LONE_CLASSES = {
    "AutoConfig": "ConcatConfig",
    "AutoImageProcessor": "ConcatImageProcessorPil",
    "AutoProcessor": "ConcatProcessor",
}

PARENT = """
import json, os, sys
import accelerate, huggingface_hub.utils, numpy, PIL.Image, psutil, regex, safetensors.torch, scipy.optimize
import tokenizers, torch, torch.distributed.tensor, torch.utils.data

assert not {"transformers", "zsseg"} & set(sys.modules)
snippets = json.load(sys.stdin)


def start(name, code):
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write_end, 1)
        os.dup2(write_end, 2)
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    os.close(write_end)
    return child, os.fdopen(read_end)


results, names = {}, list(snippets)
for pair in zip(names[::2], [*names[1::2], None]):
    started = {name: start(name, snippets[name]) for name in pair if name is not None}
    for name, (child, pipe) in started.items():
        printed = pipe.read()
        results[name] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed]
json.dump(results, sys.stdout)
"""


def run_in_fresh_processes(snippets):
    """{name: code} → {name: [exit status, what was printed]}."""
    done = subprocess.run(
        [sys.executable, "-c", PARENT], input=json.dumps(snippets), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_order_of_imports_registers_and_prints_nothing(concat_checkpoint):
    snippets = {name: code + CHECK for name, code in ORDERS.items()}
    for name, expected in LONE_CLASSES.items():
        call = f"{name}.from_pretrained({str(concat_checkpoint)!r})"
        check = f"assert type({call}).__name__ == {expected!r}"
        snippets[f"zsseg, then {name} alone"] = f"import zsseg\nfrom transformers import {name}\n{check}"
    results = run_in_fresh_processes(snippets)
    assert results == {name: [0, ""] for name in snippets}


def test_importing_zsseg_imports_nothing_heavy():
    code = "import zsseg, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "PIL", "scipy", "safetensors", "huggingface_hub"}
    assert not heavy & set(done.stdout.split())
    assert done.stderr == ""


def test_once_both_halves_are_registered_nobody_watches_imports():
    zsseg.register()
    import transformers.pipelines  # noqa: F401

    assert all(module in sys.modules for module in REGISTERED_AFTER)
    assert not [finder for finder in sys.meta_path if type(finder).__module__ == "zsseg.registration"]


def test_registering_again_is_silent_and_changes_nothing(caplog, capfd):
    from transformers import AutoModel, AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    zsseg.register()
    config_class = zsseg.ConcatConfig
    tasks = {task: PIPELINE_REGISTRY.supported_tasks[task] for task in TASKS}
    zsseg.register()
    assert AutoModel._model_mapping[config_class] is zsseg.ConcatForPanopticSegmentation
    assert AutoProcessor is not None
    assert {task: PIPELINE_REGISTRY.supported_tasks[task] for task in TASKS} == tasks
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_every_public_name_resolves():
    for name in zsseg.__all__:
        assert getattr(zsseg, name) is not None
    assert dir(zsseg) == sorted(zsseg.__all__)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'zsseg' has no attribute 'Concat'"):
        _ = zsseg.Concat


def test_each_family_serves_both_tasks():
    from transformers.pipelines import PIPELINE_REGISTRY

    zsseg.register()
    models = {family.load("modeling", family.model) for family in FAMILIES}
    for task in TASKS:
        assert set(PIPELINE_REGISTRY.supported_tasks[task]["pt"]) == models
