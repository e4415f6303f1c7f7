-- Take messages out of a list, oldest first. KEYS: list. ARGV: how many at most.

local taken = {}
for n = 1, tonumber(ARGV[1]) do
  local message = redis.call('RPOP', KEYS[1])
  if not message then
    break
  end
  taken[n] = message
end
return taken
