-- In front of every script that serves the queue of a lock.
-- Forgets waiters that were silent for too long.
local function forget_silent(queue, alive, ms)
  local dead = redis.call('ZRANGEBYSCORE', alive, '-inf', ms, 'LIMIT', 0, 100)
  if #dead > 0 then
    redis.call('ZREM', alive, unpack(dead))
    redis.call('ZREM', queue, unpack(dead))
  end
end
-- Wakes who is next, on the channel of its instance.
local function wake_next(queue, alive, channels)
  local time = redis.call('TIME')
  forget_silent(queue, alive, time[1] * 1000 + math.floor(time[2] / 1000))
  local head = redis.call('ZRANGE', queue, 0, 0)[1]
  -- Who may not publish is no worse off than one whose message is lost: the next one asks by itself.
  if head then redis.pcall('PUBLISH', channels .. string.match(head, '^[^/]*'), head) end
end
