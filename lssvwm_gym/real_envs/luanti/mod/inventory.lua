-- What is dug goes into a bag; the main list is one slot, the hand: the best pickaxe, or for placing a block. So the client,
-- which alone decides on the slot in use, never has to change it.

local BAG_SLOTS = 32
local LOG, PLANKS, STICK, WOODEN_PICKAXE, COBBLESTONE, STONE_PICKAXE, DIRT, SAND, OTHER = 1, 2, 3, 4, 5, 6, 7, 8, 9 -- as in env.py
local NAMED = {
	["default:pick_wood"] = WOODEN_PICKAXE,
	["default:pick_stone"] = STONE_PICKAXE,
	["default:cobble"] = COBBLESTONE,
	["default:mossycobble"] = COBBLESTONE,
	["default:desert_cobble"] = COBBLESTONE,
}
local GROUPED = {tree = LOG, wood = PLANKS, stick = STICK, sand = SAND}
local TO_PLACE = {DIRT, PLANKS, LOG}
local TO_DIG = {STONE_PICKAXE, WOODEN_PICKAXE}
local GIVEN = { -- at the start of an episode, one of each kind
	"default:tree", "default:wood", "default:stick", "default:pick_wood", "default:cobble", "default:pick_stone",
	"default:dirt", "default:sand", "default:gravel",
}
-- kinds of items on the crafting grid, 0 where nothing lies; the game's own recipes say what becomes of them
local GRIDS = {
	planks = {width = 1, LOG},
	sticks = {width = 1, PLANKS},
	wooden_pickaxe = {width = 3, PLANKS, PLANKS, PLANKS, 0, STICK, 0, 0, STICK, 0},
	stone_pickaxe = {width = 3, COBBLESTONE, COBBLESTONE, COBBLESTONE, 0, STICK, 0, 0, STICK, 0},
}

local function kind_of(name)
	for group, kind in pairs(GROUPED) do
		if minetest.get_item_group(name, group) > 0 then return kind end
	end
	return NAMED[name] or ((name:find("^default:dirt") or name:find("^default:dry_dirt")) and DIRT) or OTHER
end

minetest.register_on_joinplayer(function(player) lockstep.empty_inventory(player) end)

minetest.handle_node_drops = function(_, drops, digger)
	if not digger then return end
	for _, item in ipairs(drops) do digger:get_inventory():add_item("bag", item) end
end

function lockstep.empty_inventory(player)
	local inventory = player:get_inventory()
	player:hud_set_hotbar_itemcount(1)
	for list, slots in pairs({main = 1, bag = BAG_SLOTS}) do
		inventory:set_size(list, slots)
		inventory:set_list(list, {})
	end
end

-- `counts`: how many of each kind, by its number
function lockstep.fill_inventory(player, counts)
	for kind, count in ipairs(counts) do
		for _ = 1, count do player:get_inventory():add_item("bag", GIVEN[kind]) end
	end
	lockstep.commands.hold_tool(player)
end

local function find_in_bag(inventory, kind)
	for slot, stack in ipairs(inventory:get_list("bag")) do
		if not stack:is_empty() and kind_of(stack:get_name()) == kind then return slot, stack end
	end
end

local function take_in_hand(player, kinds)
	local inventory = player:get_inventory()
	local before = inventory:get_stack("main", 1)
	inventory:add_item("bag", before)
	local now = ItemStack("")
	for _, kind in ipairs(kinds) do
		local slot, stack = find_in_bag(inventory, kind)
		if slot then
			inventory:set_stack("bag", slot, "")
			now = stack
			break
		end
	end
	if now:to_string() ~= before:to_string() then inventory:set_stack("main", 1, now) end
	return now:get_name()
end

function lockstep.commands.hold_tool(player) return take_in_hand(player, TO_DIG) end

-- A block to place, unless it would come to stand in the player himself.
function lockstep.commands.hold_block(player)
	if lockstep.would_place_into_itself(player) then return lockstep.commands.hold_tool(player) end
	return take_in_hand(player, TO_PLACE)
end

-- Nothing happens where something is missing.
function lockstep.commands.craft(player, arguments)
	take_in_hand(player, {})
	local inventory, grid = player:get_inventory(), GRIDS[arguments.what]
	local bag, items, made = inventory:get_list("bag"), {}, nil
	for place, kind in ipairs(grid) do
		items[place] = ItemStack("")
		local slot, stack = find_in_bag(inventory, kind)
		if slot then
			items[place] = stack:take_item(1)
			inventory:set_stack("bag", slot, stack)
		elseif kind ~= 0 then
			inventory:set_list("bag", bag)
			lockstep.commands.hold_tool(player)
			return ""
		end
	end
	made = minetest.get_craft_result({method = "normal", width = grid.width, items = items}).item
	if made:is_empty() then inventory:set_list("bag", bag) else inventory:add_item("bag", made) end
	lockstep.commands.hold_tool(player)
	return made:get_name()
end

function lockstep.accounts.inventory(player)
	local counts = {0, 0, 0, 0, 0, 0, 0, 0, 0}
	for _, list in ipairs({"main", "bag"}) do
		for _, stack in ipairs(player:get_inventory():get_list(list)) do
			if not stack:is_empty() then
				local kind = kind_of(stack:get_name())
				counts[kind] = counts[kind] + stack:get_count()
			end
		end
	end
	return counts
end
