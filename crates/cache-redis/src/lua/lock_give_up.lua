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
wake_next(KEYS[2], KEYS[3], ARGV[2])
return 1
