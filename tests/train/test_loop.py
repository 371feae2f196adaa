import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from oldrestore.train import mapping as mapping_stage
from oldrestore.train import mask as mask_stage
from oldrestore.train import vae as vae_stage
from oldrestore.train.config import MappingSettings, MaskSettings, VAESettings
from oldrestore.train.loop import Trainer, learning_rate, noise_like
from oldrestore.train.players import Adversary
from oldrestore.train.presets import preset
from oldrestore.train.state import check_settings, read_source, read_state
from oldrestore.vae import VAE, VAEConfig

CPU = torch.device("cpu")
Start = Callable[[Path], Trainer]


@pytest.fixture
def start(clean_folder: Path, old_folder: Path) -> Start:
    """A trainer of the stage with the most players, in a folder."""
    settings = replace(
        preset(VAESettings, "tiny"),
        domain="old",
        steps=6,
        crop_px=32,
        lsgan=0.1,
        feature_matching=0.1,
        log_every=2,
        validate_every=3,
        sheet_every=6,
    )

    def make(folder: Path) -> Trainer:
        stage = vae_stage.make_stage(settings, clean=[clean_folder], old=[old_folder])
        return Trainer(stage, settings, folder, CPU)

    return make


@pytest.fixture
def start_paper(clean_folder: Path, paper_weights: Path) -> Start:
    """A trainer of the published game: spectral norm, no average, another schedule."""
    settings = replace(
        preset(MappingSettings, "paper-tiny", "scratch"), steps=4, crop_px=32, validate_every=2
    )

    def make(folder: Path) -> Trainer:
        stage = mapping_stage.make_stage(settings, clean=[clean_folder], init_from=paper_weights)
        return Trainer(stage, settings, folder, CPU)

    return make


def _flat(state: object) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        return [t for value in state.values() for t in _flat(value)]
    return []


