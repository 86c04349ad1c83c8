-- What scripted players may know and no picture shows; told only where it was asked for, because it takes time.

local TREE_RADIUS, TREES_TOLD = 24, 10 -- metres, count
local DEEPEST, WATER_AHEAD = 6, 3 -- metres

local wanted = false

function lockstep.commands.sense(_, arguments) wanted = arguments.wanted end

local function round(value) return math.floor(value + 0.5) end

local function name_at(x, y, z) return minetest.get_node({x = x, y = y, z = z}).name end

local function is_solid(x, y, z)
	local definition = minetest.registered_nodes[name_at(x, y, z)]
	return definition ~= nil and definition.walkable
end

local function is_liquid(x, y, z) return minetest.get_item_group(name_at(x, y, z), "liquid") > 0 end

-- How far down it goes in the column (x, z) below height y, at most DEEPEST.
local function drop_at(x, y, z)
	local depth = 0
	while depth < DEEPEST and not is_solid(x, y - 1 - depth, z) do depth = depth + 1 end
	return depth
end

-- Metres to water straight ahead, 0 where there is none near.
local function water_ahead(at, y, ahead)
	for distance = 1, WATER_AHEAD do
		for height = -3, 0 do
			if is_liquid(round(at.x + ahead.x * distance), y + height, round(at.z + ahead.z * distance)) then return distance end
		end
	end
	return 0
end

-- Lowest trunk nodes of the nearest trees, {{x, y, z}, ...}, nearest first.
function lockstep.trees_near(at, radius)
	local low = {x = at.x - radius, y = at.y - 6, z = at.z - radius}
	local high = {x = at.x + radius, y = at.y + 7, z = at.z + radius}
	local feet = {}
	for _, node in ipairs(minetest.find_nodes_in_area(low, high, {"group:tree"})) do
		local above, below = name_at(node.x, node.y + 1, node.z), name_at(node.x, node.y - 1, node.z)
		local grows = minetest.get_item_group(above, "tree") > 0
		if grows and minetest.get_item_group(below, "tree") == 0 and below ~= "air" then
			local far = (node.x - at.x) ^ 2 + (node.z - at.z) ^ 2 + 2 * (node.y - at.y) ^ 2
			feet[#feet + 1] = {node.x, node.y, node.z, far = far}
		end
	end
	table.sort(feet, function(one, other) return one.far < other.far end)
	local nearest = {}
	for i = 1, math.min(#feet, TREES_TOLD) do nearest[i] = {feet[i][1], feet[i][2], feet[i][3]} end
	return nearest
end

function lockstep.accounts.senses(player)
	if not wanted then return nil end
	local at, yaw = player:get_pos(), player:get_look_horizontal()
	local ahead = {x = -math.sin(yaw), z = math.cos(yaw)}
	local y, x, z = round(at.y + 0.5), round(at.x + ahead.x), round(at.z + ahead.z)
	local pointed = lockstep.pointed(player)
	return {
		-- solid nodes: ahead at the feet, at the eyes, above the eyes; and above the player's own head
		solid = {is_solid(x, y, z), is_solid(x, y + 1, z), is_solid(x, y + 2, z), is_solid(round(at.x), y + 2, round(at.z))},
		drop = drop_at(x, y, z),
		water = water_ahead(at, y, ahead),
		in_water = is_liquid(round(at.x), y, round(at.z)),
		pointed = pointed and {name = minetest.get_node(pointed.under).name, at = {pointed.under.x, pointed.under.y, pointed.under.z}},
		dark = lockstep.is_in_the_dark(player),
		trees = lockstep.trees_near(at, TREE_RADIUS),
	}
end
