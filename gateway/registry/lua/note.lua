-- Append what a client tells to the event stream of a session that exists.
--
-- KEYS: 1 session hash, 2 event stream
-- ARGV: 1 data as JSON, 2 the same marked as late, 3 how long after its end a session takes events,
--       in ms
-- Returns {code, clock in ms, record, id of the entry}
--   1 kept | 2 kept, late | 0 the session has ended too long ago, or
--   is deleted | -1 there is no record

local state, expires_at, ended_at, purge_at, forgotten =
  get('state', 'expires_at', 'ended_at', 'purge_at', 'forgotten')
if state == '' then
  return answer(-1)
end
-- One that is past its time ended then, whether or not somebody has noticed.
local over = ENDED[state] and ended_at or (not is_live(state, expires_at) and expires_at)
if forgotten == '1' or (over and clock_ms() - tonumber(over) > tonumber(ARGV[3])) then
  return answer(0)
end
local kept = answer(over and 2 or 1)
kept[4] = append(KEYS[2], 'event', ARGV[over and 2 or 1])
redis.call('PEXPIREAT', KEYS[2], purge_at)
return kept
