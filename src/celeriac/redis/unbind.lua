-- Delete bindings whose deadline has passed, but those of exchanges that have permanent ones too.
-- KEYS: deadlines. ARGV: how the keys of bindings begin, and those of permanent ones. Returns how many exchanges.

local now = redis.call('TIME')
local overdue = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now[1] * 1000, 'LIMIT', 0, 100)
for _, exchange in ipairs(overdue) do
  if redis.call('EXISTS', ARGV[2] .. exchange) == 0 then
    redis.call('DEL', ARGV[1] .. exchange)
  end
  redis.call('ZREM', KEYS[1], exchange)
end
return #overdue
