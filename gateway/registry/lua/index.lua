-- Enter a name into an index, as of now. An entry that is there stays as it is, unless it is to be
-- renewed.
--
-- KEYS: 1 index (sorted set: name by a time in ms)
-- ARGV: 1 name, 2 '1' to renew the entry, 3 its time from now in ms, 0 if not given
-- Returns 1 the name is new to the index, 0 it was there

local at = integer(clock_ms() + (tonumber(ARGV[3]) or 0))
if ARGV[2] == '1' then
  return redis.call('ZADD', KEYS[1], at, ARGV[1])
end
return redis.call('ZADD', KEYS[1], 'NX', at, ARGV[1])
