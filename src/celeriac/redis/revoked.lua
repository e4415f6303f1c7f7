-- KEYS as of revoke.lua; ARGV: a position. Returns the last position, and id, position, until of each that came later.

local found = {redis.call('GET', KEYS[3]) or '0'}
local news = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf', 'WITHSCORES')
for n = 1, #news, 2 do
  local until_ = redis.call('ZSCORE', KEYS[2], news[n])
  if until_ then
    found[#found + 1] = news[n]
    found[#found + 1] = news[n + 1]
    found[#found + 1] = until_
  end
end
return found
