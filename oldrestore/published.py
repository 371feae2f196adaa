"""Import of the published weights: the files of the released code -> one weights file of ours.

The only place that reads pickles, and only their tensors: a file that would run code is refused.
Wan et al., CVPR 2020; the code and its weights were released under the MIT licence.
"""

import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

try:
    from numpy._core.multiarray import _reconstruct, scalar
except ImportError:  # NumPy before 2
    from numpy.core.multiarray import _reconstruct, scalar  # type: ignore[no-redef]

from oldrestore.attention import GlobalNonlocal, PatchAttention
from oldrestore.checkpoint import write_checkpoint
from oldrestore.config import HR_DILATION_PX, PaperConfig
from oldrestore.layers import ConvNormAct, ResidualBlock
from oldrestore.mapping import VARIANTS, PaperMappingNetwork
from oldrestore.mask import PaperDetector
from oldrestore.vae import VAE

PARTS = ("vae_old", "vae_clean", "mapping", "detector")
OPTIONAL = frozenset({"detector"})
# where the released archive keeps each part: folder/file
_MAPPING_FOLDERS = {
    "quality": "mapping_quality",
    "scratch": "mapping_scratch",
    "hr": "mapping_Patch_Attention",
}
_CLEAN_FOLDERS = {"quality": "VAE_B_quality", "scratch": "VAE_B_scratch", "hr": "VAE_B_scratch"}
_DETECTOR_FILE = "FT_Epoch_latest.pt"
# what checkpoints are wrapped in: the detector's holds its optimiser beside it
_WRAPPERS = ("model_state", "state_dict")
# of numbers that a checkpoint may hold beside its tensors; none of them can run code
_HARMLESS: list[Any] = [
    np.dtype,
    np.ndarray,
    # private, but what NumPy pickles, under its names of before and since NumPy 2
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for name, function in (("scalar", scalar), ("_reconstruct", _reconstruct))
        for core in ("core", "_core")
    ),
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
]
_REFUSED = re.compile(r"(?:GLOBAL|type) ([\w.]+)")
_ENDINGS = {".pth", ".pt"}
_SUFFIXES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

Names = dict[str, str]  # published key -> ours


@dataclass(frozen=True)
class PublishedFile:
    """A checkpoint file, on its own or inside a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}/{self.member}"

    def read(self) -> bytes:
        if self.member is None:
            return self.path.read_bytes()
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.member)
        except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{self}: cannot be unpacked: {error}") from error


def convert(
    sources: Sequence[Path],
    output: Path,
    variant: str,
    *,
    parts: Mapping[str, Path] | None = None,
    half: bool = False,
    config: PaperConfig | None = None,
) -> dict[str, str]:
    """Write the published weights of a variant as a file for ``Restorer.load``.

    Args:
        sources: the published folder, its zip archive, or files in folders of the published names.
        output: the safetensors file.
        variant: "quality", "scratch" or "hr".
        parts: files by part (``PARTS``), whatever they are called; they go before ``sources``.
        half: store in 16 bits: half the size, no longer exact.
        config: layout of the networks, if it is not the published one; its variant is not used.

    Returns:
        Where each part came from.

    Raises:
        ValueError: a part is missing, damaged, another network, or would run code when read.
        OSError: a file cannot be read or written.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"{output}: there is no folder {output.parent} to write it to")
    files = {name: PublishedFile(path) for name, path in (parts or {}).items()}
    for name in PARTS:
        if name not in files and (found := find_file(sources, _published_name(name, variant))):
            files[name] = found
    _require(files, sources, variant)
    config = config or PaperConfig()
    config = replace(
        config,
        mapping=replace(config.mapping, variant=variant),
        mask=config.mask if "detector" in files else None,
        defaults=replace(config.defaults, dilation_px=HR_DILATION_PX if variant == "hr" else 0),
    )
    tensors: dict[str, Tensor] = {}
    digests = {}
    for name, file in files.items():
        content = file.read()
        state = _renamed(read_state_dict(content, str(file)), _network(name, config), file)
        prefix = "mask" if name == "detector" else name
        tensors |= {f"{prefix}.{key}": value for key, value in state.items()}
        digests[name] = hashlib.sha256(content).hexdigest()
    about = {
        "data": "the published weights of Bringing Old Photos Back to Life (Wan et al., CVPR 2020)",
        "licence": "MIT",
        "variant": variant,
        "sha256": digests,
    }
    write_checkpoint(output, tensors, asdict(config), about, half=half)
    return {name: str(file) for name, file in files.items()}


