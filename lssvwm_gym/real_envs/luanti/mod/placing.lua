-- Placing blocks: never into the player himself, and nothing opens instead.

local HEIGHT = 1.75 -- of the player, metres
local REACH = 4 -- of the hand, metres

-- Whether a node is where the middle of the player's body is; one that only touches his shoulder is not.
local function is_inside(player, node)
	local feet = player:get_pos() -- a node reaches half a metre from its middle
	return math.abs(node.x - feet.x) <= 0.5 and math.abs(node.z - feet.z) <= 0.5
		and node.y + 0.5 > feet.y and node.y - 0.5 < feet.y + HEIGHT
end

-- Where a block that is placed comes to stand.
local function target(pointed)
	local under = minetest.registered_nodes[minetest.get_node(pointed.under).name]
	return under and under.buildable_to and pointed.under or pointed.above
end

-- The node that the player points at, as {under =, above =}, or nil.
function lockstep.pointed(player)
	local eye = vector.add(player:get_pos(), {x = 0, y = lockstep.EYE, z = 0})
	local reach = vector.add(eye, vector.multiply(player:get_look_dir(), REACH))
	local first = minetest.raycast(eye, reach, false, false):next()
	return first
end

function lockstep.would_place_into_itself(player)
	local pointed = lockstep.pointed(player)
	return pointed ~= nil and is_inside(player, target(pointed))
end

local place_node = minetest.item_place_node
function minetest.item_place_node(stack, placer, pointed, ...)
	if placer and pointed.type == "node" and is_inside(placer, target(pointed)) then return stack, nil end
	return place_node(stack, placer, pointed, ...)
end

-- A chest in a dungeon would open a form, and nobody is there to close it.
minetest.register_on_mods_loaded(function()
	for name, definition in pairs(minetest.registered_nodes) do
		if definition.on_rightclick then
			minetest.override_item(name, {on_rightclick = function(_, _, _, stack) return stack end})
		end
	end
end)
