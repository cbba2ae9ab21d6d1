-- Enter an id into the index of all sessions, as of now. An entry that is there stays as it is,
-- unless it is to be renewed.
--
-- KEYS: 1 index (sorted set: id by the time of its registration in ms)
-- ARGV: 1 id, 2 '1' to renew the entry
-- Returns 1 the id is new to the index, 0 it was there

if ARGV[2] == '1' then
  return redis.call('ZADD', KEYS[1], integer(clock_ms()), ARGV[1])
end
return redis.call('ZADD', KEYS[1], 'NX', integer(clock_ms()), ARGV[1])
