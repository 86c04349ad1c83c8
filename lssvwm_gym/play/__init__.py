"""Play in a dream by hand: `lssvwm-gym play memory-maze`.

game.py           a game: step, rewind, mark, save, load, replay; without window or keys
snapshot.py       a game at one frame, as a value
settings.py       settings, and how a game is opened
input.py          keys, and what each does; panel.py what is told beside the picture; without pygame
run.py            a game from its opening to its end
window.py         the window and its loop; view.py its panel, theme.py colours and text
web.py            the same game in browsers; visitor.py one of them, web_page/ what they load
policies.py       policies that choose actions
save.py           a game on disk
"""

from lssvwm_gym.play.run import play
from lssvwm_gym.play.settings import Playing

__all__ = ["Playing", "play"]