def published_names(network: nn.Module) -> Names:
    """Published key -> ours, for every tensor of a `paper` network (VAE, mapping or detector)."""
    pairs: Iterable[tuple[str, str]]
    if isinstance(network, VAE):
        pairs = [
            *_sequence("encoder", network.encoder.named_children(), "encoder."),
            *_sequence("decoder", network.decoder.named_children(), "decoder."),
        ]
    elif isinstance(network, PaperMappingNetwork):
        pairs = _mapping_names(network)
    else:
        assert isinstance(network, PaperDetector)
        pairs = _detector_names(network.config.levels)
    ours = network.state_dict()
    names = {
        f"{published}.{suffix}": f"{own}.{suffix}"
        for published, own in pairs
        for suffix in _SUFFIXES
        if f"{own}.{suffix}" in ours
    }
    assert set(names.values()) == set(ours)
    return names


def _published_name(part: str, variant: str) -> str:
    """Folder and file of a part in the released archive."""
    if part == "detector":
        return _DETECTOR_FILE
    if part == "mapping":
        return f"{_MAPPING_FOLDERS[variant]}/latest_net_mapping_net.pth"
    folder = "VAE_A_quality" if part == "vae_old" else _CLEAN_FOLDERS[variant]
    return f"{folder}/latest_net_G.pth"


def find_file(sources: Sequence[Path], name: str) -> PublishedFile | None:
    """The file whose path ends in ``name``, in the first source that has one."""
    for source in sources:
        for file in _files(source):
            path = file.member if file.member is not None else file.path.absolute().as_posix()
            if f"/{path}".endswith(f"/{name}"):
                return file
    return None


def _files(source: Path) -> list[PublishedFile]:
    """The checkpoint files of a source.

    Raises:
        ValueError: there is no such source, or it is a damaged archive.
    """
    if source.is_dir():
        return [
            PublishedFile(path) for path in sorted(source.rglob("*")) if path.suffix in _ENDINGS
        ]
    if not source.is_file():
        raise ValueError(f"{source}: no such file or folder")
    if zipfile.is_zipfile(source):
        try:
            with zipfile.ZipFile(source) as archive:
                members = sorted(archive.namelist())
        except zipfile.BadZipFile as error:
            raise ValueError(f"{source}: a damaged zip archive: {error}") from error
        if not any(member.endswith("data.pkl") for member in members):  # what torch.save writes
            return [PublishedFile(source, member) for member in members]
    return [PublishedFile(source)]


def _require(files: Mapping[str, PublishedFile], sources: Sequence[Path], variant: str) -> None:
    """Every part but the optional ones is there."""
    for name in PARTS:
        if name in files or name in OPTIONAL:
            continue
        there = [str(file.member or file.path.name) for s in sources for file in _files(s)][:6]
        flag = f"--{name.replace('_', '-')}"
        raise ValueError(
            f"{', '.join(map(str, sources)) or 'SOURCES'}: expected "
            f'{_published_name(name, variant)} (variant "{variant}"), '
            f"found {', '.join(there) or 'nothing'}; name the file with {flag} if it is elsewhere"
        )


def _network(part: str, config: PaperConfig) -> nn.Module:
    """An empty network of a part, for its names and shapes."""
    with torch.device("meta"):
        if part == "mapping":
            return PaperMappingNetwork(config.mapping)
        if part == "detector":
            assert config.mask is not None
            return PaperDetector(config.mask)
        return VAE(config.vae)


