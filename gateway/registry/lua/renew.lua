-- Renew the lease of a replica, and notice if the registry was away or has lost its data.
--
-- The pulse is the time of the last heartbeat of anybody. Leases are long enough for several
-- heartbeats, so while somebody beats, a lease that ran out is its holder's doing. A long silence of
-- all, or no pulse at all, is the registry's: it was down, stalled, failed over or emptied, leases ran
-- out meanwhile and their holders may well live. Then nobody counts as lost until each had time to
-- renew.
--
-- KEYS: 1 replicas (sorted set: name by last heartbeat), 2 owners (sorted set: owner by end of its
--       lease), 3 lease, 4 pulse (hash: at, epoch, held_until); all in one slot
-- ARGV: 1 replica, 2 owner, 3 value of the lease, 4 its life in ms, 5 longest silence in ms, 6 time to
--       renew in ms
-- Returns the epoch: another one than before means that the registry was away

local now = clock_ms()
redis.call('ZADD', KEYS[1], integer(now), ARGV[1])
redis.call('ZADD', KEYS[2], integer(now + tonumber(ARGV[4])), ARGV[2])
redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
local pulse = redis.call('HMGET', KEYS[4], 'at', 'epoch')
local epoch = pulse[2]
if is_silent(pulse[1], now, ARGV[5]) or not epoch then
  epoch = next_token(epoch)
  redis.call('HSET', KEYS[4], 'epoch', epoch, 'held_until', integer(now + tonumber(ARGV[6])))
end
redis.call('HSET', KEYS[4], 'at', integer(now))
return epoch
