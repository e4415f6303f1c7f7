-- Look whether something can be claimed, in a way that the server tells when that changes: this is run after
-- CLIENT CACHING YES. All of KEYS is read; some servers remember what is read, others what is in KEYS.
-- ARGV: how many of KEYS, the last ones, hold the instant at which something is due; the instant that is known, or "".
-- Returns 1 if something is there, or is due earlier than is known.

local is_ready = 0
for n, key in ipairs(KEYS) do
  if n <= #KEYS - tonumber(ARGV[1]) then
    is_ready = math.max(is_ready, redis.call('EXISTS', key))
  else
    local due = redis.call('GET', key)
    if due and (ARGV[2] == '' or tonumber(due) < tonumber(ARGV[2])) then
      is_ready = 1
    end
  end
end
return is_ready
