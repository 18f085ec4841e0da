-- KEYS: sequence, key…  ARGV: channel, message without its opening brace
-- A write first: a server that refuses writes stops here, before anything happened.
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
local n = redis.call('INCR', KEYS[1])
redis.call('PUBLISH', ARGV[1], '{"n":' .. string.format('%.0f', n) .. ',' .. ARGV[2])
return n
