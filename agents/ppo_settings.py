"""The settings of `agents.ppo`: what to learn, where, and how."""

from dataclasses import dataclass, replace
from pathlib import Path

from agents.maze_map import OBSERVATION
from agents.policies import observation_today
from lssvwm_gym.io.json_config import check_bounds


@dataclass(frozen=True)
class Args:
    """What to learn, where, and how."""

    world: str = "memory-maze"
    out: Path | None = None  # folder to write to; runs/ppo/WORLD if not given
    resume: bool = False  # go on from out/checkpoint.safetensors
    start: Path | None = None  # policy.safetensors to begin with, such as that of `experiments.behavior_cloning`
    total_steps: int = 10_000_000  # of all dreams together
    time_limit: float | None = 3300  # seconds of this run, imports aside; all is saved and ended before
    seed: int = 0

    observation: str = "latent+features"  # image (needs the decoder), latent, features, latent+features; the last two with +inventory
    profile: str = "fast"  # of the dream: fast, balanced or quality
    weights: Path | None = None  # of the dream; the shipped ones if not given
    device: str = "auto"
    dtype: str = "auto"  # of the dream's products on a CPU: float32, or bfloat16, which is faster on processors that have it
    compile: str = "auto"  # on a CPU: compile the dream's step, which takes a minute or more; auto: where there is a C++ compiler; on, off
    graphs: bool = True  # on a GPU: record the dream's step once as a CUDA graph
    num_envs: int | None = None  # dreams at once; 1024 on a GPU, 32 on a CPU; each keeps some MB of memory, several times while it steps
    episode_steps: int = 100  # after which a dream begins anew: the longer it is, the less it can be trusted
    bank: int | None = None  # at most so many states to begin with; 512 on a GPU, 256 on a CPU; a dream rewards balls that it has seen
    before_rewards: float = 0.75  # share of them shortly before a reward, in the long contexts that come with the weights
    made_up: float = 0.0  # and share that begins with nothing: in each the dream makes up another world
    lead: tuple[int, int] = (2, 30)  # frames between such a state and the reward: at least and at most
    context: int = 300  # frames before it: what a dream has seen it rewards
    data: Path | None = None  # folder of recorded episodes, whose rewards these are instead
    latents: Path | None = None  # folder that keeps the encoded recordings; out/latents if not given
    context_every: int = 100  # frames between two of the other states, of the long contexts; 0 for the short contexts only
    min_context: int = 300  # context frames of these, where there are any such

    hidden: int = 256  # units of each of the two layers of actor and critic
    memory: int = 0  # units of an LSTM before them, which is empty when a dream begins; 0: none
    map: bool = False  # in Memory Maze: what the world model's map tells is what is decided on
    curiosity: float = 0.0  # reward for each cell that becomes known on the map, beside the dream's; returns don't count it
    learning_rate: float = 5e-4
    rollout_steps: int = 64  # of each dream between two updates
    minibatches: int = 4  # into which a rollout is cut
    epochs: int = 3  # over each rollout
    critic_first: int = 0  # updates that teach the critic alone, where the actor has a start that it shouldn't forget
    anchor: float = 0.0  # weight of the divergence from the policy that --start names, which so is not forgotten where rewards are rare
    gamma: float = 0.97
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5  # weight of the critic's loss
    max_gradient: float = 0.5  # norm
    reward_scale: float = 1.0
    target_kl: float | None = 0.03  # an epoch that goes further is the rollout's last

    save_every: int = 20  # updates between two writings of policy and checkpoint
    keep_every: int = 0  # updates between two policies that are kept, policy-STEPS.safetensors; 0 for none
    save_dreams: float = 0.5  # GB of dreams that a checkpoint may hold; where they take more, resuming begins new episodes

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / "ppo" / self.world


def with_defaults(args: Args, device: str) -> Args:
    """Fill in what depends on the device. Raises `ValueError` for a number that is too small."""
    many = device != "cpu"
    args = replace(
        args,
        observation=OBSERVATION if args.map else observation_today(args.observation),
        num_envs=(1024 if many else 32) if args.num_envs is None else args.num_envs,
        bank=(512 if many else 256) if args.bank is None else args.bank,
    )
    check_bounds(args, num_envs=1, bank=1, context=1, episode_steps=1, rollout_steps=1, minibatches=1, epochs=1, save_every=1, hidden=1)
    if min(args.before_rewards, args.made_up) < 0 or args.before_rewards + args.made_up > 1:
        raise ValueError(f"before_rewards and made_up are shares of the same dreams, not {args.before_rewards} and {args.made_up}")
    if not 1 <= args.lead[0] <= args.lead[1]:
        raise ValueError(f"lead is two rising numbers of frames, not {args.lead}")
    dreams, minibatches = args.num_envs or 0, args.minibatches
    if dreams * args.rollout_steps < 2 * minibatches:
        raise ValueError(f"{dreams} dreams of {args.rollout_steps} steps are too few for {minibatches} minibatches")
    if args.curiosity and not args.map:
        raise ValueError("curiosity pays for what becomes known on a map: it needs --map")
    if args.memory and dreams < minibatches:
        raise ValueError(f"a policy with a memory learns from whole rollouts: {dreams} dreams are too few for {minibatches} minibatches")
    return args
