import json

import pytest
import typer

from testing.tiny_models import build_bank


@pytest.fixture(scope="session")
def embeddings_file(tmp_path_factory):
    """Vectors for a closed list of words."""
    folder = tmp_path_factory.mktemp("embeddings")
    build_bank().save(folder)
    return folder / "text_embeddings.safetensors"


@pytest.fixture
def fails(capsys):
    """Run a script's function that must fail; what it prints and its exit code."""

    def run(convert, *args, **options):
        with pytest.raises(typer.Exit) as caught:
            convert(*args, **options)
        return capsys.readouterr().err.removeprefix("error: ").strip(), caught.value.exit_code

    return run


@pytest.fixture
def read_report():
    """What a conversion wrote of itself."""
    return lambda folder: json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
