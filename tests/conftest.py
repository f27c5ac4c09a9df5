"""What every test has: no network but loopback, and tiny checkpoints made once."""

import ipaddress
import socket

import pytest

_connect = socket.socket.connect

MARKS_OF_TRANSFORMERS_TESTS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
)


def pytest_configure(config):
    for mark in MARKS_OF_TRANSFORMERS_TESTS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own tests, which run on our models")


def _is_local(address):
    if isinstance(address, str | bytes):  # a Unix socket's path
        return True
    host = address[0]
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _block_network():
    def connect(self, address):
        if not _is_local(address):
            raise ConnectionRefusedError(f"tests may only connect to this machine, not to {address}")
        return _connect(self, address)

    socket.socket.connect = connect
    yield
    socket.socket.connect = _connect


@pytest.fixture(scope="session")
def mask2former_checkpoint(tmp_path_factory):
    """A Mask2Former with a Swin backbone and its image processor, as transformers saves them."""
    from testing.tiny_models import save_mask2former

    folder = tmp_path_factory.mktemp("mask2former")
    save_mask2former(folder)
    return folder


@pytest.fixture(scope="session")
def clip_checkpoint(tmp_path_factory):
    """A complete CLIP with a tokenizer."""
    from testing.tiny_models import save_clip

    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture(scope="session")
def bert_checkpoint(tmp_path_factory):
    """A plain text encoder with a tokenizer."""
    from testing.tiny_models import save_bert

    folder = tmp_path_factory.mktemp("bert")
    save_bert(folder)
    return folder


@pytest.fixture(scope="session")
def concat_checkpoint(tmp_path_factory):
    """CONCAT with a text tower: model, tokenizer and image processor."""
    from testing.tiny_models import build_clip_text_config, build_model, build_processor

    folder = tmp_path_factory.mktemp("concat")
    build_model(text_config=build_clip_text_config()).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bank_checkpoint(tmp_path_factory):
    """CONCAT with precomputed vectors instead of a text tower."""
    from testing.tiny_models import build_bank, build_model, build_processor

    folder = tmp_path_factory.mktemp("bank")
    build_model().save_pretrained(folder)
    build_processor(text_embeddings=build_bank()).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on loopback, to which huggingface_hub and transformers turn in this process."""
    from testing.hub_server import HubServer

    with HubServer() as server:
        server.take_over(monkeypatch, tmp_path / "hub_home")
        yield server
