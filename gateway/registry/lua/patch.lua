-- Change what is not content.
--
-- KEYS: 1 session hash, 2 files hash, 3 event stream
-- ARGV: 1 nonce of this call, 2 new life from now in ms or '', 3 metadata that is replaced or '',
--       4 '1' to revoke access (another number covers what is signed from now on), then field, value
-- Returns {code, clock in ms, record}
--   1 changed (by this call, or by its first attempt) | 0 ended | -1 there is no record
--   -2 the metadata is another one

local state, expires_at, op, tombstone = get('state', 'expires_at', 'op', 'tombstone_ms')
if state == '' then
  return answer(-1)
end
if op == ARGV[1] then
  return answer(1)
end
if not is_live(state, expires_at) then
  return answer(0)
end
if ARGV[3] ~= '' and ARGV[3] ~= get('metadata') then
  return answer(-2)
end
if ARGV[2] ~= '' then
  local expires = clock_ms() + tonumber(ARGV[2])
  set('expires_at', integer(expires), 'purge_at', integer(expires + tonumber(tombstone)))
end
if ARGV[4] == '1' then
  set('access', next_token(get('access')))
end
set_pairs(KEYS[1], 5, #ARGV)
set('op', ARGV[1])
count()
append(KEYS[3], 'event', '{"type":"patch"}')
publish_route()
keep()
return answer(1)
