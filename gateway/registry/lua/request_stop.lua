-- Ask for the end of a session, whoever owns it.
--
-- KEYS: 1 session hash, 2 files hash, 3 event stream
-- ARGV: 1 nonce of this call, 2 reason, 3 state in which it shall end
-- Returns {code, clock in ms, record}
--   1 ended or stopping (by this call, or by its first attempt) | 0 it was so already
--   -1 there is no record

local state, spawned, asked = get('state', 'spawned', 'stop_nonce')
if state == '' then
  return answer(-1)
end
if state == 'stopping' or ENDED[state] then
  return answer(asked == ARGV[1] and 1 or 0)
end
set('reason', ARGV[2], 'stop_to', ARGV[3], 'stop_nonce', ARGV[1])
-- Without a dev server there is nobody to wait for.
local to = (spawned ~= '1' or state == 'sleeping') and ARGV[3] or 'stopping'
enter(to, state, ARGV[1], KEYS[3])
return answer(1)