def read_state_dict(content: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote, in float32, without DataParallel's prefix.

    Raises:
        ValueError: it would run code, is damaged, or holds something else.
    """
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise ValueError(f"{name}: damaged, or not a file of torch.save") from error
        raise ValueError(
            f"{name}: would call {refused[1]} when read, and could run any code with it; refused"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, AttributeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{name}: damaged, or not a file of torch.save ({reason})") from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(f"{name}: expected a state dict of tensors, got {type(loaded).__name__}")
    state = {str(key): value for key, value in loaded.items()}
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _renamed(
    state: Mapping[str, Tensor], network: nn.Module, file: PublishedFile
) -> dict[str, Tensor]:
    """The tensors of a published state dict under our names.

    Raises:
        ValueError: a key is missing, unknown, misshapen or not finite: names the first.
    """
    names, ours = published_names(network), network.state_dict()
    not_it = f"{file}: not the network asked for"
    for key, own in names.items():
        if key not in state:
            raise ValueError(f"{not_it}: missing key {key}{looks_like(state)}")
        expected, got = tuple(ours[own].shape), tuple(state[key].shape)
        if got != expected:
            raise ValueError(
                f"{not_it}: {key}: expected shape {expected}, got {got}{looks_like(state)}"
            )
        if not state[key].isfinite().all():
            raise ValueError(f"{file}: {key}: holds values that are not finite")
    for key in state:
        is_blur = isinstance(network, PaperDetector) and key.endswith(".filt")  # never changes
        if key not in names and not is_blur:
            raise ValueError(f"{not_it}: unknown key {key}{looks_like(state)}")
    return {own: state[key] for key, own in names.items()}


def looks_like(state: Mapping[str, Tensor]) -> str:
    """Which published network a state dict is, if it is one: the end of a message."""
    kinds = {
        'the mapping of variant "quality"': "model.0.weight",
        'the mapping of variant "scratch"': "NL.theta.weight",
        'the mapping of variant "hr"': "NL_scale_1.F_Combine.weight",
        "a VAE": "encoder.1.weight",
        "the scratch detector": "first.1.weight",
        "the face generator": "head_0.conv_0.bias",
    }
    found = next((kind for kind, key in kinds.items() if key in state), None)
    return f"; this looks like {found}" if found else ""


def _sequence(
    published: str, layers: Iterable[tuple[str, nn.Module]], ours: str = ""
) -> Iterator[tuple[str, str]]:
    """Modules of one published nn.Sequential, where padding, norm and ReLU count as entries too."""
    slot = 0
    for name, layer in layers:
        if isinstance(layer, ResidualBlock):
            yield f"{published}.{slot}.conv_block.1", f"{ours}{name}.conv1"
            yield f"{published}.{slot}.conv_block.5", f"{ours}{name}.conv2"
            slot += 1
        elif isinstance(layer, (ConvNormAct, nn.Conv2d)):
            is_plain = isinstance(layer, nn.Conv2d)
            conv = layer if isinstance(layer, nn.Conv2d) else layer.conv
            slot += conv.padding_mode == "reflect"
            yield f"{published}.{slot}", f"{ours}{name}" + ("" if is_plain else ".conv")
            slot += 1 if is_plain else 3


def _mapping_names(network: PaperMappingNetwork) -> Iterator[tuple[str, str]]:
    segments: list[list[tuple[str, nn.Module]]] = [[]]
    blocks: list[tuple[str, nn.Module]] = []
    for part in ("head", "trunk", "tail"):
        for name, layer in network.get_submodule(part).named_children():
            entry = (f"{part}.{name}", layer)
            if isinstance(layer, (GlobalNonlocal, PatchAttention)):
                blocks.append(entry)
                segments.append([])
            else:
                segments[-1].append(entry)
    between = [f"res_block_{i}" for i in range(1, len(blocks))]
    titles = ["before_NL", *between, "after_NL"] if blocks else ["model"]
    for title, segment in zip(titles, segments, strict=True):
        yield from _sequence(title, segment)
    for i, (name, layer) in enumerate(blocks):
        if isinstance(layer, GlobalNonlocal):
            yield from (("NL.theta", f"{name}.theta"), ("NL.phi", f"{name}.phi"))
            yield from (("NL.g", f"{name}.mu"), ("NL.W", f"{name}.nu"))
            yield from _sequence("NL.res_block", layer.blocks.named_children(), f"{name}.blocks.")
        else:
            title = f"NL_scale_{i + 1}"
            yield f"{title}.F_Combine", f"{name}.combine"
            yield from _sequence(f"{title}.res_block", [("block", layer.block)], f"{name}.")  # type: ignore[list-item]  # a module


def _detector_names(levels: int) -> Iterator[tuple[str, str]]:
    yield "first.1", "head"
    yield "last.1", "tail"
    for level in range(levels):
        up = levels - 1 - level  # the published list runs from the coarsest level up
        yield f"down_sample.{level}.1", f"down.{level}.conv"
        yield f"down_sample.{level}.2", f"down.{level}.norm"
        yield f"up_path.{up}.up.2", f"up.{level}"
        both = ((f"down_path.{level}", "encode"), (f"up_path.{up}.conv_block", "decode"))
        for published, ours in both:
            for i, slot in enumerate((1, 5)):
                yield f"{published}.block.{slot}", f"{ours}.{level}.{i}.conv"
                yield f"{published}.block.{slot + 1}", f"{ours}.{level}.{i}.norm"
