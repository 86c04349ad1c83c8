"""A dream that `lssvwm-gym export` wrote, stepped by onnxruntime: what a program without PyTorch has to do, as a reference."""

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime

from lssvwm_gym.io.json_config import bounded, parsed
from lssvwm_gym.io.tensors import load_tensors, under

FORMAT = "lssvwm_gym ONNX 1"
MANIFEST, CONTEXTS = "manifest.json", "contexts.safetensors"
LARGEST_MANIFEST = 1_000_000  # bytes
NEXT = "next_"  # before the name of a leaf, as an output


class OnnxDream:
    """A folder of `lssvwm_gym.export` as a dream of one row, by onnxruntime on one core; its state is a dict of arrays, a value."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        """Raises `ValueError` for a folder that is none of `export`, or of which a file is missing or changed."""
        folder = Path(folder).expanduser()
        try:
            self.manifest = parsed(bounded(folder / MANIFEST, LARGEST_MANIFEST))
            if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            changed = [name for name, it in self.manifest["files"].items() if sha256(folder / name) != it["sha256"]]
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: not a dream written by `lssvwm-gym export` ({error})") from None
        if changed:
            raise ValueError(f"{folder}: {', '.join(changed)} changed since it was exported; export it again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.programs = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx", options) for name in ("step", "prefill")}
        tensors = load_tensors(folder / CONTEXTS)[0]
        self.layouts, cold = {name: layout.float().numpy() for name, layout in under("layout", tensors).items()}, under("cold", tensors)
        self.starts = [{k: v.float().numpy() for k, v in under(str(n), cold).items()} for n in range(len(cold) // 2)]
        self.contexts = [{k: v.numpy() for k, v in under(str(n), tensors).items()} for n in range(len(self.manifest["contexts"]))]

    def first_state(self) -> dict[str, np.ndarray]:
        """The state before any frame."""
        return {name: np.resize(np.array(it["value"], it["dtype"]), it["shape"]) for name, it in self.manifest["state"].items()}

    def cold(self, noise: np.ndarray, start: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """A dream that begins with nothing, from noise (1, N, C) and with one of the `starts`, if any: its first picture and the state."""
        given = self.first_state() | (self.starts[start] if self.starts else {})
        frame, _, _, state = self.step(given, np.array([self.manifest["unknown_action"]]), noise)
        return frame, state

    def begin(self, context: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The last picture of a context, and the state after it."""
        given, state = self.contexts[context], self.first_state()
        state["pose_known"] = given["pose_known"][:, 0].copy()
        if "inventory" in state:
            state |= {name: given[name][:, 0].copy() for name in ("inventory", "inventory_peak") if name in given}
        frame = np.zeros(0)
        for t in range(given["action"].shape[1]):
            parts = {f"given_{name}": given[name][:, t] for name in ("latent", "action", "pose", "inventory") if given[name].size}
            (frame,), state = self._run("prefill", 1, state, parts)
        layout = self.layouts.get(str(context))
        return frame, state if layout is None else state | {"layout": layout}

    def step(
        self, state: dict[str, np.ndarray], action: np.ndarray, noise: np.ndarray
    ) -> tuple[np.ndarray, float, bool, dict[str, np.ndarray]]:
        """One frame on, for an action (1,) int64, or (1, A) float32, and noise (1, N, C) float32.

        Returns the picture, uint8 (height, width, 3), the reward, whether the episode ended, and the next state.
        """
        (frame, reward, terminated), state = self._run("step", 3, state, {"action": action, "noise": noise})
        return frame, float(reward[0]), bool(terminated[0]), state

    def _run(
        self, program: str, results: int, state: dict[str, np.ndarray], tensors: dict[str, np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        session = self.programs[program]
        names = [output.name.removeprefix(NEXT) for output in session.get_outputs()]
        frame, *values = session.run(None, state | tensors)
        values = [frame[0], *values]
        return values[:results], state | dict(zip(names[results:], values[results:], strict=True))


def sha256(path: Path) -> str:
    """Of a file, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
