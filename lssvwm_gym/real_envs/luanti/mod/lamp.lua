-- Where no daylight comes an unseen, dim light goes with the player's head; without it frames are black.

local LAMP = "lockstep:lamp"
local BRIGHT_ENOUGH = 6 -- of 15
local NOON = 0.5

minetest.register_node(LAMP, {
	drawtype = "airlike", paramtype = "light", light_source = 7, sunlight_propagates = true, walkable = false, pointable = false,
	diggable = false, buildable_to = true, floodable = true, air_equivalent = true, drop = "", groups = {not_in_creative_inventory = 1},
})

local lit -- where it is

local function head_of(player) return vector.round(vector.add(player:get_pos(), {x = 0, y = lockstep.EYE, z = 0})) end

local function is_dark(place) return (minetest.get_natural_light(place, NOON) or 15) < BRIGHT_ENOUGH end

function lockstep.is_in_the_dark(player) return is_dark(head_of(player)) end

function lockstep.follow_with_lamp(player)
	local head = head_of(player)
	local dark = is_dark(head)
	if lit and not (dark and vector.equals(lit, head)) then
		if minetest.get_node(lit).name == LAMP then minetest.set_node(lit, {name = "air"}) end
		lit = nil
	end
	if dark and not lit and minetest.get_node(head).name == "air" then
		minetest.set_node(head, {name = LAMP})
		lit = head
	end
end
