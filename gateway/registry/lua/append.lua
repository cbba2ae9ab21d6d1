-- Append to the event stream of a session that exists.
--
-- KEYS: 1 session hash, 2 event stream
-- ARGV: 1 type, 2 data as JSON, 3 generation the entry comes from, or ''
-- Returns the entry's id, 0 if the generation is neither the current one nor the one offered to an
-- heir, -1 if there is no record

local state, generation, offered, purge_at =
  get('state', 'generation', 'heir_generation', 'purge_at')
if state == '' then
  return -1
end
if ARGV[3] ~= '' and ARGV[3] ~= generation and ARGV[3] ~= offered then
  return 0
end
local id = append(KEYS[2], ARGV[1], ARGV[2])
redis.call('PEXPIREAT', KEYS[2], purge_at)
return id
