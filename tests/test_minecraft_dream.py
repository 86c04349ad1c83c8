"""Dreams that carry something: observations of two parts, counts that are remembered, saved and branched, milestones that pay once."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tiny_minecraft import (
    DIG,
    DIRT,
    LOG,
    NOOP,
    OPENING_FRAMES,
    PLANKS,
    STICKS,
    TURN,
    WOODEN,
    WORLD,
    play,
    recipes_are_followed,
    write_real_plays,
    write_tiny_minecraft,
)
from tiny_world import same

from lssvwm_gym.checkpoints.checkpoint import load_weights, save_weights
from lssvwm_gym.checkpoints.package import _contexts as contexts_of
from lssvwm_gym.data.episode import read_episode
from lssvwm_gym.envs import DreamEnv, DreamVectorEnv
from lssvwm_gym.models.inventory_head import InventoryHead

ID = WORLD.id
SCRIPT = [PLANKS, STICKS, WOODEN]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_minecraft(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def arguments(weights):
    return dict(weights=weights, profile="fast", device="cpu")


@pytest.fixture
def env(arguments):
    return DreamEnv("minecraft", **arguments)


@pytest.fixture
def followed(monkeypatch):
    monkeypatch.setattr(InventoryHead, "after", recipes_are_followed)


@pytest.fixture(scope="module")
def episode(tmp_path_factory):
    return str(write_real_plays(tmp_path_factory.mktemp("real"), 1) / "000000.npz")


def counts(observation):
    return dict(zip(WORLD.inventory, observation["inventory"].tolist(), strict=True))


# --- the contract


def test_gymnasiums_checker_is_content(arguments, recwarn):
    check_env(gymnasium.make(ID, render_mode="rgb_array", **arguments).unwrapped, skip_render_check=False)
    assert not recwarn.list


def test_an_observation_is_a_picture_and_what_is_carried(env):
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert set(observation) == {"image", "inventory"}
    assert (observation["image"].shape, observation["image"].dtype) == ((64, 64, 3), np.uint8)
    assert (observation["inventory"].shape, observation["inventory"].dtype) == ((9,), np.int32)
    assert np.array_equal(info["inventory"], observation["inventory"])
    assert counts(observation)["log"] == 2  # as the openings end
    assert info["age"] == OPENING_FRAMES
    assert info["estimated_pose"].shape == (6,)
    observation, reward, terminated, truncated, info = env.step(NOOP)
    assert env.observation_space.contains(observation)
    assert np.array_equal(info["inventory"], observation["inventory"])
    assert (type(reward), terminated, truncated) == (float, False, False)


def test_an_observation_belongs_to_whom_it_was_given(env):
    observation, _ = env.reset(seed=0)
    observation["inventory"][:] = 99
    assert 99 not in env.step(TURN)[0]["inventory"]


def test_the_picture_alone(arguments):
    env, whole = (DreamEnv("minecraft", observation=kind, **arguments) for kind in ("image", "all"))
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert np.array_equal(env.reset(seed=3)[0], whole.reset(seed=3)[0]["image"])
    assert np.array_equal(env.step(DIG)[0], whole.step(DIG)[0]["image"])
    assert env.branch(2).single_observation_space == env.observation_space
    with pytest.raises(ValueError, match=r"observation must be one of all, image, features, .*, not 'counts'"):
        DreamEnv("minecraft", observation="counts", **arguments)


@pytest.mark.parametrize("kind", ["all", "image"])
def test_a_batch_is_what_its_rows_are(arguments, kind, followed):
    envs = gymnasium.make_vec(ID, num_envs=2, observation=kind, **arguments)
    singles = [DreamEnv("minecraft", observation=kind, **arguments) for _ in range(2)]
    together, apart = envs.reset(seed=5)[0], [env.reset(seed=5 + row)[0] for row, env in enumerate(singles)]
    assert envs.observation_space.contains(together)
    for actions in ([PLANKS, TURN], [STICKS, PLANKS]):
        together, rewards, *_ = envs.step(np.array(actions))
        steps = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        apart = [step[0] for step in steps]
        assert rewards.tolist() == [step[1] for step in steps]
        if kind == "all":
            assert np.array_equal(together["inventory"], np.stack([observation["inventory"] for observation in apart]))
        pictures = together if kind == "image" else together["image"]
        alone = np.stack([observation if kind == "image" else observation["image"] for observation in apart])
        assert np.abs(pictures.astype(int) - alone).max() <= 1


def test_rows_that_end_begin_with_what_their_opening_carries(arguments, followed):
    envs = DreamVectorEnv("minecraft", 2, max_episode_steps=2, **arguments)
    envs.reset(seed=0)
    envs.step(np.array([PLANKS, PLANKS]))
    observation, _, _, truncated, info = envs.step(np.array([STICKS, TURN]))
    assert truncated.all()
    assert [counts(final)["planks"] for final in info["final_obs"]] == [3, 4]
    assert observation["inventory"][:, WORLD.inventory.index("planks")].tolist() == [0, 0]
    _, rewards, *_ = envs.step(np.array([PLANKS, TURN]))
    assert rewards.tolist() == [2, 0]  # a new episode pays anew


# --- counts and milestones


def test_each_milestone_pays_once(env, followed):
    env.reset(seed=0)
    paid = [env.step(action)[1] for action in SCRIPT * 2 + [PLANKS]]
    assert paid == [2, 4, 8, 0, 0, 0, 0]


def test_what_was_carried_before_the_dream_pays_no_more(env, episode, followed):
    action, carried = play(20)
    observation, _ = env.reset(seed=0, options={"episode": episode, "context_frames": 10})
    assert np.array_equal(observation["inventory"], carried[9])  # a log and four planks, after planks were made at frame 8
    assert action[8] == PLANKS
    paid = [env.step(int(action))[1] for action in (PLANKS, STICKS, WOODEN)]
    assert paid == [0, 4, 8]


def test_what_was_carried_and_is_gone_pays_no_more(env, episode, followed):
    env.reset(seed=0, options={"episode": episode, "context_frames": 17})  # both logs and the sticks' planks are used up
    state = env.clone_state()
    inventory_peak = dict(zip(WORLD.inventory, state.dream.inventory_peak[0].tolist(), strict=True))
    now = dict(zip(WORLD.inventory, state.dream.inventory[0].tolist(), strict=True))
    assert (inventory_peak["log"], now["log"]) == (2, 0)
    assert inventory_peak["planks"] >= 4


def test_a_milestone_pays_when_the_count_rises_not_a_step_later(env, monkeypatch):
    rises = iter([0, 0, 3, 0])

    def dirt_and_stone(head, features, before, action, chance=None):
        return before + torch.eye(9)[WORLD.inventory.index("cobblestone")] * next(rises)

    env.reset(seed=0)
    monkeypatch.setattr(InventoryHead, "after", dirt_and_stone)
    steps = [env.step(DIG) for _ in range(4)]
    assert [step[1] for step in steps] == [0, 0, 16, 0]
    assert [counts(step[0])["cobblestone"] for step in steps] == [0, 0, 3, 3]


def test_counts_go_into_the_dream(env):
    """The same start, picture and action, with another bag: random weights show another picture."""
    env.reset(seed=0)
    state = env.clone_state()
    richer = state.dream._replace(inventory=state.dream.inventory + 5)
    images = []
    for dream in (state.dream, richer):
        env.restore_state(type(state)(dream, state.frame, state.steps, state.random, state.weights))
        images.append(env.step(TURN)[0]["image"].astype(int))
    assert np.abs(images[0] - images[1]).max() > 0


def test_a_cold_start_carries_no_less_than_nothing(env):
    observation, _ = env.reset(seed=0, options={"start": "cold"})
    assert env.observation_space.contains(observation)
    assert all(env.observation_space.contains(env.step(DIG)[0]) for _ in range(5))


@pytest.mark.parametrize("options", [{"context_id": 1}, {"context_frames": 9}])
def test_starts_of_the_weights_carry_what_was_recorded(env, options):
    observation, _ = env.reset(seed=0, options=options)
    assert counts(observation)["log"] == 2


@pytest.mark.parametrize("options", [{}, {"context_id": 1}, {"context_frames": 9}, {"start": "cold"}])
def test_a_dream_can_begin_with_any_inventory(env, options, followed):
    """As the real game does; what is carried at first is no milestone, what the context had reached is one again."""
    carried = [0, 0, 0, 0, 5, 1, 0, 0, 0]
    observation, info = env.reset(seed=0, options=options | {"inventory": carried})
    assert observation["inventory"].tolist() == info["inventory"].tolist() == carried
    assert [env.step(action)[1] for action in SCRIPT] == [0, 0, 0]
    env.reset(seed=0, options=options | {"inventory": (1, 0, 0, 0, 0, 0, 0, 0, 0)})
    assert env.step(PLANKS)[1] == 2
    env.reset(seed=0, options=options | {"inventory": np.array([1, 4, 4, 0, 0, 0, 0, 0, 0])})
    assert [env.step(action)[1] for action in SCRIPT] == [0, 0, 8]


@pytest.mark.parametrize("wrong", [[1, 2], [-1] + [0] * 8, [0.5] + [0] * 8, [True] * 9, "logs", [5000] + [0] * 8])
def test_an_inventory_that_is_none_is_refused(env, wrong):
    with pytest.raises(ValueError, match=r"inventory must be 9 whole numbers: log 0..3267, planks"):
        env.reset(options={"inventory": wrong})


def test_an_episode_of_another_world_is_refused(env, tmp_path):
    from real_walks import write_real_walks

    with pytest.raises(ValueError, match="an inventory of 0 counts a frame; this world's has 9"):
        env.reset(options={"episode": str(write_real_walks(tmp_path, 1) / "000000.npz")})


# --- going back and branching


def test_going_back_takes_back_what_was_made_and_paid(env, followed, tmp_path):
    env.reset(seed=0)
    env.step(PLANKS)
    moment = env.clone_state()
    env.save_state(tmp_path / "moment.safetensors")
    first = [env.step(action) for action in SCRIPT]
    assert [step[1] for step in first] == [0, 4, 8]
    back = env.restore_state(moment)
    assert (counts(back)["planks"], counts(back)["wooden_pickaxe"]) == (4, 0)
    assert same(first, [env.step(action) for action in SCRIPT])
    env.reset(seed=9)
    assert same(back, env.load_state(tmp_path / "moment.safetensors"))
    assert same(first, [env.step(action) for action in SCRIPT])


def test_branches_carry_and_are_paid_on_their_own(env, followed):
    env.reset(seed=0)
    env.step(PLANKS)
    branches = env.branch(3)
    observation, rewards, *_ = branches.step(np.array([STICKS, PLANKS, TURN]))
    assert rewards.tolist() == [4, 0, 0]
    columns = [WORLD.inventory.index(name) for name in ("log", "planks", "stick")]
    assert observation["inventory"][:, columns].tolist() == [[1, 3, 4], [0, 8, 0], [1, 4, 0]]
    _, rewards, *_ = branches.step(np.array([TURN, STICKS, PLANKS]))
    assert rewards.tolist() == [0, 4, 0]
    assert counts(env.step(TURN)[0])["stick"] == 0  # the one they came from is as it was


def test_stable_baselines3_learns_from_both_parts(weights):
    pytest.importorskip("stable_baselines3", reason="needs lssvwm_gym[agents]")
    from stable_baselines3 import PPO

    from lssvwm_gym.envs.sb3 import make_sb3_vec_env

    venv = make_sb3_vec_env("minecraft", 2, max_episode_steps=3, weights=weights, profile="fast", device="cpu")
    model = PPO("MultiInputPolicy", venv, n_steps=4, batch_size=4, n_epochs=1, device="cpu", policy_kwargs={"net_arch": [8]})
    model.learn(8)
    action, _ = model.predict(venv.reset())
    assert action.shape == (2,)


def test_dirt_and_logs_have_their_columns():
    assert (WORLD.inventory[LOG], WORLD.inventory[DIRT], WORLD.actions[DIG], WORLD.actions[WOODEN]) == (
        "log",
        "dirt",
        "dig",
        "craft_wooden_pickaxe",
    )


def test_what_an_episode_reached_before_a_context_pays_no_more(tmp_path, followed):
    """The contexts of a package come from anywhere in their episodes: here from after the planks, which are used up."""
    weights = load_weights(write_tiny_minecraft(tmp_path / "weights"))
    recorded = write_real_plays(tmp_path / "real", 1)
    path = recorded / "000000.npz"
    late = contexts_of([path], {path: 40}, 1, 12, weights.autoencoder, True, np.random.default_rng(3))
    counts = read_episode(path).extras["inventory"]
    start = next(t for t in range(29) if np.array_equal(counts[t : t + 12], late.inventory[0].numpy()) and (t > 5))
    assert np.array_equal(late.inventory_peak[0].numpy(), np.maximum.accumulate(counts)[start : start + 12])
    assert (late.inventory_peak[0, 0] > late.inventory[0, 0]).any()

    bag = torch.zeros_like(late.inventory)
    bag[..., LOG] = 1  # a log, and nothing of what it becomes
    peak = bag.clone()
    peak[..., WORLD.inventory.index("planks")] = 4
    for name, reached, paid in (("never", bag, 2.0), ("before", peak, 0.0)):
        short = replace(late, inventory=bag, inventory_peak=reached)
        save_weights(tmp_path / name, replace(weights, short_contexts=short))
        env = DreamEnv("minecraft", weights=tmp_path / name, profile="fast", device="cpu")
        env.reset(seed=0)
        observation, reward, *_ = env.step(PLANKS)
        assert (counts_of := observation["inventory"].tolist())[:2] == [0, 4], counts_of
        assert reward == paid


def test_contexts_written_before_peaks_were_kept_count_from_themselves(tmp_path):
    folder = write_tiny_minecraft(tmp_path)
    env = DreamEnv("minecraft", weights=folder, profile="fast", device="cpu")
    env.reset(options={"context_id": 1})
    assert load_weights(folder).short_contexts.inventory_peak is None
    assert torch.equal(env.clone_state().dream.inventory_peak[0], load_weights(folder).short_contexts.inventory[1].amax(0))
