"""The command line: it lists its commands, passes settings on, and says what was wrong in one line."""

import importlib
import json

import numpy as np
import pytest

from lssvwm_gym.cli import COMMANDS, main
from lssvwm_gym.data.episode import Episode, write_episode


def test_without_words_it_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)


def test_an_unknown_command_is_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["dance"])
    assert stopped.value.code == 2
    assert "no command 'dance'" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists_and_explains_itself(command, capsys):
    module, settings, function, _ = COMMANDS[command]
    assert callable(getattr(importlib.import_module(module), function))
    assert hasattr(importlib.import_module(module), settings)
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert f"lssvwm-gym {command}" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"config.json: no such file; a folder of weights is written by"):
        main(["evaluate", "--data", str(tmp_path / "nowhere"), "--world", "memory-maze", "--weights", str(tmp_path)])


@pytest.mark.slow
def test_from_episodes_to_a_dream_by_commands_alone(tmp_path):
    """collect (here: written) -> train autoencoder -> train world -> package -> make."""
    import gymnasium

    for seed in range(3):
        rng = np.random.default_rng(seed)
        frames = rng.integers(256, size=(60, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        heading = rng.random(60) * 6
        extras = {"agent_pos": rng.random((60, 2)), "agent_dir": np.stack([np.cos(heading), np.sin(heading)], 1)}
        action = rng.integers(6, size=60).astype(np.uint8)
        write_episode(tmp_path / f"data/{seed:06d}", Episode(frames, action, np.zeros(60, np.float32), extras), fps=4)
    data, out = str(tmp_path / "data"), str(tmp_path)
    sizes = ["--model.widths", "8", "8", "8", "--model.latent-channels", "4"]
    main(["train", "autoencoder", "--data", data, "--out", f"{out}/ae", "--steps", "2", "--batch", "2", *sizes])
    sizes = ["--model.latent-channels", "4", "--model.width", "32", "--model.memory-features", "16", "--model.head-width", "16"]
    autoencoder, world_model = f"{out}/ae/autoencoder.safetensors", f"{out}/world/world.safetensors"
    curriculum = [word for stage in range(3) for word in (f"--curriculum.{stage}.frames", "16")]
    train = [
        "train",
        "world",
        "--data",
        data,
        "--autoencoder",
        autoencoder,
        "--out",
        f"{out}/world",
        *sizes,
        *curriculum,
        "--self-rollout",
        "1",
        "--teacher-forcing",
        "0",
    ]
    main([*train, "--steps", "2", "--frames-a-step", "32"])
    starts = ["--short-contexts", "2", "--short-context-frames", "4", "--long-contexts", "1", "--long-context-frames", "20"]
    main(["package", "--autoencoder", autoencoder, "--world-model", world_model, "--data", data, "--out", f"{out}/weights", *starts])
    assert json.loads((tmp_path / "weights/config.json").read_text())["info"]["training"]["step"] == 2
    env = gymnasium.make("lssvwm_gym:LSSVWM-MemoryMaze-v0", weights=f"{out}/weights")
    env.reset(seed=0)
    assert env.step(1)[0].shape == (64, 64, 3)
