-- Drop entries of a sorted set whose score has not changed since it was read: an entry that was
-- renewed meanwhile stays.
--
-- KEYS: 1 sorted set
-- ARGV: member, score ...
-- Returns how many were dropped

local dropped = 0
for i = 1, #ARGV, 2 do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == tonumber(ARGV[i + 1]) then
    dropped = dropped + redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return dropped
