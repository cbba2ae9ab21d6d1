-- End a replica's lease, if it is still held by this incarnation.
--
-- KEYS: 1 lease
-- ARGV: 1 incarnation
-- Returns 1 ended, 0 absent or held by another incarnation

local lease = redis.call('GET', KEYS[1])
if not lease then
  return 0
end
local readable, value = pcall(cjson.decode, lease)
if not readable or type(value) ~= 'table' or value.incarnation ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
