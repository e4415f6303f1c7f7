-- Publish a message that may have been published before: the answer was lost.
-- KEYS: a list. ARGV: the message, and the same marked as one that somebody may have had. Returns 1 if it was not there.

for n = 1, 2 do
  -- New ones lie to the left: it is found soon, or was taken.
  local place = redis.pcall('LPOS', KEYS[1], ARGV[n], 'MAXLEN', 10000)
  if type(place) == 'number' then
    return 0
  end
end
local reply = redis.pcall('LPUSH', KEYS[1], ARGV[2])
if type(reply) == 'table' then
  return reply
end
return 1
