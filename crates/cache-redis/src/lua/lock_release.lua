-- KEYS: owner, fence, queue, alive  ARGV: id, fence, what the wake-up channels begin with
-- Answers 1: released; 2: nobody has taken it since, so it was released before (asked again after a lost answer)
-- or ran out; 0: it is another's, or nothing is known of it.
local owner = redis.call('GET', KEYS[1])
local answer = 0
if owner == ARGV[1] then
  redis.call('DEL', KEYS[1])
  answer = 1
elseif not owner and redis.call('GET', KEYS[2]) == ARGV[2] then
  answer = 2
end
if answer == 0 then return 0 end
local time = redis.call('TIME')
local ms = time[1] * 1000 + math.floor(time[2] / 1000)
local dead = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', ms, 'LIMIT', 0, 100)
if #dead > 0 then
  redis.call('ZREM', KEYS[4], unpack(dead))
  redis.call('ZREM', KEYS[3], unpack(dead))
end
local head = redis.call('ZRANGE', KEYS[3], 0, 0)[1]
-- Who may not publish is no worse off than one whose message is lost: the next one asks by itself.
if head then redis.pcall('PUBLISH', ARGV[3] .. string.match(head, '^[^/]*'), head) end
return answer
