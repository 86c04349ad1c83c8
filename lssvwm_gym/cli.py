"""The command line: `lssvwm-gym COMMAND --help` says what each command takes."""

import importlib
import sys

from lssvwm_gym.io.worker_pool import WorkerPoolError
from lssvwm_gym.malloc import keep_freed_memory

COMMANDS = {  # words: (module, dataclass of settings, function, what it does)
    "dream": ("lssvwm_gym.own_world", "OwnWorld", "dream", "from an environment or recordings to a dream: all of what follows"),
    "collect gym": ("lssvwm_gym.data.collect_gym", "GymCollecting", "collect_gym", "record episodes in any Gymnasium environment"),
    "collect": ("lssvwm_gym.data.collect", "Collecting", "collect", "record episodes in a real simulator"),
    "convert": ("lssvwm_gym.data.convert", "Converting", "convert", "make episodes of recordings: Memory Maze, TECO, VPT, Minari, videos"),
    "train autoencoder": ("lssvwm_gym.training.autoencoder", "AutoencoderTraining", "train_autoencoder", "train an autoencoder of frames"),
    "train world": ("lssvwm_gym.training.world_model", "WorldTraining", "train_world", "train a world model on its latents"),
    "train heads": ("lssvwm_gym.training.heads", "HeadTraining", "train_heads", "train what samples its frames and says what is blocked"),
    "evaluate": ("lssvwm_gym.evaluation.evaluate", "Evaluation", "evaluate", "measure a dream on real episodes"),
    "package": ("lssvwm_gym.checkpoints.package", "Packaging", "package", "make a folder of weights from finished models"),
    "generate": ("lssvwm_gym.generate", "Generating", "generate", "continue a video whose actions are unknown"),
    "export": ("lssvwm_gym.export", "Exporting", "export", "write a dream as ONNX, for programs without PyTorch such as a web page"),
    "play": ("lssvwm_gym.play", "Playing", "play", "play in a dream by hand"),
}

# what may stand first without its name
FIRST = {"dream": "--env", "collect": "--world", "play": "--world", "export": "--world", "generate": "--clip"}


def main(arguments: list[str] | None = None) -> None:
    keep_freed_memory()
    words = sys.argv[1:] if arguments is None else arguments
    command = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if command is None:
        asked_for_help = not words or words[0] in ("-h", "--help")
        print(_overview() if asked_for_help else f"lssvwm-gym: no command {' '.join(words[:2])!r}\n\n{_overview()}")
        sys.exit(0 if asked_for_help else 2)
    try:
        _run(command, words[len(command.split()) :])
    except ModuleNotFoundError as error:
        install = "pip install 'lssvwm_gym[train,play,web,onnx]' brings all that the commands need"
        sys.exit(f"lssvwm-gym {command}: {error.name} is not installed; {install}")
    except (ValueError, OSError, ImportError, WorkerPoolError) as error:  # a full disk is an OSError
        sys.exit(f"lssvwm-gym {command}: {error}")


def _run(command: str, arguments: list[str]) -> None:
    import tyro

    module_name, settings, function, _ = COMMANDS[command]
    module = importlib.import_module(module_name)
    if command in FIRST and arguments and not arguments[0].startswith("-"):
        arguments = [FIRST[command], *arguments]  # lssvwm-gym play memory-maze
    outcome = getattr(module, function)(tyro.cli(getattr(module, settings), args=arguments, prog=f"lssvwm-gym {command}"))
    if getattr(outcome, "failed", None):
        sys.exit(f"lssvwm-gym {command}: {len(outcome.failed)} of the jobs failed, see above; the same command tries them again")


def _overview() -> str:
    lines = [f"  {name:<18} {about}" for name, (_, _, _, about) in COMMANDS.items()]
    return "usage: lssvwm-gym COMMAND [options]; COMMAND --help lists them\n\n" + "\n".join(lines)


if __name__ == "__main__":
    main()
