"""Play in a dream by hand: `lssvwm-gym play memory-maze`.

game.py           a game: step, rewind, mark, save, load, replay; without window or keys
snapshot.py       a game at one frame, as a value
run.py            settings, and the loop
input.py          keys, and what each does
window.py         the window; view.py its panel, theme.py colours and text
policies.py       policies that choose actions
save.py           a game on disk
"""

from lssvwm_gym.play.run import Playing, play

__all__ = ["Playing", "play"]
