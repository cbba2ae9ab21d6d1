-- Move a session on, if the caller still holds it.
--
-- KEYS: 1 session hash, 2 files hash, 3 event stream
-- ARGV: 1 nonce of this call, 2 owner, 3 generation, 4 state to enter, 5 states it may come from
--       (each between commas), then field, value of what else changes
-- Returns {code, clock in ms, record}
--   1 moved (by this call, or by its first attempt) | 0 fenced | -1 there is no record

local state, owner, generation, op = get('state', 'owner', 'generation', 'op')
if state == '' then
  return answer(-1)
end
if op == ARGV[1] then
  return answer(1)
end
if owner ~= ARGV[2] or generation ~= ARGV[3]
  or not string.find(ARGV[5], ',' .. state .. ',', 1, true) then
  return answer(0)
end
set_pairs(KEYS[1], 6, #ARGV)
enter(ARGV[4], state, ARGV[1], KEYS[3])
return answer(1)
