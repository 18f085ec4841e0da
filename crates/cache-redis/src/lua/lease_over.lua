-- KEYS: key  ARGV: what was seen, whether that is all of it, marker, px
-- Answers as SET NX GET does: nil when the lease was granted, else what is there.
local held = redis.call('GET', KEYS[1])
if held then
  local seen = held
  if ARGV[2] == '0' then seen = string.sub(held, 1, #ARGV[1]) end
  if seen ~= ARGV[1] then return held end
end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
return false
