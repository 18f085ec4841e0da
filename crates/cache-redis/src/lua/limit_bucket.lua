-- KEYS: the count  ARGV: what the cost takes µs, the period µs
-- GCRA. Answers {1 or 0, µs until the bucket is full}. A refusal takes nothing.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local price, per = tonumber(ARGV[1]), tonumber(ARGV[2])
local held = redis.call('GET', KEYS[1]) or '0'
if #held > 16 or not string.find(held, '^%d+$') then
  return redis.error_reply('WRONGTYPE the key of the limit holds something else')
end
-- A clock that was put back delays nobody by more than one period: what is beyond is cut, and kept so, or every
-- refusal would cut it anew.
local latest = now + per
local arrival = math.min(math.max(tonumber(held), now), latest)
local after, allowed = arrival + price, 1
if after > latest then after, allowed = arrival, 0 end
if (allowed == 1 and price > 0) or tonumber(held) > latest then
  -- Numbers of this size would be written as 1.7e+15.
  redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000))
end
return {allowed, after - now}
