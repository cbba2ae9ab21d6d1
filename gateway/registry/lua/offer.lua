-- Offer a session to another replica, which starts a dev server of its own for it. What runs, and
-- where requests go, stays as it is until the heir has succeeded.
--
-- KEYS: 1 session hash, 2 files hash, 3 event stream
-- ARGV: 1 nonce of this call, 2 owner, 3 generation, 4 heir, 5 states in which it may be offered
--       (each between commas)
-- Returns {code, clock in ms, record}
--   1 offered (by this call, or by its first attempt) | 0 fenced | -1 there is no record

local state, owner, generation, op, spawned = get('state', 'owner', 'generation', 'op', 'spawned')
if state == '' then
  return answer(-1)
end
if op == ARGV[1] then
  return answer(1)
end
-- A session that sleeps is nobody's.
if (owner ~= ARGV[2] and state ~= 'sleeping') or generation ~= ARGV[3] or spawned ~= '1'
  or not string.find(ARGV[5], ',' .. state .. ',', 1, true) then
  return answer(0)
end
set('heir', ARGV[4], 'heir_generation', next_token(generation), 'op', ARGV[1])
count()
publish_route()
keep()
return answer(1)
