-- KEYS: members (by the end of their lives), payloads. In front of every script of presence.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- The lives that are not over. A number of this size may be written as 1.7e+12.
local living = string.format('(%.0f', now)
-- Everything that may be refused comes before what is written: a script that fails half-way is not undone. What
-- presence keeps always expires.
redis.call('ZCARD', KEYS[1])
redis.call('HLEN', KEYS[2])
if redis.call('PTTL', KEYS[1]) == -1 or redis.call('PTTL', KEYS[2]) == -1 then
  return redis.error_reply('WRONGTYPE the keys of presence hold something else')
end
