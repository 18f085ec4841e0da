-- ARGV: connection
-- Answers 1; 0 when it was not there, or its life was over.
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return ends and tonumber(ends) > now and 1 or 0
