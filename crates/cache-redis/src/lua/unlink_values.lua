-- KEYS: key…  Removes them, and says how many held something else than a lease.
local removed = 0
for _, key in ipairs(KEYS) do
  local first = redis.pcall('GETRANGE', key, 0, 0)
  local unlinked = redis.call('UNLINK', key)
  if first ~= '\0' then removed = removed + unlinked end
end
return removed
