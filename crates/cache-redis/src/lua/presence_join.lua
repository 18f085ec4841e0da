-- ARGV: ttl ms, life of the keys ms, most members, connection, payload
-- Answers 1; 0 when as many live as may. All that are kept then live: of those that do not, the sweep made room.
local ends = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[4]) or '0')
if ends <= now and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
-- Payloads without members: the server evicted the one key and not the other.
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('UNLINK', KEYS[2]) end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[1]), ARGV[4])
redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
-- Never sooner than another instance wants, whose members may live longer.
for n = 1, 2 do
  if redis.call('PTTL', KEYS[n]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[n], ARGV[2]) end
end
return 1
