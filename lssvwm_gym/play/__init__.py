"""Walk in a dream by hand: `lssvwm-gym play memory-maze`.

game.py           a game: step, rewind, mark, save, load, replay; without window or keys
run.py            settings, and the loop
input.py          keys, and what each does
window.py         the window; view.py what stands beside the pictures, theme.py colours and writing
policies.py       policies and replays that drive
side_by_side.py   the real world on the same actions
save.py           a game on disk
"""

from lssvwm_gym.play.run import Playing, play

__all__ = ["Playing", "play"]
