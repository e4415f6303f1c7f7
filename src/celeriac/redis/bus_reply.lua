-- Put an answer into the list of each queue that a direct exchange binds with its routing key.
-- KEYS: binding. ARGV: how members begin that have this routing key, separator, prefix of keys, message, milliseconds
-- that it may lie unread.

local begin, sep = ARGV[1], ARGV[2]
for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if string.sub(member, 1, #begin) == begin then
    local _, last = string.find(member, sep, #begin + 1, true)
    if last then
      local list = ARGV[3] .. string.sub(member, last + 1)
      redis.call('LPUSH', list, ARGV[4])
      redis.call('PEXPIRE', list, ARGV[5])
    end
  end
end
