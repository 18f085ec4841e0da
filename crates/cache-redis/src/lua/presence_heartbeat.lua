-- ARGV: ttl ms, life of the keys ms, connections
-- Answers for each 1; 0 when it is not known (any more) and must join again, as also when its payload was evicted.
local ends, answers, prolonged = string.format('%.0f', now + ARGV[1]), {}, false
for n = 3, #ARGV do
  local before = redis.call('ZSCORE', KEYS[1], ARGV[n])
  answers[n - 2] = 0
  if before and tonumber(before) > now and redis.call('HEXISTS', KEYS[2], ARGV[n]) == 1 then
    -- Also to an earlier end, which it is when the clock was put back.
    redis.call('ZADD', KEYS[1], ends, ARGV[n])
    answers[n - 2], prolonged = 1, true
  end
end
if prolonged then
  for n = 1, 2 do
    if redis.call('PTTL', KEYS[n]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[n], ARGV[2]) end
  end
end
return answers
