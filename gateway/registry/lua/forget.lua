-- Drop the files and events of a session that has ended, or that is gone; its record says so.
--
-- KEYS: 1 session hash, 2 files hash, 3 event stream
-- Returns 1 dropped, 0 the session has not ended

local state = get('state')
if state ~= '' and not ENDED[state] then
  return 0
end
redis.call('DEL', KEYS[2], KEYS[3])
if state ~= '' then
  set('forgotten', '1')
end
return 1
