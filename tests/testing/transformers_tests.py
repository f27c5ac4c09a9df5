"""transformers' own tests of models, run on ours. Only its sdist has them; `make test` unpacks it."""

import functools
import importlib
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(sys.prefix) / "transformers-tests" / "tests"
PACKAGE = "transformers_tests"

MISSING_FROM_SDIST = {
    # Of models that generate text, and of exports, which tests/publishing/test_exporting.py covers.
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    # Settings of every config of transformers, which theirs must accept: none to try.
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}
"""What the tests import of transformers' repository that its sdist does not hold."""


def import_transformers_tests(name):
    """The module ``tests/NAME.py`` of transformers; where it was not unpacked, the caller's tests skip."""
    if not FOLDER.is_dir():
        pytest.skip(
            f"transformers' own tests are not in {FOLDER}; `make test` puts them there",
            allow_module_level=True,
        )
    if PACKAGE not in sys.modules:
        _add_package(PACKAGE, FOLDER)
        for missing, names in MISSING_FROM_SDIST.items():
            folder, module = missing.split(".")
            _add_package(f"{PACKAGE}.{folder}", FOLDER / folder)
            vars(_add_module(f"{PACKAGE}.{folder}.{module}")).update(names)
        # Finds pictures of theirs on disk; the tests run here load none.
        _add_module("fetch_hub_objects_for_ci").url_to_local_path = str
    return importlib.import_module(f"{PACKAGE}.{name}")


def expecting_failures(reasons):
    """Class decorator: the inherited tests with these names fail, for a reason each that pytest prints.

    One that passes is an error, so that the list stays true; so is a name that transformers no longer has.
    """

    def mark(test_class):
        for name, reason in reasons.items():
            test = _without_subtests(getattr(test_class, name))
            setattr(test_class, name, pytest.mark.xfail(reason=reason, strict=True)(test))
        return test_class

    return mark


def _without_subtests(test):
    """The failure of a subtest does not count as that of its test, so there are none."""

    @functools.wraps(test)
    def run(self):
        self.subTest = lambda *_, **__: nullcontext()
        test(self)

    return run


def _add_module(name):
    sys.modules[name] = ModuleType(name)
    return sys.modules[name]


def _add_package(name, folder):
    _add_module(name).__path__ = [str(folder)]
