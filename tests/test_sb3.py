"""Dreams for Stable-Baselines3."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="needs lssvwm_gym[agents]")

from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor
from tiny_world import OPENING_FRAMES, same

from lssvwm_gym.envs import DreamEnv
from lssvwm_gym.envs.sb3 import DreamVecEnv, make_sb3_vec_env
from lssvwm_gym.worlds import WORLDS

WORLD = WORLDS["memory-maze"]
LIMIT = 4


@pytest.fixture
def arguments(tiny_weights):
    return dict(weights=tiny_weights, profile="fast", device="cpu", render_mode="rgb_array")


@pytest.fixture
def venv(arguments):
    return make_sb3_vec_env("memory-maze", 2, max_episode_steps=LIMIT, **arguments)


def test_sb3s_checker_is_content(arguments):
    check_env(DreamEnv("memory-maze", **arguments), warn=True, skip_render_check=False)  # pytest turns warnings into errors


@pytest.mark.parametrize("world", ["memory-maze", WORLD.id, f"lssvwm_gym:{WORLD.id}", WORLD])
def test_a_world_is_known_by_its_name_id_and_record(arguments, world):
    venv = make_sb3_vec_env(world, 2, **arguments)
    assert venv.num_envs == 2
    assert venv.envs.max_episode_steps == WORLD.max_episode_steps
    assert venv.reset().shape == (2, 64, 64, 3)


@pytest.mark.slow
def test_processes_with_a_device_each_dream_what_one_does(arguments):
    def dream_on(device):
        return lambda: DreamEnv("memory-maze", **arguments | {"device": device, "observation": "features"})

    devices, seen = ["cpu", "cpu"], []
    for envs in (SubprocVecEnv([dream_on(device) for device in devices], start_method="spawn"), DummyVecEnv([dream_on("cpu")] * 2)):
        envs.seed(3)
        moments = [envs.reset(), *(envs.step(np.array(actions))[0] for actions in ([1, 2], [3, 0]))]
        seen.append(np.array(moments))
        envs.close()
    assert seen[0].shape == (3, 2, 256)
    assert not np.allclose(seen[0][:, 0], seen[0][:, 1])
    assert np.allclose(*seen, atol=1e-5)


def test_the_adapter_does_what_sb3_does_with_single_environments(venv, arguments):
    singles = [lambda: gymnasium.wrappers.TimeLimit(DreamEnv("memory-maze", **arguments), LIMIT)] * 2
    reference = DummyVecEnv(singles)
    for env in (venv, reference):
        assert env.seed(4) == [4, 5]
    assert np.abs(venv.reset().astype(int) - reference.reset()).max() <= 1
    for _ in range(2 * LIMIT + 1):
        mine, theirs = (env.step(np.array([1, 3])) for env in (venv, reference))
        assert np.abs(mine[0].astype(int) - theirs[0]).max() <= 1
        for a, b in zip(mine[1:3], theirs[1:3], strict=True):
            assert same(a, b)
        for a, b in zip(mine[3], theirs[3], strict=True):
            assert a.keys() == b.keys()
            assert a["TimeLimit.truncated"] is b["TimeLimit.truncated"]
            assert np.allclose(a["estimated_pose"], b["estimated_pose"], atol=0.002)
            assert same(a["age"], b["age"])
    assert [info.keys() for info in venv.reset_infos] == [info.keys() for info in reference.reset_infos]


def test_the_last_observation_is_kept_where_an_episode_ends(venv):
    venv.seed(0)
    venv.reset()
    for step in range(LIMIT):
        frames, _, done, infos = venv.step(np.zeros(2, int))
        assert done.all() == (step == LIMIT - 1)
    for row, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True
        assert not np.array_equal(info["terminal_observation"], frames[row])
        assert info["age"] == OPENING_FRAMES + LIMIT
        assert venv.reset_infos[row]["age"] == OPENING_FRAMES


def test_seeds_and_options_are_used_once(venv):
    venv.seed(0)
    venv.set_options({"start": "cold"})
    cold = venv.reset()
    assert [info["age"] for info in venv.reset_infos] == [1, 1]
    assert not np.array_equal(venv.reset(), cold)
    assert [info["age"] for info in venv.reset_infos] == [OPENING_FRAMES] * 2


def test_rows_can_start_with_options_of_their_own(venv):
    venv.seed(0)
    venv.set_options([{"start": "cold"}, {"context_frames": 9}])
    frames = venv.reset()
    assert [info["age"] for info in venv.reset_infos] == [1, 9]
    assert np.array_equal(frames, np.array(venv.get_images()))


def test_attributes_are_those_of_the_batch(venv):
    assert venv.get_attr("render_mode") == ["rgb_array"] * 2
    assert venv.get_attr("max_episode_steps", 0) == [LIMIT]
    assert not venv.has_attr("altitude")
    venv.set_attr("max_episode_steps", 9)
    assert venv.get_attr("max_episode_steps") == [9, 9]
    with pytest.raises(ValueError, match="share one batch"):
        venv.set_attr("max_episode_steps", 9, indices=[1])
    with pytest.raises(AttributeError, match="altitude"):
        venv.set_attr("altitude", 9)
    assert venv.env_is_wrapped(Monitor) == [False, False]


def test_rows_can_be_asked_for_their_frame_and_state(venv):
    frames = venv.reset()
    assert np.array_equal(venv.env_method("render", indices=1)[0], frames[1])
    assert len(venv.env_method("clone_state")) == 2
    with pytest.raises(AttributeError, match=r"no method 'reset', only clone_state, render; the batch as a whole is \.envs"):
        venv.env_method("reset")


def test_rendering_tiles_the_rows(venv):
    venv.reset()
    assert venv.render().shape in {(64, 128, 3), (128, 64, 3)}


def test_only_dreams_are_adapted():
    with pytest.raises(ValueError, match="adapts a DreamVectorEnv"):
        DreamVecEnv(gymnasium.make("CartPole-v1"))


def test_ppo_learns_in_dreams(venv):
    monitored = VecMonitor(venv)
    model = PPO("CnnPolicy", monitored, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(64)
    assert len(model.ep_info_buffer) >= 8
    assert all(episode["l"] == LIMIT for episode in model.ep_info_buffer)


def test_videos_are_recorded(venv, tmp_path):
    pytest.importorskip("moviepy", reason="VecVideoRecorder needs moviepy")
    from stable_baselines3.common.vec_env import VecVideoRecorder

    recorder = VecVideoRecorder(venv, str(tmp_path), lambda step: step == 0, video_length=3)
    recorder.reset()
    for _ in range(4):
        recorder.step(np.zeros(2, int))
    recorder.close()
    assert list(tmp_path.glob("*.mp4"))


def test_without_sb3_the_extra_is_named():
    code = "import sys; sys.modules['stable_baselines3'] = None; import lssvwm_gym.envs.sb3"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'lssvwm_gym[agents]'" in done.stderr.splitlines()[-1]
