-- ARGV: cursor ('0' at first), how many to look at
-- Answers {the next cursor ('0' at the end), {connection, payload, …}}. The payloads are walked, not the members: a
-- field that is there from the first page to the last is met, whoever comes and goes meanwhile, while a place in the
-- order of the members changes with every heartbeat.
local page, found = redis.call('HSCAN', KEYS[2], ARGV[1], 'COUNT', ARGV[2]), {}
for n = 1, #page[2], 2 do
  local ends = redis.call('ZSCORE', KEYS[1], page[2][n])
  if ends and tonumber(ends) > now then
    found[#found + 1] = page[2][n]
    found[#found + 1] = page[2][n + 1]
  end
end
return {page[1], found}
