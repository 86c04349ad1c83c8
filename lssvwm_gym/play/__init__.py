"""Walk in a dream by hand: `lssvwm-gym play memory-maze`.

playing.py      settings, the loop, and what each key does
game.py         a game: step, rewind, mark, save, load, replay; without window or keys
moments.py      a moment as a value, and the ring of those that are kept
saved_game.py   a game on disk
beside.py       the real world on the same actions
wheel.py        policies and replays at the wheel
keyboard.py     keys and their meanings
window.py       the window; panel.py and chart.py what stands beside the pictures
"""

from lssvwm_gym.play.playing import Playing, play

__all__ = ["Playing", "play"]
