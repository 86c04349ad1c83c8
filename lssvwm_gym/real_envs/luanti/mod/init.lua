-- Server side of the lock step. In every server step: obey the command that came with the frame, and, if the frame will be
-- seen, account for what is not in the picture. The C functions are those of lockstep.c, preloaded into this same process.

local trusted = minetest.request_insecure_environment()
assert(trusted, "the mod lockstep must be named in secure.trusted_mods")
local ffi = trusted.require("ffi")
ffi.cdef [[
	void lockstep_ready(void);
	int lockstep_is_seen(void);
	int lockstep_command(char *text);
	void lockstep_ticked(double seconds, const char *text, int bytes);
]]
local LONGEST_TEXT = 65536 -- as in lockstep.c
local text = ffi.new("char[?]", LONGEST_TEXT)

lockstep = {
	EYE = 1.47, -- metres above the feet
	commands = {}, -- by name: function(player, arguments) -> anything; the account tells the last answer
	accounts = {}, -- by key: function(player) -> anything that JSON can hold
}
for _, file in ipairs({"inventory", "placing", "senses", "start", "lamp"}) do
	dofile(minetest.get_modpath("lockstep") .. "/" .. file .. ".lua")
end

local player, answer

minetest.register_on_joinplayer(function(joined)
	player = joined
	player:hud_set_flags({hotbar = false, healthbar = false, crosshair = false, breathbar = false, minimap = false, wielditem = true})
	ffi.C.lockstep_ready()
end)

local function obey()
	local bytes = ffi.C.lockstep_command(text)
	if bytes == 0 then return end
	local command = minetest.parse_json(ffi.string(text, bytes))
	answer = lockstep.commands[command.name](player, command)
end

local function account()
	local all = {answer = answer}
	for key, tell in pairs(lockstep.accounts) do all[key] = tell(player) end
	return minetest.write_json(all)
end

minetest.register_globalstep(function(seconds)
	local told = ""
	if player then
		obey()
		lockstep.follow_with_lamp(player)
		if ffi.C.lockstep_is_seen() ~= 0 then told = account() end
	end
	ffi.C.lockstep_ticked(seconds, told, #told)
end)

local function round(value) return math.floor(value * 1e4 + 0.5) / 1e4 end

function lockstep.accounts.pos(player)
	local at = player:get_pos()
	return {round(at.x), round(at.y), round(at.z)}
end
function lockstep.accounts.yaw(player) return player:get_look_horizontal() end
function lockstep.accounts.pitch(player) return player:get_look_vertical() end
function lockstep.accounts.hp(player) return player:get_hp() end
