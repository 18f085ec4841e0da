-- KEYS: the count  ARGV: the cost, the limit, the period µs
-- Answers {1 or 0, units taken, µs until the window ends}. It begins with its first use; a refusal takes nothing.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost, limit, per = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local taken, latest = 0, now + per
local ends = latest
local held = redis.call('GET', KEYS[1])
if held then
  local count, till = string.match(held, '^(%d+) (%d+)$')
  if #held > 28 or not count then
    return redis.error_reply('WRONGTYPE the key of the limit holds something else')
  end
  if tonumber(till) > now then taken, ends = tonumber(count), tonumber(till) end
end
-- A clock that was put back delays nobody by more than one period: what is beyond is cut, and kept so, or every
-- refusal would cut it anew.
local cut, allowed = ends > latest, 1
if cut then ends = latest end
if cost > 0 and taken + cost > limit then allowed = 0 else taken = taken + cost end
if (allowed == 1 and cost > 0) or cut then
  redis.call('SET', KEYS[1], string.format('%.0f %.0f', taken, ends), 'PX', math.ceil((ends - now) / 1000))
end
return {allowed, taken, ends - now}
