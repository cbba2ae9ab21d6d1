-- Become the owner of a session that was offered, with the dev server that is ready for it: one
-- step from the old one to the new one, so that no request finds none.
--
-- KEYS: 1 session hash, 2 files hash, 3 event stream
-- ARGV: 1 nonce of this call, 2 heir, 3 generation that was offered, then field, value of what else
--       changes
-- Returns {code, clock in ms, record}
--   1 succeeded (by this call, or by its first attempt) | 0 fenced | -1 there is no record

local state, heir, offered, op = get('state', 'heir', 'heir_generation', 'op')
if state == '' then
  return answer(-1)
end
if op == ARGV[1] then
  return answer(1)
end
if state ~= 'ready' or heir ~= ARGV[2] or offered ~= ARGV[3] then
  return answer(0)
end
set_pairs(KEYS[1], 4, #ARGV)
local active_at = get('active_at')
set('owner', heir, 'generation', offered)
enter('ready', state, ARGV[1], KEYS[3])
set('active_at', active_at)  -- a new dev server is no traffic
return answer(1)
