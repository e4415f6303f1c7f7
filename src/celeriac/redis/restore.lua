-- Put a message back that a worker of Celery's took and did not settle, if it still has not.
-- KEYS: unacked, unacked_index, then lists. ARGV: delivery tag, then the message for each list. Returns 1 if it was.

local function main()
  if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
    redis.call('ZREM', KEYS[2], ARGV[1])
    return 0
  end
  for n = 3, #KEYS do
    redis.call('RPUSH', KEYS[n], ARGV[n - 1])
  end
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[1], ARGV[1])
  return 1
end

return main()
