-- Bind a queue that expires: the binding goes when nobody renewed it.
-- KEYS: binding, deadlines. ARGV: exchange, milliseconds, members …

redis.call('SADD', KEYS[1], unpack(ARGV, 3))
local now = redis.call('TIME')
local deadline = now[1] * 1000 + math.floor(now[2] / 1000) + tonumber(ARGV[2])
local before = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not before or tonumber(before) < deadline then
  redis.call('ZADD', KEYS[2], string.format('%.0f', deadline), ARGV[1])
end
return 1
