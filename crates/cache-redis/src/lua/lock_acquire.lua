-- KEYS: owner, fence, queue, alive  ARGV: id, ttl ms, patience ms, whether to enter the queue, life of the fence ms
-- Answers {1, fence, ms left} to the holder, {0, how many are in front, ms the owner has left} to everybody else.
local id, time = ARGV[1], redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local ms = math.floor(us / 1000)
-- Everything that may be refused comes first: a script that fails half-way is not undone.
local owner, left = redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])
if owner and (left == -1 or not string.find(owner, '^%x+/%d+$')) then
  return redis.error_reply('WRONGTYPE the key of the lock holds something else')
end
local fence = tonumber(redis.call('GET', KEYS[2]) or '0')
if not fence or not (fence >= 0 and fence < 9007199254740991) or fence % 1 ~= 0 then
  return redis.error_reply('WRONGTYPE the fence is no number')
end
forget_silent(KEYS[3], KEYS[4], ms)
local head = redis.call('ZRANGE', KEYS[3], 0, 0)[1]
if owner == id or (not owner and (not head or head == id)) then
  redis.call('ZREM', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  -- Asked again after a lost answer, the holder hears what it was given.
  if owner == id and fence > 0 then return {1, fence, left} end
  -- The server's clock, so that it grows also when the counter was lost; never below the counter.
  fence = math.max(fence + 1, us)
  -- Numbers of this size would be written as 1.7e+15.
  redis.call('SET', KEYS[2], string.format('%.0f', fence), 'PX', ARGV[5])
  redis.call('SET', KEYS[1], id, 'PX', ARGV[2])
  return {1, fence, tonumber(ARGV[2])}
end
if ARGV[4] == '1' then
  -- Behind the last one, also when the clock was put back.
  local last = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2]
  local arrival = math.max(us, (tonumber(last) or 0) + 1)
  redis.call('ZADD', KEYS[3], 'NX', string.format('%.0f', arrival), id)
  redis.call('ZADD', KEYS[4], string.format('%.0f', ms + ARGV[3]), id)
  redis.call('PEXPIRE', KEYS[3], ARGV[3] * 2)
  redis.call('PEXPIRE', KEYS[4], ARGV[3] * 2)
end
return {0, redis.call('ZRANK', KEYS[3], id) or -1, left}
