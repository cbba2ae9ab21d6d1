-- Register a session, unless a live one has the id. An id that was only reserved is free for one
-- with content: it keeps its events, and its metadata unless there is new one.
--
-- KEYS: 1 session hash, 2 files hash, 3 event stream
-- ARGV: 1 nonce of this call, 2 digest, 3 owner, 4 state, 5 ttl in ms, 6 life of the tombstone
--       in ms, 7 number n of fields, then n times field, value, then path, content of each file
-- Returns {code, clock in ms, record}
--   1 made (by this call, or by its first attempt) | 0 a live session with this digest exists
--   -1 a live session with another digest exists

local state, digest, nonce, expires_at, generation, previous_purge, reserved, metadata, access =
  get('state', 'digest', 'nonce', 'expires_at', 'generation', 'purge_at', 'reserved', 'metadata',
    'access')
if state ~= '' and nonce == ARGV[1] then
  return answer(1)
end
local is_there = state ~= '' and is_live(state, expires_at)
if is_there and (digest == ARGV[2] or reserved ~= '1') then
  -- Writes nothing new, but makes a WAIT that follows cover this record.
  redis.call('PEXPIREAT', KEYS[1], previous_purge)
  return answer(digest == ARGV[2] and 0 or -1)
end

local now = clock_ms()
local expires = now + tonumber(ARGV[5])
local first_file = 8 + 2 * tonumber(ARGV[7])
redis.call('DEL', KEYS[1], KEYS[2])
set_pairs(KEYS[1], 8, first_file - 1)
set_pairs(KEYS[2], first_file, #ARGV)
set(
  'nonce', ARGV[1], 'digest', ARGV[2], 'owner', ARGV[3], 'version', '0', 'revision', '1',
  'generation', next_token(generation), 'access', next_token(access), 'created_at', integer(now),
  'expires_at', integer(expires), 'tombstone_ms', ARGV[6],
  'purge_at', integer(expires + tonumber(ARGV[6])))
if is_there and get('metadata') == '{}' then
  set('metadata', metadata)
end
enter(ARGV[4], state, ARGV[1], KEYS[3])
return answer(1)
