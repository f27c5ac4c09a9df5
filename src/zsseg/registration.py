"""Tells transformers about the families, when somebody uses transformers and not before.

``import zsseg`` must stay quick, and transformers' Auto classes take seconds to import. So importing zsseg only
watches the module ``transformers``: the first time anybody takes an Auto class or ``pipeline`` from it, the families
join its tables. :func:`register` does it at once.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Family:
    """Where a family's classes live.

    Attributes:
        package: the family's folder below ``zsseg.models``.
        name: prefix of its classes.
        model: class of its model.
    """

    package: str
    name: str
    model: str

    def load(self, module: str, class_name: str) -> Any:
        """Import one class of the family."""
        return getattr(
            importlib.import_module(f"zsseg.models.{self.package}.{module}_{self.package}"), class_name
        )


FAMILIES = (Family("concat", "Concat", "ConcatForPanopticSegmentation"),)

TASKS = {
    "zero-shot-panoptic-segmentation": (
        "zsseg.pipelines.zero_shot_panoptic_segmentation",
        "ZeroShotPanopticSegmentationPipeline",
    ),
    "zero-shot-semantic-segmentation": (
        "zsseg.pipelines.zero_shot_semantic_segmentation",
        "ZeroShotSemanticSegmentationPipeline",
    ),
}


def register() -> None:
    """Add every family to transformers' Auto classes and both tasks to its pipelines; may be called again."""
    register_auto_classes()
    register_pipelines()


def register_auto_classes() -> None:
    """Add configs, models, processors and the MobileNetV2 backbone to transformers' Auto classes."""
    from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor
    from transformers.utils import is_torchvision_available

    from zsseg.layers.mobilenet_v2_backbone import MobileNetV2Backbone, MobileNetV2BackboneConfig

    AutoConfig.register(MobileNetV2BackboneConfig.model_type, MobileNetV2BackboneConfig, exist_ok=True)
    AutoBackbone.register(MobileNetV2BackboneConfig, MobileNetV2Backbone, exist_ok=True)
    for family in FAMILIES:
        config_class = family.load("configuration", f"{family.name}Config")
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, family.load("modeling", family.model), exist_ok=True)
        image_processors = {"pil": family.load("image_processing", f"{family.name}ImageProcessorPil")}
        if is_torchvision_available():
            module = f"zsseg.models.{family.package}.image_processing_{family.package}_torchvision"
            image_processors["torchvision"] = getattr(
                importlib.import_module(module), f"{family.name}ImageProcessor"
            )
        AutoImageProcessor.register(config_class, image_processor_classes=image_processors, exist_ok=True)
        AutoProcessor.register(
            config_class, family.load("processing", f"{family.name}Processor"), exist_ok=True
        )


def register_pipelines() -> None:
    """Add both tasks to ``transformers.pipeline``."""
    from transformers.pipelines import PIPELINE_REGISTRY

    models = tuple(family.load("modeling", family.model) for family in FAMILIES)
    for task, (module, class_name) in TASKS.items():
        # Registering a task again would print a warning.
        if task not in PIPELINE_REGISTRY.supported_tasks:
            pipeline_class = getattr(importlib.import_module(module), class_name)
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class=pipeline_class, pt_model=models, type="multimodal"
            )


def register_on_first_use() -> None:
    """Have :func:`register` run when somebody first asks ``transformers`` for an Auto class or ``pipeline``."""
    if "transformers" in sys.modules:
        _watch(sys.modules["transformers"])
    elif not any(isinstance(finder, _TransformersFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TransformersFinder())


def _watch(transformers: ModuleType) -> None:
    """Give the transformers module a class that registers the families on the first access that needs them."""
    lazy_module: Any = type(transformers)
    if lazy_module.__name__ == "_WatchedModule":
        return
    if any(name == "pipeline" or name.startswith("Auto") for name in vars(transformers)):
        # Somebody holds an Auto class already, so nothing more will be asked for.
        register()
        return

    class _WatchedModule(lazy_module):
        def __getattr__(self, name: str) -> Any:
            value = lazy_module.__getattr__(self, name)
            if name == "pipeline" or name.startswith("Auto"):
                if _is_any_own_module_half_imported():
                    # It asks for itself; forget the cached value so that the next one who asks passes here too.
                    vars(self).pop(name, None)
                else:
                    self.__class__ = lazy_module
                    register()
            return value

    transformers.__class__ = _WatchedModule


def _is_any_own_module_half_imported() -> bool:
    return any(
        name.startswith("zsseg.") and getattr(module.__spec__, "_initializing", False)
        for name, module in list(sys.modules.items())
    )


class _TransformersFinder(importlib.abc.MetaPathFinder):
    """Finds ``transformers`` as the other finders do, and has it watched once it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _WatchingLoader(spec.loader)
        return spec


class _WatchingLoader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # What transformers sees of itself is its own loader, as without us.
        module.__spec__.loader = module.__loader__ = self._loader  # type: ignore[union-attr]
        self._loader.exec_module(module)
        # It has put a lazy module in its own place.
        _watch(sys.modules["transformers"])
