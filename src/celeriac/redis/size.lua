-- Count the messages of a queue. KEYS: its block. ARGV: separator, now, how keys of what is held begin, steps …
-- Returns {ready, scheduled, held}.

local b = 1

local function main()
  local due = call('ZCOUNT', KEYS[b + SCHEDULE], '-inf', ARGV[2])
  local ready, held = due, 0
  for n = 4, #ARGV do
    ready = ready + call('LLEN', ready_key(b, ARGV[n]))
  end
  for _, holder in ipairs(call('HKEYS', KEYS[b + BEATS])) do
    held = held + call('HLEN', ARGV[3] .. holder)
  end
  return {ready, call('ZCARD', KEYS[b + SCHEDULE]) - due, held}
end

return answer(main)
