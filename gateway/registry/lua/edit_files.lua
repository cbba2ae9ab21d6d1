-- Write and delete files in one step; the revision grows by one.
--
-- KEYS: 1 session hash, 2 files hash, 3 event stream
-- ARGV: 1 nonce of this call, 2 revision the edit is based on or '', 3 number n of paths to
--       delete, then n paths, then path, content of each file to write
-- Returns {code, clock in ms, record}
--   1 edited (by this call, or by its first attempt) | 0 ended | -1 there is no record
--   -2 the revision is another one

local state, expires_at, op, revision = get('state', 'expires_at', 'op', 'revision')
if state == '' then
  return answer(-1)
end
if op == ARGV[1] then
  return answer(1)
end
if not is_live(state, expires_at) then
  return answer(0)
end
if ARGV[2] ~= '' and ARGV[2] ~= revision then
  return answer(-2)
end
local first_write = 4 + tonumber(ARGV[3])
for i = 4, first_write - 1 do
  redis.call('HDEL', KEYS[2], ARGV[i])
end
set_pairs(KEYS[2], first_write, #ARGV)
local now_at = integer(redis.call('HINCRBY', KEYS[1], 'revision', 1))
set('op', ARGV[1])
count()
append(KEYS[3], 'event', '{"type":"files","revision":' .. now_at .. '}')
publish_route()
keep()
return answer(1)
