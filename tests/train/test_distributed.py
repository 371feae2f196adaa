"""Two processes must give the gradient of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# what each process runs: one step in float64, then the gradients as the optimisers saw them
SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from torch import distributed as dist
from oldrestore.train import mapping, mask, vae
from oldrestore.train.config import MappingSettings, MaskSettings, VAESettings
from oldrestore.train.presets import preset
from oldrestore.train.data import batches
from oldrestore.train.loop import Trainer

clean, old, runs, paper, output = map(Path, sys.argv[1:6])
torch.set_num_threads(1)
if int(sys.argv[6]) > 1:
    dist.init_process_group("gloo")
rank = dist.get_rank() if dist.is_initialized() else 0
common = dict(steps=1, crop_px=32, clip=0.0)
settings = replace(
    preset(VAESettings, "tiny"), domain="old", lsgan=0.1, feature_matching=0.1, **common
)
stages = [(settings, vae.make_stage(settings, clean=[clean], old=[old]))]
settings = replace(preset(MappingSettings, "tiny"), trains="all", lsgan=0.1, **common)
stages.append((settings, mapping.make_stage(
    settings, clean=[clean], vae_old=runs / "old", vae_clean=runs / "clean")))
settings = replace(preset(MaskSettings, "tiny"), **common)
stages.append((settings, mask.make_stage(settings, clean=[clean])))
# the published game: every adversary, spectral norm; no detector, whose batch norm takes the mean
# of what one process sees, as published
settings = replace(preset(VAESettings, "paper-tiny", "old"), **common)
stages.append((settings, vae.make_stage(settings, clean=[clean], old=[old], init_from=paper)))
settings = replace(preset(MappingSettings, "paper-tiny", "scratch"), **common)
stages.append((settings, mapping.make_stage(settings, clean=[clean], init_from=paper)))
gradients = {}
world = dist.get_world_size() if dist.is_initialized() else 1
for number, (settings, stage) in enumerate(stages):
    for player in stage.players.values():
        player.module.double()
    folder = output.parent / f"{output.stem}-{number}"
    trainer = Trainer(stage, settings, folder, torch.device("cpu"))
    batch = next(batches(stage.samples, settings, rank=rank, world=world))
    trainer.train_step({k: v.double() if v.is_floating_point() else v for k, v in batch.items()})
    for name, player in stage.players.items():
        for key, parameter in player.module.named_parameters():
            if parameter.grad is not None:
                gradients[f"{number}.{name}.{key}"] = parameter.grad
if rank == 0:
    torch.save(gradients, output)
if dist.is_initialized():
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def runs(clean_folder: Path, old_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished tiny VAEs for the mapping to stand on."""
    from dataclasses import replace

    from oldrestore.train import vae
    from oldrestore.train.config import VAESettings
    from oldrestore.train.loop import Trainer
    from oldrestore.train.presets import preset

    folder = tmp_path_factory.mktemp("runs")
    for domain in ("clean", "old"):
        settings = replace(preset(VAESettings, "tiny"), domain=domain, steps=1, crop_px=32)
        stage = vae.make_stage(settings, clean=[clean_folder], old=[old_folder])
        Trainer(stage, settings, folder / domain, torch.device("cpu")).run()
    return folder


def _gradients(processes: int, arguments: list[Path], folder: Path) -> dict[str, torch.Tensor]:
    script, output = folder / "step.py", folder / f"gradients-{processes}.pt"
    script.write_text(SCRIPT)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(script), *map(str, arguments), str(output), str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, torch.Tensor] = torch.load(output, weights_only=True)
    return found


def test_two_processes_have_the_gradient_of_one(
    clean_folder: Path, old_folder: Path, runs: Path, paper_weights: Path, tmp_path: Path
) -> None:
    arguments = [clean_folder, old_folder, runs, paper_weights]
    alone, together = (_gradients(n, arguments, tmp_path) for n in (1, 2))
    assert alone.keys() == together.keys()
    assert any("0.latent_discriminator" in name for name in alone)
    assert any("1.mapping.mapping" in name for name in alone)
    assert any("2.mask.detector" in name for name in alone)
    assert any("3.latent_discriminator" in name for name in alone)
    assert any("4.mapping.mapping.trunk.0.theta" in name for name in alone)
    assert any("4.discriminator" in name and "original" in name for name in alone)
    for name, expected in alone.items():
        # both sum the same float64 terms in another order; a bias that an instance norm takes away
        # again has the roundings of its network for gradient
        player = ".".join(name.split(".")[:2])
        largest = max(g.abs().max() for key, g in alone.items() if key.startswith(f"{player}."))
        allowed = 1e-9 * expected.abs().max() + 1e-12 * largest
        assert (together[name] - expected).abs().max() <= allowed, name
