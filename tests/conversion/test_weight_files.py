import io
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zsseg.conversion.weight_files import ARRAY_GLOBALS, load_weight_file

TENSORS = {"layer.weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(7)}
ARRAYS = {name: tensor.numpy() for name, tensor in TENSORS.items()}


class WritesAFile:
    """Unpickled by Python as it is, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class EvaluatesCode(WritesAFile):
    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


def save_legacy_torch(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content, path, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))


def check_tensors(found):
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("save", [torch.save, save_legacy_torch])
def test_files_of_pytorch(tmp_path, save):
    path = tmp_path / "weights.bin"
    for content, beside in (
        (TENSORS, ()),
        (OrderedDict(TENSORS), ()),
        ({"model": TENSORS, "iteration": 3, "best": np.float64(0.5)}, ("iteration", "best")),
        ({"epoch": 1, "state_dict": TENSORS}, ("epoch",)),
        ({name: torch.nn.Parameter(value, value.is_floating_point()) for name, value in TENSORS.items()}, ()),
    ):
        save(content, path)
        file = load_weight_file(path)
        check_tensors(file.tensors)
        assert file.beside == beside
        assert not any(tensor.requires_grad for tensor in file.tensors.values())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_arrays(tmp_path, protocol):
    path = tmp_path / "model.pkl"
    content = {"model": ARRAYS, "__author__": "somebody", "matching_heuristics": True}
    save_pickle(content, path, protocol)
    file = load_weight_file(path)
    check_tensors(file.tensors)
    assert file.beside == ("__author__", "matching_heuristics")
    file.tensors["layer.weight"].add_(1)  # of memory that may be written to


def test_pickles_of_other_byte_orders_numbers_and_old_numpy(tmp_path):
    path = tmp_path / "model.pkl"
    save_pickle({"a": ARRAYS["layer.weight"].astype(">f4"), "b": np.float32(2.5)}, path)
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    file = load_weight_file(path)
    assert torch.equal(file.tensors["a"], TENSORS["layer.weight"])
    assert file.tensors["b"].item() == 2.5


def test_safetensors_under_any_name(tmp_path):
    save_file(TENSORS, tmp_path / "model.pth")
    check_tensors(load_weight_file(tmp_path / "model.pth").tensors)


@pytest.mark.parametrize("malice", [WritesAFile, EvaluatesCode])
@pytest.mark.parametrize("save", [torch.save, save_legacy_torch, save_pickle])
def test_a_malicious_pickle_does_not_run(tmp_path, save, malice):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    for content in (
        {"model": TENSORS if save is not save_pickle else ARRAYS, "x": malice(trace)},
        malice(trace),
    ):
        save(content, path)
        with pytest.raises(
            ValueError, match=r"(?s)would run code.*nothing of it was run.*torch\.save\(model"
        ):
            load_weight_file(path)
        assert not trace.exists()
    # The same file does run where nothing restrains it, so the test would notice.
    if save is save_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trace.exists()


def test_what_is_refused_is_named(tmp_path):
    path = tmp_path / "weights.pth"
    for save in (torch.save, save_legacy_torch, save_pickle):
        save({"model": {}, "x": EvaluatesCode(tmp_path)}, path)
        with pytest.raises(ValueError, match=r"eval"):
            load_weight_file(path)


def test_the_encoder_of_old_pickles_encodes_nothing_else(tmp_path):
    class Encodes:
        def __reduce__(self):
            import _codecs

            return _codecs.encode, ("text", "rot13")

    save_pickle(Encodes(), tmp_path / "model.pkl")
    with pytest.raises(ValueError, match=r"_codecs\.encode to rot13"):
        load_weight_file(tmp_path / "model.pkl")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 176\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: download it again"),
        (LFS, "is a Git LFS pointer, not the weights it points to: run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html><body>quota exceeded", "is a web page: the download was answered by"),
        (b"<html>", "is a web page"),
        (b'{"weights": []}', r"is no file of weights: it begins with b'\{\"weight'; expected one of PyTorch"),
        (b"\x1f\x8b\x08 packed", "If it is packed, unpack it first"),
        (b"\x80\x02", "is cut off or damaged"),
    ],
)
def test_what_is_no_weights_is_named(tmp_path, content, message):
    path = tmp_path / "model_final.pth"
    path.write_bytes(content)
    with pytest.raises(OSError, match=message):
        load_weight_file(path)


@pytest.mark.parametrize("save", [torch.save, save_legacy_torch, save_pickle, save_file])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_files_cut_off_are_named(tmp_path, save, share):
    path = tmp_path / "weights.pth"
    tensors = {f"layer.{index}": torch.full((50,), float(index)) for index in range(9)}
    save(
        tensors if save is not save_pickle else {name: value.numpy() for name, value in tensors.items()}, path
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(OSError, match=r"weights\.pth is cut off or damaged \(.+\): download it again"):
        load_weight_file(path)


def test_other_archives_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"clip/{name}", b"")
    with pytest.raises(OSError, match="is a TorchScript archive, a program rather than weights"):
        load_weight_file(tmp_path / "clip.pt")
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.writestr("model.pth", b"")
    with pytest.raises(OSError, match=r"is a zip archive, but not one of torch\.save: unpack it"):
        load_weight_file(tmp_path / "weights.zip")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list; expected names with their tensors"),
        ({"epoch": 3, "lr": 0.1}, r"holds 2 entries that are no tensors of numbers, first \['epoch', 'lr'\]"),
        ({"model": {}}, "holds no tensor"),
    ],
)
def test_contents_without_tensors_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        load_weight_file(tmp_path / "weights.pth")


def test_arrays_of_anything_but_numbers_are_refused(tmp_path):
    for array in (
        np.array(["text", None], dtype=object),
        np.zeros(2, dtype=[("a", "f4"), ("b", "O")]),
        np.zeros(2, dtype=[("a", "f4")]),
        np.array(["text"]),
        np.zeros(2, dtype="M8[s]"),
    ):
        for save in (save_pickle, torch.save, save_legacy_torch):
            save({"model": {"a": array}}, tmp_path / "model.pkl")
            with pytest.raises(
                ValueError, match=r"more than tensors and numbers \(numpy\.dtype of '.+', which"
            ):
                load_weight_file(tmp_path / "model.pkl")


class Calls:
    """Pickled as a call, and as a state if there is one."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


F4, RECONSTRUCT = np.dtype("f4"), np._core.multiarray._reconstruct
STATE = (1, (2,), F4, False, bytes(8))
ADDRESS = b"A" * 8


def build_array(*state, subtype=np.ndarray, shape=(0,)):
    return Calls(RECONSTRUCT, (subtype, shape, b"b"), state)


def build_type(*state):
    return Calls(np.dtype, ("f4", False, True), state)


ATTACKS = {
    "array of addresses": Calls(np.ndarray, ((1,), np.dtype("O"), ADDRESS)),
    "array of a number": Calls(np.ndarray, ((1,), F4, ADDRESS)),
    "array without a call": Calls(np.ndarray.__new__, (np.ndarray, (1,), F4)),
    "addresses as a state": build_array(1, (1,), np.dtype("O"), False, ADDRESS),
    "a list as a state": build_array(1, (1,), F4, False, [object]),
    "shape below zero": build_array(1, (-1, -2), F4, False, bytes(8)),
    "code in place of a type": build_array(1, (1,), "O", False, ADDRESS),
    "array of another class": build_array(*STATE, subtype=np.dtype),
    "address as a number": Calls(np._core.multiarray.scalar, (np.dtype("O"), ADDRESS)),
    "addresses in a buffer": Calls(np._core.numeric._frombuffer, (ADDRESS, np.dtype("O"), (1,), "C")),
    "type that becomes fields": build_type(3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 8, 63),
    "type that becomes a subarray": build_type(3, "<", (np.dtype("f4"), (2,)), None, None, 8, 4, 0),
    "type with metadata": build_type(4, "<", None, None, None, 4, 4, 0, {"a": 1}),
    "type of a type": Calls(np.dtype, (F4,)),
}
READS = """
import sys
from zsseg.conversion.weight_files import load_weight_file
try:
    print(load_weight_file(sys.argv[1]))
except (OSError, ValueError) as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("save", [torch.save, save_legacy_torch, save_pickle])
@pytest.mark.parametrize("attack", ATTACKS)
def test_arrays_that_are_no_numbers_are_refused_from_any_file(tmp_path, save, attack):
    save({"model": {"w": ATTACKS[attack]}}, tmp_path / "model.pkl")
    with pytest.raises(ValueError, match=r"would run code from the file, so nothing of it was run"):
        load_weight_file(tmp_path / "model.pkl")


@pytest.mark.parametrize("save", [torch.save, save_legacy_torch, save_pickle])
def test_an_array_of_addresses_does_not_crash_the_process(tmp_path, save):
    path = tmp_path / "model.pkl"
    save({"model": {"w": ATTACKS["array of addresses"]}}, path)
    result = subprocess.run([sys.executable, "-c", READS, path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(
        f"ValueError {path} holds more than tensors and numbers (numpy.dtype of 'O8'"
    )


def test_an_array_of_addresses_by_single_operations(tmp_path):
    """Written by no pickler: of both ways to make an object, and of a state for a class."""
    path = tmp_path / "model.pkl"
    arguments = b"K\x01\x85cnumpy\ndtype\nX\x01\x00\x00\x00O\x85RB\x08\x00\x00\x00AAAAAAAA\x87"
    number = arguments.replace(b"\x00\x00\x00O", b"\x00\x00\x00d")
    for content in (
        b"cnumpy\nndarray\n" + arguments + b"R",
        b"cnumpy\nndarray\n" + arguments + b"\x81",
        b"cnumpy\nndarray\n" + number + b"R",
        b"cnumpy\nndarray\n" + number + b"\x81",
        b"(inumpy\nndarray\n",
        b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x85\x81",
    ):
        path.write_bytes(b"\x80\x03}X\x01\x00\x00\x00w" + content + b"s.")
        with pytest.raises(ValueError, match=r"numbers \((a call of numpy\.ndarray|numpy\.dtype of 'O')"):
            load_weight_file(path)
    for name in sorted({f"{module}\n{name}" for module, name in ARRAY_GLOBALS if module != "collections"}):
        # A state for a class, or for a function, would last as long as the process.
        state = b"N}X\x01\x00\x00\x00xNs\x86"
        path.write_bytes(b"\x80\x03c" + name.encode() + b"\n" + state + b"b.")
        with pytest.raises(OSError, match="is cut off or damaged"):
            load_weight_file(path)
    assert not any(hasattr(value, "x") for value in ARRAY_GLOBALS.values())


@pytest.mark.parametrize("count", [0, 4, 7, 9, 12])
def test_a_wrong_count_of_bytes_is_named(tmp_path, count):
    for attack in (
        build_array(1, (2,), F4, False, bytes(count)),
        Calls(np._core.numeric._frombuffer, (bytes(count), F4, (2,), "C")),
    ):
        save_pickle({"model": {"w": attack}}, tmp_path / "model.pkl", 3)
        with pytest.raises(
            OSError, match=rf"damaged \(ValueError: an array of shape \(2,\) .*8 bytes, got {count}"
        ):
            load_weight_file(tmp_path / "model.pkl")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("code", ["?", "i1", "<i2", ">i4", "<i8", ">i8", "f2", ">f4", "<f8", ">f8"])
def test_orders_in_memory_and_of_bytes(tmp_path, protocol, code):
    numbers = np.arange(24).reshape(2, 3, 4).astype(code)
    arrays = {
        "c": numbers,
        "fortran": np.asfortranarray(numbers),
        "axes": numbers.transpose(1, 0, 2),
        "strides": numbers[:, ::2],
        "number": np.array(3).astype(code),
    }
    if protocol > 2:  # which has no bytes, and calls them where there are none
        arrays["empty"] = numbers[:0]
    save_pickle(arrays, tmp_path / "model.pkl", protocol)
    tensors = load_weight_file(tmp_path / "model.pkl").tensors
    assert tensors.keys() == arrays.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])
        assert tensor.numpy().dtype == numbers.dtype.newbyteorder("=")


def test_a_type_takes_nothing_but_the_byte_order_from_its_state(tmp_path):
    kind = build_type(3, ">", None, None, None, 8, 8, 63)  # the flags of objects
    array = build_array(1, (1,), kind, False, np.array([2.5], ">f4").tobytes())
    save_pickle({"w": array}, tmp_path / "w.pkl", 3)
    assert torch.equal(load_weight_file(tmp_path / "w.pkl").tensors["w"], torch.tensor([2.5]))


def test_pickles_of_python_2(tmp_path):
    """As Python 2 writes them: text of bytes, its own names, whole numbers as long ones."""
    numbers = np.array([[1.5, -2.0, 3.0], [4.0, 5.0, -6.25]], "<f4")
    data = numbers.tobytes()
    path = tmp_path / "model.pkl"
    path.write_bytes(
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01\x8a\x01\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(data)]) + data + b"tbs."
    )
    assert torch.equal(load_weight_file(path).tensors["w"], torch.from_numpy(numbers))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_weight_file(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="is a folder: name the file of weights in it"):
        load_weight_file(tmp_path)


def test_buffers_out_of_the_pickle_are_refused(tmp_path):
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 5, buffer_callback=lambda _: None)
    pickler.dump({"model": ARRAYS})
    (tmp_path / "model.pkl").write_bytes(buffer.getvalue())
    with pytest.raises(OSError, match="is cut off or damaged"):
        load_weight_file(tmp_path / "model.pkl")
