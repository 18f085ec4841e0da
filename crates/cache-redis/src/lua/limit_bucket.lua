-- KEYS: the count  ARGV: what the cost takes µs, the period µs
-- GCRA. Answers {1 or 0, µs until the bucket is full}. A refusal changes nothing.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local price, per = tonumber(ARGV[1]), tonumber(ARGV[2])
local held = redis.call('GET', KEYS[1]) or '0'
if #held > 16 or not string.find(held, '^%d+$') then
  return redis.error_reply('WRONGTYPE the key of the limit holds something else')
end
-- A clock that was put back delays nobody by more than one period.
local arrival = math.min(math.max(tonumber(held), now), now + per)
local new = arrival + price
if new - now > per then return {0, arrival - now} end
-- Numbers of this size would be written as 1.7e+15.
if price > 0 then redis.call('SET', KEYS[1], string.format('%.0f', new), 'PX', math.ceil((new - now) / 1000)) end
return {1, new - now}
