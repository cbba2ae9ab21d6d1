-- End a replica's lease, if it is still held by this incarnation.
--
-- KEYS: 1 lease, 2 owners (sorted set: owner by end of its lease; below 0 if it gave it up then)
-- ARGV: 1 incarnation, 2 owner
-- Returns 1 ended, 0 absent or held by another incarnation

redis.call('ZADD', KEYS[2], 'XX', integer(-clock_ms()), ARGV[2])
local lease = redis.call('GET', KEYS[1])
if not lease then
  return 0
end
local readable, value = pcall(cjson.decode, lease)
if not readable or type(value) ~= 'table' or value.incarnation ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
