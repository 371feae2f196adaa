"""The networks of a weights file: built, loaded, saved, on one device and in one precision.

``pipeline.Restorer`` is these and the way of a photo through them.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from oldrestore.checkpoint import load_strictly, read_checkpoint, write_checkpoint
from oldrestore.config import PaperConfig, RestorerConfig, restorer_config
from oldrestore.denoise import DenoiseHead
from oldrestore.device import Graphs, choose_device, choose_dtype, memory_format
from oldrestore.face.stage import Faces, FaceStage, make_face_stage
from oldrestore.layers import choose_backend
from oldrestore.mapping import make_mapping
from oldrestore.mask import make_detector
from oldrestore.tone import ToneHead
from oldrestore.vae import VAE, make_decoder, make_encoder

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "default.safetensors"

VAES = ("vae_old", "vae_clean")

T = TypeVar("T", bound="Networks")


class Networks:
    """All networks of a weights file, and their settings.

    Args:
        config: layout of the networks, which start untrained; ``load`` fills them from a file.
        about: what the weights file says about itself.
        device: None or "auto": CUDA if there is one, else the CPU.
        dtype: of the convolutions. None: float32; "auto": float16 on CUDA, float32 elsewhere.
        backend: of the operations, see ``ops.available``; None: the fastest.
        cuda_graphs: on CUDA, replay each size of photo from a graph; pays for many photos of few
            sizes.

    Raises:
        ValueError: this machine has no such device, or cannot do what is asked for on it.
    """

    def __init__(
        self,
        config: RestorerConfig,
        *,
        about: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        backend: str | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        if config.vae.latent_channels != config.mapping.latent_channels:
            both = f"{config.vae.latent_channels} and {config.mapping.latent_channels}"
            raise ValueError(f"config: vae and mapping differ in latent_channels: {both}")
        self.config = config
        self.about = dict(about or {})
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.vae_old_encoder = make_encoder(config.vae)
        self.mapping = make_mapping(config.mapping)
        self.vae_clean_decoder = make_decoder(config.vae)
        self.tone_head = None if config.tone is None else ToneHead(config.tone)
        self.detector = None if config.mask is None else make_detector(config.mask)
        self.denoise_head = None if config.denoise is None else DenoiseHead(config.denoise)
        for name, network in self.networks().items():
            # tiny, and what they say goes over every pixel: always in full precision
            precision = torch.float32 if name in ("tone", "denoise") else self.dtype
            network.to(self.device, precision)
            network.to(memory_format=memory_format(self.device))  # type: ignore[call-overload]
            network.eval().requires_grad_(False)
        choose_backend(self.networks().values(), backend, self.device)
        if cuda_graphs and self.device.type != "cuda":
            raise ValueError(f"cuda_graphs: needs a CUDA device, not {self.device}")
        self.faces: FaceStage | None = None
        self.rehearsed: dict[Any, int] = {}  # see tiling.plan: it belongs to these networks
        self._run = Graphs(self._through_networks) if cuda_graphs else self._through_networks

    @classmethod
    def load(
        cls: type[T],
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        backend: str | None = None,
        cuda_graphs: bool = False,
        *,
        faces: Faces = "auto",
        face_weights: str | os.PathLike[str] | None = None,
    ) -> T:
        """Build the networks of a weights file; None: the file shipped with the package.

        Args:
            weights, device, dtype, backend, cuda_graphs: see the class.
            faces: "on": faces are enhanced too, which needs the extra "faces"; "off"; "auto": on
                where weights of a face network are given or shipped, and the extra is installed.
            face_weights: file of a face network; None: the one shipped, if there is one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a whole checkpoint of this package; the message says why. Or
                faces are asked for and something is missing for them.
        """
        path = DEFAULT_WEIGHTS if weights is None else Path(weights)
        checkpoint = read_checkpoint(path)
        config = restorer_config(checkpoint.config, f"{path}: config")
        try:
            built = cls(
                config,
                about=checkpoint.about,
                device=device,
                dtype=dtype,
                backend=backend,
                cuda_graphs=cuda_graphs,
            )
        except RuntimeError as error:  # torch's, of sizes that no layer can have
            raise ValueError(f"{path}: config: no network can be built of it: {error}") from error
        networks = built.networks()
        with torch.device("meta"):  # a file may hold all of both VAEs, to be trained further
            whole = {f"{vae}.{key}" for vae in VAES for key in VAE(config.vae).state_dict()}
        for name in checkpoint.tensors:
            if name not in whole and not name.startswith(tuple(f"{part}." for part in networks)):
                raise ValueError(f"{path}: unknown key {name}")
        for prefix, network in networks.items():
            load_strictly(network, checkpoint.tensors, prefix, path)
        built.faces = make_face_stage(faces, face_weights, built.device)
        return built

    def save(self, path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        """Write a weights file that ``load`` reads: all that restoring uses and no more."""
        tensors = {
            f"{prefix}.{name}": tensor
            for prefix, network in self.networks().items()
            for name, tensor in network.state_dict().items()
        }
        write_checkpoint(path, tensors, dataclasses.asdict(self.config), about)

    def networks(self) -> dict[str, nn.Module]:
        """The networks under the names that their keys start with in the weights file."""
        named = {
            "vae_old.encoder": self.vae_old_encoder,
            "mapping": self.mapping,
            "vae_clean.decoder": self.vae_clean_decoder,
            "tone": self.tone_head,
            "mask": self.detector,
            "denoise": self.denoise_head,
        }
        return {name: network for name, network in named.items() if network is not None}

    @property
    def align_px(self) -> int:
        """Tiles start at multiples of this: the largest grid of the networks."""
        if isinstance(self.config, PaperConfig):
            return self.mapping.cell_px
        return self.config.mapping.align_px

    @property
    def context_px(self) -> int | None:
        """How far a pixel can influence ``translate``, rounded up to ``align_px``.

        The overlap that makes tiles equal the whole; None if every pixel can influence every other,
        as in the published networks. The detector and the hole fill have their own.
        """
        if isinstance(self.config, PaperConfig):
            return None
        reach = 2 * self.config.vae.context_px + self.config.mapping.context_px
        reach += self.mapping.cell_px - 1  # a cell speaks for its farthest pixel
        return -(-reach // self.align_px) * self.align_px

    def _through_networks(self, filled: Tensor, mask: Tensor) -> Tensor:
        """Encode, map, decode: a whole photo with its sides padded."""
        restored: Tensor = self.vae_clean_decoder(self.mapping(self.vae_old_encoder(filled), mask))
        return restored
