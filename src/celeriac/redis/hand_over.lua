-- Nobody of ours is left to look after a schedule: put a part of it into the lists, where Celery expects it.
-- KEYS: a queue's block. ARGV: separator. Returns how many are left; 0 if somebody is there after all.

local b = 1

local function main()
  if call('HLEN', KEYS[b + BEATS]) > 0 then
    return 0
  end
  unschedule(b, bounded(b, call('ZRANGE', KEYS[b + SCHEDULE], 0, 999)))
  return call('ZCARD', KEYS[b + SCHEDULE])
end

return answer(main)
