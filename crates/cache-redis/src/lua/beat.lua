-- KEYS: sequence  ARGV: echo channel, message without its opening brace
-- PERSIST is a write that changes nothing: replicas, demoted and isolated masters refuse it.
redis.call('PERSIST', KEYS[1])
local n = redis.call('GET', KEYS[1]) or '0'
redis.call('PUBLISH', ARGV[1], '{"n":' .. n .. ',' .. ARGV[2])
local time = redis.call('TIME')
return {tonumber(n), tonumber(time[1]), tonumber(time[2])}
