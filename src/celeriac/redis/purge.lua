-- Delete what waits in a queue. KEYS: its block. ARGV: separator, steps … Returns how many messages it was.

local b = 1

local function main()
  local purged = call('ZCARD', KEYS[b + SCHEDULE])
  for n = 2, #ARGV do
    local key = ready_key(b, ARGV[n])
    purged = purged + call('LLEN', key)
    call('UNLINK', key)
  end
  call('UNLINK', KEYS[b + SCHEDULE], KEYS[b + SCHEDULED], KEYS[b + NEXT])
  return purged
end

return answer(main)
