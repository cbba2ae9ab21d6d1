-- Note that a session has traffic now. Nothing is published: nobody routes by it.
--
-- KEYS: 1 session hash
-- Returns 1 noted | 0 there is no record

if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
set('active_at', integer(clock_ms()))
return 1
