-- Unbind a queue that expires, and delete its list.
-- KEYS: binding, deadlines, list. ARGV: exchange, member.

redis.call('SREM', KEYS[1], ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
end
redis.call('DEL', KEYS[3])