@pytest.mark.parametrize("name", ["start", "start_paper"])
def test_a_resumed_run_is_the_same_to_the_bit(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    begin: Start = request.getfixturevalue(name)
    begin(tmp_path / "whole").run()
    begin(tmp_path / "parts").run(until=2)
    begin(tmp_path / "parts").run()
    whole = read_state(tmp_path / "whole" / "state.pt")
    parts = read_state(tmp_path / "parts" / "state.pt")
    assert whole["step"] == parts["step"] == (6 if name == "start" else 4)
    for key in ("networks", "averaged", "players", "optimizers"):
        tensors, resumed = _flat(whole[key]), _flat(parts[key])
        assert tensors
        assert all(torch.equal(a, b) for a, b in zip(tensors, resumed, strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_saves_its_step(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    trainer = start(tmp_path)
    train_step = trainer.train_step

    def stopped_in_step_two(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if trainer.step == 1:
            os.kill(os.getpid(), number)
        return train_step(batch)

    trainer.train_step = stopped_in_step_two  # type: ignore[method-assign]
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert read_state(tmp_path / "state.pt")["step"] == 2
    assert signal.getsignal(number) == before


def test_everything_is_logged(start: Start, tmp_path: Path) -> None:
    start(tmp_path).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "reconstruction" in line]
    assert [line["step"] for line in losses] == [2, 4, 6]
    expected = {
        "reconstruction",
        "kl",
        "lsgan",
        "feature_matching",
        "latent_adversary",
        "discriminator",
        "latent_discriminator",
        "lr",
        "samples_per_s",
        "data_wait",
    }
    assert expected <= set(losses[0])
    assert [line["step"] for line in lines if "validation/psnr" in line] == [3, 6]
    assert (tmp_path / "sheets" / "0000006.png").exists()
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_loss_of_weight_zero_is_not_computed(clean_folder: Path, tmp_path: Path) -> None:
    settings = replace(preset(VAESettings, "tiny"), steps=1, kl=0.0, log_every=1)
    Trainer(vae_stage.make_stage(settings, clean=[clean_folder]), settings, tmp_path, CPU).run()
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert "reconstruction" in line
    assert not {"kl", "lsgan", "perceptual", "latent_adversary"} & set(line)


def test_other_settings_in_the_same_folder_are_refused(
    start: Start, clean_folder: Path, old_folder: Path, tmp_path: Path
) -> None:
    start(tmp_path).run(until=1)
    settings = replace(preset(VAESettings, "tiny"), domain="old", steps=6, lr=1e-5)
    stage = vae_stage.make_stage(settings, clean=[clean_folder], old=[old_folder])
    with pytest.raises(ValueError, match="holds a run with"):
        Trainer(stage, settings, tmp_path, CPU)


def test_a_longer_run_continues(clean_folder: Path, tmp_path: Path) -> None:
    for steps in (2, 4):
        settings = replace(preset(VAESettings, "tiny"), steps=steps)
        stage = vae_stage.make_stage(settings, clean=[clean_folder])
        Trainer(stage, settings, tmp_path, CPU).run()
    assert read_state(tmp_path / "state.pt")["step"] == 4


def test_the_average_follows_the_weights(clean_folder: Path, tmp_path: Path) -> None:
    settings = replace(preset(VAESettings, "tiny"), steps=2)
    trainer = Trainer(vae_stage.make_stage(settings, clean=[clean_folder]), settings, tmp_path, CPU)
    name = "vae.encoder.skip.weight"
    expected = trainer.averaged[name].clone()
    trainer.run(until=1)
    decay = min(settings.ema, 2 / 11)  # (1 + step) / (10 + step), at step 1
    expected = decay * expected + (1 - decay) * trainer.stage.networks.state_dict()[name]
    assert torch.allclose(trainer.averaged[name], expected, atol=1e-7)


def test_without_an_average_the_weights_themselves_are_kept_once(
    start_paper: Start, tmp_path: Path
) -> None:
    trainer = start_paper(tmp_path)
    trainer.run(until=1)
    resumed = start_paper(tmp_path)
    resumed.run(until=2)
    for one in (trainer, resumed):
        own = one.stage.networks.state_dict()
        assert all(v.data_ptr() == own[k].data_ptr() for k, v in one.averaged.items())
    state = read_state(tmp_path / "state.pt")
    assert all(torch.equal(v, state["networks"][k]) for k, v in state["averaged"].items())
    storages = {v.untyped_storage().data_ptr() for v in _flat(state["networks"])}
    assert storages == {v.untyped_storage().data_ptr() for v in _flat(state["averaged"])}


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_batch_norm_judges_with_its_statistics_and_learns_without(
    ema: float, clean_folder: Path, tmp_path: Path
) -> None:
    settings = replace(
        preset(MaskSettings, "paper-tiny"), steps=3, crop_px=32, ema=ema, sheet_every=2
    )
    stage = mask_stage.make_stage(settings, clean=[clean_folder])
    modes = []

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        def run(networks: torch.nn.ModuleDict, batch: dict[str, torch.Tensor]) -> object:
            modes.extend(m.training for m in networks.modules())
            return function(networks, batch)

        return run

    stage.validate = watched(stage.validate)  # type: ignore[assignment]
    stage.sheet = watched(stage.sheet)  # type: ignore[assignment]
    trainer = Trainer(stage, settings, tmp_path, CPU)
    trainer.run()
    assert modes
    assert not any(modes)
    assert all(m.training for m in stage.networks.modules())
    norm = "mask.down.0.norm"
    counted = trainer.averaged[f"{norm}.num_batches_tracked"]
    assert (counted.item(), counted.dtype) == (3, torch.int64)
    own = stage.networks.state_dict()[f"{norm}.running_var"]
    assert not torch.equal(own, torch.ones_like(own))
    assert torch.equal(trainer.averaged[f"{norm}.running_var"], own) == (ema == 0)


def test_validation_leaves_the_weights_alone(start: Start, tmp_path: Path) -> None:
    trainer = start(tmp_path)
    before = [v.clone() for v in trainer.stage.networks.state_dict().values()]
    with trainer._averaged_networks():
        pass
    after = trainer.stage.networks.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_schedules_start_warm_and_end_low() -> None:
    cosine = VAESettings(steps=1000, warmup=10, final_lr=0.01)
    assert learning_rate(cosine, 0) == pytest.approx(0.1, rel=1e-3)
    assert learning_rate(cosine, 999) == pytest.approx(0.01, rel=1e-2)
    linear = replace(cosine, schedule="linear")
    assert learning_rate(linear, 400) == 1  # flat for the first half
    assert learning_rate(linear, 750) == pytest.approx(0.5)
    later = replace(linear, flat_share=0.6, warmup=0)
    shares = [learning_rate(later, step) for step in (0, 600, 700, 800, 900)]
    assert shares == pytest.approx([1, 1, 0.75, 0.5, 0.25])


def test_noise_is_a_function_of_the_sample() -> None:
    x = torch.zeros(3, 2, 4, 4)
    noise = noise_like(x, torch.tensor([5, 6, 7]))
    assert torch.equal(noise[1:2], noise_like(x[:1], torch.tensor([6])))
    assert not torch.equal(noise[0], noise[1])


def test_a_mapping_needs_the_stages_before_it(clean_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no training state there"):
        mapping_stage.make_stage(
            preset(MappingSettings, "tiny"),
            clean=[clean_folder],
            vae_old=tmp_path / "a",
            vae_clean=tmp_path / "b",
        )


@pytest.mark.parametrize("content", [b"", b"not a state", b"PK\x03\x04 cut"])
def test_a_broken_state_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.pt: not a training state"):
        read_state(path)


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"format": 1, "step": Exploit()}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="not a training state"):
        read_state(tmp_path / "state.pt")


def test_a_network_that_does_not_fit_is_named(clean_folder: Path, tmp_path: Path) -> None:
    settings = replace(preset(VAESettings, "tiny"), steps=1)
    Trainer(vae_stage.make_stage(settings, clean=[clean_folder]), settings, tmp_path, CPU).run()
    wider = replace(preset(VAESettings, "tiny").network, half_channels=12)
    assert isinstance(wider, VAEConfig)
    with pytest.raises(ValueError, match="network vae does not fit: half_channels is 8 there, 12"):
        read_source(tmp_path).fill(VAE(wider), "vae", wider)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1"),
        ({"crop_px": 100}, "crop_px: expected a multiple of 16"),
        ({"schedule": "step"}, "schedule: expected 'cosine' or 'linear'"),
        ({"amp": "int8"}, "amp: expected"),
        ({"flat_share": 1.0}, "flat_share: expected 0 to below 1"),
        ({"ema": -0.1}, "ema: expected 0 to below 1"),
        ({"domain": "new"}, "domain: expected 'old' or 'clean'"),
        ({"domain": "old", "batch": 3}, "expected an even number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(VAESettings(), **change)  # type: ignore[arg-type]


def test_a_focal_loss_whose_gradient_has_no_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="focal_gamma: expected at least 1"):
        MaskSettings(focal_gamma=0.5)


def test_a_sample_is_of_one_crop_at_least() -> None:
    with pytest.raises(ValueError, match="candidates: expected at least 1, got 0"):
        MaskSettings(candidates=0)


def test_every_process_needs_real_and_synthetic_old_photos(
    clean_folder: Path, old_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    settings = replace(preset(VAESettings, "tiny", "old"), batch=6)
    with pytest.raises(ValueError, match=r"batch: .* expected a multiple of 4, got 6"):
        vae_stage.make_stage(settings, clean=[clean_folder], old=[old_folder])


@pytest.mark.parametrize(("variant", "is_white"), [("scratch", True), ("quality", False)])
def test_holes_are_shown_white_to_the_network_and_to_its_judge(
    variant: str,
    is_white: bool,
    clean_folder: Path,
    write_paper: Callable[..., Path],
    tmp_path: Path,
) -> None:
    settings = preset(MappingSettings, "paper-tiny", variant)
    weights = write_paper(tmp_path / "paper.safetensors", variant)
    stage = mapping_stage.make_stage(settings, clean=[clean_folder], init_from=weights)
    degraded, mask = torch.rand(2, 3, 32, 32) - 1, torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:16, 8:24] = 1
    stage.players["mapping"].module({"degraded": degraded, "mask": mask, "target": degraded})
    critic = stage.players["discriminator"].module
    assert isinstance(critic, Adversary)
    assert critic.judged is not None
    for pair in critic.judged:
        hole = pair[:, :3, 8:16, 8:24]
        assert (hole == 1).all() == is_white
        assert torch.equal(pair[:, :3, 16:], degraded[:, :, 16:])


def test_autocast_trains(clean_folder: Path, tmp_path: Path) -> None:
    # of a CPU here; the same code runs on a GPU
    for kind, make, more in (
        (VAESettings, vae_stage.make_stage, {}),
        (
            MappingSettings,
            mapping_stage.make_stage,
            {"vae_old": tmp_path / "vae", "vae_clean": tmp_path / "vae"},
        ),
    ):
        settings = replace(preset(kind, "tiny"), steps=2, crop_px=32, amp="bf16")
        name = "mapping" if more else "vae"
        stage = make(settings, clean=[clean_folder], **more)  # type: ignore[operator]
        trainer = Trainer(stage, settings, tmp_path / name, CPU)
        before = {k: v.clone() for k, v in stage.networks.state_dict().items()}
        trainer.run()
        after = stage.networks.state_dict()
        assert all(v.dtype == torch.float32 for v in after.values())
        assert any(not torch.equal(v, before[k]) for k, v in after.items())


def test_a_run_from_before_a_setting_of_the_damage_had_none_of_it(tmp_path: Path) -> None:
    vae, mapping = VAESettings(), MappingSettings()
    for settings in (vae, mapping):
        written = json.loads(json.dumps(asdict(settings)))
        check_settings(written, settings, tmp_path)
        del written["degradation"]["p_large"]
        if settings is vae:
            check_settings(written, settings, tmp_path)
        else:  # mappings learn large holes now; that run did not
            with pytest.raises(ValueError, match="holds a run with degradation="):
                check_settings(written, settings, tmp_path)
            same = replace(mapping, degradation=replace(mapping.degradation, p_large=0.0))
            check_settings(written, same, tmp_path)
