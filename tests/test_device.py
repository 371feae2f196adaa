import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from oldrestore.config import PaperConfig
from oldrestore.device import Graphs, choose_device, choose_dtype, memory_format
from oldrestore.fill import fill_holes
from oldrestore.mapping import PaperMappingConfig
from oldrestore.ops import is_static, static_control_flow
from oldrestore.pipeline import Restorer
from oldrestore.vae import PaperVAEConfig


def _operands(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, height, width, generator=generator) * 2 - 1
    mask = torch.zeros(1, 1, height, width)
    mask[..., 5:9, 3:] = 1
    return image, mask


def test_devices_and_precisions() -> None:
    best = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device(None) == choose_device("auto") == torch.device(best)
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_dtype(None, torch.device("cuda")) is torch.float32
    assert choose_dtype("auto", torch.device("cuda")) is torch.float16
    assert choose_dtype("auto", torch.device("cpu")) is torch.float32
    assert choose_dtype(torch.bfloat16, torch.device("cpu")) is torch.bfloat16
    assert memory_format(torch.device("cuda")) is torch.channels_last
    assert memory_format(torch.device("cpu")) is torch.contiguous_format


def test_what_cannot_be_had_is_named() -> None:
    with pytest.raises(ValueError, match="device: cannot use 'abacus'"):
        choose_device("abacus")
    with pytest.raises(ValueError, match=r"dtype: expected float32, .* got torch.int8"):
        choose_dtype(torch.int8, torch.device("cpu"))


def test_graphs_need_a_card(restorer: Restorer) -> None:
    with pytest.raises(ValueError, match="cuda_graphs: needs a CUDA device, not cpu"):
        Restorer(restorer.config, device="cpu", cuda_graphs=True)


def _paper(variant: str) -> Restorer:
    config = PaperConfig(
        vae=PaperVAEConfig(latent_channels=8),
        mapping=PaperMappingConfig(variant, latent_channels=8, channels=16),
        mask=None,
    )
    torch.manual_seed(0)
    made = Restorer(config, device="cpu")
    for parameter in made.mapping.parameters():
        if parameter.ndim == 4:  # the published initial weights leave little but rounding
            nn.init.kaiming_normal_(parameter)
    return made


def test_nothing_depends_on_values_while_a_graph_is_captured(restorer: Restorer) -> None:
    """The same picture, although every block of the mask is worked on."""
    image, mask = _operands(72, 100)
    filled = fill_holes(image, mask)
    expected = restorer.translate(filled, mask)
    assert not is_static()
    with static_control_flow():
        assert is_static()
        assert (restorer.translate(filled, mask) - expected).abs().max() <= 1e-5
    paper = _paper("scratch")
    expected = paper.translate(image, mask)
    with static_control_flow():
        assert (paper.translate(image, mask) - expected).abs().max() <= 1e-4


def _on_fake_cuda(network: nn.Module, dtype: torch.dtype) -> None:
    """Give the network parameters that have a device and a shape, but no memory."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=dtype, device="cuda")
            module.register_parameter(name, nn.Parameter(fake, requires_grad=False))


@pytest.mark.parametrize("which", ["compact", "quality", "scratch"])
def test_a_dry_run_on_cuda_keeps_precision_and_shape(which: str, restorer: Restorer) -> None:
    made = restorer if which == "compact" else _paper(which)
    with FakeTensorMode(), static_control_flow():
        networks = (made.vae_old_encoder, made.mapping, made.vae_clean_decoder)
        for network in networks:
            _on_fake_cuda(network, torch.float16)
        half = {"dtype": torch.float16, "device": "cuda", "memory_format": torch.channels_last}
        image, mask = (torch.empty(1, channels, 64, 96, **half) for channels in (3, 1))
        restored = made._through_networks(image, mask)
        assert restored.shape == image.shape
        assert restored.dtype is torch.float16
        assert restored.device.type == "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("which", ["compact", "quality", "scratch", "hr"])
def test_a_graph_gives_what_the_networks_give(which: str, restorer: Restorer) -> None:
    config = restorer.config if which == "compact" else _paper(which).config
    torch.manual_seed(0)
    plain = Restorer(config, device="cuda")
    graphed = Restorer(config, device="cuda", cuda_graphs=True)
    for name, network in graphed.networks().items():
        network.load_state_dict(plain.networks()[name].state_dict())
    for size in ((64, 96), (40, 40), (64, 96)):
        image, mask = (operand.cuda() for operand in _operands(*size))
        expected = plain.translate(image, mask)
        assert (graphed.translate(image, mask) - expected).abs().max() <= 1e-4


@pytest.mark.gpu
def test_old_graphs_are_let_go() -> None:
    graphs = Graphs(lambda x: x + 1)
    for size in range(1, 8):
        x = torch.full((size,), float(size), device="cuda")
        assert torch.equal(graphs(x), x + 1)
    assert len(graphs._captured) == 4
