-- KEYS: owner, queue, alive  ARGV: id, what the wake-up channels begin with
-- Settles an id that nobody stands behind any more, whether it waited, was about to hold, or held.
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
local owner = redis.call('GET', KEYS[1])
if owner == ARGV[1] then
  redis.call('DEL', KEYS[1])
  owner = false
end
if owner then return 1 end
local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
local dead = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', ms, 'LIMIT', 0, 100)
if #dead > 0 then
  redis.call('ZREM', KEYS[3], unpack(dead))
  redis.call('ZREM', KEYS[2], unpack(dead))
end
local head = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
-- Who may not publish is no worse off than one whose message is lost: the next one asks by itself.
if head then redis.pcall('PUBLISH', ARGV[2] .. string.match(head, '^[^/]*'), head) end
return 1
