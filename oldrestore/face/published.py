"""Import of the published face generators: their checkpoints -> one weights file of the face stage.

Spectral norm keeps a weight and two vectors; the weight that it stands for is what is stored.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from oldrestore.checkpoint import write_checkpoint
from oldrestore.face.generator import FaceGenerator, PaperFaceConfig
from oldrestore.published import find_file, looks_like, read_state_dict

# variant of `oldrestore convert`: side of the crops, and where the released archive keeps it
FACE_VARIANTS = {
    "face": (256, "Setting_9_epoch_100/latest_net_G.pth"),
    "face-512": (512, "FaceSR_512/latest_net_G.pth"),
}
_BLOCKS = ("head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3")
_PARTS = {
    "conv_0": "conv1",
    "conv_1": "conv2",
    "conv_s": "shortcut",
    "norm_0": "norm1",
    "norm_1": "norm2",
    "norm_s": "norm_shortcut",
    "param_free_norm": "norm",
    "mlp_shared.0": "shared",
    "mlp_gamma": "gamma",
    "mlp_beta": "beta",
}


def convert_face(
    sources: Sequence[Path],
    output: Path,
    variant: str,
    *,
    file: Path | None = None,
    half: bool = False,
    channels: int = PaperFaceConfig.channels,
) -> str:
    """Write a published face generator as a file for ``Restorer.load(face_weights=...)``.

    Args:
        sources: the published folder, its zip archive, or files in folders of the published names.
        output: the safetensors file.
        variant: "face" (crops of 256 px) or "face-512".
        file: the checkpoint, whatever it is called; goes before ``sources``.
        half: store in 16 bits: half the size, no longer exact.
        channels: of the last block, if they are not the published ones.

    Returns:
        Where it came from.

    Raises:
        ValueError: it is missing, damaged, another network, or would run code when read.
        OSError: a file cannot be read or written.
    """
    if variant not in FACE_VARIANTS:
        raise ValueError(f"variant: expected one of {', '.join(FACE_VARIANTS)}, got {variant!r}")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"{output}: there is no folder {output.parent} to write it to")
    side, name = FACE_VARIANTS[variant]
    found = find_file(sources if file is None else [file], name if file is None else file.name)
    if found is None:
        where = ", ".join(map(str, sources)) or "SOURCES"
        raise ValueError(f"{where}: expected {name}; name the file with --face if it is elsewhere")
    content = found.read()
    config = PaperFaceConfig(side, channels)
    tensors = face_tensors(read_state_dict(content, str(found)), config, str(found))
    about = {
        "data": "the published weights of Bringing Old Photos Back to Life (Wan et al., CVPR 2020)",
        "licence": "MIT",
        "variant": variant,
        "sha256": {"face": hashlib.sha256(content).hexdigest()},
    }
    layout = {"preset": "paper", "face": asdict(config)}
    write_checkpoint(
        output, {f"face.{key}": value for key, value in tensors.items()}, layout, about, half=half
    )
    return str(found)


def face_tensors(
    state: Mapping[str, Tensor], config: PaperFaceConfig, name: str
) -> dict[str, Tensor]:
    """A published state dict under our names, spectral norm folded.

    Args:
        name: of its file, for messages.

    Raises:
        ValueError: a key is missing, unknown, misshapen or not finite: names the first.
    """
    with torch.device("meta"):
        ours = FaceGenerator(config).state_dict()
    wanted = dict(published_shapes(ours))
    not_it = f"{name}: not the network asked for"
    for key, shape in wanted.items():
        if key not in state:
            raise ValueError(f"{not_it}: missing key {key}{looks_like(state)}")
        if tuple(state[key].shape) != shape:
            got = tuple(state[key].shape)
            raise ValueError(f"{not_it}: {key}: expected shape {shape}, got {got}")
        if not state[key].isfinite().all():
            raise ValueError(f"{name}: {key}: holds values that are not finite")
    unknown = next((key for key in state if key not in wanted), None)
    if unknown is not None:
        raise ValueError(f"{not_it}: unknown key {unknown}{looks_like(state)}")
    folded = {own: _weight(state, _published_name(own)) for own in ours}
    if not all(value.isfinite().all() for value in folded.values()):
        raise ValueError(f"{name}: a spectral norm in it is 0")
    return folded


def _published_name(own: str) -> str:
    """Our key -> the published one."""
    first, *rest = own.split(".")
    if first == "start":
        return ".".join(["fc", *rest])
    if first == "tail":
        return ".".join(["conv_img", *rest])
    published = {ours: theirs for theirs, ours in _PARTS.items()}
    return ".".join([_BLOCKS[int(rest[0])], *(published.get(part, part) for part in rest[1:])])


def _is_normed(key: str) -> bool:
    """Whether spectral norm is on this weight: on the blocks' convolutions."""
    *_, part, last = key.split(".")
    return last == "weight" and part in ("conv_0", "conv_1", "conv_s")


def published_shapes(ours: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every key of the published state dict, with its shape."""
    for own, value in ours.items():
        key, shape = _published_name(own), tuple(value.shape)
        if not _is_normed(key):
            yield key, shape
            continue
        yield f"{key}_orig", shape
        yield f"{key}_u", shape[:1]
        yield f"{key}_v", (shape[1] * shape[2] * shape[3],)


def _weight(state: Mapping[str, Tensor], key: str) -> Tensor:
    """W / (u^T W v) of a convolution with spectral norm (Miyato et al., ICLR 2018, eq. 8)."""
    if not _is_normed(key):
        return state[key]
    weight = state[f"{key}_orig"].double()
    u, v = state[f"{key}_u"].double(), state[f"{key}_v"].double()
    return (weight / (u @ weight.flatten(1) @ v)).float()
