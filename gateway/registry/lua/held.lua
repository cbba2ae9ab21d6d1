-- For how long nobody counts as lost, because the registry was away: see renew.lua.
--
-- KEYS: 1 pulse
-- ARGV: 1 longest silence in ms, 2 time to renew in ms
-- Returns ms

local now = clock_ms()
local pulse = redis.call('HMGET', KEYS[1], 'at', 'held_until')
if is_silent(pulse[1], now, ARGV[1]) then
  return tonumber(ARGV[2])
end
-- No longer than that, should the clock have gone back.
local left = (tonumber(pulse[2]) or 0) - now
return math.max(0, math.min(left, tonumber(ARGV[2])))
