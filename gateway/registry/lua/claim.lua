-- Take a session over: new owner, new generation, state STARTING.
--
-- KEYS: 1 session hash, 2 files hash, 3 event stream
-- ARGV: 1 nonce of this call, 2 new owner, 3 generation the caller saw, 4 states it may come from
--       (each between commas)
-- Returns {code, clock in ms, record}
--   1 claimed (by this call, or by its first attempt) | 0 fenced | -1 there is no record

local state, generation, op, spawned = get('state', 'generation', 'op', 'spawned')
if state == '' then
  return answer(-1)
end
if op == ARGV[1] then
  return answer(1)
end
if generation ~= ARGV[3] or spawned ~= '1'
  or not string.find(ARGV[4], ',' .. state .. ',', 1, true) then
  return answer(0)
end
set(
  'owner', ARGV[2], 'generation', next_token(generation), 'host', '', 'port', '',
  'reason', '', 'log_tail', '')
enter('starting', state, ARGV[1], KEYS[3])
return answer(1)
