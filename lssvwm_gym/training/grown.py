"""A world model with more heads than it has, before these learn (`lssvwm_gym.training.heads`)."""

from dataclasses import replace

from lssvwm_gym.io.tensors import load_strictly
from lssvwm_gym.models.map_layout import LayoutModel
from lssvwm_gym.models.map_memory import MapReader
from lssvwm_gym.models.motion_heads import MapMotionHead
from lssvwm_gym.models.world_model import WorldModel


def with_heads(
    model: WorldModel,
    flow_width: int,
    collisions: bool = True,
    lattice: float = 0.0,
    reader: MapReader | None = None,
    layouts: LayoutModel | None = None,
    motions: MapMotionHead | None = None,
) -> WorldModel:
    """The same model with a flow head and, where asked for, collisions, compass, map, layouts and motions; itself where it has them.

    Raises `ValueError` for parts of another size than the world's, and for one of layouts and motions without the other.
    """
    collisions, lattice = collisions or model.config.collisions, lattice or model.config.lattice
    objects = model.config.map_objects if reader is None else reader.objects
    width = model.config.layout_width if layouts is None else layouts.out.in_channels
    given = {"map_reader": reader, "layout_model": layouts, "map_motion_head": motions}
    if model.flow_head and (model.config.collisions, model.config.lattice) == (collisions, lattice) and not any(given.values()):
        return model
    if bool(width) != bool(motions or model.map_motion_head):
        raise ValueError("layouts and motions go together: give --layouts and --motions")
    wide = model.config.flow_width or flow_width
    config = replace(model.config, flow_width=wide, collisions=collisions, lattice=lattice, map_objects=objects, layout_width=width)
    grown, anew = WorldModel(config), () if model.config.collisions == collisions else ("motion_head.",)
    anew = (*anew, *(f"{name}." for name, part in given.items() if part is not None))
    grown.load_state_dict(grown.state_dict() | {name: part for name, part in model.state_dict().items() if not name.startswith(anew)})
    for name, part in given.items():
        if part is not None:
            load_strictly(getattr(grown, name), part.state_dict(), f"{name} of another world")
    return grown.eval()
