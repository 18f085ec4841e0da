-- KEYS: key  ARGV: what must stand, whether that is all of it, value, px (0: store nothing)
local held
if ARGV[2] == '1' then
  held = redis.call('GET', KEYS[1])
else
  held = redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1)
end
if held ~= ARGV[1] then return 0 end
if ARGV[4] == '0' then
  redis.call('UNLINK', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
end
return 1
