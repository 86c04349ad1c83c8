"""A world model with more heads than it has, before these learn (`lssvwm_gym.training.heads`)."""

from dataclasses import replace

from lssvwm_gym.models.map_layout import LayoutModel
from lssvwm_gym.models.map_memory import MapReader
from lssvwm_gym.models.world_model import WorldModel


def with_heads(
    model: WorldModel,
    flow_width: int,
    collisions: bool = True,
    lattice: float = 0.0,
    reader: MapReader | None = None,
    layouts: LayoutModel | None = None,
) -> WorldModel:
    """The same model with a flow head and, where asked for, collisions, a compass, a map, and layouts; itself where it has them.

    Raises `ValueError` for a reader or layouts of another size than the world's.
    """
    collisions, lattice = collisions or model.config.collisions, lattice or model.config.lattice
    objects = model.config.map_objects if reader is None else reader.objects
    width = model.config.layout_width if layouts is None else layouts.out.in_channels
    has = model.config.collisions, model.config.lattice
    if model.flow_head is not None and has == (collisions, lattice) and reader is None and layouts is None:
        return model
    wide = model.config.flow_width or flow_width
    config = replace(model.config, flow_width=wide, collisions=collisions, lattice=lattice, map_objects=objects, layout_width=width)
    grown, anew = WorldModel(config), () if model.config.collisions == collisions else ("motion_head.",)
    anew = anew if layouts is None else (*anew, "layout_model.")
    grown.load_state_dict(grown.state_dict() | {name: part for name, part in model.state_dict().items() if not name.startswith(anew)})
    if reader is not None and grown.map_reader is not None:
        sizes, needed = ([len(one.position), *one.token.weight.shape, len(one.frame.bias)] for one in (reader, grown.map_reader))
        if sizes != needed:
            raise ValueError(f"a reader of (tokens, width, channels, units) {sizes} for a world that needs {needed}")
        grown.map_reader.load_state_dict(reader.state_dict())
    if layouts is not None and grown.layout_model is not None:
        if layouts.objects != objects:
            raise ValueError(f"layouts with {layouts.objects} kinds of objects for a map of {objects}")
        grown.layout_model.load_state_dict(layouts.state_dict())
    return grown.eval()
