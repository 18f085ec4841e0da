-- KEYS: owner, fence, queue, alive  ARGV: id, fence, what the wake-up channels begin with
-- Answers 1: released; 2: nobody has taken it since, so it was released before (asked again after a lost answer)
-- or ran out; 0: it is another's, or nothing is known of it.
local owner = redis.call('GET', KEYS[1])
local answer = 0
if owner == ARGV[1] then
  redis.call('DEL', KEYS[1])
  answer = 1
elseif not owner and redis.call('GET', KEYS[2]) == ARGV[2] then
  answer = 2
end
if answer == 0 then return 0 end
wake_next(KEYS[3], KEYS[4], ARGV[3])
return answer
