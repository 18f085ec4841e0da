-- KEYS: the count  ARGV: the cost, the limit, the period µs
-- Answers {1 or 0, units taken, µs until the window ends}. It begins with its first use; a refusal changes nothing.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost, limit, per = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local taken, ends = 0, now + per
local held = redis.call('GET', KEYS[1])
if held then
  local count, till = string.match(held, '^(%d+) (%d+)$')
  if #held > 28 or not count then
    return redis.error_reply('WRONGTYPE the key of the limit holds something else')
  end
  -- A clock that was put back delays nobody by more than one period.
  if tonumber(till) > now then taken, ends = tonumber(count), math.min(tonumber(till), ends) end
end
if taken + cost > limit then return {0, taken, ends - now} end
taken = taken + cost
if cost > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f %.0f', taken, ends), 'PX', math.ceil((ends - now) / 1000))
end
return {1, taken, ends - now}
