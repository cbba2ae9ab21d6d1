-- Register again what the registry has lost, for the owner whose dev server still runs.
--
-- KEYS: 1 session hash, 2 files hash, 3 event stream
-- ARGV: 1 nonce of this call, 2 owner, 3 generation, 4 end of its life (ms), 5 life of the
--       tombstone in ms, 6 revision, 7 digest, 8 number n of fields, then n times field, value, then
--       path, content of each file
-- Returns {code, clock in ms, record}
--   1 restored (by this call, or by its first attempt) | 0 the registry knows something newer

local state, owner, generation, op = get('state', 'owner', 'generation', 'op')
if op == ARGV[1] and state ~= '' then
  return answer(1)
end
local stored, mine = tonumber(generation) or 0, tonumber(ARGV[3])
local is_behind = state == 'registered' or state == 'starting'
if stored > mine or (stored == mine and not (owner == ARGV[2] and is_behind)) then
  return answer(0)
end

local version = get('version')
local expires = tonumber(ARGV[4])
local first_file = 9 + 2 * tonumber(ARGV[8])
redis.call('DEL', KEYS[1], KEYS[2])
set_pairs(KEYS[1], 9, first_file - 1)
set_pairs(KEYS[2], first_file, #ARGV)
set(
  'owner', ARGV[2], 'generation', ARGV[3], 'version', version, 'revision', ARGV[6],
  'digest', ARGV[7], 'nonce', ARGV[1], 'expires_at', integer(expires), 'tombstone_ms', ARGV[5],
  'purge_at', integer(expires + tonumber(ARGV[5])))
enter('ready', state, ARGV[1], KEYS[3])
return answer(1)
