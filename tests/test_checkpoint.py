import json
import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from oldrestore.checkpoint import (
    config_from_json,
    load_strictly,
    read_checkpoint,
    write_checkpoint,
)


@dataclass(frozen=True)
class Inner:
    widths: tuple[int, ...] = (1, 2)
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    inner: Inner = Inner()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([0.1, -3.0]), "b": torch.tensor([1, 2])}
    write_checkpoint(tmp_path / "w.safetensors", tensors, {"k": [1, 2]}, {"steps": 7})
    read = read_checkpoint(tmp_path / "w.safetensors")
    assert read.config == {"k": [1, 2]}
    assert read.about == {"steps": 7}
    assert read.tensors["a"].dtype == torch.float16
    assert torch.equal(read.tensors["a"], tensors["a"].half())
    assert torch.equal(read.tensors["b"], tensors["b"])
    assert names(tmp_path) == ["w.safetensors"]


def test_full_precision_is_kept_on_request(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "w", {"a": torch.tensor([0.1])}, {}, {}, half=False)
    assert torch.equal(read_checkpoint(tmp_path / "w").tensors["a"], torch.tensor([0.1]))


def test_views_and_shared_memory_are_written(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    write_checkpoint(tmp_path / "w", {"a": base, "b": base.T}, {}, {})
    assert torch.equal(read_checkpoint(tmp_path / "w").tensors["b"].float(), base.T)


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_values_that_do_not_fit_are_refused_by_name(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="conv: not finite in 16 bits"):
        write_checkpoint(tmp_path / "w", {"conv": torch.tensor([value])}, {}, {})
    assert names(tmp_path) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w"
    write_checkpoint(path, {"a": torch.ones(1)}, {}, {})

    def half_then_full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half_then_full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(path, {"a": torch.zeros(1)}, {}, {})
    assert names(tmp_path) == ["w"]
    assert read_checkpoint(path).tensors["a"] == 1


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors: no such weights file"):
        read_checkpoint(tmp_path / "gone.safetensors")


class Bomb:
    """What a hostile pickle would do when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("write", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_pickles_are_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object
) -> None:
    monkeypatch.chdir(tmp_path)
    write({"a": Bomb()}, tmp_path / "evil.safetensors")
    with pytest.raises(ValueError, match="is a pickle"):
        read_checkpoint(tmp_path / "evil.safetensors")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kept", [0, 4, 12, 100, -1])
def test_damaged_files_are_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w"
    write_checkpoint(path, {"a": torch.ones(100)}, {}, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="w: damaged, or not a safetensors file"):
        read_checkpoint(path)


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w")
    with pytest.raises(ValueError, match=r"expected format 'oldrestore/1'.*got 'no format'"):
        read_checkpoint(tmp_path / "w")


@pytest.mark.parametrize("config", ["{", "[1]"])
def test_a_header_that_is_no_json_object_is_refused(tmp_path: Path, config: str) -> None:
    header = {"format": "oldrestore/1", "config": config, "about": "{}"}
    save_file({"a": torch.ones(1)}, tmp_path / "w", header)
    with pytest.raises(ValueError, match="w: config in its header"):
        read_checkpoint(tmp_path / "w")


def named(module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"net.{name}": value.half() for name, value in module.state_dict().items()}


def test_loading_fills_the_module_in_its_own_precision() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    load_strictly(target, {**named(source), "other.x": torch.ones(1)}, "net", "file")
    assert target.weight.dtype == torch.float32
    assert torch.equal(target.weight, source.weight.half().float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net.bias": None}, "file: missing key net.bias"),
        ({"net.extra": torch.ones(1)}, "file: unknown key net.extra"),
        ({"net.bias": torch.ones(3)}, r"net.bias: expected shape \(2,\), got \(3,\)"),
        ({"net.bias": torch.tensor([1.0, float("nan")])}, "net.bias: holds values that"),
    ],
)
def test_wrong_keys_are_named(change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {k: v for k, v in {**named(nn.Linear(3, 2)), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        load_strictly(nn.Linear(3, 2), tensors, "net", "file")


def test_a_config_survives_json() -> None:
    config = Outer("y", Inner((3, 4, 5), 1.0))
    assert config_from_json(Outer, json.loads(json.dumps(asdict(config))), "config") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "y"}, "config: missing field 'inner'"),
        ({"name": "y", "inner": {"widths": [1]}}, "config.inner: missing field 'rate'"),
        ({**asdict(Outer()), "extra": 1}, "config: unknown field 'extra'"),
        ({"name": 3, "inner": asdict(Inner())}, "config.name: expected str, got 3"),
        ({"name": "y", "inner": 3}, "config.inner: expected a JSON object, got 3"),
        ({"name": "y", "inner": {"widths": ["a"], "rate": 1}}, "widths: expected int, got 'a'"),
        ({"name": "y", "inner": {"widths": 3, "rate": 1}}, "widths: expected tuple, got 3"),
    ],
)
def test_a_wrong_config_is_one_clear_error(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_json(Outer, values, "config")
