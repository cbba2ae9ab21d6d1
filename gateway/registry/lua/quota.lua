-- Charge an account for a session, within its limits. Nothing is given back when a session ends:
-- whoever reaches a limit looks which of the sessions are still there (see quotas.py).
--
-- KEYS: 1 account (hash: "s:<id>" -> "<files> <bytes>", bucket, looked_at)
-- ARGV: 1 session id, 2 its files, 3 its bytes, 4 '1' if it is created by this call, then the limits,
--       0 for none: 5 creates in a minute, 6 sessions, 7 files, 8 bytes; 9 life of the account in ms
-- Returns {code, value}
--   1 charged | 0 too many creates, the next one is free in `value` ms | -1 too many sessions
--   -2 too many files | -3 too many bytes; `value` is 1 if the caller is to look, once a second

local now = clock_ms()
local create, per_minute = ARGV[4] == '1', tonumber(ARGV[5])
local mine = 's:' .. ARGV[1]
local stored = redis.call('HGETALL', KEYS[1])
local sessions, files, bytes = 1, tonumber(ARGV[2]), tonumber(ARGV[3])
local bucket, looked_at, had_files, had_bytes = now, 0, 0, 0
for i = 1, #stored, 2 do
  local name, value = stored[i], stored[i + 1]
  if name == 'bucket' then
    bucket = math.max(now, tonumber(value))
  elseif name == 'looked_at' then
    looked_at = tonumber(value)
  else
    local of_files, of_bytes = string.match(value, '^(%d+) (%d+)$')
    if name == mine then
      had_files, had_bytes = tonumber(of_files), tonumber(of_bytes)
    else
      sessions = sessions + 1
      files, bytes = files + tonumber(of_files), bytes + tonumber(of_bytes)
    end
  end
end

local function is_over(total, limit, grows)
  return grows and tonumber(limit) > 0 and total > tonumber(limit)
end

-- A bucket that holds a minute's worth of creates, and fills evenly (GCRA).
local step = per_minute > 0 and 60000 / per_minute or 0
if create and per_minute > 0 and bucket + step - now > 60000 then
  return { 0, math.ceil(bucket + step - now - 60000) }
end
local code = 1
if is_over(sessions, ARGV[6], create) then
  code = -1
elseif is_over(files, ARGV[7], tonumber(ARGV[2]) > had_files) then
  code = -2
elseif is_over(bytes, ARGV[8], tonumber(ARGV[3]) > had_bytes) then
  code = -3
end
if code < 0 then
  if now - looked_at < 1000 and looked_at <= now then
    return { code, 0 }
  end
  redis.call('HSET', KEYS[1], 'looked_at', integer(now))
  return { code, 1 }
end
redis.call('HSET', KEYS[1], mine, ARGV[2] .. ' ' .. ARGV[3])
if create then
  redis.call('HSET', KEYS[1], 'bucket', integer(bucket + step))
end
redis.call('PEXPIREAT', KEYS[1], integer(now + tonumber(ARGV[9])))
return { 1, 0 }
