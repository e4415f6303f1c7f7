-- KEYS: ids by position, ids by the instant until which they are revoked, the last position.
-- ARGV: now, until (microseconds since the epoch), ids.

local now, until_ = ARGV[1], tonumber(ARGV[2])

local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)
for first = 1, #expired, 1000 do
  local some = {unpack(expired, first, math.min(first + 999, #expired))}
  redis.call('ZREM', KEYS[1], unpack(some))
  redis.call('ZREM', KEYS[2], unpack(some))
end

-- By the clock, so that positions that were lost with the key, or to a replica, are not given again.
local time = redis.call('TIME')
local position = math.max(tonumber(redis.call('GET', KEYS[3]) or 0) + 1, time[1] * 1000000 + time[2])
position = string.format('%.0f', position)

for n = 3, #ARGV do
  local known = redis.call('ZSCORE', KEYS[2], ARGV[n])
  if not known or tonumber(known) < until_ then
    redis.call('ZADD', KEYS[2], ARGV[2], ARGV[n])
  end
  redis.call('ZADD', KEYS[1], position, ARGV[n])
end
redis.call('SET', KEYS[3], position)

local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if last[2] then
  local ttl = math.max(1, math.ceil((tonumber(last[2]) - tonumber(now)) / 1000))
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, string.format('%.0f', ttl))
  end
end
