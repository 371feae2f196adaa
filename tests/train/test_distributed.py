"""Two processes must give the gradient of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# what each process runs: one step, then the gradients as the optimisers saw them
SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from torch import distributed as dist
from oldrestore.train import mapping, vae
from oldrestore.train.config import MappingSettings, VAESettings, preset
from oldrestore.train.loop import Trainer

clean, old, runs, output = map(Path, sys.argv[1:5])
torch.set_num_threads(1)
if int(sys.argv[5]) > 1:
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
gradients = {}
for settings, stage in stages:
    folder = output.parent / f"{output.stem}-{stage.name}"
    trainer = Trainer(stage, settings, folder, torch.device("cpu"))
    trainer.run()
    for name, player in stage.players.items():
        for key, parameter in player.module.named_parameters():
            if parameter.grad is not None:
                gradients[f"{stage.name}.{name}.{key}"] = parameter.grad
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
    from oldrestore.train.config import VAESettings, preset
    from oldrestore.train.loop import Trainer

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
    clean_folder: Path, old_folder: Path, runs: Path, tmp_path: Path
) -> None:
    arguments = [clean_folder, old_folder, runs]
    alone, together = (_gradients(n, arguments, tmp_path) for n in (1, 2))
    assert alone.keys() == together.keys()
    assert any("latent_discriminator" in name for name in alone)
    assert any("mapping.mapping" in name for name in alone)
    for name, expected in alone.items():
        # both sum the same float32 terms in another order: some hundred roundings of the largest
        allowed = 1e-4 * expected.abs().max() + 1e-7
        assert (together[name] - expected).abs().max() <= allowed, name
