-- Shared by the scripts of this folder: loaded in front of each of them (see scripts.py).
--
-- KEYS[1] is always the hash of a session; all keys of one script share its hash tag, hence one
-- slot. Times come from the server's clock. A generation has 16 digits: tostring() and cjson round
-- it, so numbers become text through integer().

local CHANGES = 'preview:changes'
local STREAM_LENGTH = 2000
local ENDED = { stopped = true, failed = true, expired = true }
local ROUTE = {
  'id', 'generation', 'version', 'state', 'owner', 'host', 'port', 'base', 'public',
  'hmr_path', 'hmr_protocol', 'reason', 'log_tail', 'heir', 'revision', 'access', 'creator',
}

local function integer(number)
  return string.format('%.0f', number)
end

local function clock_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function clock_ms()
  return math.floor(clock_us() / 1000)
end

-- Fields of the session, '' for those it lacks.
local function get(...)
  local values = redis.call('HMGET', KEYS[1], ...)
  for i = 1, #values do
    values[i] = values[i] or ''
  end
  return unpack(values)
end

local function set(...)
  redis.call('HSET', KEYS[1], ...)
end

-- Set field, value, field, value ... from ARGV[first] to ARGV[last]: one at a time, because
-- unpack() of a long list overflows the stack.
local function set_pairs(key, first, last)
  for i = first, last, 2 do
    redis.call('HSET', key, ARGV[i], ARGV[i + 1])
  end
end

-- A number that was never handed out: a lost or rolled back record cannot bring one back. Versions
-- are such numbers, too: else what is written after a failover would look older than what was lost.
local function next_token(stored)
  return integer(math.max((tonumber(stored) or 0) + 1, clock_us()))
end

-- Whether the last heartbeat of anybody is too long ago, or in the future of a clock gone back.
local function is_silent(at, now, longest)
  at = tonumber(at) or 0
  return at > now + 1000 or now - at > tonumber(longest)
end

-- Whether the session still runs its life: neither ended nor past its time.
local function is_live(state, expires_at)
  return not ENDED[state] and tonumber(expires_at) > clock_ms()
end

-- Append to the event stream and tell those who listen to it (channel and key have one name).
local function append(stream, kind, data)
  local id = redis.call(
    'XADD', stream, 'MAXLEN', '~', STREAM_LENGTH, '*', 'type', kind, 'data', data)
  redis.call('PUBLISH', stream, cjson.encode({ id, kind, data }))
  return id
end

local function append_state(stream, previous)
  local state, generation, reason = get('state', 'generation', 'reason')
  local data = '{"state":' .. cjson.encode(state) .. ',"generation":' .. generation
  if reason ~= '' then
    data = data .. ',"reason":' .. cjson.encode(reason)
  end
  if previous ~= '' then
    data = data .. ',"previousState":' .. cjson.encode(previous)
  end
  append(stream, 'state', data .. '}')
  if ENDED[state] then
    append(stream, 'end', cjson.encode({ state = state, reason = reason }))
  end
end

-- Tell every replica the whole route.
local function publish_route()
  local values = redis.call('HMGET', KEYS[1], unpack(ROUTE))
  local route = {}
  for i, name in ipairs(ROUTE) do
    route[name] = values[i] or nil
  end
  redis.call('PUBLISH', CHANGES, cjson.encode(route))
end

-- The record has changed.
local function count()
  set('version', next_token(get('version')))
end

-- Let all keys of the session live exactly as long as its record says.
local function keep()
  local purge_at = get('purge_at')
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIREAT', key, purge_at)
  end
end

-- Enter a state, and tell; an offer to another replica ends with the state in which it was made.
-- `nonce` marks the change, so that repeating it does nothing.
local function enter(to, previous, nonce, stream)
  set('state', to, 'op', nonce, 'heir', '', 'heir_generation', '')
  count()
  if ENDED[to] then
    local now = clock_ms()
    set('ended_at', integer(now), 'purge_at', integer(now + tonumber(get('tombstone_ms'))))
  end
  if ENDED[to] or to == 'sleeping' then
    set('host', '', 'port', '')
  end
  if to == 'ready' then
    set('active_at', integer(clock_ms()))
  end
  append_state(stream, previous)
  publish_route()
  keep()
end

-- The answer of every script that concerns a record: {code, clock in ms, record}.
local function answer(code)
  return { code, integer(clock_ms()), redis.call('HGETALL', KEYS[1]) }
end
