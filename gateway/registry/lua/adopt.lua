-- Become the owner of a session whose dev server outlives its former owner. Generation, endpoint and
-- state stay: only who looks after it changes.
--
-- KEYS: 1 session hash, 2 files hash, 3 event stream
-- ARGV: 1 nonce of this call, 2 new owner, 3 generation, 4 former owner
-- Returns {code, clock in ms, record}
--   1 adopted (by this call, or by its first attempt) | 0 fenced | -1 there is no record

local state, owner, generation, op, spawned = get('state', 'owner', 'generation', 'op', 'spawned')
if state == '' then
  return answer(-1)
end
if op == ARGV[1] then
  return answer(1)
end
if state ~= 'ready' or owner ~= ARGV[4] or generation ~= ARGV[3] or spawned ~= '1' then
  return answer(0)
end
set('owner', ARGV[2], 'op', ARGV[1], 'heir', '', 'heir_generation', '')
count()
publish_route()
keep()
return answer(1)
