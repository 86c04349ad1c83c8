-- The start of an episode: the player stands at noon on dry ground of the wanted biome, somewhere he has not been.

local FARTHEST = 25000 -- metres from the middle of the world, which ends at 31000
local LOWEST, HIGHEST = 3, 40 -- metres above the sea
local PLACES = 6000 -- looked at before it is given up
local LANDINGS = 20 -- tried on in earnest
local LAND_AROUND, OF_LOOKS = 13, 16 -- so that it is no islet and no cliff
local GENERATED = {x = 40, y = 24, z = 40} -- metres to each side, before anyone looks around
local NOON = 0.5

local outcome = {state = "none"} -- "searching", "standing" (with biome) or "nowhere"

function lockstep.accounts.start() return outcome end

local function level(x, z)
	local y = minetest.get_spawn_level(x, z)
	return y and y >= LOWEST and y <= HIGHEST and y or nil
end

local function has_land_around(x, y, z)
	local found = 0
	for direction = 0, 7 do
		for _, distance in ipairs({14, 30}) do
			local angle = direction * math.pi / 4
			local there = level(math.floor(x + distance * math.cos(angle)), math.floor(z + distance * math.sin(angle)))
			if there and math.abs(there - y) < 10 then found = found + 1 end
		end
	end
	return found >= LAND_AROUND
end

local function find_place(random, biome)
	for _ = 1, PLACES do
		local x, z = random:next(-FARTHEST, FARTHEST), random:next(-FARTHEST, FARTHEST)
		local y = level(x, z)
		if y and minetest.get_biome_name(minetest.get_biome_data({x = x, y = y, z = z}).biome) == biome and has_land_around(x, y, z) then
			return {x = x, y = y, z = z}
		end
	end
end

-- Earth under the open sky near `place` and not a tree's top: the height of the feet, or nil.
local function find_ground(x, place, z)
	for y = place.y + 16, place.y - 16, -1 do
		local name = minetest.get_node({x = x, y = y, z = z}).name
		local definition = minetest.registered_nodes[name]
		if minetest.get_item_group(name, "liquid") > 0 then return nil end
		if definition and definition.walkable then
			return minetest.get_item_group(name, "soil") > 0 and {x = x, y = y + 0.5, z = z} or nil
		end
	end
end

local function stand(player, random, feet, inventory)
	player:set_pos(feet)
	player:add_velocity(vector.multiply(player:get_velocity(), -1))
	player:set_look_horizontal(math.rad(15) * random:next(0, 23))
	player:set_look_vertical(0)
	player:set_hp(20)
	lockstep.empty_inventory(player)
	lockstep.fill_inventory(player, inventory)
	minetest.set_timeofday(NOON)
end

local function land(player, random, place, arguments)
	for _ = 1, 60 do
		local feet = find_ground(place.x + random:next(-6, 6), place, place.z + random:next(-6, 6))
		if feet and not (arguments.trees and #lockstep.trees_near(feet, 20) == 0) then
			stand(player, random, feet, arguments.inventory)
			return true
		end
	end
	return false
end

-- arguments: seed (integer), biome (name), trees (whether one must be near), inventory (how many of each kind)
function lockstep.commands.start(player, arguments)
	local random = PcgRandom(arguments.seed)
	outcome = {state = "searching"}
	local function try(landings)
		local place = landings > 0 and find_place(random, arguments.biome)
		if not place then
			outcome = {state = "nowhere"}
			return
		end
		local low, high = vector.subtract(place, GENERATED), vector.add(place, GENERATED)
		minetest.emerge_area(low, high, function(_, _, remaining)
			if remaining > 0 then return end
			if land(player, random, place, arguments) then
				outcome = {state = "standing"}
			else
				try(landings - 1)
			end
		end)
	end
	try(LANDINGS)
end
